"""Scores of a comparison of futures: the thresholded ones, the threshold-free one, and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim_plugins.metrics.history_pairs import Setting
from worldsim_plugins.metrics.intervals import Interval, bootstrap, widened
from worldsim_plugins.metrics.pair_distances import Comparison, Pairs

HIGHER = ("coherence_auc", "compression", "distinction_precision", "distinction_recall")
NO_TRUTH = "the system cannot be restarted from a given state, so the truth's own futures are unknown"
NO_BOUNDARY = "the truth separates no distinct pair within the horizon; lengthen it"
NO_SEPARATION = "the model separates no distinct pair within the horizon"


def threshold(equivalent: Pairs, epsilon: float, draws: int) -> float:
    """``epsilon``; for stochastic predictions at least the 95 % quantile, over pairs, of the largest distance
    between two independent sets of the truth's own draws from one state.

    Raises NotMeasurable where a single draw cannot tell such a distance from a difference between laws: the
    truth would then seem incoherent, and whoever forecasts one future for ever coherent.
    """
    if equivalent.truth is None:
        return epsilon
    own = float(largest(equivalent.truth).quantile(0.95))
    if draws == 1 and own > epsilon:
        raise NotMeasurable(
            f"two of the truth's own futures from one state are {own:.3g} apart, over epsilon = {epsilon:g}; "
            "compare laws, with draws: 16 or more (where the truth is chaotic, shorten the horizon)"
        )
    return max(epsilon, own)


def largest(distances: Tensor) -> Tensor:
    """delta ``[pair]``: the largest of ``[pair, test, time]``."""
    return distances.flatten(1).amax(1)


def separation(distances: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """First frame ``[...]`` at which ``distances [..., time]`` exceed ``eta``, counted from 1 (one past the
    last where they never do), and whether they ever do."""
    over = distances > eta
    ever = over.any(-1)
    return torch.where(ever, over.double().argmax(-1) + 1, distances.shape[-1] + 1), ever


def ranking(equivalent: Tensor, distinct: Tensor) -> float:
    """P(E < U) + 1/2 P(E = U) over all pairs of entries of ``equivalent [n]`` and ``distinct [m]``."""
    return float(
        weighted_ranking(equivalent, distinct, torch.ones(1, len(equivalent)), torch.ones(1, len(distinct)))
    )


def weighted_ranking(equivalent: Tensor, distinct: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """The same ``[resample]`` where entries count ``own [resample, n]`` and ``other [resample, m]`` times."""
    order = equivalent.argsort()
    low, high = equivalent[order].round(decimals=12), distinct.round(decimals=12)
    total = torch.nn.functional.pad(own.double()[:, order].cumsum(1), (1, 0))
    rank = total[:, torch.searchsorted(low, high)] + total[:, torch.searchsorted(low, high, right=True)]
    return (other * rank).sum(1) / (2 * total[:, -1] * other.sum(1))


def outcomes(pairs: Pairs, eta: float) -> dict[str, Tensor]:
    """What distinct pairs say at the threshold ``eta``, ``[pair]``; NaN where a pair says nothing.

    distinction_recall     of the tests that truly separate the pair, the share under which the model has it
                           apart at the frame where they first do, and nearer to its own truth
    distinction_precision  of the tests that separate it by the model, the share truly apart there
    n_empty                1 where the model never separates it
    fidelity               mean distance of the model from the truth, over tests and frames
    horizon_error          mean |log(k_m / k_W)| over tests, k the first frame apart
    """
    k_model, apart = separation(pairs.model, eta)
    found = {"n_empty": (~apart.any(1)).double()}
    if pairs.truth is None or pairs.own is None or pairs.other is None:
        return found
    k_world, truly = separation(pairs.truth, eta)

    def at(distances: Tensor, k: Tensor) -> Tensor:
        return distances.gather(2, (k - 1).clamp(max=distances.shape[2] - 1)[..., None])[..., 0]

    right = (at(pairs.model, k_world) > eta) & (at(pairs.own, k_world) < at(pairs.other, k_world))
    real = at(pairs.truth, k_model) > eta
    return found | {
        "distinction_recall": (right & truly).sum(1) / truly.sum(1).double(),
        "distinction_precision": (real & apart).sum(1) / apart.sum(1).double(),
        "fidelity": pairs.own.mean((1, 2)),
        "horizon_error": (k_model / k_world.double()).log().abs().mean(1),
    }


@dataclass(frozen=True)
class Facts:
    """What every pair says at one threshold: delta of the equivalent and of the distinct ones ``[pair]``, and
    the ``outcomes`` of the distinct ones."""

    near: Tensor
    far: Tensor
    said: dict[str, Tensor]
    eta: float

    @staticmethod
    def of(comparison: Comparison, eta: float) -> Facts:
        same, other = comparison.equivalent, comparison.distinct
        return Facts(largest(same.model), largest(other.model), outcomes(other, eta), eta)

    def measures(self) -> dict[str, float]:
        """All scores; NaN where one is not measurable.

        compression    share of equivalent pairs never further apart than eta under any test
        coherence_auc  P(delta_E < delta_U) + 1/2 P(=), delta the largest distance over tests and frames
        and the means of ``outcomes``.
        """
        found = self.weighted(torch.ones(1, len(self.near)), torch.ones(1, len(self.far)))
        return {name: float(value) for name, value in found.items()}

    def weighted(self, same: Tensor, other: Tensor) -> dict[str, Tensor]:
        """The same ``[resample]`` where pairs count ``same`` and ``other`` ``[resample, pair]`` times."""
        same, other = same.double(), other.double()
        close = (self.near <= self.eta).double()
        values = {
            "coherence_auc": weighted_ranking(self.near, self.far, same, other),
            "compression": same @ close / same.sum(1),
        }
        for name, each in self.said.items():
            counted = ~torch.isnan(each)
            values[name] = other[:, counted] @ each[counted] / other[:, counted].sum(1)
        return values


def scores_of(
    comparison: Comparison, floor: Comparison | None, *, eta: float, resamples: int, setting: Setting
) -> dict[str, Score]:
    """Every measure as a Score: its floor is what ``floor`` scores, an independent truth in the place of the
    model; its interval is a bootstrap over clusters of pairs.

    With a model that failed on any pair nothing is measurable.
    """
    n, failed = len(comparison.equivalent.failed), comparison.failed
    if failed:
        reason = f"{failed} of {n} pairs have futures that are not finite; a trial is never dropped"
        nothing = dict.fromkeys((*HIGHER, "fidelity", "horizon_error"), reason)
        return {name: _unmeasured(name, why, n, failed) for name, why in nothing.items()}
    facts = Facts.of(comparison, eta)
    values = facts.measures()
    floors = {} if floor is None else Facts.of(floor, eta).measures()
    intervals = intervals_of(facts, comparison, resamples, setting.generator(5))
    scores = {
        name: Score(value, better=better(name), floor=floors.get(name), interval=intervals[name], n=n)
        for name, value in values.items()
        if isfinite(value)
    }
    reasons = {"distinction_recall": NO_BOUNDARY, "distinction_precision": NO_SEPARATION}
    for name in ("distinction_recall", "distinction_precision", "fidelity", "horizon_error"):
        if name not in scores:
            scores[name] = _unmeasured(name, reasons[name] if name in values else NO_TRUTH, n, 0)
    return scores


def intervals_of(
    facts: Facts, comparison: Comparison, resamples: int, generator: torch.Generator
) -> dict[str, Interval | None]:
    """Clusters are drawn with replacement, each with all its pairs. A comparison of an equivalent pair with a
    distinct one takes two clusters."""
    same, other = comparison.equivalent.cluster, comparison.distinct.cluster
    first = int(same.max()) + 1
    other = other if comparison.shared else other + first
    count = max(first, int(other.max()) + 1)

    def resampled(times: Tensor) -> dict[str, Tensor]:
        return facts.weighted(times[:, same], times[:, other])

    found = bootstrap(resampled, count, resamples, generator)
    trials = {"coherence_auc": count // 2, "compression": first}
    distinct, values = len(other.unique()), facts.measures()
    return {
        name: widened(values[name], interval, trials.get(name, distinct))
        if name in (*HIGHER, "n_empty")
        else interval
        for name, interval in found.items()
    }


def better(name: str) -> Literal["lower", "higher", ""]:
    return "higher" if name in HIGHER else "" if name == "n_empty" else "lower"


def _unmeasured(name: str, reason: str, n: int, failed: int) -> Score:
    return Score(float("nan"), better=better(name), n=n, failed=failed, reason=reason)


def distances(
    comparison: Comparison, setting: Setting, same: list[str], other: list[str]
) -> dict[str, Score]:
    """D(t) of every pair, the largest over tests; ``same`` and ``other`` are the kinds of the pairs."""
    frames = (setting.step * torch.arange(1, setting.horizon + 1, dtype=torch.float64)).tolist()
    found = {"equivalent": (comparison.equivalent, same), "distinct": (comparison.distinct, other)}
    return {
        f"divergence_{which}": Score(
            pairs.model.amax(1).numpy(),
            dims=("pair", "time"),
            better="",
            n=len(kinds),
            coords={"pair": kinds, "time": frames},
        )
        for which, (pairs, kinds) in found.items()
    }
