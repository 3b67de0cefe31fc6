"""``solve(..., backend="native")``: the field as C, printed into a loop that keeps a row in each vector lane.

For fields of + - * / the bits are those of ``backend="torch"``, whatever the number of threads. Square roots
are correctly rounded, which those of ``torch.sqrt`` are not always. Other functions are the C library's,
within 4 units in the last place. Gradients come from the steps that are kept, as for every backend.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import PID
from worldsim_kernels.solve.explicit import ExplicitRungeKutta
from worldsim_kernels.solve.fused import (
    Arrays,
    Latest,
    Prepared,
    arrays_of,
    check_method,
    estimates,
    numbers_of,
    solved,
)
from worldsim_kernels.solve.printed import source
from worldsim_kernels.solve.solution import Solution
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
    *("accepted", "rejected", "saved", "step_t", "step_y", "size", "slope"),
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


def refuses(problem: Problem) -> str | None:
    """Why this solve cannot run here; None when it can (its field is then compiled)."""
    try:
        _prepared(problem)
    except (Refused, native.Unavailable, OSError) as refusal:
        return str(refusal)
    return None


def run(problem: Problem) -> Solution:
    """Solve ``problem``. Raises Refused or Unavailable, with the reason, where ``refuses`` gives one."""
    prepared = _prepared.taken(problem)
    with torch.no_grad():
        return solved(problem, "native", lambda capacity: _filled(problem, prepared, capacity))


def _prepare(problem: Problem) -> tuple[Traced, ctypes.CDLL]:
    check_method(problem)
    if problem.y0.device.type != "cpu":
        raise Refused(f"the state is on {problem.y0.device}")
    term, t0, t1, y0 = problem.term, problem.t0, problem.t1, problem.y0
    found = traced(term, t0, t1, y0)
    assert isinstance(problem.stepper, ExplicitRungeKutta)
    text = source(found.program, problem.stepper.tableau, isinstance(problem.controller, PID))
    library = native.generated("ode", text, ("-ffp-contract=off",))
    compare(found, term, t0, t1, y0, lambda *given: evaluated(library, *given))
    return found, library


_prepared = Latest(_prepare)


def evaluated(library: ctypes.CDLL, t: Tensor, y: Tensor, arguments: Tensor, data: Tensor) -> Tensor:
    """The slope ``[row, *state]`` as the library has it."""
    y, t = y.contiguous(), t.contiguous()
    slope = torch.empty_like(y)
    given = (t, y, arguments.contiguous(), data, slope)
    library.evaluate(ctypes.c_int64(len(y)), *(ctypes.c_void_p(each.data_ptr()) for each in given))
    return slope


def _filled(problem: Problem, prepared: Prepared, capacity: int) -> Arrays:
    """One run."""
    arrays = arrays_of(problem, prepared.traced, capacity)
    arrays["size"], arrays["slope"] = torch.empty_like(arrays["t"]), torch.empty_like(arrays["y"])
    rows = len(problem.y0)
    call = _Call(
        rows=rows,
        times=arrays["wanted"].shape[1],
        max_steps=problem.max_steps,
        capacity=capacity,
        exact=problem.exact,
        estimate=estimates(problem),
        # A row takes some hundred steps of some ten operations to a node.
        threads=native.threads(rows * len(prepared.traced.program.nodes) * 1e3),
        **numbers_of(problem),
        **{name: native.pointer(arrays[name]) for name in _ARRAYS},
    )
    prepared.code.solve(ctypes.byref(call))
    return arrays
