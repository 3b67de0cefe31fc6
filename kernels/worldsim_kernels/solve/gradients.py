"""Gradients of a solve: what is kept of its steps, and how a cotangent is pulled back through them.

A result is differentiable by the start, t0, t1, the saved times, the term's ``args`` and the parameters of
its functions. All but ``ContinuousAdjoint`` give the derivative of the numbers that were computed, with the
steps held fixed (see ``frozen``); they agree to rounding and differ in memory and time. The search for steps
keeps no graph, so it may run on any backend.

A row that failed is cut out: its numbers are constants, and its neighbours' gradients keep every bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem, Save, solve
from worldsim_kernels.solve.control import Constant
from worldsim_kernels.solve.frozen import Frozen, Moving
from worldsim_kernels.solve.parameters import parameters_of
from worldsim_kernels.solve.pullback import Stored, Undone, pulled_back
from worldsim_kernels.solve.solution import Solution, Steps
from worldsim_kernels.solve.terms import ODE


class Gradient(Protocol):
    """A way to differentiate. ``needs_steps`` says whether the search must keep the states of its steps."""

    needs_steps: ClassVar[bool]

    def check(self, problem: Problem) -> None:
        """Raises ValueError when it cannot serve ``problem``."""

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """``solution``, which has its steps if they are needed, with a graph."""


def wanted(problem: Problem, gradient: Gradient | None) -> Gradient | None:
    """What is to be attached: None when nothing requires a gradient, ``Replay`` when the caller did not say.

    Raises TypeError for something else than a gradient, ValueError for one that cannot serve ``problem``.
    """
    if gradient is not None:
        if not hasattr(gradient, "attach"):
            raise TypeError(
                "gradient must be ThroughSteps(), Replay(), Reversible() or ContinuousAdjoint(), not "
                f"{gradient!r}"
            )
        gradient.check(problem)
    if not torch.is_grad_enabled():
        return None
    data = [problem.y0, problem.t0, problem.t1, *getattr(problem.term, "args", ())]
    data += [] if problem.times is None else [problem.times]
    if not any(each.requires_grad for each in data) and not _parameters(problem):
        return None
    return Replay() if gradient is None else gradient


def attach(problem: Problem, solution: Solution, gradient: Gradient) -> Solution:
    """``solution``, found for ``without_graph(problem, gradient)``, made differentiable."""
    return gradient.attach(problem, solution, _parameters(problem))


def timetable(problem: Problem) -> Steps:
    """The steps of constant length of a state that does not move: the times are those of any other."""
    start = torch.zeros(len(problem.y0), 1, dtype=torch.float64, device=problem.y0.device)
    times = None if problem.times is None else problem.times.detach()
    found = solve(
        ODE(lambda t, y: y),
        start,
        problem.t0.detach(),
        problem.t1.detach(),
        stepper="euler",
        controller=problem.controller,
        save=Save(times=times, steps=True),
        max_steps=problem.max_steps,
    )
    assert found.steps is not None
    return found.steps


def without_graph(problem: Problem, gradient: Gradient) -> Problem:
    """The problem of the search for steps, which the gradient needs: a view of a tensor that requires a
    gradient, made where none is recorded, is no input of a function's graph."""
    term = problem.term
    args = tuple(each.detach() for each in getattr(term, "args", ()))
    return replace(
        problem,
        term=replace(term, args=args) if args else term,
        y0=problem.y0.detach(),
        t0=problem.t0.detach(),
        t1=problem.t1.detach(),
        times=None if problem.times is None else problem.times.detach(),
        keep_steps=problem.keep_steps or gradient.needs_steps,
    )


def _parameters(problem: Problem) -> list[Tensor]:
    return parameters_of(problem.term, problem.events, problem.stepper, problem.t0, problem.y0)


@dataclass(frozen=True)
class ThroughSteps:
    """The accepted steps taken again with a graph: ordinary autograd, to any order, all stages in memory.

    With events, derivatives up to the second are exact.
    """

    needs_steps: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """It serves every problem."""

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """See ``Gradient.attach``."""
        frozen = Frozen(problem, solution)
        given, moving = frozen.given(), frozen.start()
        results = Results(frozen, moving)
        for n in range(frozen.length):
            results.leave(moving, frozen.active[n])
            moving, met = frozen.advance(n, moving, given, passes=2)
            results.meet(n, met)
        results.leave(moving, 0)
        return results.of(solution)


@dataclass(frozen=True)
class Replay:
    """Keeps the accepted states alone; backwards, each step is taken again with a graph, the last one first.

    One state per step in memory instead of all stages, first derivatives only.

    every  keep each ``every``-th state and take the steps between twice
    Raises ValueError for an ``every`` below 1.
    """

    every: int = 1
    needs_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")

    def check(self, problem: Problem) -> None:
        """It serves every problem."""

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """See ``Gradient.attach``."""
        frozen = Frozen(problem, solution)
        assert solution.steps is not None
        past = Stored(frozen, solution.steps, self.every)
        return pulled_back(frozen, solution, past, parameters)


@dataclass(frozen=True)
class Reversible:
    """Keeps the end alone; backwards, the states are found by steps of -h. Exact to rounding, which a chaotic
    flow enlarges as it goes. For reversible steppers and steps of constant length, without events."""

    needs_steps: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raises ValueError for a method, a controller or events that a step of -h does not undo."""
        method = problem.stepper
        if not method.properties.reversible or getattr(method, "remembers", False):
            raise ValueError(f"a step of -h does not undo a step of {method.name}: use Replay")
        if not isinstance(problem.controller, Constant):
            raise ValueError("Reversible is for steps of constant length: use Constant, or Replay")
        if problem.events:
            raise ValueError("an event with a reset cannot be undone by a step of -h: use Replay")

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """See ``Gradient.attach``."""
        frozen = Frozen(problem, replace(solution, steps=timetable(problem)))
        end = Undone(frozen, solution.y[frozen.order])
        return pulled_back(frozen, solution, end, parameters)


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
