"""``solve(..., backend="native")``: the field as C, printed into a loop that keeps a row in each vector lane.

For fields of + - * / and square roots the bits are those of ``backend="torch"``, whatever the number of
threads. Other functions are the C library's, within 4 units in the last place. Gradients come from the steps
that are kept, as for every backend.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import _MANTISSAS, PID
from worldsim_kernels.solve.explicit import ExplicitRungeKutta
from worldsim_kernels.solve.printed import source
from worldsim_kernels.solve.recording import Dense
from worldsim_kernels.solve.solution import Solution, Stats, Status, Steps
from worldsim_kernels.solve.terms import of_rows
from worldsim_kernels.solve.trace import Refused
from worldsim_kernels.solve.traced import Traced, compare, traced

_WHOLE = ("rows", "times", "max_steps", "capacity", "exact", "estimate", "threads")
_REAL = ("error_order", "before", "now", "last", "safety", "shrink", "grow", "smallest", "largest")
_ARRAYS = (
    *(
        "mantissas",
        "t0",
        "t1",
        "rtol",
        "atol",
        "first",
        "wanted",
        "y0",
        "arguments",
        "data",
        "t",
        "y",
        "status",
    ),
    *("accepted", "rejected", "evaluations", "saved", "step_t", "step_y", "size", "slope"),
)


class _Call(ctypes.Structure):
    """``call_t`` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _WHOLE),
        *((name, ctypes.c_double) for name in _REAL),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        ("next", ctypes.c_int64),
        ("levels", ctypes.c_double * 256),
    )


@dataclass(frozen=True)
class _Prepared:
    problem: weakref.ref[Problem]
    traced: Traced
    library: ctypes.CDLL


_last: list[_Prepared] = []
"""Of the problem that was asked about last, which is about to be run."""


def refuses(problem: Problem) -> str | None:
    """Why this solve cannot run here; None when it can (its field is then compiled)."""
    try:
        _prepare(problem)
    except (Refused, native.Unavailable, OSError) as refusal:
        return str(refusal)
    return None


def run(problem: Problem) -> Solution:
    """Solve ``problem``. Raises Refused, with the reason, where ``refuses`` gives one."""
    prepared = _prepare(problem)
    with torch.no_grad():
        solution, steps = _solved(problem, prepared, 0)
        if problem.keep_steps or problem.keep_dense:
            # The bits are the same again, so a second run has what the first one has counted.
            solution, steps = _solved(problem, prepared, int(solution.stats.accepted.max()) + 1)
        kept = steps if problem.keep_steps else None
        dense = _dense(problem, steps) if problem.keep_dense and steps is not None else None
    return replace(solution, steps=kept, dense=dense)


def _prepare(problem: Problem) -> _Prepared:
    """Raises Refused or Unavailable, with the reason."""
    for each in _last:
        if each.problem() is problem:
            return each
    if not isinstance(problem.stepper, ExplicitRungeKutta):
        raise Refused(f"it knows explicit Runge-Kutta methods alone, not {problem.stepper.name}")
    if problem.events:
        raise Refused("it knows no events")
    if problem.y0.device.type != "cpu":
        raise Refused(f"the state is on {problem.y0.device}")
    term, t0, t1, y0 = problem.term, problem.t0, problem.t1, problem.y0
    if not len(y0) or not y0[0].numel():
        raise Refused("there are no rows or no components")
    found = traced(term, t0, t1, y0)
    text = source(found.program, problem.stepper.tableau, isinstance(problem.controller, PID))
    library = native.generated("ode", text, ("-ffp-contract=off",))
    compare(found, term, t0, t1, y0, lambda *given: _evaluated(library, *given))
    prepared = _Prepared(weakref.ref(problem), found, library)
    _last[:] = [prepared]
    return prepared


def _evaluated(library: ctypes.CDLL, t: Tensor, y: Tensor, arguments: Tensor, data: Tensor) -> Tensor:
    """The slope as the library has it."""
    y, t = y.contiguous(), t.contiguous()
    slope = torch.empty_like(y)
    given = (t, y, arguments.contiguous(), data, slope)
    library.evaluate(ctypes.c_int64(len(y)), *(ctypes.c_void_p(each.data_ptr()) for each in given))
    return slope


