"""Pairs of histories, and what a model and the truth say happens after them.

Equivalent pairs are different histories of one state, built exactly by the system. Distinct pairs take the
first history of one such pair and the second of another, two by two (``shuffled``), so that couples of states
are independent of one another; or the system builds them alike in what is seen last (equal position, another
velocity). The tests are the frames after the last given one, under each of a few sequences of actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim import NotMeasurable, Trajectory
from worldsim.protocols import HasActions, HasForecast, HistoryPairs, Model, Restartable, System
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.divergences import EXACT
from worldsim_plugins.metrics.model_failure import blaming_the_model
from worldsim_plugins.metrics.observed import Observe


@dataclass(frozen=True)
class Futures:
    """Futures ``[pair, test, draw, time, feature]`` after both histories of each pair, in the first's frame,
    the last given frame left out."""

    first: Tensor
    second: Tensor

    def failed(self) -> Tensor:
        """``[pair]`` bool: a future of this pair is not finite."""
        both = torch.cat([self.first.flatten(1), self.second.flatten(1)], 1)
        return ~torch.isfinite(both).all(1)


@dataclass(frozen=True)
class Answers:
    """Futures by a model, and by the truth where it knows them, twice and independently: once to compare
    with, once in the place of a model. ``cluster [pair]`` numbers what is independent of the rest."""

    model: Futures
    truth: Futures | None
    again: Futures | None
    cluster: Tensor


@dataclass(frozen=True)
class Setting:
    """What pairs of histories are rolled out over: grid, draws, tests, and the seed of all chance."""

    step: float
    origin: float
    history: int
    horizon: int
    pairs: int
    draws: int
    tests: int
    seed: int

    def generator(self, *stream: int) -> torch.Generator:
        """Random numbers of their own for each stream."""
        word = np.random.SeedSequence([self.seed, *stream]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(word >> np.uint64(1)))

    def past(self) -> Tensor:
        return self.origin + self.step * torch.arange(self.history, dtype=torch.float64)

    def future(self, last: float) -> Tensor:
        return last + self.step * torch.arange(self.horizon + 1, dtype=torch.float64)


def couples(n: int) -> tuple[Tensor, Tensor]:
    """The partner of each of ``n`` >= 2 rows, ``[n]``, and the couple it belongs to, ``[n]``: neighbours
    partner each other; the last three of an odd number go round."""
    index = torch.arange(n)
    partner, couple = index ^ 1, index // 2
    if n % 2:
        partner[-3:], couple[-3:] = torch.tensor([n - 2, n - 1, n - 3]), (n - 3) // 2
    return partner, couple


def answers(
    system: System,
    model: Model,
    pairs: HistoryPairs,
    cluster: Tensor,
    observe: Observe,
    stream: int,
    setting: Setting,
) -> Answers:
    """Roll model and truth out after both histories of ``pairs``.

    The two histories of a pair get independent random numbers: with common ones a model that ignores its
    context would look coherent. Rows of one cluster get the same actions: under different ones even a model
    that knows nothing would tell them apart. Raises ModelFailed when the model does.
    """
    times, count, tests = setting.future(float(pairs.first.times[-1])), len(pairs.first), setting.tests
    row = torch.arange(count).repeat_interleave(tests)
    actions = None
    if isinstance(system, HasActions):
        each = system.sample_actions((int(cluster.max()) + 1) * tests, times, setting.generator(stream, 1))
        actions = each[(cluster[:, None] * tests + torch.arange(tests)).flatten()]

    def predict(history: Trajectory, number: int) -> Tensor:
        with blaming_the_model():
            rng = setting.generator(stream, 2, number)
            out = model.rollout(history.rows(row), times, actions, setting.draws, rng)
        return out.states.detach().double().cpu()

    def happen(history: Trajectory, number: int) -> Tensor:
        rng = setting.generator(stream, 3, number)
        if isinstance(system, HasForecast):
            return system.forecast(history.rows(row), times, actions, setting.draws, rng).states.double()
        rows = history.states[row, 0, -1].repeat_interleave(setting.draws, 0)
        acts = None if actions is None else actions.repeat_interleave(setting.draws, 0)
        start = system.restart(rows)  # type: ignore[attr-defined]
        out = system.simulate(start, times - times[0], acts, rng)
        return out.states.reshape(len(row), setting.draws, *out.states.shape[2:]).double()

    def seen(states: Tensor) -> Tensor:
        found = observe(states[:, :, 1:])
        return found.reshape(count, tests, *found.shape[1:])

    def after(one: Callable[[Trajectory, int], Tensor], number: int = 0) -> Futures:
        return Futures(seen(one(pairs.first, number)), seen(pairs.align(one(pairs.second, number + 1))))

    if not isinstance(system, (Restartable, HasForecast)):
        return Answers(after(predict), None, None, cluster)
    return Answers(after(predict), after(happen), after(happen, 2), cluster)


def spread(truth: Trajectory, observe: Observe) -> Tensor:
    """Standard deviation of each feature over all of the truth, ``[feature]`` float64; 1 where it is only
    rounding.

    Raises NotMeasurable when the truth has fewer than two frames.
    """
    flat = observe(truth.states.double())[:, 0][within(truth)]
    if len(flat) < 2:
        raise NotMeasurable("the truth has fewer than two frames, so distances have no scale")
    deviation = flat.std(0, correction=0)
    return torch.where(deviation > EXACT * flat.abs().amax(0), deviation, torch.ones_like(deviation))
