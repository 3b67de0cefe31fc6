"""The continuous adjoint, for comparison: an equation for the cotangent, solved backwards in time.

With a = dL/dy:  da/dt = -a df/dy,  dL/dtheta = integral of a df/dtheta dt. Nothing of the way forward is kept
but the saved states; y is solved backwards beside a, from each saved state anew. The result is the gradient
of the equation, not of the numbers that were computed: right to the tolerance, and only where the equation
can be solved backwards. Source: Chen, Rubanova, Bettencourt, Duvenaud 2018, *Neural ordinary differential
equations*.

Each row solves for its own y and a. The parameters' integral is no part of that state (a sum over rows has
no row of its own, and one for each row would need the memory of all parameters for every row): it is taken
on the steps found, by Gauss-Legendre quadrature with three nodes, outside of error control (the seminorm of
Kidger, Chen, Lyons 2021, *"Hey, that's not an ODE": faster ODE adjoints via seminorms*).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from worldsim_kernels.solve.api import Problem, Save, solve
from worldsim_kernels.solve.control import PID
from worldsim_kernels.solve.first_only import first_only
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.stepper import Stepper
from worldsim_kernels.solve.terms import ODE, of_rows, wide

NODES = tuple(0.5 + sign * math.sqrt(3 / 5) / 2 for sign in (-1, 0, 1))
WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


@dataclass(frozen=True)
class ContinuousAdjoint:
    """Gradients to the tolerance of a solve of their own; see the module.

    rtol, atol  of that solve
    stepper     of that solve, one with an error estimate, by name or as an object
    Raises SolveFailed in the backward pass for rows whose adjoint equation cannot be solved.
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    stepper: str | Stepper = "dopri5"
    needs_steps: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raises ValueError for a problem with events."""
        if problem.events:
            raise ValueError("ContinuousAdjoint knows no events: use Replay or ThroughSteps")

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """See ``Gradient.attach``."""
        rows = (~solution.failed).nonzero()[:, 0]
        saved = solution.t.new_zeros(0) if solution.saved is None else solution.saved
        times = [] if problem.times is None else [problem.times]
        function: Callable[..., tuple[Tensor, Tensor]] = Adjoint.apply
        data = (problem.y0, problem.t0, problem.t1, *times, *problem.term.args, *parameters)
        y, saved = function(self, problem, (solution.y, saved), rows, parameters, *data)
        return replace(solution, y=y, saved=None if solution.saved is None else saved)


class Adjoint(torch.autograd.Function):
    """One node of a graph for a whole solve."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        way, problem, values, rows, parameters = arguments[:5]
        ctx.way, ctx.rows = way, rows
        detached = tuple(each.detach() for each in problem.term.args)
        term = replace(problem.term, args=detached) if detached else problem.term
        times = None if problem.times is None else problem.times.detach()
        t0, t1, y0 = problem.t0.detach(), problem.t1.detach(), problem.y0.detach()
        ctx.problem = replace(problem, term=term, times=times, t0=t0, t1=t1, y0=y0)
        ctx.save_for_backward(*values, *parameters)
        return tuple(each.clone() for each in values)

    @staticmethod
    @first_only("use Replay() or ThroughSteps(), which differentiate to any order")
    def backward(ctx: Any, y_bar: Tensor, saved_bar: Tensor) -> tuple[Tensor | None, ...]:
        problem, rows = ctx.problem, ctx.rows
        y, saved, *parameters = ctx.saved_tensors
        own = of_rows(problem.term, rows)
        back = Backwards(ctx.way, own, [each for each in parameters if each.requires_grad])
        t0, t1, a = problem.t0[rows], problem.t1[rows], y_bar[rows]
        at, state = t1, y[rows]
        by_t1 = along(own, at, state, a)
        by_times = None if problem.times is None else torch.zeros_like(problem.times)
        if problem.times is not None and by_times is not None:
            for column in range(problem.times.shape[1] - 1, -1, -1):
                time, value = problem.times[rows, column], saved[rows, column]
                absent = time.isnan()
                state, a = back.to(at, torch.where(absent, at, time), state, a)
                at = torch.where(absent, at, time)
                bar = saved_bar[rows, column].masked_fill(wide(absent, a).bool(), 0)
                state = torch.where(wide(absent, a).bool(), state, value)
                by_times[rows, column] = along(own, at, state, bar)
                a = a + bar
        state, a = back.to(at, t0, state, a)
        grads = [a, -along(own, t0, problem.y0[rows], a), by_t1]
        found = [
            torch.zeros_like(each).index_copy(0, rows, grad)
            for each, grad in zip((problem.y0, problem.t0, problem.t1), grads)
        ]
        arguments = [
            torch.zeros_like(each).index_copy(0, rows, grad)
            for each, grad in zip(problem.term.args, back.arguments)
        ]
        times = [] if by_times is None else [by_times]
        return (*[None] * 5, *found, *times, *arguments, *back.parameter_sums)


