"""The steps that a solve took, held fixed: the map from its data to its results that gradients are of.

A search for steps is not differentiable, its outcome is: with the number of steps and their division of time
held fixed, the result is a composition of steps, and step n of all rows is one function, ``Frozen.advance``.

What moves with what: a step of constant length moves with the two targets (t0, a saved time, an event, t1)
that it lies between, in proportion; the end of an adaptive step moves only when it is a target; the end of a
step at an event moves with the event, by the implicit function theorem. A row whose t1 is its t0 takes no
step, and its state moves with neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem
from worldsim_kernels.solve.control import Constant
from worldsim_kernels.solve.recording import interpolated
from worldsim_kernels.solve.solution import EventLog, Solution, Steps
from worldsim_kernels.solve.stepper import Step, rows_of
from worldsim_kernels.solve.terms import of_rows, wide


@dataclass(frozen=True)
class Given:
    """What results depend on beside where a row starts, rows in the order of ``Frozen``.

    t1     ``[row]``
    times  ``[row, time]`` or None
    args   of the term
    """

    t1: Tensor
    times: Tensor | None
    args: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        return [self.t1, *([] if self.times is None else [self.times]), *self.args]

    def like(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of ``tensors()``."""
        timed = self.times is not None
        return Given(tensors[0], tensors[1] if timed else None, tuple(tensors[1 + timed :]))


@dataclass(frozen=True)
class Moving:
    """Where the first k rows are.

    y       ``[row, *state]``
    t       ``[row]``
    anchor  the last target that was reached ``[row]``
    carry   of the stepper; None where it is to be made anew from t and y
    """

    y: Tensor
    t: Tensor
    anchor: Tensor
    carry: tuple[Tensor, ...] | None = None

    def head(self, k: int) -> Moving:
        carry = None if self.carry is None else tuple(each[:k] for each in self.carry)
        return Moving(self.y[:k], self.t[:k], self.anchor[:k], carry)


@dataclass(frozen=True)
class Crossings:
    """Crossings of one event by several rows in one step.

    which  the number of the event
    rows   ``[crossing]`` in the order of ``Frozen``
    place  row and column of the log, ``[crossing]`` each
    t      ``[crossing]``
    stops  whether the step ends there
    """

    which: int
    rows: Tensor
    place: tuple[Tensor, Tensor]
    t: Tensor
    stops: bool


@dataclass(frozen=True)
class Met:
    """What a step meets on its way.

    saved  states at the saved times within it, ``[saved, *state]``, or None
    t, y   of its crossings, in the order of ``Frozen.crossings[n]``
    """

    saved: Tensor | None
    t: list[Tensor]
    y: list[Tensor]


