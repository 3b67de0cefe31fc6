"""Frozen steps taken again with a graph, and what they give put where a solution has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.frozen import Frozen, Given, Moving
from worldsim_kernels.solve.solution import Solution


def retaken(frozen: Frozen, solution: Solution, start: Moving, given: Given) -> Solution:
    """``solution`` with the graph of its steps, from ``start`` on. With events, derivatives up to the second
    are exact."""
    moving, results = start, Results(frozen, start)
    for n in range(frozen.length):
        results.leave(moving, frozen.active[n])
        moving, met = frozen.advance(n, moving, given, passes=2)
        results.meet(n, met)
    results.leave(moving, 0)
    return results.of(solution)


class Results:
    """Collects what steps give, and puts it where a solution has it."""

    def __init__(self, frozen: Frozen, start: Moving) -> None:
        self.frozen, self.first = frozen, start
        self.ends: list[tuple[Tensor, Tensor]] = []
        self.saved: list[tuple[Tensor, Tensor, Tensor]] = []
        self.crossed: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def leave(self, moving: Moving, k: int) -> None:
        """All rows but the first ``k`` have ended."""
        if k < len(moving.y):
            self.ends.append((moving.y[k:], moving.t[k:]))

    def meet(self, n: int, met: Any) -> None:
        """What step ``n`` met."""
        if met.saved is not None:
            rows, columns = self.frozen.saved_at[n]
            self.saved.append((self.frozen.order[rows], columns, met.saved))
        for each, t, y in zip(self.frozen.crossings[n], met.t, met.y):
            self.crossed.append((*each.place, t, y))

    def of(self, solution: Solution) -> Solution:
        """``solution`` with the collected numbers in it."""
        order, saved, events = self.frozen.order, solution.saved, solution.events
        y, t = solution.y, solution.t
        if self.ends:
            ends = [torch.cat(parts) for parts in zip(*reversed(self.ends))]
            y = y.index_put((order,), ends[0])
            t = t.index_put((order,), ends[1]) if self.frozen.timed else t
        if saved is not None:
            rows, columns = self.frozen.unmoved
            pieces = [(self.frozen.order[rows], columns, self.first.y[rows]), *self.saved]
            row, column, value = (torch.cat(parts) for parts in zip(*pieces))
            saved = saved.index_put((row, column), value)
        if events is not None and self.crossed:
            row, column, time, state = (torch.cat(parts) for parts in zip(*self.crossed))
            events = replace(
                events,
                t=events.t.index_put((row, column), time),
                y=events.y.index_put((row, column), state),
            )
        return replace(solution, y=y, t=t, saved=saved, events=events)
