"""What a loop knows of its events from step to step, for all rows of the problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.events import BREATHLESS, INSTANT, Found, Try, find, signs
from worldsim_kernels.solve.solution import EventLog
from worldsim_kernels.solve.terms import of_rows


class Watch:
    """Signs held, crossings counted, and the log."""

    def __init__(self, problem: Problem, term: Any) -> None:
        self.problem, self.events = problem, problem.events
        n, device = len(problem.y0), problem.y0.device
        self.held, self.broken = signs(self.events, problem.t0, problem.y0, term)
        self.limit = torch.tensor(
            [torch.iinfo(torch.int64).max if event.limit is None else event.limit for event in self.events],
            device=device,
        )
        self.ends = torch.tensor([event.ends for event in self.events], device=device)
        self.crossed = torch.zeros(n, len(self.events), dtype=torch.int64, device=device)
        self.breathless = torch.zeros(n, dtype=torch.int64, device=device)
        self.stopped = torch.full((n,), float("-inf"), dtype=torch.float64, device=device)
        self.entries: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def look(self, tried: Try, index: Tensor, number: Tensor) -> tuple[Found, Tensor]:
        """What is found in the accepted steps of the rows ``index``, their ``number``-th, and which rows have
        crossed too often ``[row]`` bool."""
        found = find(self.events, tried, self.held[index])
        self.held[index] = found.held
        if not len(found.row):
            return found, torch.zeros_like(found.broken)
        row = index[found.row]
        self.entries.append((row, found.which, found.t, found.y, number[found.row]))
        once = torch.ones_like(row)
        self.crossed.index_put_((row, found.which), once, accumulate=True)
        stopped = index[found.stopped]
        instant = INSTANT * (found.ahead - self.problem.t0[stopped]).abs()
        soon = (found.ahead - self.stopped[stopped]).abs() <= instant
        self.breathless[stopped] = torch.where(soon, self.breathless[stopped] + 1, 0)
        self.stopped[stopped] = found.ahead
        return found, ((self.crossed > self.limit).any(1) | (self.breathless >= BREATHLESS))[index]

    def jumped(self, which: Tensor, t: Tensor, y: Tensor, term: Any, index: Tensor) -> Tensor:
        """The states from which the rows ``index``, stopped at ``t`` and ``y`` by events with a reset, go on;
        ``term`` is that of these rows."""
        after = y.clone()
        for number, event in enumerate(self.events):
            own = (which == number).nonzero()[:, 0]
            if event.reset is not None and len(own):
                after[own] = event.after(t[own], y[own], of_rows(term, own))
        # A sign that the jump itself changes is held without a crossing. One that had changed before, within
        # the tolerance by which states at an event are known, has still to fire.
        before, (now, _) = signs(self.events, t, y, term)[0], signs(self.events, t, after, term)
        self.held[index] = torch.where((now != 0) & (now != before), now, self.held[index])
        return after

    def log(self) -> EventLog:
        """Every crossing."""
        problem, n = self.problem, len(self.problem.y0)
        count, device = self.crossed.sum(1), self.crossed.device
        most = int(count.max()) if n else 0
        which = torch.full((n, most), -1, dtype=torch.int64, device=device)
        t = torch.full((n, most), float("nan"), dtype=torch.float64, device=device)
        y = problem.y0.new_full((n, most, *problem.y0.shape[1:]), float("nan"))
        step = torch.full((n, most), -1, dtype=torch.int64, device=device)
        if self.entries:
            row, kind, time, state, number = (torch.cat(parts) for parts in zip(*self.entries))
            order = row.argsort(stable=True)  # as they were met
            row = row[order]
            first = count.cumsum(0) - count
            column = torch.arange(len(row), device=device) - first[row]
            for into, values in ((which, kind), (t, time), (y, state), (step, number)):
                into[row, column] = values[order]
        return EventLog(which, t, y, count, step)
