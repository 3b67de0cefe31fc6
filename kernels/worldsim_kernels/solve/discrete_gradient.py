"""Steps that keep any Hamiltonian to rounding: Gonzalez's discrete gradient.

    (y' - y) / h = Omega g(y, y'),     g = grad H(m) + (H(y') - H(y) - grad H(m) . d) / |d|^2 d,
    m = (y + y') / 2,  d = y' - y

so that g . d = H(y') - H(y), and H(y') - H(y) = h g^T Omega g = 0. Symmetric, hence reversible, and of order
2; not symplectic (no method is both for every H: Ge and Marsden 1988). Source: Gonzalez 1996, *Time
integration and discrete Hamiltonian systems*.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim_kernels.solve.fixed_point import Iteration, fixed_point
from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.splitting import check_halves
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.sums import dot
from worldsim_kernels.solve.terms import Hamiltonian, wide

# H loses eps H / |d| of its slope along d, which may be far above the rounding of the state where little
# moves: near an equilibrium the changes stop falling there.
_RULE = Iteration(rounding=0.375)


class DiscreteGradient(CubicHermite):
    """Solved by fixed-point iteration, which contracts when h |d^2 H| < 2 or so; one iteration evaluates H
    and its gradient once. A row that does not settle has ``settled`` False."""

    terms = (Hamiltonian,)
    start_evaluations = 1
    properties = Properties(2, reversible=True, energy_exact=True, implicit=True)

    def __init__(self, name: str = "discrete_gradient", iteration: Iteration | None = None) -> None:
        self.name = name
        self.iteration = iteration or _RULE

    def start(self, term: Hamiltonian, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The slope at the start, the first guess. Raises ValueError unless the last axis is (q, p)."""
        check_halves(self.name, y)
        with torch.no_grad():
            return (term(t, y),)

    def step(self, term: Hamiltonian, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""

        def equation(y: Tensor, h: Tensor) -> Callable[[Tensor], Tensor]:
            step, energy = wide(h, y), term.energy(y, *term.args)

            def slope(k: Tensor) -> Tensor:
                by_q, by_p = gonzalez(term, y, step * k, energy).chunk(2, -1)
                return torch.cat([by_p, -by_q], -1)

            return slope

        solved = fixed_point(equation, y, h, carry[0], self.iteration)
        end = y + wide(h, y) * solved.k
        with torch.no_grad():
            slope = term(t + h, end)
        return Step(end, carry=(slope,), settled=solved.settled, evaluations=solved.evaluations + 1)


def gonzalez(term: Hamiltonian, y: Tensor, d: Tensor, energy: Tensor) -> Tensor:
    """The discrete gradient ``[row, *state]`` between ``y`` and y + ``d``, with ``energy`` ``[row]`` = H(y);
    the gradient itself where d = 0."""
    g = term.slope(y + d / 2)
    square = dot(d, d)
    excess = term.energy(y + d, *term.args) - energy - dot(g, d)
    apart = square > 0
    along = torch.where(apart, excess, 0.0) / torch.where(apart, square, 1.0)
    return g + wide(along, d) * d
