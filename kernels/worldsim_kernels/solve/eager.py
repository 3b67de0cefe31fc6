"""The loop, one tensor operation after another: every row has its own time, step and end.

A row that has ended is left out of later evaluations once enough have (``compact``); until then, or without
it, it takes steps of length zero at its last good state, so that nothing it does is ever not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import PID, Constant, controlled, level, norm, power
from worldsim_kernels.solve.events import Try
from worldsim_kernels.solve.recording import Recording
from worldsim_kernels.solve.solution import Solution, Stats, Status
from worldsim_kernels.solve.stepper import Step
from worldsim_kernels.solve.terms import of_rows, wide
from worldsim_kernels.solve.watching import Watch

RUNNING = -1
COMPACT_BELOW = 0.6
"""Rows are gathered again when fewer than this part of them still run: a gather costs about as much as a
stage, and below it the evaluations saved are worth more."""


@dataclass
class Rows:
    """The rows that are still evaluated, ``[k]`` each.

    index     their place in the problem
    target    where the step must end at the latest: the next saved time that is met exactly, or t1
    size      length of the next step, positive
    left      steps until ``target``, for steps of constant length; float64, which holds any number of them
    levels    log2 of the last two accepted error ratios, in steps of 1 / LEVELS, ``[k, 2]``
    slowed    the last attempt was rejected
    wanted    number of the next saved time
    """

    index: Tensor
    status: Tensor
    t: Tensor
    y: Tensor
    t1: Tensor
    sign: Tensor
    target: Tensor
    size: Tensor
    left: Tensor
    levels: Tensor
    slowed: Tensor
    wanted: Tensor
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor
    carry: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.index)

    def keep(self, mask: Tensor) -> Rows:
        """The rows of ``mask``."""
        kept = {name: value[mask] for name, value in vars(self).items() if name != "carry"}
        return Rows(**kept, carry=tuple(each[mask] for each in self.carry))


class Loop:
    """One solve."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.stepper = problem.stepper
        self.controller = problem.controller
        self.term = problem.term
        self.recording = Recording(problem)
        self.watch = Watch(problem, problem.term) if problem.events else None
        y0, n, device = problem.y0, len(problem.y0), problem.y0.device
        counts = (torch.zeros(n, dtype=torch.int64, device=device) for _ in range(4))
        self.rows = Rows(
            index=torch.arange(n, device=device),
            status=torch.full((n,), RUNNING, dtype=torch.int8, device=device),
            t=problem.t0.clone(),
            y=y0,
            t1=problem.t1,
            sign=torch.where(problem.t1 >= problem.t0, 1.0, -1.0).to(problem.t0),
            target=problem.t1,
            size=torch.zeros_like(problem.t0),
            left=torch.zeros_like(problem.t0),
            levels=torch.zeros(n, 2, dtype=torch.float64, device=device),
            slowed=torch.zeros(n, dtype=torch.bool, device=device),
            wanted=next(counts),
            accepted=next(counts),
            rejected=next(counts),
            evaluations=next(counts),
            carry=(),
        )
        self.out = self.rows  # every row, as it ended

    def run(self) -> Solution:
        """Until every row has ended."""
        self.begin()
        while len(self.rows):
            self._attempt()
            self._tidy()
        return self.finish()

    # How a row begins.

    def begin(self) -> None:
        """Everything before the first attempt."""
        rows = self.rows
        rows.carry = self.stepper.start(self.term, rows.t, rows.y)
        rows.evaluations = rows.evaluations + getattr(self.stepper, "start_evaluations", 0)
        self._keep_starts()
        good = self._finite(rows.y)
        for each in rows.carry:
            good &= self._finite(each)
        if self.watch is not None:
            good &= ~self.watch.broken
        self._end(~good, Status.NOT_FINITE)
        self._end((rows.status == RUNNING) & (rows.t == rows.t1), Status.DONE)
        self._aim(torch.ones_like(good))
        if isinstance(self.controller, PID):
            self._first_steps(self.controller)
        self._tidy()

    def _keep_starts(self) -> None:
        rows = self.rows
        if self.problem.times is None:
            return
        while True:
            due = self._wanted_time() == rows.t
            if not bool(due.any()):
                return
            self.recording.save(rows.index[due], rows.wanted[due], rows.y[due])
            rows.wanted = rows.wanted + due

    def _first_steps(self, controller: PID) -> None:
        rows = self.rows
        whole = (rows.t1 - rows.t).abs()
        if controller.first is None:
            size = self._estimate(controller)
        else:
            size = torch.as_tensor(controller.first, dtype=torch.float64, device=rows.t.device).expand(
                len(rows)
            )
        rows.size = torch.minimum(size, whole).clamp(controller.smallest, controller.largest)

    def _estimate(self, controller: PID) -> Tensor:
        """Hairer, Norsett, Wanner 1993, II.4, algorithm "starting step size"."""
        rows = self.rows
        slope = self.term(rows.t, rows.y)
        scale = self._scale(controller, rows.y, rows.y)
        d0, d1 = norm(ratio(rows.y, scale)), norm(ratio(slope, scale))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(small, 1e-6, 0.01 * d0 / torch.where(small, 1.0, d1))
        h0 = torch.minimum(h0, (rows.t1 - rows.t).abs())
        signed = rows.sign * h0
        ahead = self.term(rows.t + signed, rows.y + wide(signed, rows.y) * slope)
        rows.evaluations = rows.evaluations + 2
        d2 = norm(ratio(ahead - slope, scale)) / torch.where(h0 > 0, h0, 1.0)
        steepest = torch.fmax(d1, d2)
        flat = ~(steepest > 1e-15) | steepest.isinf()
        root = power(level(0.01 / torch.where(flat, 1.0, steepest)) / self._error_order())
        h1 = torch.where(flat, torch.fmax(torch.full_like(h0, 1e-6), h0 * 1e-3), root)
        # An infinite slope makes h0 zero, and a step of zero would never fail.
        return torch.where(h0 > 0, torch.fmin(100 * h0, h1), h1)

    # One attempt of every row.

    def _attempt(self) -> None:
        rows = self.rows
        running = rows.status == RUNNING
        ahead, signed = self._ahead(running)
        step = self.stepper.step(self.term, rows.t, signed, rows.y, rows.carry)
        finite = self._finite(step.y)
        for each in step.carry:
            finite &= self._finite(each)
        settled = torch.ones_like(finite) if step.settled is None else step.settled
        rows.evaluations = rows.evaluations + step.evaluations * running
        if isinstance(self.controller, PID):
            accept = self._control(self.controller, step, finite & settled, running)
            stuck = running & ~accept & (rows.t + rows.sign * rows.size == rows.t)
            stuck |= running & ~accept & (rows.size < self.controller.smallest)
        else:
            accept, stuck = running & finite & settled, running & ~(finite & settled)
        if self.watch is not None:
            accept, ahead, step = self._watched(self.watch, accept, ahead, step)
            signed = ahead - rows.t
        rows.accepted, rows.rejected = rows.accepted + accept, rows.rejected + (running & ~accept)
        self._advance(accept, ahead, signed, step)
        if self.watch is not None:
            self._jump(self.watch, accept)
        over = rows.accepted + rows.rejected >= self.problem.max_steps
        self._end((rows.status == RUNNING) & over, Status.MAX_STEPS)
        reason = torch.where(finite, int(Status.STEP_TOO_SMALL), int(Status.NOT_FINITE))
        reason = torch.where(finite & ~settled, int(Status.NOT_SETTLED), reason)
        self._end(stuck, reason)

    def _ahead(self, running: Tensor) -> tuple[Tensor, Tensor]:
        """Where the attempted step ends, and its length, the difference of the two times as they are."""
        rows = self.rows
        gap = (rows.target - rows.t).abs()
        if isinstance(self.controller, PID):
            last = rows.size * (1 + 1e-9) >= gap
            size = rows.size
        else:
            last = rows.left <= 1
            size = gap / rows.left.clamp(min=1)
        ahead = torch.where(last, rows.target, rows.t + rows.sign * size)
        ahead = torch.where(running, ahead, rows.t)
        return ahead, ahead - rows.t

    def _control(self, controller: PID, step: Step, good: Tensor, running: Tensor) -> Tensor:
        """Which rows accept their step; sets the size of the next."""
        rows = self.rows
        assert step.error is not None
        found = norm(ratio(step.error, self._scale(controller, rows.y, step.y)))
        gap = (rows.target - rows.t).abs()
        said = controlled(
            controller, self._error_order(), found, good, rows.size, gap, rows.levels.T, rows.slowed
        )
        rows.size = torch.where(running, said.size, rows.size)
        rows.slowed = torch.where(running, said.slowed, rows.slowed)
        accept = running & said.accept
        rows.levels = torch.where(accept[:, None], said.levels.T, rows.levels)
        return accept

    def _advance(self, accept: Tensor, ahead: Tensor, signed: Tensor, step: Step) -> None:
        rows = self.rows
        self._save_between(accept, ahead, signed, step)
        self.recording.step(rows, accept, ahead, signed, step)
        mask = accept.reshape(-1, *[1] * (rows.y.dim() - 1))
        rows.t = torch.where(accept, ahead, rows.t)
        rows.y = torch.where(mask, step.y, rows.y)
        rows.carry = tuple(
            torch.where(accept.reshape(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(step.carry, rows.carry)
        )
        self._end(accept & (rows.t == rows.t1), Status.DONE)
        if isinstance(self.controller, Constant):
            rows.left = rows.left - accept.double()
        self._aim(accept & (rows.t == rows.target))

    def _save_between(self, accept: Tensor, ahead: Tensor, signed: Tensor, step: Step) -> None:
        """The saved times that lie in accepted steps."""
        rows = self.rows
        if self.problem.times is None:
            return
        while True:
            time = self._wanted_time()
            due = accept & (rows.sign * (time - ahead) <= 0)
            if not bool(due.any()):
                return
            at_end = (time == ahead).reshape(-1, *[1] * (rows.y.dim() - 1))
            y = step.y
            if bool((due & (time != ahead)).any()):
                inside = (due & (time != ahead)).nonzero()[:, 0]
                value = self.recording.between(rows, inside, signed, step, time)
                y = y.index_copy(0, inside, value)
            y = torch.where(at_end, step.y, y)
            self.recording.save(rows.index[due], rows.wanted[due], y[due])
            rows.wanted = rows.wanted + due

    # Events.

    def _watched(
        self, watch: Watch, accept: Tensor, ahead: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Step]:
        """The accepted steps, cut short where an event stops their row."""
        rows, chosen = self.rows, accept.nonzero()[:, 0]
        self.stops = chosen[:0], chosen[:0]
        if not len(chosen):
            return accept, ahead, step
        whole = Try(self.stepper, self.term, rows.t, ahead - rows.t, rows.y, rows.carry, step)
        found, zeno = watch.look(whole.rows(chosen), rows.index[chosen], rows.accepted[chosen])
        none = torch.zeros_like(accept)
        broken, zeno = (none.index_copy(0, chosen, each) for each in (found.broken, zeno))
        self._end(broken, Status.NOT_FINITE)
        self._end(zeno, Status.ZENO)
        if found.step is not None:
            at = chosen[found.stopped]
            ended = none.index_copy(0, at, watch.ends[found.stopper])
            self._end(ended & ~broken, Status.EVENT)
            self.stops = at, found.stopper
            ahead = ahead.index_copy(0, at, found.ahead)
            step = placed(step, at, found.step)
            rows.evaluations = rows.evaluations.index_add(0, at, found.evaluations)
        return accept & ~broken, ahead, step

    def _jump(self, watch: Watch, accept: Tensor) -> None:
        """The resets of rows that an event has stopped."""
        rows, (at, which) = self.rows, self.stops
        going = accept[at] & ~watch.ends[which]
        at, which = at[going], which[going]
        if not len(at):
            return
        term, index = of_rows(self.term, at), rows.index[at]
        y = watch.jumped(which, rows.t[at], rows.y[at], term, index)
        rows.y = rows.y.index_copy(0, at, y)
        carry = self.stepper.start(term, rows.t[at], y)
        rows.carry = tuple(old.index_copy(0, at, new) for old, new in zip(rows.carry, carry))
        rows.evaluations[at] += getattr(self.stepper, "start_evaluations", 0)
        self.recording.jump(index, rows.accepted[at], y)
        bad = ~self._finite(y)
        for each in carry:
            bad |= ~self._finite(each)
        stopped = torch.zeros_like(accept)
        self._end(stopped.index_copy(0, at, bad), Status.NOT_FINITE)
        self._aim(stopped.index_fill(0, at, True))

    # Bookkeeping.

    def _aim(self, mask: Tensor) -> None:
        """The next target of the rows of ``mask``, and the number of constant steps to it."""
        rows = self.rows
        target = rows.t1
        if self.problem.times is not None and (self.problem.exact or isinstance(self.controller, Constant)):
            time = self._wanted_time()
            target = torch.where(time.isnan(), rows.t1, time)
        rows.target = torch.where(mask, target, rows.target)
        if isinstance(self.controller, Constant):
            longest = torch.as_tensor(self.controller.step, dtype=torch.float64, device=rows.t.device)
            longest = longest.expand(len(self.problem.y0))[rows.index]
            # The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1.
            steps = ((rows.target - rows.t).abs() / longest * (1 - 1e-9)).ceil().clamp(min=1)
            rows.left = torch.where(mask, steps, rows.left)

    def _wanted_time(self) -> Tensor:
        """The next saved time of each row, ``[k]``; NaN where there is none."""
        rows, times = self.rows, self.problem.times
        assert times is not None
        none_left = rows.wanted >= times.shape[1]
        if not times.shape[1]:
            return torch.full_like(rows.t, float("nan"))
        time = times[rows.index, rows.wanted.clamp(max=times.shape[1] - 1)]
        return torch.where(none_left, float("nan"), time)

    def _end(self, mask: Tensor, status: int | Tensor) -> None:
        rows = self.rows
        value = torch.as_tensor(status, dtype=torch.int8, device=rows.t.device)
        rows.status = torch.where(mask & (rows.status == RUNNING), value, rows.status)

    def _tidy(self) -> None:
        """Keep what has ended, and leave it out when enough has."""
        rows = self.rows
        ended = rows.status != RUNNING
        count = int(ended.sum())
        if count == len(rows):
            self.out = self._merged(ended)
            self.rows = rows.keep(~ended)
        elif self.problem.compact and count > (1 - COMPACT_BELOW) * len(rows):
            self.out = self._merged(ended)
            self.rows = rows.keep(~ended)
            self.term = of_rows(self.term, ~ended)

    def _merged(self, ended: Tensor) -> Rows:
        if self.out is self.rows:
            self.out = self.rows.keep(torch.ones_like(ended))
        index = self.rows.index[ended]
        for name in ("status", "t", "y", "accepted", "rejected", "evaluations"):
            merged = getattr(self.out, name).index_copy(0, index, getattr(self.rows, name)[ended])
            setattr(self.out, name, merged)
        return self.out

    def finish(self) -> Solution:
        """What was found, once every row has ended."""
        self._tidy()
        out = self.out
        bad = (out.status > Status.EVENT).reshape(-1, *[1] * (out.y.dim() - 1))
        y = torch.where(bad, float("nan"), out.y)
        stats = Stats(out.accepted, out.rejected, out.evaluations)
        solution = self.recording.solution(out.t, y, out.status, stats)
        return solution if self.watch is None else replace(solution, events=self.watch.log())

    def _scale(self, controller: PID, y: Tensor, end: Tensor) -> Tensor:
        rtol, atol = (
            wide(torch.as_tensor(x, dtype=torch.float64, device=y.device).expand(len(self.problem.y0)), y)[
                self.rows.index
            ]
            for x in (controller.rtol, controller.atol)
        )
        return atol + rtol * torch.maximum(y.abs(), end.abs())

    def _error_order(self) -> int:
        order = self.stepper.properties.error_order
        assert order is not None
        return order + 1

    @staticmethod
    def _finite(value: Tensor) -> Tensor:
        return value.isfinite().reshape(len(value), math.prod(value.shape[1:])).all(1)


def placed(step: Step, index: Tensor, part: Step) -> Step:
    """``step`` with the rows ``index`` from ``part``."""

    def put(whole: tuple[Tensor, ...], parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(old.index_copy(0, index, new) for old, new in zip(whole, parts))

    y = step.y.index_copy(0, index, part.y)
    return replace(step, y=y, carry=put(step.carry, part.carry), dense=put(step.dense, part.dense))


def ratio(value: Tensor, scale: Tensor) -> Tensor:
    """``value / scale``, 0 where ``value`` is 0 even if the scale is."""
    return torch.where(value == 0, torch.zeros_like(value), value / scale)


def run(problem: Problem) -> Any:
    """Solve ``problem`` without a graph."""
    with torch.no_grad():
        return Loop(problem).run()