class Backwards:
    """The solve of y and a backwards, and the integrals of the parameters and of ``args``."""

    def __init__(self, way: ContinuousAdjoint, term: Any, parameters: list[Tensor]) -> None:
        self.way, self.term, self.parameters = way, term, parameters
        self.arguments = [torch.zeros_like(each) for each in term.args]
        self.parameter_sums = [torch.zeros_like(each) for each in parameters]

    def field(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """d(y, a)/dt for ``z`` ``[row, 2, *state]``."""
        term = replace(self.term, args=args) if args else self.term
        with torch.enable_grad():
            y = z[:, 0].detach().requires_grad_()
            slope = term(t, y)
            (pulled,) = gradients(slope, [y], z[:, 1])
        return torch.stack([slope.detach(), -pulled], 1)

    def to(self, start: Tensor, end: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """y and a at ``end`` from those at ``start`` ``[row]``; adds to the integrals."""
        way, z = self.way, torch.stack([y, a], 1)
        controller = PID(way.rtol, way.atol)
        save = Save(steps=True, dense=True)
        with torch.no_grad():
            found = solve(
                ODE(self.field, self.term.args),
                z,
                start,
                end,
                stepper=way.stepper,
                controller=controller,
                save=save,
            ).check()
            assert found.steps is not None
            assert found.dense is not None
            t = found.steps.t
            for n in range(t.shape[1] - 1):
                h = t[:, n + 1] - t[:, n]
                nodes = found.dense(t[:, n, None] + h[:, None] * h.new_tensor(NODES))
                for i, (node, weight) in enumerate(zip(NODES, WEIGHTS)):
                    self._add(t[:, n] + node * h, -weight * h, nodes[:, i])
        return found.y[:, 0], found.y[:, 1]

    def _add(self, t: Tensor, weight: Tensor, z: Tensor) -> None:
        args = [each.detach().requires_grad_(each.is_floating_point()) for each in self.term.args]
        term = replace(self.term, args=tuple(args)) if args else self.term
        wanted = [each for each in args if each.requires_grad] + self.parameters
        with torch.enable_grad():
            slope = term(t, z[:, 0].detach())
            found = iter(gradients(slope, wanted, wide(weight, z[:, 1]) * z[:, 1]))
        for total, each in zip(self.arguments, args):
            if each.requires_grad:
                total += next(found)
        for total, grad in zip(self.parameter_sums, found):
            total += grad


def gradients(slope: Tensor, inputs: list[Tensor], bar: Tensor, graph: bool = False) -> list[Tensor]:
    """``bar`` pulled back to ``inputs``, zero where ``slope`` does not depend on one; with ``graph``, to be
    differentiated again."""
    if not slope.requires_grad or not inputs:
        return [torch.zeros_like(each) for each in inputs]
    # Parts of the graph may belong to the caller: a closed-over tensor that was computed before.
    found = torch.autograd.grad(slope, inputs, bar, allow_unused=True, retain_graph=True, create_graph=graph)
    return [torch.zeros_like(each) if grad is None else grad for each, grad in zip(inputs, found)]


def along(term: Any, t: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """a f(t, y), ``[row]`` float64."""
    product: Tensor = a * term(t, y)
    return product.flatten(1).double().sum(1)
