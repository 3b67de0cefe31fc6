"""Fixed-step solvers: those that keep the geometry of Hamiltonian flow, and two that do not.

``symplectic_euler``, ``leapfrog``, ``yoshida4``, ``yoshida6``, ``yoshida8`` and ``adaptive_leapfrog`` need
H = T(p) + V(q): dynamics with ``velocity_of`` and ``force_of`` (the last also with ``energy``). ``tao`` and
``discrete_gradient`` need ``energy``, and a drift that is its own. ``implicit_midpoint`` and ``gauss4`` are
symplectic for every H and need the drift alone; ``rk4`` and ``euler`` take any vector field. All of them end
on every saved time exactly and never look at another row.

A trajectory that fails (an implicit step that does not settle) is NaN from there on and costs no other; where
a gradient is recorded, which it would spoil, RuntimeError says how many failed and what to do.

Source: Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import Dynamics, HasEnergy, Separable, Solver
from worldsim_kernels.solve import ODE, Hamiltonian, Step, Stepper
from worldsim_kernels.solve import Separable as SeparableTerm
from worldsim_kernels.solve.discrete_gradient import DiscreteGradient
from worldsim_kernels.solve.explicit import ExplicitRungeKutta
from worldsim_kernels.solve.extended import Tao
from worldsim_kernels.solve.fixed_point import Iteration
from worldsim_kernels.solve.gauss import GaussLegendre
from worldsim_kernels.solve.grid import substeps
from worldsim_kernels.solve.splitting import Splitting
from worldsim_kernels.solve.time_transformed import TimeTransformedLeapfrog

Longest = Annotated[
    float | None,
    Field(gt=0, description="longest step, in the units of time; null for one step between saved times"),
]
Tolerance = Annotated[
    float | None,
    Field(gt=0, description="change per iteration, relative to the state; null for 4 rounding units"),
]
Iterations = Annotated[int, Field(ge=1, description="iterations after which a step is given up")]
ANY = "use the solver implicit_midpoint or rk4"


class FixedStep:
    """Steps of one method, each interval between saved times in equal ones, the action of each held."""

    def __init__(self, stepper: Stepper, step: float | None) -> None:
        self.stepper, self.step = stepper, step
        self.name = stepper.name
        self.order = stepper.properties.order
        # One that carries more than (q, p) is symplectic in the space of both, not in (q, p).
        self.symplectic = stepper.properties.symplectic and not getattr(stepper, "remembers", False)

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]`` at ``times[0]``.

        ``actions[:, i]`` holds from ``times[i]`` to ``times[i + 1]``.
        Raises ValueError when the dynamics are noisy, or lack what the method needs, RuntimeError when a step
        cannot be solved and a gradient is recorded.
        """
        deterministic(dynamics, self.name)
        grid = substeps(times, self.step)
        driven = actions is not None
        frames, carry = [state], None
        for i, (h, count) in enumerate(grid):
            term = self.term(dynamics, state, times[i], None if actions is None else actions[:, i])
            begin = self.elapsed(times, i).double().expand(len(state))
            if carry is None or driven:
                carry = self.stepper.start(term, begin, frames[-1])
            y, length = frames[-1], torch.full_like(begin, h)
            for k in range(count):
                step = self.stepper.step(term, begin + k * h, length, y, carry)
                y, carry = self._checked(step), step.carry
            frames.append(y)
        return torch.stack(frames, 1)

    def term(self, dynamics: Any, state: Tensor, origin: Tensor, action: Tensor | None) -> Any:
        """What the stepper solves from ``origin`` on."""
        return ODE(lambda t, x: dynamics.drift(origin + t[0], x, action))

    def elapsed(self, times: Tensor, i: int) -> Tensor:
        """The stepper's time at ``times[i]``. It counts from there, so that a field gets times in full
        precision, whatever the dtype of the state."""
        return torch.zeros_like(times[i])

    def _checked(self, step: Step) -> Tensor:
        settled = step.settled
        if settled is None or bool(settled.all()):
            return step.y
        if step.y.requires_grad:
            raise RuntimeError(
                f"{self.name}: {int((~settled).sum())} of {len(settled)} trajectories could not take a step; "
                "take a smaller step, or check that the field is finite there"
            )
        return torch.where(settled.reshape(-1, *[1] * (step.y.dim() - 1)), step.y, float("nan"))


