"""Gauss-Legendre collocation, symplectic for every Hamiltonian, separable or not.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),    y' = y + h sum_i b_i k_i

One stage is the implicit midpoint rule. Source: Hairer, Lubich, Wanner 2006, *Geometric Numerical
Integration*, II.1.3 and theorem VI.4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.fixed_point import Iteration, fixed_point
from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, wide


@dataclass(frozen=True)
class Collocation:
    """Coefficients a, b and c of s stages; the order is 2 s."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


_ROOT = 3**0.5 / 6
COLLOCATIONS: Mapping[str, Collocation] = MappingProxyType(
    {
        "implicit_midpoint": Collocation(((0.5,),), (1.0,), (0.5,)),
        "gauss4": Collocation(
            ((0.25, 0.25 - _ROOT), (0.25 + _ROOT, 0.25)), (0.5, 0.5), (0.5 - _ROOT, 0.5 + _ROOT)
        ),
    }
)


class GaussLegendre(CubicHermite):
    """A method of ``COLLOCATIONS``, its stages found by fixed-point iteration from the slope at the start.

    That contracts when h |df/dy| < 2 or so: meant for fields that are not stiff. A row that does not settle
    has ``settled`` False. Raises ValueError for an unknown name.
    """

    terms = (ODE, Separable, Hamiltonian)
    start_evaluations = 1

    def __init__(self, name: str = "implicit_midpoint", iteration: Iteration | None = None) -> None:
        if name not in COLLOCATIONS:
            raise ValueError(f"there is no collocation {name!r}; there are {', '.join(COLLOCATIONS)}")
        self.name, self.method = name, COLLOCATIONS[name]
        self.iteration = iteration or Iteration()
        self.properties = Properties(
            2 * len(self.method.b), symplectic=True, volume_preserving=True, reversible=True, implicit=True
        )

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The slope at the start, from which the stages are guessed."""
        with torch.no_grad():
            return (term(t, y),)

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        method = self.method

        def equation(y: Tensor, h: Tensor) -> Callable[[Tensor], Tensor]:
            def stages(k: Tensor) -> Tensor:
                slopes = k.unbind(1)
                return torch.stack(
                    [
                        term(t + c * h, y + wide(h, y) * combined(row, slopes))
                        for c, row in zip(method.c, method.a)
                    ],
                    1,
                )

            return stages

        guess = torch.stack([carry[0]] * len(method.b), 1)
        solved = fixed_point(equation, y, h, guess, self.iteration)
        end = y + wide(h, y) * combined(method.b, solved.k.unbind(1))
        with torch.no_grad():
            slope = term(t + h, end)
        evaluations = len(method.b) * solved.evaluations + 1
        return Step(end, carry=(slope,), settled=solved.settled, evaluations=evaluations)


def combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Sum of ``weights[i] * slopes[i]`` from left to right, which has the same bits in every batch."""
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:]):
        total = total + weight * slope
    return total
