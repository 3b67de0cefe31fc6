"""Checks of a solver on the harmonic oscillator, whose solution is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.protocols import Solver
from worldsim.testing.checks import Checks, same, seeded
from worldsim.testing.worlds import Oscillator

HORIZON = 4.0
ACCURATE = 3e-5
"""An adaptive method keeps its tolerance and has no order to be seen."""


def check_solver(checks: Checks, build: Callable[[], Solver]) -> None:
    solver = build()
    checks.that(isinstance(solver.order, int) and solver.order >= 1, "order to be 1 or more", solver.order)
    checks.that(isinstance(solver.symplectic, bool), "symplectic to be true or false", solver.symplectic)
    start = seeded(0)
    state = torch.randn(5, 2, dtype=torch.float64, generator=start)
    times = torch.linspace(0, HORIZON, 9, dtype=torch.float64)
    with checks.leaving_random_state("solve"):
        states = solver.solve(Oscillator(), state, times, None, seeded(1))  # type: ignore[arg-type]
    checks.that(list(states.shape) == [5, 9, 2], "[trajectory, time, *state] = [5, 9, 2]", list(states.shape))
    checks.that(same(states[:, 0], state), "to begin at the given state")
    _check_order(checks, solver, state)
    if solver.symplectic:
        _check_area(checks, solver)


def _check_order(checks: Checks, solver: Solver, state: Tensor) -> None:
    errors = [_error(solver, state, frames) for frames in (17, 33)]
    seen = math.log2(errors[0] / errors[1]) if min(errors) > 0 else math.inf
    found = f"{seen:.2f} (errors {errors[0]:.2g} and {errors[1]:.2g})"
    holds = seen > solver.order - 0.5 or errors[0] < ACCURATE
    checks.that(holds, f"order {solver.order} when the step is halved", found)


def _error(solver: Solver, state: Tensor, frames: int) -> float:
    world = Oscillator()
    times = torch.linspace(0, HORIZON, frames, dtype=torch.float64)
    right = world.simulate(state, times, None, seeded(0)).states[:, 0]
    guess = solver.solve(world, state, times, None, None)  # type: ignore[arg-type]
    return float((guess - right).detach().abs().max())


def _check_area(checks: Checks, solver: Solver) -> None:
    """The flow of a linear Hamiltonian is a matrix; a symplectic one has determinant 1."""
    times = torch.linspace(0, HORIZON, 9, dtype=torch.float64)
    columns = solver.solve(Oscillator(), torch.eye(2, dtype=torch.float64), times, None, None)[:, -1]  # type: ignore[arg-type]
    area = float(torch.linalg.det(columns))
    checks.that(abs(area - 1) < 1e-9, "area kept by a symplectic method", f"a determinant of {area}")
