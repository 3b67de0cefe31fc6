"""Fixed-step solvers: the symplectic ones, which keep the geometry of Hamiltonian flow, and two that do not.

``leapfrog``, ``yoshida4`` and ``yoshida6`` need H = T(p) + V(q): dynamics with ``velocity_of`` and
``force_of``. ``implicit_midpoint`` is symplectic for every H and needs the drift alone; ``rk4`` and ``euler``
take any vector field. All of them end a step exactly on every saved time and never look at another row.

Source: Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import Dynamics, Separable, Solver
from worldsim_kernels import integrate

Longest = Annotated[
    float | None,
    Field(
        gt=0,
        description="longest step, in the units of time; null for one step between saved times",
    ),
]
Advance = Callable[[Tensor, Tensor, float, Callable[[Tensor, Tensor], Tensor]], Tensor]


class Splitting:
    """A composition of leapfrogs with the given weights, for a separable Hamiltonian."""

    symplectic = True

    def __init__(self, name: str, step: float | None) -> None:
        self.name = name
        self.order = integrate.METHODS[name].order
        self.weights = integrate.WEIGHTS[name]
        self.step = step

    def solve(
        self,
        dynamics: Dynamics,
        state: Tensor,
        times: Tensor,
        actions: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """``[trajectory, time, *state]`` from ``state`` ``[trajectory, *state]``, whose last axis is (q, p).

        Raises ValueError when the dynamics are not separable, are driven, or are noisy.
        """
        deterministic(dynamics, self.name)
        velocity, force = self._halves(dynamics, state, actions)
        q, p = state.chunk(2, -1)
        f = force(q)
        frames = [state]
        for h, count in integrate.substeps(times, self.step):
            for _ in range(count):
                q, p, f = integrate.kick_drift_kick(q, p, f, h, velocity, force, self.weights)
            frames.append(torch.cat([q, p], -1))
        return torch.stack(frames, 1)

    def _halves(self, dynamics: Any, state: Tensor, actions: Tensor | None) -> tuple[Any, Any]:
        if not isinstance(dynamics, Separable) or state.shape[-1] % 2:
            raise ValueError(
                f"{self.name} splits H = T(p) + V(q), which {type(dynamics).__name__} does not offer "
                "(velocity_of, force_of, a last state axis (q, p)): make the model separable, "
                "or use the solver implicit_midpoint or rk4"
            )
        if actions is not None:
            raise ValueError(f"{self.name} knows no actions: use the solver implicit_midpoint or rk4")
        return dynamics.velocity_of, dynamics.force_of


class FixedStep:
    """Steps of one method over a drift, the action of each interval held."""

    def __init__(self, name: str, advance: Advance, step: float | None) -> None:
        self.name = name
        self.order = integrate.METHODS[name].order
        self.symplectic = integrate.METHODS[name].symplectic
        self.advance = advance
        self.step = step

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
        Raises ValueError when the dynamics are noisy, RuntimeError when an implicit step does not settle.
        """
        deterministic(dynamics, self.name)
        frames = [state]
        for i, (h, count) in enumerate(integrate.substeps(times, self.step)):
            field = _held(dynamics, actions, i)
            x = frames[-1]
            for k in range(count):
                x = self.advance(times[i] + k * h, x, h, field)
            frames.append(x)
        return torch.stack(frames, 1)


def deterministic(dynamics: Any, solver: str) -> None:
    """Raises ValueError for a stochastic differential equation, whose noise would be left out unnoticed."""
    if getattr(dynamics, "diffusion", None) is not None:
        raise ValueError(f"{solver} solves ordinary differential equations; this model has a diffusion")


def _held(dynamics: Dynamics, actions: Tensor | None, i: int) -> Callable[[Tensor, Tensor], Tensor]:
    action = None if actions is None else actions[:, i]
    return lambda t, x: dynamics.drift(t, x, action)


def leapfrog(*, step: Longest = None) -> Solver:
    """Stoermer-Verlet: order 2, symplectic, reversible, one force per step; needs a separable Hamiltonian."""
    return Splitting("leapfrog", step)


def yoshida4(*, step: Longest = None) -> Solver:
    """Three leapfrogs per step (Yoshida 1990): order 4, symplectic, reversible; needs a separable
    Hamiltonian."""
    return Splitting("yoshida4", step)


def yoshida6(*, step: Longest = None) -> Solver:
    """Seven leapfrogs per step (Yoshida 1990): order 6, symplectic, reversible; needs a separable
    Hamiltonian."""
    return Splitting("yoshida6", step)


def implicit_midpoint(
    *,
    step: Longest = None,
    tolerance: Annotated[
        float | None,
        Field(gt=0, description="change per iteration, relative to the state; null for 32 rounding units"),
    ] = None,
    max_iterations: Annotated[int, Field(ge=1, description="iterations after which a step is given up")] = 50,
) -> Solver:
    """x' = x + h f((x + x') / 2): order 2, symplectic for every Hamiltonian, reversible."""

    def advance(t: Tensor, x: Tensor, h: float, field: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        # Rows settle one by one, so a row must be one axis: all bodies of a trajectory settle together.
        middle = t + h / 2
        flat = integrate.implicit_midpoint(
            x.flatten(1), h, lambda y: field(middle, y.view_as(x)).flatten(1), tolerance, max_iterations
        )
        return flat.view_as(x)

    return FixedStep("implicit_midpoint", advance, step)


def rk4(*, step: Longest = None) -> Solver:
    """The classical Runge-Kutta method: order 4, not symplectic (energy drifts in proportion to time)."""
    return FixedStep("runge_kutta4", integrate.runge_kutta4, step)


def euler(*, step: Longest = None) -> Solver:
    """Explicit Euler: order 1. For comparisons: it gains energy without bound."""
    return FixedStep("euler", integrate.euler, step)


@hookimpl
def worldsim_solvers() -> dict[str, Callable[..., Solver]]:
    return {
        "leapfrog": leapfrog,
        "yoshida4": yoshida4,
        "yoshida6": yoshida6,
        "implicit_midpoint": implicit_midpoint,
        "rk4": rk4,
        "euler": euler,
    }
