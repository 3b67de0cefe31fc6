"""A measured distance between laws as scores: beside its floor, with its interval and all it depends on."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

from worldsim import Score
from worldsim_plugins.metrics.law_distances import Distance, Found

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal law."""
Interval = tuple[float, float] | None


def scores_of(
    distance: Distance, found: Found, floors: Tensor, n: int, dimension: int, independent: bool
) -> dict[str, Score]:
    """The named scores of ``n`` points, whose floor the truth's ``floors`` ``[pair]`` are; an interval and a
    test when the points are independent."""
    name, interval = distance.name, None
    if independent and isfinite(found.standard_error):
        margin = NORMAL * found.standard_error
        interval = found.value - margin, found.value + margin
        if distance.biased:
            interval = max(interval[0], 0.0), interval[1]
    scores = {name: Score(found.value, floor=_mean(floors), interval=interval, n=n)}
    if distance.rooted:
        squared, floors = scores[name], floors.sqrt()
        interval = _each(interval, lambda end: end**0.5)
        root = Score(found.value**0.5, floor=_mean(floors), interval=interval, n=n)
        scores = {name: root, f"{name}_squared": squared}
    scores[f"{name}_dimension"] = Score(float(dimension), better="", n=n)
    if len(floors):
        scores[f"{name}_floor_q95"] = Score(float(floors.quantile(0.95)), better="", n=len(floors))
        scores[f"{name}_ratio"] = _ratio(distance, scores[name].value, floors, interval, n)
    numbers = {"epsilon": found.epsilon, "gap": found.gap}
    if independent:
        numbers |= {"standard_error": found.standard_error, "p_value": found.p_value}
    return scores | {
        f"{name}_{what}": Score(number, better="", n=n)
        for what, number in numbers.items()
        if isfinite(number)
    }


def _ratio(distance: Distance, value: float, floors: Tensor, interval: Interval, n: int) -> Score:
    """Over the floor's mean; an unbiased statistic is 0 on average there, and goes over the quantile."""
    mean = float(floors.mean())
    unit = mean if distance.biased else float(floors.quantile(0.95))
    if not unit > 0:
        return Score(float("nan"), n=n, reason="the floor is 0")
    return Score(value / unit, floor=mean / unit, interval=_each(interval, lambda end: end / unit), n=n)


def _mean(floors: Tensor) -> float | None:
    return float(floors.mean()) if len(floors) else None


def _each(interval: Interval, of: Callable[[float], float]) -> Interval:
    return None if interval is None else (of(interval[0]), of(interval[1]))


def coupling(plan: Tensor, x: Tensor, y: Tensor) -> dict[str, Score]:
    """A coupling ``[n, m]`` in the two leading principal axes of the truth ``x`` ``[n, d]``."""
    centre = x.mean(0)
    axes = torch.linalg.svd(x - centre, full_matrices=False).Vh[:2]
    match = plan.argmax(1)
    flat, dims = {"better": "", "n": len(x)}, ("point", "axis")
    return {
        "coupling_truth": Score(((x - centre) @ axes.mT).numpy(), dims=dims, **flat),
        "coupling_prediction": Score(((y - centre) @ axes.mT).numpy(), dims=dims, **flat),
        "coupling_match": Score(match.double().numpy(), dims=("point",), **flat),
    }