def _solved(problem: Problem, prepared: _Prepared, capacity: int) -> tuple[Solution, Steps | None]:
    """One run, with so many states of each row kept."""
    y0 = problem.y0.detach().contiguous()
    n, state = len(y0), y0.shape[1:]
    counts = torch.zeros(3, n, dtype=torch.int64)
    times = problem.times
    saved = None if times is None else y0.new_full((*times.shape, *state), float("nan"))
    arrays = {
        "mantissas": _MANTISSAS,
        "t0": problem.t0.contiguous(),
        "t1": problem.t1.contiguous(),
        "wanted": None if times is None else times.contiguous(),
        "y0": y0,
        "arguments": prepared.traced.arguments.contiguous(),
        "data": prepared.traced.data,
        "t": torch.empty(n, dtype=torch.float64),
        "y": torch.empty_like(y0),
        "status": torch.empty(n, dtype=torch.int8),
        **dict(zip(("accepted", "rejected", "evaluations"), counts)),
        "saved": saved,
        "step_t": torch.empty(n, capacity, dtype=torch.float64),
        "step_y": y0.new_empty(n, capacity, *state),
        "size": torch.empty(n, dtype=torch.float64),
        "slope": torch.empty_like(y0),
    }
    # Some ten operations to a node in a stage, of a few hundred steps to a row.
    threads = native.threads(n * len(prepared.traced.program.nodes) * 1e4)
    call = _Call(
        rows=n,
        times=0 if times is None else times.shape[1],
        max_steps=problem.max_steps,
        capacity=capacity,
        exact=problem.exact,
        threads=threads,
    )
    _set_control(call, problem, arrays)
    for name, tensor in arrays.items():
        setattr(call, name, native.pointer(tensor))
    prepared.library.solve(ctypes.byref(call))
    t, y, status = arrays["t"], arrays["y"], arrays["status"]
    assert t is not None
    assert y is not None
    assert status is not None
    y[status > Status.EVENT] = float("nan")
    solution = Solution(t, y, status, Stats(*counts), saved=saved, backend="native")
    return solution, _steps(counts[0], arrays["step_t"], arrays["step_y"]) if capacity else None


def _set_control(call: _Call, problem: Problem, arrays: dict[str, Tensor | None]) -> None:
    """The numbers of the step control."""
    control = problem.controller
    if not isinstance(control, PID):
        arrays["first"] = _rows(control.step, problem)
        return
    order = problem.stepper.properties.error_order
    assert order is not None
    p, i, d = control.proportional, control.integral, control.derivative
    call.error_order, call.estimate = order + 1, control.first is None
    call.before, call.now, call.last = p + 2 * d, i + p + d, d
    call.safety, call.shrink, call.grow = control.safety, control.shrink, control.grow
    call.smallest, call.largest = control.smallest, control.largest
    arrays["rtol"], arrays["atol"] = _rows(control.rtol, problem), _rows(control.atol, problem)
    arrays["first"] = None if control.first is None else _rows(control.first, problem)


def _rows(value: float | Tensor, problem: Problem) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().expand(len(problem.y0)).contiguous()


def _steps(count: Tensor, t: Tensor | None, y: Tensor | None) -> Steps:
    """After its last step a row repeats it."""
    assert t is not None
    assert y is not None
    place = torch.arange(t.shape[1]).expand(len(count), -1).minimum(count[:, None])
    row = torch.arange(len(count))[:, None]
    return Steps(t[row, place], y[row, place], count)


def _dense(problem: Problem, steps: Steps) -> Dense:
    """The slopes of all steps again, all at once."""
    row, number = (torch.arange(steps.t.shape[1] - 1) < steps.count[:, None]).nonzero().unbind(1)
    place = torch.zeros(len(problem.y0), max(1, steps.t.shape[1] - 1), dtype=torch.int64)
    place[row, number] = torch.arange(len(row))
    t, y = steps.t[row, number], steps.y[row, number]
    h, term = steps.t[row, number + 1] - t, of_rows(problem.term, row)
    step = problem.stepper.step(term, t, h, y, problem.stepper.start(term, t, y))
    return Dense(problem, steps, place, h, y, replace(step, error=None, carry=()))
