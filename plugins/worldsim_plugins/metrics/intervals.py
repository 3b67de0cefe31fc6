"""Intervals of 95 % of what is measured in independent clusters, and of what never failed at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import special, stats
from torch import Tensor

from worldsim_plugins.metrics.comparison import CONFIDENCE

Interval = tuple[float, float]


def bootstrap(
    statistic: Callable[[Tensor], dict[str, Tensor]],
    clusters: int,
    resamples: int,
    generator: torch.Generator,
) -> dict[str, Interval | None]:
    """Interval of each number ``[resample]`` that ``statistic`` gives for how often each cluster was drawn,
    float64 ``[resample, cluster]`` (Efron 1979; clusters: Davison and Hinkley 1997, section 3.8).

    Percentiles, expanded to those of Student's t, without which few clusters give too narrow ones
    (Hesterberg 2015, section 4). None where no resample has a number.
    """
    drawn = torch.randint(clusters, (resamples, clusters), generator=generator)
    times = torch.zeros(resamples, clusters, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    tail = (1 - CONFIDENCE) / 2
    if clusters > 1:
        wide = (clusters / (clusters - 1)) ** 0.5 * stats.t.ppf(tail, clusters - 1)
        tail = float(stats.norm.cdf(wide))
    level = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    intervals: dict[str, Interval | None] = {}
    for name, values in statistic(times).items():
        values = values[torch.isfinite(values)]
        low, high = values.quantile(level).tolist() if len(values) else (0.0, 0.0)
        intervals[name] = (low, high) if len(values) else None
    return intervals


def jackknife(value: float, strata: list[Tensor], *, share: bool) -> Interval:
    """Student's interval of ``value``, given by how much it changes when each of the independent draws of
    each stratum is left out, ``[n]``: a stratum has the variance (n - 1) / n sum (c - mean c)^2 (Shao and Tu
    1995), and theirs together as many degrees of freedom as Satterthwaite (1946) has it.

    share  between 0 and 1: the interval is that of the logit, which does not leave them
    """
    parts = [each.round(decimals=12) for each in strata if len(each) > 1]
    variances = [float((len(each) - 1) ** 2 / len(each) * each.var()) for each in parts]
    total = sum(variances)
    if total == 0 or (share and not 0 < value < 1):
        return value, value
    free = total**2 / sum(v**2 / (len(each) - 1) for v, each in zip(variances, parts))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) * total**0.5
    if not share:
        return value - reach, value + reach
    middle, reach = special.logit(value), reach / (value * (1 - value))
    return float(special.expit(middle - reach)), float(special.expit(middle + reach))


def never(count: int) -> float:
    """The largest chance that what did not happen in ``count`` independent trials may have, with 95 %
    confidence: 1 - 0.05^(1 / count), about 3 / count (the rule of three; Hanley and Lippman-Hand 1983)."""
    return 1 - (1 - CONFIDENCE) ** (1 / count) if count else 1.0


def widened(value: float, interval: Interval | None, trials: int) -> Interval | None:
    """``interval``, unless it has no width although ``value`` is a share: then what the same answer from each
    of ``trials`` independent comparisons leaves possible, one-sided at 0 and at 1."""
    if interval is None or interval[1] > interval[0] or not 0 <= value <= 1:
        return interval
    room = never(trials)
    # A share of which the part 1 - room is known to be value: the rest may be anything from 0 to 1.
    return value * (1 - room), value + (1 - value) * room
