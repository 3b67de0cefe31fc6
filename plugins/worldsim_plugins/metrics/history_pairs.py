"""How far apart a model's predictions are after two histories: Myhill-Nerode coherence over states.

Equivalent pairs are different histories of one state, built exactly by the system; distinct pairs take the
first history of one such pair and the second of another. A prediction is a set of draws of the future, and
the tests are the frames after the last given one:

    deterministic (one draw)   D(t) = sqrt(mean_c ((x_c - y_c) / s_c)^2), s_c the spread of the truth
    stochastic                 D(t) = sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|), |.| the same norm

the second being the energy distance (Szekely and Rizzo 2013), all pairs of draws counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim import NotMeasurable, Trajectory
from worldsim.protocols import HasActions, HasEquivalentHistories, Model, Restartable
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.model_failure import blaming_the_model

EXACT = 1e-12  # distances are compared after rounding here, so that equal predictions tie


@dataclass(frozen=True)
class Futures:
    """Futures ``[pair, draw, time, *state]`` after both histories of each pair, aligned to the first's frame,
    frame 0 left out."""

    first: Tensor
    second: Tensor

    def failed(self) -> Tensor:
        """``[pair]`` bool: a future of this pair is not finite."""
        both = torch.cat([self.first.flatten(1), self.second.flatten(1)], 1)
        return ~torch.isfinite(both).all(1)


@dataclass(frozen=True)
class Setting:
    """What pairs of histories are rolled out over: grid, draws, and the seed of every random number."""

    step: float
    origin: float
    history: int
    horizon: int
    pairs: int
    draws: int
    seed: int

    def generator(self, *stream: int) -> torch.Generator:
        """Random numbers of their own for each stream."""
        word = np.random.SeedSequence([self.seed, *stream]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(word >> np.uint64(1)))

    def past(self) -> Tensor:
        return self.origin + self.step * torch.arange(self.history, dtype=torch.float64)

    def future(self, last: float) -> Tensor:
        return last + self.step * torch.arange(self.horizon + 1, dtype=torch.float64)


def paired_futures(
    system: HasEquivalentHistories, model: Model, kind: str, stream: int, setting: Setting
) -> tuple[Futures, Futures | None, Futures | None]:
    """The model's futures of ``setting.pairs`` pairs of ``kind``, and where the truth can be restarted its
    own, twice and independently: once to compare with, once in the place of a model.

    The two histories of a pair get independent random numbers: with common ones a model that ignores its
    context would look coherent. Both get the same actions. Raises ModelFailed when the model does.
    """
    pairs = system.equivalent_histories(kind, setting.pairs, setting.past(), setting.generator(stream, 0))
    times = setting.future(float(pairs.first.times[-1]))
    actions = None
    if isinstance(system, HasActions):
        actions = system.sample_actions(len(pairs.first), times, setting.generator(stream, 1))

    def predict(history: Trajectory, number: int) -> Tensor:
        with blaming_the_model():
            out = model.rollout(history, times, actions, setting.draws, setting.generator(stream, 2, number))
        return out.states[:, :, 1:].detach().double().cpu()

    def happen(history: Trajectory, number: int) -> Tensor:
        rows = history.states[:, 0, -1].repeat_interleave(setting.draws, 0)
        acts = None if actions is None else actions.repeat_interleave(setting.draws, 0)
        start = system.restart(rows)  # type: ignore[attr-defined]
        out = system.simulate(start, times - times[0], acts, setting.generator(stream, 3, number))
        return out.states.reshape(len(history), setting.draws, *out.states.shape[2:])[:, :, 1:].double()

    def after(one: Callable[[Trajectory, int], Tensor], number: int = 0) -> Futures:
        return Futures(one(pairs.first, number), pairs.align(one(pairs.second, number + 1)))

    if not isinstance(system, Restartable):
        return after(predict), None, None
    return after(predict), after(happen), after(happen, 2)


def spread(truth: Trajectory) -> Tensor:
    """Standard deviation of each component over all of the truth, ``[*state]`` float64; 1 where it is only
    rounding.

    Raises NotMeasurable when the truth has fewer than two frames.
    """
    flat = truth.states[:, 0][within(truth)].double()
    if len(flat) < 2:
        raise NotMeasurable("the truth has fewer than two frames, so distances have no scale")
    deviation = flat.std(0, correction=0)
    return torch.where(deviation > EXACT * flat.abs().amax(0), deviation, torch.ones_like(deviation))


def divergence(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """D(t), ``[pair, time]``, of futures ``[pair, draw, time, *state]``; +inf where one is not finite."""
    x, y = ((future / scale).reshape(*future.shape[:3], -1).transpose(1, 2) for future in (first, second))
    if x.shape[2] == y.shape[2] == 1:
        distance = (x - y).square().mean(-1)[..., 0].sqrt()
    else:
        distance = _energy_distance(x, y) / x.shape[-1] ** 0.25
    distance = torch.where(torch.isfinite(distance), distance, torch.inf)
    return torch.where(distance < EXACT, 0.0, distance)


def _energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """``[...]`` from samples ``[..., draw, feature]``, Euclidean norm."""

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean((-1, -2))

    return (2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)).clamp(min=0).sqrt()


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation ``[n]`` without a fixed point: one cycle through all rows. ``n`` >= 2."""
    order = torch.randperm(n, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


@dataclass(frozen=True)
class Divergences:
    """D(t) ``[pair, time]`` of equivalent and of distinct pairs; a pair whose future is not finite counts as
    wrong both ways: +inf where equivalent, 0 where distinct."""

    equivalent: Tensor
    distinct: Tensor
    failed: Tensor


def divergences(futures: Futures, partner: Tensor, scale: Tensor) -> Divergences:
    """Distances within pairs, and of row i's first from row ``partner[i]``'s second."""
    failed = futures.failed()
    equivalent = divergence(futures.first, futures.second, scale)
    distinct = divergence(futures.first, futures.second[partner], scale)
    equivalent = torch.where(failed[:, None], torch.inf, equivalent)
    distinct = torch.where((failed | failed[partner])[:, None], 0.0, distinct)
    return Divergences(equivalent, distinct, failed)


def ranking(equivalent: Tensor, distinct: Tensor) -> float:
    """P(E < U) + 1/2 P(E = U) over all pairs of entries of ``equivalent [n]`` and ``distinct [m]``."""
    low, high = equivalent.round(decimals=12).sort().values, distinct.round(decimals=12)
    rank = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return float(rank.double().mean() / (2 * len(low)))


def separation(distances: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """First frame ``[pair]`` at which ``distances [pair, time]`` exceed ``threshold``, counted from 1 (one
    past the last where they never do), and whether they ever do."""
    over = distances > threshold
    ever = over.any(1)
    return torch.where(ever, over.double().argmax(1) + 1, distances.shape[1] + 1), ever
