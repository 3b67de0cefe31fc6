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
from worldsim_kernels.solve.frozen import Frozen
from worldsim_kernels.solve.parameters import has_parameters, parameters_of
from worldsim_kernels.solve.pullback import Stored, Undone, pulled_back
from worldsim_kernels.solve.retaken import retaken
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
    if not any(each.requires_grad for each in data) and not has_parameters(*_seen(problem)):
        return None
    return Replay() if gradient is None else gradient


def attach(problem: Problem, solution: Solution, gradient: Gradient) -> Solution:
    """``solution``, found for ``without_graph(problem, gradient)``, made differentiable."""
    parameters = parameters_of(*_seen(problem))
    found = gradient.attach(problem, solution, parameters)
    aimed = problem.exact or isinstance(problem.controller, Constant)
    if solution.dense is None or not gradient.needs_steps or aimed:
        return found
    return replace(found, dense=Dense(problem, solution, gradient, parameters))


@dataclass(frozen=True)
class Dense:
    """``solution.dense`` with the gradients of ``way``, by the times as well."""

    problem: Problem
    solution: Solution
    way: Gradient
    parameters: list[Tensor]

    def __call__(self, times: Tensor) -> Tensor:
        """``[row, time, *state]`` at ``times`` ``[time]`` or ``[row, time]``; NaN outside of what a row
        has solved."""
        problem, solution = self.problem, self.solution
        assert solution.dense is not None
        times = torch.as_tensor(times, dtype=torch.float64, device=problem.y0.device)
        times = times.expand(len(problem.y0), times.shape[-1])
        with torch.no_grad():
            value = solution.dense(times)
            sign = torch.where(problem.t1 >= problem.t0, 1.0, -1.0).to(times)[:, None]
            known = (sign * times >= sign * problem.t0[:, None]) & (
                sign * times <= sign * solution.t[:, None]
            )
            order = torch.where(known, sign * times, float("inf")).argsort(dim=1, stable=True)
        if not torch.is_grad_enabled():
            return value
        row = torch.arange(len(value), device=value.device)[:, None]
        sorted_times = torch.where(known, times, float("nan"))[row, order]
        saved = replace(solution, saved=value[row, order], dense=None)
        found = self.way.attach(replace(problem, times=sorted_times), saved, self.parameters).saved
        assert found is not None
        return found[row, order.argsort(1)]


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


def _seen(problem: Problem) -> tuple[Any, tuple[Any, ...], Any, Tensor, Tensor]:
    return problem.term, problem.events, problem.stepper, problem.t0, problem.y0


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
        return retaken(frozen, solution, frozen.start(), frozen.given())


@dataclass(frozen=True)
class Replay:
    """Keeps the accepted states alone; backwards, each step is taken again with a graph, the last one first.

    One state per step in memory instead of all stages. Where a gradient is to be differentiated itself
    (``create_graph=True``), its steps are taken again as by ``ThroughSteps``, with that memory.

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
