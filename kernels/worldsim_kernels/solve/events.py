"""Events: where a function of a row's state changes its sign, and what happens there.

The sign that counts is strict: an event holds the last sign that was not zero, and fires when the opposite
one appears, so a function that is zero at the start does not fire. It is looked for at ``SAMPLES`` points of
every accepted step; a function that crosses twice between two of them is not seen: bound the step
(``PID(largest=...)``) where that may happen.

A crossing that stops a row is located on steps of the method itself, at the last time that rounding can tell
from the crossing: the function still has its old sign there, so a ball is never below its floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.itp import last_positive
from worldsim_kernels.solve.stepper import Step, Stepper, rows_of
from worldsim_kernels.solve.terms import of_rows

SAMPLES = 8
BREATHLESS = 16
"""Stops of a row in a row, each within ``INSTANT`` of the time since t0 after the other, that are too many:
crossings accumulate (Zeno), and would do so until max_steps."""
INSTANT = 2.0**-40


@dataclass(frozen=True)
class Event:
    """A crossing of zero by ``function``.

    function   ``t [row], y [row, *state], *args -> [row]``, with the ``args`` of the term
    direction  1: when it rises along the solve; -1: when it falls; 0: both
    terminal   the row ends there, with status EVENT; None: unless there is a ``reset``. Where it is False and
               there is no reset, the crossing is noted and the row goes on
    reset      ``t [row], y [row, *state], *args -> y'``: the row goes on from y', in steps that begin anew
    limit      more crossings than this end a row with status ZENO; None for no limit

    A function that a reset carries through zero does not fire: its new sign is held. Crossings of two events
    at one time fire in the order of the events.
    Raises ValueError for another direction, a limit below 1, or a terminal event with a reset.
    """

    function: Callable[..., Tensor]
    direction: int = 0
    terminal: bool | None = None
    reset: Callable[..., Tensor] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1, not {self.direction}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit}")
        if self.terminal and self.reset is not None:
            raise ValueError("a terminal event ends its rows: it takes no reset")

    @property
    def ends(self) -> bool:
        """Whether a row ends there."""
        return self.reset is None if self.terminal is None else self.terminal

    @property
    def stops(self) -> bool:
        """Whether a step ends there."""
        return self.ends or self.reset is not None

    def value(self, t: Tensor, y: Tensor, term: Any) -> Tensor:
        """The function ``[row]``, float64. Raises ValueError when it gives another shape, TypeError when it
        gives what has no sign."""
        value = self.function(t.to(y.dtype), y, *term.args)
        if not isinstance(value, Tensor) or value.dtype is torch.bool or value.is_complex():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"an event's function must give real numbers, whose sign changes, not {kind}")
        if value.shape != t.shape:
            raise ValueError(f"an event's function must give [row={len(t)}], it gives {list(value.shape)}")
        return value.double()

    def after(self, t: Tensor, y: Tensor, term: Any) -> Tensor:
        """The state ``[row, *state]`` from which rows go on. Raises ValueError for another shape."""
        assert self.reset is not None
        changed = self.reset(t.to(y.dtype), y, *term.args)
        if changed.shape != y.shape:
            raise ValueError(f"a reset must give a state {list(y.shape)}, it gives {list(changed.shape)}")
        return changed


def checked_events(events: Sequence[Any]) -> tuple[Event, ...]:
    """``events``. Raises TypeError for something else."""
    for each in events:
        if not isinstance(each, Event):
            raise TypeError(f"events must be a sequence of Event, it holds {type(each).__name__}")
    return tuple(events)


def signs(events: Sequence[Event], t: Tensor, y: Tensor, term: Any) -> tuple[Tensor, Tensor]:
    """Signs ``[row, event]`` int8, and rows where a function is not a number ``[row]`` bool."""
    if not events:
        return torch.zeros(len(t), 0, dtype=torch.int8, device=t.device), torch.zeros_like(t).bool()
    values = torch.stack([event.value(t, y, term) for event in events], 1)
    return (values > 0).to(torch.int8) - (values < 0).to(torch.int8), values.isnan().any(1)


@dataclass(frozen=True)
class Try:
    """An accepted step of k rows that is looked through: ``t``, ``h`` and ``y`` at its beginning."""

    stepper: Stepper
    term: Any
    t: Tensor
    h: Tensor
    y: Tensor
    carry: tuple[Tensor, ...]
    step: Step

    def rows(self, index: Tensor) -> Try:
        t, h, y = self.t[index], self.h[index], self.y[index]
        carry = tuple(each[index] for each in self.carry)
        return Try(self.stepper, of_rows(self.term, index), t, h, y, carry, rows_of(self.step, index))

    def between(self, theta: Tensor) -> Tensor:
        """The state at ``theta`` ``[row]``, by the interpolant."""
        return self.stepper.interpolate(theta, self.h, self.y, self.step)

    def shortened(self, theta: Tensor) -> tuple[Tensor, Step]:
        """The end of a step over ``theta`` of this one, as time rounds it, and that step."""
        ahead = self.t + theta * self.h
        return ahead, self.stepper.step(self.term, self.t, ahead - self.t, self.y, self.carry)


@dataclass(frozen=True)
class Found:
    """What was found in a step of k rows.

    row, which, t, y  the crossings that count, each row's in order: ``[crossing]`` and ``[crossing, *state]``
    stopped           rows that stop within the step ``[stop]``, and ``stopper``, by which event
    ahead, step       for these: where the shortened step ends, and that step; ``evaluations`` its cost
    held              the signs that are held now ``[row, event]``
    broken            rows where a function is not a number ``[row]`` bool
    """

    row: Tensor
    which: Tensor
    t: Tensor
    y: Tensor
    stopped: Tensor
    stopper: Tensor
    ahead: Tensor
    step: Step | None
    evaluations: Tensor
    held: Tensor
    broken: Tensor


def find(events: Sequence[Event], tried: Try, held: Tensor) -> Found:
    """Crossings in an accepted step, given the signs ``held`` ``[row, event]`` at its beginning."""
    prepare = getattr(tried.stepper, "prepare", None)
    if prepare is not None:
        step = prepare(tried.term, tried.t, tried.h, tried.y, tried.step)
        tried = Try(tried.stepper, tried.term, tried.t, tried.h, tried.y, tried.carry, step)
    changed, low, history, broken = scan(events, tried, held)
    sample, row, which = changed.nonzero().unbind(1)
    if not len(row):
        none = tried.t[:0]
        return Found(row, which, none, tried.y[:0], row, row, none, None, row, history[-1], broken)
    # The sign after the crossing is the one that was found at the sample.
    new = history[sample + 1, row, which]
    low, high = low[sample, row, which], (sample + 1).double() / SAMPLES
    theta = torch.zeros_like(high)
    state = tried.y[row].clone()
    # A stop that no other crossing competes with needs no place on the interpolant.
    alone = torch.bincount(row, minlength=len(held))[row] == 1
    for number, event in enumerate(events):
        own = ((which == number) & ~(alone & event.stops)).nonzero()[:, 0]
        if len(own):
            part, sign = tried.rows(row[own]), -new[own].double()

            def value(
                x: Tensor, asked: Tensor, part: Try = part, sign: Tensor = sign, event: Event = event
            ) -> Tensor:
                return sign * event.value(part.t + x * part.h, part.between(x), part.term)

            theta[own] = last_positive(value, low[own], high[own])
            state[own] = part.between(theta[own])
    return _settled(
        events, tried, Candidates(row, which, sample, theta, high, low, new, state), history, broken
    )


@dataclass(frozen=True)
class Candidates:
    """Crossings on the interpolant, ``[crossing]``: where (``theta``), between what, and the sign after."""

    row: Tensor
    which: Tensor
    sample: Tensor
    theta: Tensor
    high: Tensor
    low: Tensor
    new: Tensor
    state: Tensor


def scan(events: Sequence[Event], tried: Try, held: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the samples of a step: where a sign changes the way it is asked for ``[sample, row, event]``,
    the last theta before with the sign held, the signs held before each sample and after the last one
    ``[sample + 1, row, event]``, and rows where a function is not a number ``[row]``."""
    direction = torch.tensor([event.direction for event in events], dtype=torch.int8, device=held.device)
    left = torch.zeros(held.shape, dtype=torch.float64, device=held.device)
    changes, lows, history = [], [], [held]
    broken = torch.zeros_like(held[:, 0]).bool()
    for sample in range(1, SAMPLES + 1):
        theta = torch.full_like(tried.t, sample / SAMPLES)
        y = tried.step.y if sample == SAMPLES else tried.between(theta)
        found, wrong = signs(events, tried.t + theta * tried.h, y, tried.term)
        broken = broken | wrong
        last, strict = history[-1], found != 0
        changes.append(strict & (last != 0) & (found != last) & ((direction == 0) | (direction == found)))
        lows.append(left)
        left = torch.where(strict, theta[:, None], left)
        history.append(torch.where(strict, found, last))
    return torch.stack(changes), torch.stack(lows), torch.stack(history), broken


