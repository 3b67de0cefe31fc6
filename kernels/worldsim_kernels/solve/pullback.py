"""Cotangents pulled back through frozen steps, from the last one to the first.

One node of a graph stands for the whole solve; its memory is what ``Past`` keeps. A cotangent that is to have
a graph itself is pulled back through the graph of all steps instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from worldsim_kernels.solve.frozen import Frozen, Given, Moving
from worldsim_kernels.solve.retaken import retaken
from worldsim_kernels.solve.solution import EventLog, Solution, Steps


class Past(Protocol):
    """Where rows were."""

    def backwards(self, given: Given) -> Iterator[tuple[int, Moving]]:
        """Every step's number and the rows that take it before it, from the last to the first."""


class Stored:
    """States that were kept."""

    def __init__(self, frozen: Frozen, steps: Steps, every: int) -> None:
        self.frozen, self.every = frozen, every
        self.kept: list[Moving] = []
        if frozen.remembers:
            # What such a stepper hands on is found by going from the start.
            given, start = frozen.given(), frozen.start()
            given = given.like([each.detach() for each in given.tensors()])
            moving = Moving(start.y.detach(), start.t.detach(), start.anchor.detach())
            with torch.no_grad():
                for n in range(frozen.length):
                    if n % every == 0:
                        self.kept.append(moving.head(frozen.active[n]))
                    moving, _ = frozen.advance(n, moving, given)
            return
        for n in range(0, frozen.length, every):
            self.kept.append(frozen.at(n, steps))

    def backwards(self, given: Given) -> Iterator[tuple[int, Moving]]:
        """See ``Past.backwards``."""
        frozen = self.frozen
        for segment in range(len(self.kept) - 1, -1, -1):
            first = segment * self.every
            passed = [self.kept[segment]]
            with torch.no_grad():
                for n in range(first, min(first + self.every, frozen.length) - 1):
                    after, _ = frozen.advance(n, passed[-1], given)
                    carry = after.carry if frozen.remembers else None
                    passed.append(replace(after, carry=carry).head(frozen.active[n + 1]))
            for offset in range(len(passed) - 1, -1, -1):
                yield first + offset, passed[offset]


class Undone:
    """States found by steps of -h from the end ``y`` ``[row, *state]``."""

    def __init__(self, frozen: Frozen, y: Tensor) -> None:
        self.frozen, self.y = frozen, y.detach()

    def backwards(self, given: Given) -> Iterator[tuple[int, Moving]]:
        """See ``Past.backwards``."""
        frozen, stepper = self.frozen, self.frozen.problem.stepper
        y = self.y.clone()
        for n in range(frozen.length - 1, -1, -1):
            k = frozen.active[n]
            t, ahead = frozen.t[:k, n], frozen.t[:k, n + 1]
            with torch.no_grad():
                term = frozen.term(given, k)
                y[:k] = stepper.step(term, ahead, t - ahead, y[:k], stepper.start(term, ahead, y[:k])).y
            anchor = frozen.t[:k].gather(1, frozen.anchors[:k, n, None])[:, 0]
            yield n, Moving(y[:k].clone(), t, anchor)


def pulled_back(frozen: Frozen, solution: Solution, past: Past, parameters: list[Tensor]) -> Solution:
    """``solution`` with one node of a graph, whose backward goes through ``past``."""
    start, given, log = frozen.start(), frozen.given(), solution.events
    detached = given.like([each.detach() for each in given.tensors()])
    function: Callable[..., tuple[Tensor, ...]] = PulledBack.apply
    y, t, saved, log_t, log_y = function(
        frozen, past, detached, solution, start.y, start.t, *given.tensors(), *parameters
    )
    events = None if log is None else EventLog(log.which, log_t, log_y, log.count, log.step)
    kept = None if solution.saved is None else saved
    return replace(solution, y=y, t=t if frozen.timed else solution.t, saved=kept, events=events)


def results(solution: Solution) -> tuple[Tensor, ...]:
    """The numbers that have gradients, empty ones for those that ``solution`` lacks."""
    log, empty = solution.events, solution.t.new_zeros(0)
    saved = empty if solution.saved is None else solution.saved
    return (solution.y, solution.t, saved, *((empty, empty) if log is None else (log.t, log.y)))


class PulledBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.frozen, ctx.past, ctx.given, ctx.solution = arguments[:4]
        ctx.save_for_backward(*arguments[4:])
        ctx.set_materialize_grads(False)
        # A view has a graph of its own: the caller's solution stays as it is.
        return tuple(each.clone() for each in results(ctx.solution))

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
        wants, data = ctx.needs_input_grad[4:], list(ctx.saved_tensors)
        if torch.is_grad_enabled():
            return None, None, None, None, *_with_graph(ctx, data, wants, bars)
        pull = Pull(ctx.frozen, ctx.given, data[2 + len(ctx.given.tensors()) :], wants, bars)
        for n, moving in ctx.past.backwards(ctx.given):
            pull.step(n, moving)
        return None, None, None, None, *pull.grads(wants)


