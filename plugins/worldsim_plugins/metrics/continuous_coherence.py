"""Scores of a comparison of futures: the thresholded ones, the threshold-free one, and their intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim_plugins.metrics.history_pairs import Divergences, Setting, ranking, separation

HIGHER = ("coherence_auc", "compression", "distinction_precision", "distinction_recall")
NO_TRUTH = "the system cannot be restarted from a given state, so the truth's own futures are unknown"
NO_BOUNDARY = "the truth separates no distinct pair within the horizon; lengthen it"
NO_SEPARATION = "the model separates no distinct pair within the horizon"


@dataclass(frozen=True)
class Comparison:
    """Distances of a model's futures, and where the truth can be restarted of its own.

    own    D(t) ``[pair, time]`` of the model after row i's first history from the truth of that history
    other  the same from the truth of the distinct partner's history
    """

    model: Divergences
    truth: Divergences | None
    own: Tensor | None
    other: Tensor | None

    @staticmethod
    def joined(parts: list[Comparison]) -> Comparison:
        """The pairs of several kinds, one after the other."""
        model = _joined([part.model for part in parts])
        truth = [part.truth for part in parts if part.truth is not None]
        own = [part.own for part in parts if part.own is not None]
        other = [part.other for part in parts if part.other is not None]
        if not truth:
            return Comparison(model, None, None, None)
        return Comparison(model, _joined(truth), torch.cat(own), torch.cat(other))

    def rows(self, index: Tensor) -> Comparison:
        """A bootstrap resample: pairs come with their distinct partner."""
        return Comparison(
            _rows(self.model, index),
            None if self.truth is None else _rows(self.truth, index),
            None if self.own is None else self.own[index],
            None if self.other is None else self.other[index],
        )


def _joined(parts: list[Divergences]) -> Divergences:
    return Divergences(
        *(torch.cat([getattr(p, name) for p in parts]) for name in Divergences.__annotations__)
    )


def _rows(part: Divergences, index: Tensor) -> Divergences:
    return Divergences(part.equivalent[index], part.distinct[index], part.failed[index])


def threshold(comparison: Comparison, epsilon: float, draws: int) -> float:
    """``epsilon``; for stochastic predictions at least the 95 % quantile, over pairs, of the largest distance
    between two independent sets of the truth's own draws from one state.

    Raises NotMeasurable where a single draw cannot tell such a distance from a difference between laws: the
    truth would then seem incoherent, and whoever forecasts one future for ever coherent.
    """
    if comparison.truth is None:
        return epsilon
    own = float(comparison.truth.equivalent.amax(1).quantile(0.95))
    if draws == 1 and own > epsilon:
        raise NotMeasurable(
            f"two of the truth's own futures from one state are {own:.3g} apart, over epsilon = {epsilon:g}; "
            "compare laws, with draws: 16 or more (where the truth is chaotic, shorten the horizon)"
        )
    return max(epsilon, own)


def measures(comparison: Comparison, eta: float) -> dict[str, float]:
    """All scores at the threshold ``eta``; NaN where one is not measurable.

    compression            share of equivalent pairs never further apart than eta
    distinction_recall     of the distinct pairs that truly separate, the share that the model has apart at
                           the frame where they first do, and nearer to its own truth than to the other's
    distinction_precision  of those that the model separates, the share truly apart where it first does
    n_empty                share of distinct pairs that the model never separates
    fidelity               mean distance of the model from the truth, over pairs and frames
    horizon_error          mean |log(k_m / k_W)| over distinct pairs, k the first frame apart
    coherence_auc          P(delta_E < delta_U) + 1/2 P(=), delta the largest distance over the frames
    """
    model, truth = comparison.model, comparison.truth
    k_model, apart = separation(model.distinct, eta)
    values = {
        "coherence_auc": ranking(model.equivalent.amax(1), model.distinct.amax(1)),
        "compression": float((model.equivalent.amax(1) <= eta).double().mean()),
        "n_empty": float((~apart).double().mean()),
    }
    if truth is None or comparison.own is None or comparison.other is None:
        return values
    k_world, truly = separation(truth.distinct, eta)
    row = torch.arange(len(truly))[truly]
    at = k_world[truly] - 1
    right = (model.distinct[row, at] > eta) & (comparison.own[row, at] < comparison.other[row, at])
    found = truth.distinct[apart, k_model[apart] - 1] > eta
    return values | {
        "distinction_recall": float(right.double().mean()),
        "distinction_precision": float(found.double().mean()),
        "fidelity": float(comparison.own.mean()),
        "horizon_error": float((k_model.double() / k_world).log().abs().mean()),
    }


def scores_of(
    comparison: Comparison,
    *,
    epsilon: float,
    resamples: int,
    setting: Setting,
    labels: list[str] | None,
    floor: Comparison | None,
) -> dict[str, Score]:
    """Every measure as a Score: its floor is what ``floor`` scores, an independent truth in the place of the
    model; its interval is a bootstrap over pairs.

    ``labels`` are the kinds of the pairs: with them the distances themselves are reported as well.
    """
    eta = threshold(comparison, epsilon, setting.draws)
    values = measures(comparison, eta)
    floors = {} if floor is None else measures(floor, eta)
    intervals = _intervals(comparison, lambda part: measures(part, eta), resamples, setting.generator(5))
    n, failed = len(comparison.model.failed), int(comparison.model.failed.sum())
    scores = {
        name: Score(
            value,
            better="higher" if name in HIGHER else "" if name == "n_empty" else "lower",
            floor=floors.get(name),
            interval=intervals[name],
            n=n,
            failed=failed,
        )
        for name, value in values.items()
    }
    scores |= _unmeasured(values, n, failed)
    scores["threshold"] = Score(eta, better="", n=n)
    return scores if labels is None else scores | _distances(comparison, setting, labels)


def _unmeasured(values: dict[str, float], n: int, failed: int) -> dict[str, Score]:
    reasons = {
        "distinction_recall": NO_BOUNDARY,
        "distinction_precision": NO_SEPARATION,
        "fidelity": f"{failed} of {n} futures were not finite",
        "horizon_error": NO_TRUTH,
    }
    return {
        name: Score(
            float("nan"),
            better="higher" if name in HIGHER else "lower",
            n=n,
            failed=failed,
            reason=reason if name in values else NO_TRUTH,
        )
        for name, reason in reasons.items()
        if not isfinite(values.get(name, float("nan")))
    }


def _intervals(
    comparison: Comparison,
    measure: Callable[[Comparison], dict[str, float]],
    resamples: int,
    generator: torch.Generator,
) -> dict[str, tuple[float, float] | None]:
    n = len(comparison.model.failed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    sample = [measure(comparison.rows(index)) for index in drawn]
    level = torch.tensor([0.025, 0.975], dtype=torch.float64)
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in sample[0]:
        values = torch.tensor([one[name] for one in sample], dtype=torch.float64)
        values = values[torch.isfinite(values)]
        low, high = values.quantile(level).tolist() if len(values) else (0.0, 0.0)
        intervals[name] = (low, high) if len(values) else None
    return intervals


def _distances(comparison: Comparison, setting: Setting, labels: list[str]) -> dict[str, Score]:
    frames = setting.step * torch.arange(1, setting.horizon + 1, dtype=torch.float64)
    coords = {"pair": labels, "time": frames.tolist()}
    array = Score(0.0, dims=("pair", "time"), better="", n=len(labels), coords=coords)
    return {
        "divergence_equivalent": replace(array, value=comparison.model.equivalent.numpy()),
        "divergence_distinct": replace(array, value=comparison.model.distinct.numpy()),
    }
