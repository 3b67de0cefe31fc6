"""What a backend that runs the whole loop by itself is given, and the solution of what it gives back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import _MANTISSAS, PID
from worldsim_kernels.solve.explicit import ExplicitRungeKutta
from worldsim_kernels.solve.recording import Dense
from worldsim_kernels.solve.solution import Solution, Stats, Status, Steps
from worldsim_kernels.solve.terms import of_rows
from worldsim_kernels.solve.trace import Refused
from worldsim_kernels.solve.traced import Traced

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A field that was made into something that runs, and was compared."""

    problem: weakref.ref[Problem]
    traced: Traced
    code: Any


class Latest:
    """What was prepared for the problem that was asked about last, which is about to be run."""

    def __init__(self, prepare: Callable[[Problem], tuple[Traced, Any]]) -> None:
        self.prepare = prepare
        self.kept: Prepared | None = None

    def __call__(self, problem: Problem) -> Prepared:
        """Raises what ``prepare`` raises."""
        kept = self.kept
        if kept is None or kept.problem() is not problem:
            kept = self.kept = Prepared(weakref.ref(problem), *self.prepare(problem))
        return kept

    def taken(self, problem: Problem) -> Prepared:
        """The same, and it is forgotten."""
        prepared = self(problem)
        self.kept = None
        return prepared


def check_method(problem: Problem) -> None:
    """Raises Refused, with the reason, unless it is an explicit method without events."""
    if not isinstance(problem.stepper, ExplicitRungeKutta):
        raise Refused(f"it knows explicit Runge-Kutta methods alone, not {problem.stepper.name}")
    if problem.events:
        raise Refused("it knows no events")


def arrays_of(problem: Problem, traced: Traced, capacity: int) -> Arrays:
    """Tensors to read and to fill, all contiguous; ``capacity`` states of each row are kept as its steps."""
    y0 = problem.y0.detach().contiguous()
    n, state, device = len(y0), y0.shape[1:], y0.device
    counts = {name: torch.zeros(n, dtype=torch.int64, device=device) for name in ("accepted", "rejected")}
    control, times = problem.controller, problem.times
    if isinstance(control, PID):
        first = 0.0 if control.first is None else control.first
        rates = {"rtol": control.rtol, "atol": control.atol, "first": first}
    else:
        rates = {"first": control.step}
    times = problem.t0.new_empty(n, 0) if times is None else times.contiguous()
    return {
        "mantissas": _MANTISSAS.to(device),
        "t0": problem.t0.contiguous(),
        "t1": problem.t1.contiguous(),
        **{name: _rows(rates.get(name, 0.0), problem) for name in ("rtol", "atol", "first")},
        "wanted": times,
        "y0": y0,
        "arguments": traced.arguments.contiguous(),
        "data": traced.data,
        "t": torch.empty_like(problem.t0),
        "y": torch.empty_like(y0),
        "status": torch.empty(n, dtype=torch.int8, device=device),
        **counts,
        "saved": y0.new_full((*times.shape, *state), float("nan")),
        "step_t": problem.t0.new_empty(n, capacity),
        "step_y": y0.new_empty(n, capacity, *state),
    }


def numbers_of(problem: Problem) -> dict[str, float]:
    """The numbers of the step control by name."""
    control = problem.controller
    if not isinstance(control, PID):
        return {}
    order = problem.stepper.properties.error_order
    assert order is not None
    p, i, d = control.proportional, control.integral, control.derivative
    named = ("safety", "shrink", "grow", "smallest", "largest")
    return {
        "error_order": float(order + 1),
        "before": p + 2 * d,
        "now": i + p + d,
        "last": d,
        **{name: float(getattr(control, name)) for name in named},
    }


def estimates(problem: Problem) -> bool:
    """Whether the first step is estimated."""
    return isinstance(problem.controller, PID) and problem.controller.first is None


def solved(problem: Problem, backend: str, run: Callable[[int], Arrays]) -> Solution:
    """The solution by ``run(capacity)``, which fills ``arrays_of(problem, ..., capacity)``.

    Where steps are asked for it runs twice: the bits are the same again, so the second run has room for what
    the first one has counted.
    """
    arrays, steps = run(0), None
    if problem.keep_steps or problem.keep_dense:
        arrays = run(int(arrays["accepted"].max()) + 1)
        steps = _steps(arrays["accepted"], arrays["step_t"], arrays["step_y"])
    method = problem.stepper
    assert isinstance(method, ExplicitRungeKutta)
    per_step = len(method.tableau.a) - method.tableau.reuse
    start = method.start_evaluations + 2 * estimates(problem)
    accepted, rejected, y = arrays["accepted"], arrays["rejected"], arrays["y"]
    y[arrays["status"] > Status.EVENT] = float("nan")
    return Solution(
        arrays["t"],
        y,
        arrays["status"],
        Stats(accepted, rejected, start + per_step * (accepted + rejected)),
        saved=None if problem.times is None else arrays["saved"],
        steps=steps if problem.keep_steps else None,
        dense=_dense(problem, steps) if problem.keep_dense and steps is not None else None,
        backend=backend,
    )


def _rows(value: float | Tensor, problem: Problem) -> Tensor:
    rows = torch.as_tensor(value, dtype=torch.float64, device=problem.y0.device)
    return rows.detach().expand(len(problem.y0)).contiguous()


def _steps(count: Tensor, t: Tensor, y: Tensor) -> Steps:
    """After its last step a row repeats it."""
    place = torch.arange(t.shape[1], device=t.device).expand(len(count), -1).minimum(count[:, None])
    row = torch.arange(len(count), device=t.device)[:, None]
    return Steps(t[row, place], y[row, place], count)


def _dense(problem: Problem, steps: Steps) -> Dense:
    """The slopes of all steps again, all at once."""
    count, device = steps.t.shape[1] - 1, steps.t.device
    row, number = (torch.arange(count, device=device) < steps.count[:, None]).nonzero().unbind(1)
    place = torch.zeros(len(problem.y0), max(1, count), dtype=torch.int64, device=device)
    place[row, number] = torch.arange(len(row), device=device)
    t, y = steps.t[row, number], steps.y[row, number]
    h, term = steps.t[row, number + 1] - t, of_rows(problem.term, row)
    step = problem.stepper.step(term, t, h, y, problem.stepper.start(term, t, y))
    return Dense(problem, steps, place, h, y, replace(step, error=None, carry=()))