def _with_graph(
    ctx: Any, data: list[Tensor], wants: tuple[bool, ...], bars: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The cotangents of ``data`` (y0 and t0 of the rows, what was given, the parameters), with a graph."""
    opened: list[bool] = []
    gate: Callable[..., Tensor] = Gate.apply
    width = 2 + len(ctx.given.tensors())
    own = [gate(opened, each) if want else each for each, want in zip(data[:width], wants)]
    found = retaken(ctx.frozen, ctx.solution, Moving(own[0], own[1], own[1]), ctx.given.like(own[2:]))
    outputs = [
        (value, bar) for value, bar in zip(results(found), bars) if bar is not None and value.requires_grad
    ]
    inputs = [each for each, want in zip((*own, *data[width:]), wants) if want]
    values, bars = zip(*outputs) if outputs else ((), ())
    grads = iter(torch.autograd.grad(values, inputs, bars, allow_unused=True, create_graph=True))
    opened.append(True)
    return [next(grads) if want else None for want in wants]


class Gate(torch.autograd.Function):
    """The same numbers, whose cotangents go no further until ``opened`` holds something: a parameter may also
    be among what a start was computed from, and what it owes to that is not the solve's to say."""

    @staticmethod
    def forward(ctx: Any, opened: list[bool], value: Tensor) -> Tensor:
        ctx.opened = opened
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[None, Tensor | None]:
        return None, bars[0] if ctx.opened else None


class Pull:
    """Cotangents on their way back: those of the moving rows, and the sums for what was given."""

    def __init__(
        self,
        frozen: Frozen,
        given: Given,
        parameters: list[Tensor],
        wants: tuple[bool, ...],
        bars: tuple[Tensor | None, ...],
    ) -> None:
        self.frozen, self.given, self.parameters = frozen, given, parameters
        order, y0 = frozen.order, frozen.problem.y0
        y, t, self.saved, self.log_t, self.log_y = bars
        self.y = y0.new_zeros(len(order), *y0.shape[1:]) if y is None else y[order]
        self.t = torch.zeros_like(given.t1) if t is None else t[order]
        self.anchor = torch.zeros_like(self.t)
        self.carry: list[Tensor] | None = None
        self.wants = wants[2 : 2 + len(given.tensors())]
        self.sums = [torch.zeros_like(each) for each in given.tensors()]
        self.parameter_sums: list[Tensor | None] = [None] * len(parameters)

    def step(self, n: int, moving: Moving) -> None:
        """Through step ``n``, which the rows begin at ``moving``."""
        frozen, k = self.frozen, self.frozen.active[n]
        with torch.enable_grad():
            before = _leaves(moving, frozen.timed)
            own = [
                each[:k].detach().requires_grad_(want) for each, want in zip(self.given.tensors(), self.wants)
            ]
            after, met = frozen.advance(n, before, self.given.like(own))
            moved = [before.y, *([before.t, before.anchor] if frozen.timed else []), *(before.carry or ())]
            inputs = [each for each in (*moved, *own, *self.parameters) if each.requires_grad]
            outputs = self._outputs(n, after, met)
            outputs = [(value, bar) for value, bar in outputs if value.requires_grad and bar is not None]
            values, bars = zip(*outputs) if outputs else ((), ())
            # Parts of the graph may belong to the caller: a closed-over tensor that was computed before.
            grads = torch.autograd.grad(values, inputs, bars, allow_unused=True, retain_graph=True)
        found = dict(zip(map(id, inputs), grads))
        self._move(before, found, k)
        for total, each in zip(self.sums, own):
            if (grad := found.get(id(each))) is not None:
                total[: len(each)] += grad
        for i, each in enumerate(self.parameters):
            if (grad := found.get(id(each))) is not None:
                total_so_far = self.parameter_sums[i]
                self.parameter_sums[i] = grad if total_so_far is None else total_so_far + grad

    def _outputs(self, n: int, after: Moving, met: Any) -> list[tuple[Tensor, Tensor | None]]:
        """Every result of step ``n`` with its cotangent."""
        frozen, k = self.frozen, len(after.y)
        outputs: list[tuple[Tensor, Tensor | None]] = [(after.y, self.y[:k])]
        if frozen.timed:
            outputs += [(after.t, self.t[:k]), (after.anchor, self.anchor[:k])]
        if frozen.remembers and self.carry is not None and after.carry is not None:
            outputs += [(value, bar[:k]) for value, bar in zip(after.carry, self.carry)]
        if met.saved is not None and self.saved is not None:
            rows, columns = frozen.saved_at[n]
            outputs.append((met.saved, self.saved[frozen.order[rows], columns]))
        for each, t, y in zip(frozen.crossings[n], met.t, met.y):
            outputs.append((t, None if self.log_t is None else self.log_t[each.place]))
            outputs.append((y, None if self.log_y is None else self.log_y[each.place]))
        return outputs

    def _move(self, before: Moving, found: Mapping[int, Tensor | None], k: int) -> None:
        def put(total: Tensor, leaf: Tensor) -> None:
            grad = found.get(id(leaf))
            total[:k] = 0 if grad is None else grad

        put(self.y, before.y)
        put(self.t, before.t)
        put(self.anchor, before.anchor)
        if before.carry is not None:
            if self.carry is None:
                self.carry = [each.new_zeros(len(self.y), *each.shape[1:]) for each in before.carry]
            for total, leaf in zip(self.carry, before.carry):
                put(total, leaf)

    def grads(self, wants: tuple[bool, ...]) -> list[Tensor | None]:
        """By y0 and t0 of the rows, what was given, and the parameters."""
        frozen = self.frozen
        if self.saved is not None:
            rows, columns = frozen.unmoved
            self.y = self.y.index_add(0, rows, self.saved[frozen.order[rows], columns])
        grads = [self.y, self.t + self.anchor, *self.sums, *self.parameter_sums]
        return [grad if want else None for grad, want in zip(grads, wants)]


def _leaves(moving: Moving, timed: bool) -> Moving:
    """The same numbers as leaves of a new graph."""
    y = moving.y.detach().requires_grad_()
    t, anchor = (each.detach().clone().requires_grad_(timed) for each in (moving.t, moving.anchor))
    carry = moving.carry
    if carry is not None:
        carry = tuple(each.detach().requires_grad_(each.is_floating_point()) for each in carry)
    return Moving(y, t, anchor, carry)