class Split(FixedStep):
    """The same for H = T(p) + V(q)."""

    def term(self, dynamics: Any, state: Tensor, origin: Tensor, action: Tensor | None) -> Any:
        """Raises ValueError when the dynamics are not separable, or are driven."""
        check_separable(dynamics, state, action, self.name)
        return SeparableTerm(dynamics.velocity_of, dynamics.force_of)


class Whole(FixedStep):
    """The same for any H."""

    def term(self, dynamics: Any, state: Tensor, origin: Tensor, action: Tensor | None) -> Any:
        """Raises ValueError when the dynamics have no energy, are driven, or move otherwise than by it."""
        check_energy(dynamics, state, action, self.name)
        term = Hamiltonian(dynamics.energy)
        check_hamiltonian(dynamics, term, state, origin, self.name)
        return term


class Transformed(FixedStep):
    """The time-transformed leapfrog, which finds its own steps between saved times."""

    def __init__(self, stepper: TimeTransformedLeapfrog) -> None:
        super().__init__(stepper, None)

    def term(self, dynamics: Any, state: Tensor, origin: Tensor, action: Tensor | None) -> Any:
        """Raises ValueError when the dynamics are not separable, have no energy, or are driven."""
        check_separable(dynamics, state, action, self.name)
        check_energy(dynamics, state, action, self.name)
        q = state.chunk(2, -1)[0]

        def energy(q: Tensor, p: Tensor) -> Tensor:
            found: Tensor = dynamics.energy(torch.cat([q, p], -1))
            return found

        # H = T + V gives both up to a constant that they share: V is H at rest.
        return SeparableTerm(
            lambda p, start: dynamics.velocity_of(p),
            lambda q, start: dynamics.force_of(q),
            (q,),
            potential=lambda q, start: energy(q, torch.zeros_like(q)),
            kinetic=lambda p, start: energy(start, p) - energy(start, torch.zeros_like(p)),
        )

    def elapsed(self, times: Tensor, i: int) -> Tensor:
        """From ``times[0]`` on: the orbit has a clock of its own."""
        return times[i] - times[0]


def deterministic(dynamics: Any, solver: str) -> None:
    """Raises ValueError for a stochastic differential equation, whose noise would be left out unnoticed."""
    if getattr(dynamics, "diffusion", None) is not None:
        raise ValueError(f"{solver} solves ordinary differential equations; this model has a diffusion")


def check_separable(dynamics: Any, state: Tensor, action: Tensor | None, solver: str) -> None:
    """Raises ValueError unless ``dynamics`` are H = T(p) + V(q) and nothing drives them."""
    if not isinstance(dynamics, Separable) or state.shape[-1] % 2:
        raise ValueError(
            f"{solver} splits H = T(p) + V(q), which {type(dynamics).__name__} does not offer "
            f"(velocity_of, force_of, a last state axis (q, p)): make the model separable, or {ANY}"
        )
    if action is not None:
        raise ValueError(f"{solver} knows no actions: {ANY}")


def check_energy(dynamics: Any, state: Tensor, action: Tensor | None, solver: str) -> None:
    """Raises ValueError unless ``dynamics`` have an energy over (q, p) and nothing drives them."""
    if not isinstance(dynamics, HasEnergy) or state.shape[-1] % 2:
        raise ValueError(
            f"{solver} follows an energy H(q, p), which {type(dynamics).__name__} does not offer (energy, a "
            f"last state axis (q, p)): {ANY}"
        )
    if action is not None:
        raise ValueError(f"{solver} knows no actions: {ANY}")


def check_hamiltonian(dynamics: Any, term: Hamiltonian, state: Tensor, t: Tensor, solver: str) -> None:
    """Raises ValueError where the drift is not (dH/dp, -dH/dq): friction, say, which would be left out
    unnoticed."""
    with torch.no_grad():
        drift = dynamics.drift(t, state, None)
        error, size = (drift - term(t, state)).abs(), drift.abs().amax()
    if bool((error > 100 * torch.finfo(state.dtype).eps ** 0.5 * size).any()):
        raise ValueError(
            f"{solver} follows the energy alone, and the drift of {type(dynamics).__name__} is not (dH/dp, "
            f"-dH/dq) of its energy: {ANY}"
        )


def symplectic_euler(*, step: Longest = None) -> Solver:
    """Kick, then drift: order 1, symplectic, one force per step; needs a separable Hamiltonian."""
    return Split(Splitting("symplectic_euler"), step)