class Frozen:
    """The accepted steps of the rows that did not fail, those with most steps first: the rows that take an
    n-th step are the first ``active[n]``. A row that failed is a constant and harms no gradient."""

    def __init__(self, problem: Problem, solution: Solution) -> None:
        assert solution.steps is not None
        self.problem, steps = problem, solution.steps
        rows = (~solution.failed).nonzero()[:, 0]
        self.order = rows[steps.count[rows].argsort(descending=True, stable=True)]
        self.count = steps.count[self.order]
        self.length = int(self.count[0]) if len(self.count) else 0
        taken = torch.bincount(self.count, minlength=self.length + 1)
        self.active: list[int] = (len(self.order) - taken.cumsum(0))[: self.length].tolist()
        self.t = steps.t[self.order, : self.length + 1].detach()
        self.remembers = bool(getattr(problem.stepper, "remembers", False))
        times = [problem.t0, problem.t1, *([] if problem.times is None else [problem.times])]
        self.timed = bool(problem.events) or any(each.requires_grad for each in times)
        self.crossings = self._crossings(solution.events)
        self._aim()
        self._place_saved()

    def start(self) -> Moving:
        """Where the rows start, with the graph of the problem."""
        t0 = self.problem.t0[self.order]
        return Moving(self.problem.y0[self.order], t0, t0)

    def given(self) -> Given:
        """The problem's data with its graph."""
        problem, order = self.problem, self.order
        times = None if problem.times is None else problem.times[order]
        return Given(problem.t1[order], times, tuple(each[order] for each in problem.term.args))

    def at(self, n: int, steps: Steps) -> Moving:
        """Where the rows that take it begin step ``n``, without a graph."""
        k = self.active[n]
        anchor = self.t[:k].gather(1, self.anchors[:k, n, None])[:, 0]
        return Moving(steps.y[self.order[:k], n], self.t[:k, n], anchor)

    def term(self, given: Given, k: int) -> Any:
        args = tuple(each[:k] for each in given.args)
        return replace(self.problem.term, args=args) if args else self.problem.term

    def advance(self, n: int, moving: Moving, given: Given, passes: int = 1) -> tuple[Moving, Met]:
        """Step ``n`` of the rows that take it, with a graph if one is recorded.

        passes  Newton iterations for the time of an event: one makes first derivatives exact, two second
        """
        k = self.active[n]
        moving, stepper = moving.head(k), self.problem.stepper
        term, t, y = self.term(given, k), moving.t, moving.y
        carry = stepper.start(term, t, y) if moving.carry is None else moving.carry
        ahead = self._ahead(n, moving, given)
        stops = [each for each in self.crossings[n] if each.stops]
        for each in stops:
            ahead = ahead.index_copy(0, each.rows, self._stopped(each, term, t, y, carry, passes))
        step = stepper.step(term, t, ahead - t, y, carry)
        met = self._met(n, term, t, ahead, y, step, given, passes)
        anchor = torch.where(self.reached[:k, n], ahead, moving.anchor) if self.timed else moving.anchor
        after = Moving(step.y, ahead, anchor, step.carry)
        return (self._reset(stops, term, after) if stops else after), met

    # Times.

    def _aim(self) -> None:
        """For every step: the number of its target, whether it reaches it, and its last target before."""
        problem, order = self.problem, self.order
        sign = torch.where(problem.t1 >= problem.t0, 1.0, -1.0).to(self.t)[order, None]
        self.constant = isinstance(problem.controller, Constant)
        self.exact = problem.times is not None and (problem.exact or self.constant)
        targets = self._targets(self.given(), len(order)).detach()
        ends = self.t[:, 1:].contiguous()
        target = torch.searchsorted((sign * targets).contiguous(), sign * ends)
        self.target = target.clamp(max=targets.shape[1] - 1)
        reached = targets.gather(1, self.target) == ends
        for n, found in self.crossings.items():
            for each in found:
                reached[each.rows, n] |= each.stops
        self.reached = reached
        number = torch.arange(1, self.length + 1, device=ends.device)
        begun = torch.where(reached, number, 0)
        first = torch.zeros_like(begun[:, :1]) if self.length else begun
        self.anchors = torch.cat([first, begun], 1)[:, : self.length].cummax(1)[0] if self.length else begun

    def _targets(self, given: Given, k: int) -> Tensor:
        t1 = given.t1[:k, None]
        if not self.exact:
            return t1
        assert given.times is not None
        return torch.cat([torch.where(given.times[:k].isnan(), t1, given.times[:k]), t1], 1)

    def _ahead(self, n: int, moving: Moving, given: Given) -> Tensor:
        """Where step ``n`` ends: the time that was found, and the way it moves with its targets."""
        k = len(moving.t)
        fixed = self.t[:k, n + 1]
        if not self.timed:
            return fixed
        target = self._targets(given, k).gather(1, self.target[:k, n, None])[:, 0]
        anchor = moving.anchor
        if not self.constant:
            return fixed + torch.where(fixed == target, 1.0, 0.0).to(fixed) * moves(target)
        part = (fixed - anchor.detach()) / (target - anchor).detach()
        return fixed + part * moves(target) + (1 - part) * moves(anchor)

    # Saved times.

    def _place_saved(self) -> None:
        """Row, column and step of every saved time that was reached, by step."""
        self.saved_at: list[tuple[Tensor, Tensor]] = []
        times = self.problem.times
        if times is None:
            return
        times = times.detach()[self.order]
        sign = torch.where(self.problem.t1 >= self.problem.t0, 1.0, -1.0).to(times)[self.order, None]
        end = self.t.gather(1, self.count[:, None])
        step = torch.searchsorted((sign * self.t).contiguous(), (sign * times).contiguous()) - 1
        step = step.clamp(min=0).minimum((self.count - 1)[:, None])
        step = torch.where(sign * times <= sign * end, step, self.length)  # NaN and beyond: none
        self.unmoved = (step < 0).nonzero().unbind(1)  # rows without a step
        flat = step.flatten().clamp(min=-1)
        by_step = flat.argsort(stable=True)
        bounds = torch.searchsorted(flat[by_step], torch.arange(self.length + 1, device=flat.device)).tolist()
        width = times.shape[1]
        for first, last in pairwise(bounds):
            chosen = by_step[first:last]
            self.saved_at.append((chosen // max(width, 1), chosen % max(width, 1)))

    def _saved(
        self, n: int, term: Any, t: Tensor, ahead: Tensor, y: Tensor, step: Step, given: Given
    ) -> Tensor | None:
        if given.times is None or not len(self.saved_at[n][0]):
            return None
        rows, columns = self.saved_at[n]
        time = given.times[rows, columns]
        at_end = time.detach() == ahead.detach()[rows]
        if bool(at_end.all()):
            return self._at_end(n, term, time, ahead, step, rows, columns)
        inside, ends = (~at_end).nonzero()[:, 0], at_end.nonzero()[:, 0]
        parts = [self._between(term, time[inside], t, ahead, y, step, rows[inside])]
        if len(ends):
            parts.append(self._at_end(n, term, time[ends], ahead, step, rows[ends], columns[ends]))
        return torch.cat(parts)[torch.cat([inside, ends]).argsort()]

    def _at_end(
        self, n: int, term: Any, time: Tensor, ahead: Tensor, step: Step, rows: Tensor, columns: Tensor
    ) -> Tensor:
        y = step.y[rows]
        if not self.timed:
            return y
        # The end of a step moves with its target; with any other time that it is at, the state does.
        apart = torch.ones_like(time, dtype=torch.bool)
        if self.exact:
            apart = (self.target[rows, n] != columns) | ~self.reached[rows, n]
        other = apart.nonzero()[:, 0]
        away = time[other] - ahead[rows[other]]  # zero, but it may move
        if not len(other) or not away.requires_grad:
            return y
        slope = of_rows(term, rows[other])(time[other], y[other])
        return y.index_add(0, other, wide(away, y) * slope)

    def _between(
        self, term: Any, time: Tensor, t: Tensor, ahead: Tensor, y: Tensor, step: Step, rows: Tensor
    ) -> Tensor:
        t, h, part = t[rows], (ahead - t)[rows], rows_of(step, rows)
        stepper, term = self.problem.stepper, of_rows(term, rows)
        return interpolated(stepper, term, t, h, y[rows], part, (time - t) / h)

    # Events.

    def _crossings(self, log: EventLog | None) -> dict[int, list[Crossings]]:
        found: dict[int, list[Crossings]] = defaultdict(list)
        if log is None:
            return found
        place = torch.full((len(log.count),), -1, dtype=torch.int64, device=log.count.device)
        place[self.order] = torch.arange(len(self.order), device=place.device)
        rows, columns = (log.which >= 0).nonzero().unbind(1)
        kept = place[rows] >= 0
        rows, columns = rows[kept], columns[kept]
        keys = torch.stack([log.step[rows, columns], log.which[rows, columns]], 1)
        groups, group = torch.unique(keys, dim=0, return_inverse=True)
        for number, (n, which) in enumerate(groups.tolist()):
            chosen = (group == number).nonzero()[:, 0]
            row, column = rows[chosen], columns[chosen]
            t, stops = log.t[row, column].detach(), self.problem.events[which].stops
            found[n].append(Crossings(which, place[row], (row, column), t, stops))
        return found

    def _stopped(
        self, each: Crossings, term: Any, t: Tensor, y: Tensor, carry: tuple[Tensor, ...], passes: int
    ) -> Tensor:
        """The times of crossings that end their step."""
        rows, stepper = each.rows, self.problem.stepper
        own, t, y = of_rows(term, rows), t[rows], y[rows]
        carry = tuple(part[rows] for part in carry)

        def state(time: Tensor) -> Tensor:
            return stepper.step(own, t, time - t, y, carry).y

        return self._crossed(each, own, state, passes)

    def _crossed(self, each: Crossings, term: Any, state: Callable[[Tensor], Tensor], passes: int) -> Tensor:
        """t with g(t, y(t)) = 0 as a function of all that y and g depend on: dt = -dg / (dg/dt)."""
        t = each.t
        if not torch.is_grad_enabled():
            return t
        event = self.problem.events[each.which]
        probe = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(event.value(probe, state(probe), term).sum(), probe)
        # Where the path only touches, no time moves with anything: better 0 than infinite.
        slope = torch.where(slope == 0, float("inf"), slope)
        for _ in range(passes):
            t = t - moves(event.value(t, state(t), term)) / slope
        return t

    def _met(
        self,
        n: int,
        term: Any,
        t: Tensor,
        ahead: Tensor,
        y: Tensor,
        step: Step,
        given: Given,
        passes: int,
    ) -> Met:
        saved = self._saved(n, term, t, ahead, y, step, given)
        times, states = [], []
        for each in self.crossings[n]:
            rows = each.rows
            if each.stops:
                times.append(ahead[rows])
                states.append(step.y[rows])
                continue

            def state(time: Tensor, rows: Tensor = rows) -> Tensor:
                return self._between(term, time, t, ahead, y, step, rows)

            times.append(self._crossed(each, of_rows(term, rows), state, passes))
            states.append(state(times[-1]))
        return Met(saved, times, states)

    def _reset(self, stops: list[Crossings], term: Any, after: Moving) -> Moving:
        y, carry = after.y, after.carry
        for each in stops:
            event, rows = self.problem.events[each.which], each.rows
            if event.reset is None:
                continue
            own, t = of_rows(term, rows), after.t[rows]
            changed = event.after(t, after.y[rows], own)
            y = y.index_copy(0, rows, changed)
            if carry is not None:
                new = self.problem.stepper.start(own, t, changed)
                carry = tuple(old.index_copy(0, rows, fresh) for old, fresh in zip(carry, new))
        return Moving(y, after.t, after.anchor, carry)


def moves(value: Tensor) -> Tensor:
    """Zero, with the derivatives of ``value``."""
    return value - value.detach()