def _settled(
    events: Sequence[Event], tried: Try, found: Candidates, history: Tensor, broken: Tensor
) -> Found:
    """Which candidates count: those up to the first that stops their row, which is located on steps."""
    row, which, theta, k = found.row, found.which, found.theta, len(tried.t)
    stopping = torch.tensor([event.stops for event in events], device=row.device)[which]
    first = torch.full((k,), float("inf"), dtype=torch.float64, device=row.device)
    first = first.scatter_reduce(0, row[stopping], theta[stopping], "amin")
    earliest = stopping & (theta == first[row])
    number = torch.full((k,), len(events), device=row.device)
    number = number.scatter_reduce(0, row[earliest], which[earliest], "amin")
    stops = earliest & (which == number[row])
    at = stops.nonzero()[:, 0]
    noted = ~stopping & (theta <= first[row])
    t, y = tried.t[row] + theta * tried.h[row], found.state
    ahead, step, evaluations = tried.t[:0], None, row[:0]
    if len(at):
        ahead, step, evaluations = _by_steps(events, tried, found, at)
        t, y = t.index_copy(0, at, ahead), y.index_copy(0, at, step.y)
    order = (stops | noted).nonzero()[:, 0]
    for key in (which, stops.long(), theta, row):  # by row, then time; a stop comes last
        order = order[key[order].argsort(stable=True)]
    held = _held(history, found, at, noted)
    return Found(
        row[order],
        which[order],
        t[order],
        y[order],
        row[at],
        which[at],
        ahead,
        step,
        evaluations,
        held,
        broken,
    )


