"""What a solve keeps on its way: saved states, accepted steps, and steps to interpolate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.solution import Solution, Stats, Steps
from worldsim_kernels.solve.stepper import Step, Stepper, rows_of
from worldsim_kernels.solve.terms import of_rows


def interpolated(
    stepper: Stepper, term: Any, t: Tensor, h: Tensor, y: Tensor, step: Step, theta: Tensor
) -> Tensor:
    """``[row, *state]`` at t + theta h; ``term`` is that of the same rows."""
    prepare = getattr(stepper, "prepare", None)
    if prepare is not None:
        step = prepare(term, t, h, y, step)
    return stepper.interpolate(theta, h, y, step)


class Recording:
    """Fills while the loop runs; gives the solution in the end."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.entries: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Step]] = []
        self.jumps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.saved: Tensor | None = None
        if problem.times is not None:
            shape = (*problem.times.shape, *problem.y0.shape[1:])
            self.saved = problem.y0.new_full(shape, float("nan"))

    def save(self, row: Tensor, number: Tensor, y: Tensor) -> None:
        """The states ``y`` of the saved times ``number`` of rows ``row``, all ``[k]``."""
        assert self.saved is not None
        self.saved[row, number] = y

    def between(self, rows: Any, chosen: Tensor, h: Tensor, step: Step, time: Tensor) -> Tensor:
        """States of the rows ``chosen`` at ``time``, inside of their steps."""
        problem = self.problem
        theta = (time[chosen] - rows.t[chosen]) / h[chosen]
        term = of_rows(problem.term, rows.index[chosen])
        part = rows_of(step, chosen)
        return interpolated(problem.stepper, term, rows.t[chosen], h[chosen], rows.y[chosen], part, theta)

    def step(self, rows: Any, accept: Tensor, ahead: Tensor, h: Tensor, step: Step) -> None:
        """The accepted steps of one attempt."""
        if not (self.problem.keep_steps or self.problem.keep_dense):
            return
        chosen = accept.nonzero()[:, 0]
        part = rows_of(step, chosen)
        if not self.problem.keep_dense:
            part = replace(part, dense=(), error=None, carry=())
        number = rows.accepted[chosen] - 1
        self.entries.append((rows.index[chosen], number, ahead[chosen], h[chosen], rows.y[chosen], part))

    def jump(self, row: Tensor, number: Tensor, y: Tensor) -> None:
        """The states ``y`` from which ``row`` goes on after its ``number`` steps, all ``[k]``."""
        if self.problem.keep_steps or self.problem.keep_dense:
            self.jumps.append((row, number, y))

    def solution(self, t: Tensor, y: Tensor, status: Tensor, stats: Stats) -> Solution:
        """Everything that was asked for."""
        steps = self._steps(stats.accepted) if self.problem.keep_steps or self.problem.keep_dense else None
        dense = None
        if self.problem.keep_dense:
            assert steps is not None
            dense = Dense(self.problem, steps, *self._joined(stats.accepted))
        kept = steps if self.problem.keep_steps else None
        return Solution(t, y, status, stats, saved=self.saved, steps=kept, dense=dense)

    def _steps(self, count: Tensor) -> Steps:
        problem, n = self.problem, len(self.problem.y0)
        most = int(count.max()) if n else 0
        t = problem.t0[:, None].expand(n, most + 1).clone()
        y = problem.y0.unsqueeze(1).expand(n, most + 1, *problem.y0.shape[1:]).clone()
        for row, number, ahead, _, _, step in self.entries:
            t[row, number + 1] = ahead
            y[row, number + 1] = step.y
        for row, number, state in self.jumps:
            y[row, number] = state
        # After its last step a row repeats it.
        place = torch.arange(most + 1, device=t.device).expand(n, -1).minimum(count[:, None])
        row = torch.arange(n, device=t.device)[:, None]
        return Steps(t[row, place], y[row, place], count)

    def _joined(self, count: Tensor) -> tuple[Tensor, Tensor, Tensor, Step]:
        """Place of each row's n-th step among all steps ``[row, step]``; their h, y and ``Step``."""
        n, most = len(self.problem.y0), int(count.max()) if len(count) else 0
        place = torch.zeros(n, max(most, 1), dtype=torch.int64, device=count.device)
        first = 0
        for row, number, *_ in self.entries:
            place[row, number] = first + torch.arange(len(row), device=row.device)
            first += len(row)
        h = torch.cat([each[3] for each in self.entries]) if self.entries else self.problem.t0[:0]
        y = torch.cat([each[4] for each in self.entries]) if self.entries else self.problem.y0[:0]
        ends = [each[5] for each in self.entries]
        if not ends:
            return place, h, y, Step(y)
        dense = tuple(torch.cat(parts) for parts in zip(*(each.dense for each in ends)))
        return place, h, y, Step(torch.cat([each.y for each in ends]), dense=dense)


@dataclass(frozen=True)
class Dense:
    """The solution as a function of time."""

    problem: Problem
    steps: Steps
    place: Tensor
    h: Tensor
    y: Tensor
    step: Step

    def __call__(self, times: Tensor) -> Tensor:
        """``[row, time, *state]`` at ``times`` ``[time]`` or ``[row, time]``; NaN outside of what a row
        has solved."""
        problem, steps = self.problem, self.steps
        n = len(problem.y0)
        times = torch.as_tensor(times, dtype=torch.float64, device=problem.y0.device)
        times = times.expand(n, times.shape[-1]).contiguous()
        sign = torch.where(problem.t1 >= problem.t0, 1.0, -1.0).to(times)[:, None]
        last = steps.t.gather(1, steps.count[:, None])
        known = (sign * times >= sign * steps.t[:, :1]) & (sign * times <= sign * last)
        number = torch.searchsorted((sign * steps.t).contiguous(), sign * times) - 1
        number = number.clamp(min=0).minimum((steps.count[:, None] - 1).clamp(min=0))
        out = problem.y0.new_full((*times.shape, *problem.y0.shape[1:]), float("nan"))
        moved = known & (steps.count > 0)[:, None]
        row, column = moved.nonzero().unbind(1)
        if len(row):
            out[row, column] = self._between(row, number[row, column], times[row, column])
        at_start = times == steps.t[:, :1]
        start = problem.y0.unsqueeze(1).expand_as(out)
        return torch.where(at_start.reshape(*at_start.shape, *[1] * (out.dim() - 2)), start, out)

    def _between(self, row: Tensor, number: Tensor, time: Tensor) -> Tensor:
        """The states of ``row`` at ``time``, in its ``number``-th step, all ``[k]``."""
        problem, flat = self.problem, self.place[row, number]
        t, h, term = self.steps.t[row, number], self.h[flat], of_rows(self.problem.term, row)
        part = rows_of(self.step, flat)
        return interpolated(problem.stepper, term, t, h, self.y[flat], part, (time - t) / h)
