"""The whole adaptive solve as one compiled graph: ``torch.while_loop`` under ``torch.compile``.

Steps, their control and their order of operations are those of the eager loop; states lie as
``[component, row]``, so that an element-wise field runs along the rows. Rows wait for the last one. The first
call with a field takes torch many seconds (it keeps what it made on disk, for later processes): this is for
fields that are called often and that the native backend cannot print.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import PID, controlled, norm
from worldsim_kernels.solve.eager import RUNNING, Loop, ratio
from worldsim_kernels.solve.explicit import ExplicitRungeKutta
from worldsim_kernels.solve.solution import Solution, Status
from worldsim_kernels.solve.terms import ODE

State = tuple[Tensor, ...]
"""t, y, last slope, size, levels, slowed, accepted, rejected, status; states are ``[component, row]``."""

_numbers = itertools.count()


def refuses(problem: Problem) -> str | None:
    """Why this solve cannot be compiled; None when it can."""
    if not isinstance(problem.stepper, ExplicitRungeKutta) or not isinstance(problem.controller, PID):
        return "it compiles explicit Runge-Kutta methods with a PID controller alone"
    if not isinstance(problem.term, ODE):
        return f"it compiles an ODE, not {type(problem.term).__name__}"
    if problem.events or problem.keep_steps or problem.keep_dense or problem.times is not None:
        return (
            "it gives the ends of rows alone: no saved times, steps or dense output, no events, no gradient"
        )
    return None


def run(problem: Problem) -> Solution:
    """Solve ``problem``; the start is eager."""
    with torch.no_grad():
        loop = Loop(replace(problem, compact=False))
        loop.begin()
        rows, pid, stepper = loop.rows, problem.controller, problem.stepper
        if not len(rows):
            return replace(loop.finish(), backend="compiled")
        assert isinstance(pid, PID)
        assert isinstance(stepper, ExplicitRungeKutta)
        y = rows.y.flatten(1).T.contiguous()
        slope = rows.carry[0].flatten(1).T.contiguous() if rows.carry else torch.zeros_like(y)
        plain, shape = replace(pid, rtol=1.0, atol=1.0, first=None), tuple(problem.y0.shape[1:])
        whole = compiled(problem.term.field, stepper.name, plain, shape)
        status = rows.status.long()
        state = (
            rows.t,
            y,
            slope,
            rows.size,
            rows.levels.T.contiguous(),
            rows.slowed,
            rows.accepted,
            rows.rejected,
            status,
        )
        wide = [
            torch.as_tensor(x, dtype=y.dtype).expand(len(rows)).contiguous() for x in (pid.rtol, pid.atol)
        ]
        most = torch.tensor(problem.max_steps)
        end = whole(state, (rows.t1, rows.sign, *wide, most), problem.term.args)
        rows.t, rows.y = end[0], end[1].T.reshape(rows.y.shape)
        rows.accepted, rows.rejected, rows.status = end[6], end[7], end[8].to(torch.int8)
        each = len(stepper.tableau.b) - stepper.tableau.reuse
        rows.evaluations = rows.evaluations + each * (rows.accepted + rows.rejected)
        return replace(loop.finish(), backend="compiled")


@lru_cache(maxsize=64)
def compiled(
    field: Callable[..., Tensor], method: str, pid: PID, shape: tuple[int, ...]
) -> Callable[..., State]:
    """The loop of one field, method, controller (whose tolerances are arguments) and shape of state."""
    stepper = ExplicitRungeKutta(method)
    order = (stepper.properties.error_order or 0) + 1

    def attempt(state: State, fixed: State, args: State) -> State:
        t, y, slope, size, levels, slowed, accepted, rejected, status = state
        t1, sign, rtol, atol, most = fixed
        running = status == RUNNING
        gap = (t1 - t).abs()
        ahead = torch.where(size * (1 + 1e-9) >= gap, t1, t + sign * size)
        ahead = torch.where(running, ahead, t)
        term = ODE(lambda s, x, *rest: field(s, x.unflatten(1, shape), *rest).flatten(1), args)
        before = y.T
        step = stepper.step(term, t, ahead - t, before, (slope.T,))
        assert step.error is not None
        after = step.carry[0] if step.carry else step.y
        finite = step.y.isfinite().all(1) & after.isfinite().all(1)
        scale = atol[:, None] + rtol[:, None] * torch.maximum(before.abs(), step.y.abs())
        said = controlled(pid, order, norm(ratio(step.error, scale)), finite, size, gap, levels, slowed)
        accept = running & said.accept
        size = torch.where(running, said.size, size)
        slowed = torch.where(running, said.slowed, slowed)
        levels = torch.where(accept, said.levels, levels)
        stuck = running & ~accept & ((t + sign * size == t) | (size < pid.smallest))
        accepted, rejected = accepted + accept.long(), rejected + (running & ~accept).long()
        t = torch.where(accept, ahead, t)
        status = torch.where(accept & (t == t1), int(Status.DONE), status)
        over = (status == RUNNING) & (accepted + rejected >= most)
        status = torch.where(over, int(Status.MAX_STEPS), status)
        reason = torch.where(finite, int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE))
        status = torch.where(stuck & (status == RUNNING), reason, status)
        y = torch.where(accept, step.y.T, y).contiguous()
        slope = torch.where(accept, after.T, slope).contiguous()
        return t, y, slope, size, levels, slowed, accepted, rejected, status

    def whole(state: State, fixed: State, args: State) -> State:
        def going(*state: Tensor) -> Tensor:
            return (state[-1] == RUNNING).any()

        def body(*state: Tensor) -> State:
            return attempt(state, fixed, args)

        found: State = torch.while_loop(going, body, state)  # type: ignore[no-untyped-call]
        return found

    # torch counts what it has compiled by code object, and gives up after a few: each field has its own.
    code = whole.__code__.replace(co_name=f"solve_{next(_numbers)}")
    own: Any = FunctionType(code, globals(), code.co_name, None, whole.__closure__)
    made: Callable[..., State] = torch.compile(own, fullgraph=True)
    return made
