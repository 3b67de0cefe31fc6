"""``solve(..., backend="triton")``: the field printed into a Triton kernel that holds the whole loop.

A program of the kernel solves a block of rows and asks nothing of the host until they have ended. With
Triton's interpreter the bits of fields of + - * / and roots are those of ``backend="torch"``; on a GPU they
should be, for nothing is contracted and quotients and roots are rounded correctly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from worldsim_kernels import backends, native
from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import PID, TINY
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
from worldsim_kernels.solve.printed_triton import POINTERS, source
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.trace import Refused
from worldsim_kernels.solve.traced import Traced, compare, evaluate, traced
from worldsim_kernels.solve.triton_text import unprintable

MOST = 1000
"""Nodes of a field; more, seven times over, take the compiler minutes."""

BLOCK = 32
"""Rows of a program: one warp, so that no more of them wait for the longest."""


def refuses(problem: Problem) -> str | None:
    """Why this solve cannot run here; None when it can."""
    try:
        _prepared(problem)
    except (Refused, OSError) as refusal:
        return str(refusal)
    return None


def run(problem: Problem) -> Solution:
    """Solve ``problem``. Raises Refused, with the reason, where ``refuses`` gives one."""
    prepared = _prepared.taken(problem)
    with torch.no_grad():
        return solved(problem, "triton", lambda capacity: _filled(problem, prepared, capacity))


def _prepare(problem: Problem) -> tuple[Traced, ModuleType]:
    check_method(problem)
    missing = backends.missing_triton()
    if missing is not None:
        raise Refused(missing)
    if problem.y0.device.type != "cuda" and not backends.interpreted():
        raise Refused(f"the state is on {problem.y0.device}, not on a GPU")
    term, t0, t1, y0 = problem.term, problem.t0, problem.t1, problem.y0
    found = traced(term, t0, t1, y0)
    if len(found.program.nodes) > MOST:
        raise Refused(f"the field takes {len(found.program.nodes)} scalar operations, at most {MOST} can")
    without = unprintable(found.program)
    if without is not None:
        raise Refused(f"{without} has no Triton form here")
    compare(found, term, t0, t1, y0, partial(evaluate, found.program))
    assert isinstance(problem.stepper, ExplicitRungeKutta)
    return found, module(source(found.program, problem.stepper.tableau, isinstance(problem.controller, PID)))


_prepared = Latest(_prepare)


def module(text: str) -> ModuleType:
    """The module of this text, which Triton reads from a file: it is kept beside the native libraries."""
    name = f"worldsim_ode_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    path = native.cache_folder() / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        own = Path(f"{path}.{os.getpid()}")
        own.write_text(text)
        os.replace(own, path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    sys.modules[name] = made
    return made


def _filled(problem: Problem, prepared: Prepared, capacity: int) -> Arrays:
    """One launch."""
    from worldsim_kernels.gpu import ode

    arrays = arrays_of(problem, prepared.traced, capacity)
    numbers = {**numbers_of(problem), "tiny": TINY, "huge": 1 / TINY}
    device = problem.y0.device
    arrays["numbers"] = torch.tensor(
        [numbers.get(name, 0.0) for name in ode.NUMBERS], dtype=torch.float64, device=device
    )
    arrays["tables"] = ode.tables(arrays["mantissas"])
    rows = len(problem.y0)
    prepared.code.solve[(-(-rows // BLOCK),)](
        *(arrays[name.rstrip("_")] for name in POINTERS),
        *(rows, arrays["wanted"].shape[1], problem.max_steps, capacity),
        EXACT=problem.exact,
        ESTIMATE=estimates(problem),
        BLOCK=BLOCK,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return arrays