def _by_steps(
    events: Sequence[Event], tried: Try, found: Candidates, at: Tensor
) -> tuple[Tensor, Step, Tensor]:
    """The candidates ``at`` located on steps of the method: where they end, these steps, and their cost."""
    part = tried.rows(found.row[at])
    which, sign = found.which[at], -found.new[at].double()
    spent = torch.zeros(len(at), dtype=torch.int64, device=at.device)

    def value(x: Tensor, asked: Tensor) -> Tensor:
        nonlocal spent
        ahead, step = part.shortened(x)
        spent = spent + step.evaluations * asked
        values = torch.stack([event.value(ahead, step.y, part.term) for event in events], 1)
        return sign * values.gather(1, which[:, None])[:, 0]

    theta = last_positive(value, found.low[at], found.high[at])
    ahead, step = part.shortened(theta)
    return ahead, step, spent + step.evaluations


def _held(history: Tensor, found: Candidates, at: Tensor, noted: Tensor) -> Tensor:
    """The signs ``[row, event]`` that are held at the end of the step, or where its row stops."""
    held = history[-1].clone()
    rows, sample = found.row[at], found.sample[at]
    held[rows] = history[sample, rows]
    before = torch.full(held.shape[:1], SAMPLES, device=held.device).index_copy(0, rows, sample)
    late = noted & (found.sample >= before[found.row])
    held[found.row[late], found.which[late]] = found.new[late]
    return held