def leapfrog(*, step: Longest = None) -> Solver:
    """Stoermer-Verlet: order 2, symplectic, reversible, one force per step; needs a separable Hamiltonian."""
    return Split(Splitting("leapfrog"), step)


def yoshida4(*, step: Longest = None) -> Solver:
    """Three leapfrogs per step (Yoshida 1990): order 4, symplectic, reversible; needs a separable
    Hamiltonian."""
    return Split(Splitting("yoshida4"), step)


def yoshida6(*, step: Longest = None) -> Solver:
    """Seven leapfrogs per step (Yoshida 1990): order 6, symplectic, reversible; needs a separable
    Hamiltonian."""
    return Split(Splitting("yoshida6"), step)


def yoshida8(*, step: Longest = None) -> Solver:
    """Seventeen leapfrogs per step (Yoshida's construction with the weights of Kahan and Li 1997): order 8,
    symplectic, reversible; needs a separable Hamiltonian."""
    return Split(Splitting("yoshida8"), step)


def adaptive_leapfrog(
    *,
    step: Annotated[
        float | None,
        Field(
            gt=0,
            description="how long the first step lasts, in the units of time; the others are as much shorter "
            "as the potential is deeper. Null for the interval between the first two saved times",
        ),
    ] = None,
    shift: Annotated[
        float | None,
        Field(
            description="steps are in proportion to 1 / (shift - V): an energy above that of every "
            "trajectory; null for 0 where its energy is below 0, else twice its energy"
        ),
    ] = None,
) -> Solver:
    """Time-transformed leapfrog (Mikkola and Tanikawa 1999, Preto and Tremaine 1999): order 2, steps that
    shorten near a centre, symplectic in the space that has time as a variable; needs a separable Hamiltonian
    and its energy."""
    return Transformed(TimeTransformedLeapfrog(first=step, shift=shift))


def tao(
    *,
    step: Longest = None,
    omega: Annotated[
        float,
        Field(gt=0, description="binding of the two copies of the state, radians per unit of time"),
    ] = 20.0,
) -> Solver:
    """Tao 2016: order 2, explicit for any Hamiltonian, symplectic in an extended space; needs an energy."""
    return Whole(Tao(omega=omega), step)


def discrete_gradient(
    *, step: Longest = None, tolerance: Tolerance = None, max_iterations: Iterations = 50
) -> Solver:
    """Gonzalez 1996: order 2, reversible, keeps any energy to rounding; not symplectic; needs an energy."""
    rule = Iteration(tolerance, 0.375, max_iterations)
    return Whole(DiscreteGradient(iteration=rule), step)


def implicit_midpoint(
    *, step: Longest = None, tolerance: Tolerance = None, max_iterations: Iterations = 50
) -> Solver:
    """x' = x + h f((x + x') / 2): order 2, symplectic for every Hamiltonian, reversible."""
    rule = Iteration(tolerance, max_iterations=max_iterations)
    return FixedStep(GaussLegendre("implicit_midpoint", rule), step)


def gauss4(*, step: Longest = None, tolerance: Tolerance = None, max_iterations: Iterations = 50) -> Solver:
    """Gauss-Legendre collocation with two stages: order 4, symplectic for every Hamiltonian, reversible."""
    return FixedStep(GaussLegendre("gauss4", Iteration(tolerance, max_iterations=max_iterations)), step)


def rk4(*, step: Longest = None) -> Solver:
    """The classical Runge-Kutta method: order 4, not symplectic (energy drifts in proportion to time)."""
    return FixedStep(ExplicitRungeKutta("rk4"), step)


def euler(*, step: Longest = None) -> Solver:
    """Explicit Euler: order 1. For comparisons: it gains energy without bound."""
    return FixedStep(ExplicitRungeKutta("euler"), step)


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    return {
        "symplectic_euler": symplectic_euler,
        "leapfrog": leapfrog,
        "yoshida4": yoshida4,
        "yoshida6": yoshida6,
        "yoshida8": yoshida8,
        "adaptive_leapfrog": adaptive_leapfrog,
        "tao": tao,
        "discrete_gradient": discrete_gradient,
        "implicit_midpoint": implicit_midpoint,
        "gauss4": gauss4,
        "rk4": rk4,
        "euler": euler,
    }
