"""How far two predictive laws are apart, from as many draws of each, at each time.

With the features divided by the truth's spread and |.| the Euclidean norm over d of them:

    nrmse     sqrt(|x - y|^2 / d), of a single draw each
    energy    sqrt((2 E|X - Y| - E|X - X'| - E|Y - Y'|) / sqrt(d)), all pairs of draws counted (Szekely and
              Rizzo 2013)
    sinkhorn  sqrt(S(X, Y) / d), S = OT(x, y) - (OT(x, x) + OT(y, y)) / 2, the debiased entropic transport
              cost with the cost |x - y|^2 and epsilon = BLUR^2 d (Feydy et al. 2019)

All are 0 between equal samples, and energy and sinkhorn above 0 between two samples of one law: that is their
floor. (Over tokens the divergence is the total variation of the laws of words, computed from the laws.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-12  # distances are compared after rounding here, so that equal predictions tie
ROUNDING = 1e-14
"""The part of a mean distance that its sum may lose."""
BLUR = 0.5
SWEEPS, SETTLED = 300, 1e-6
CHUNK = 2**16
"""Distances of draws that are held at a time: as many as stay in a processor's cache."""


@dataclass(frozen=True)
class Law:
    """What is known of a predictive law, ready to be compared with others.

    draws  ``[..., time, draw, feature]``, in units of the truth's spread
    own    ``[..., time]``: the mean distance of two draws (energy) or what they cost from themselves
           (sinkhorn); 0 for nrmse
    kind   "nrmse", "energy" or "sinkhorn"
    """

    draws: Tensor
    own: Tensor
    kind: str

    @staticmethod
    def of(futures: Tensor, scale: Tensor, kind: str = "auto") -> Law:
        """Of ``futures [..., draw, time, feature]``; ``scale [feature]``; ``auto`` is nrmse for one draw,
        else energy."""
        draws = (futures / scale).transpose(-3, -2).contiguous()
        if kind == "auto":
            kind = "nrmse" if draws.shape[-2] == 1 else "energy"
        if kind == "energy":
            return Law(draws, mean_distance(draws, draws), kind)
        own = torch.zeros(draws.shape[:-2], dtype=draws.dtype)
        if kind == "sinkhorn":
            finite = torch.isfinite(draws).all((-1, -2))
            own[finite] = own_cost(_squares(draws[finite], draws[finite]), _epsilon(draws))
        return Law(draws, own, kind)

    def rows(self, index: Tensor) -> Law:
        """Those of ``index`` along the first axis."""
        return Law(self.draws[index], self.own[index], self.kind)

    def apart(self, other: Law) -> Tensor:
        """D(t) ``[..., time]`` from another law of this kind; +inf where one is not finite."""
        x, y, d = self.draws, other.draws, self.draws.shape[-1]
        if self.kind == "nrmse":
            distance = (x.mean(-2) - y.mean(-2)).square().mean(-1).sqrt()
        elif self.kind == "energy":
            mean = mean_distance(x, y)
            square = 2 * mean - self.own - other.own
            # Equal samples whose sums were rounded differently are at no distance.
            distance = torch.where(square <= ROUNDING * mean, 0.0, square).sqrt() / d**0.25
        else:
            finite = torch.isfinite(x).all((-1, -2)) & torch.isfinite(y).all((-1, -2))
            distance = torch.full(finite.shape, torch.inf, dtype=x.dtype)
            cost = entropic_cost(_squares(x[finite], y[finite]), _epsilon(x))
            own = (self.own[finite] + other.own[finite]) / 2
            distance[finite] = ((cost - own).clamp(min=0) / d).sqrt()
        distance = torch.where(torch.isfinite(distance), distance, torch.inf)
        return torch.where(distance < EXACT, 0.0, distance)


def divergence(first: Tensor, second: Tensor, scale: Tensor, kind: str = "auto") -> Tensor:
    """D(t) ``[..., time]`` between futures ``[..., draw, time, feature]``, see ``Law``."""
    return Law.of(first, scale, kind).apart(Law.of(second, scale, kind))


def mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean of |x_i - y_j| over all pairs of draws, ``[...]``, from ``[..., draw, feature]``."""
    count = x.shape[-2] * y.shape[-2]
    parts = (each.flatten(0, -3).split(max(1, CHUNK // count)) for each in (x, y))
    return torch.cat([_sums(a, b) for a, b in zip(*parts)]).reshape(x.shape[:-2]) / count


def _sums(x: Tensor, y: Tensor) -> Tensor:
    """Of |x_i - y_j|, ``[problem]``: on a line without a root, which is most of the work elsewhere."""
    if x.shape[-1] == 1:
        return (x - y.mT).abs_().sum((-1, -2))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").sum((-1, -2))


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _epsilon(draws: Tensor) -> float:
    return BLUR**2 * draws.shape[-1]


def sinkhorn_divergence(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """S(x, y) ``[problem]`` of many small clouds ``[problem, draw, feature]`` at once, at least 0.

    To about 0.1 % of W2^2: iterations stop after ``SWEEPS``, where points are far apart on epsilon's scale.
    """

    own = (own_cost(_squares(x, x), epsilon) + own_cost(_squares(y, y), epsilon)) / 2
    return (entropic_cost(_squares(x, y), epsilon) - own).clamp(min=0)


def entropic_cost(cost: Tensor, epsilon: float) -> Tensor:
    """OT ``[problem]`` of costs ``[problem, n, m]`` between uniform weights, by its dual (Cuturi 2013)."""
    g = cost.new_zeros(cost.shape[0], cost.shape[2])
    for _ in range(SWEEPS):
        f, before = softmin(cost - g[:, None, :], epsilon), g
        g = softmin((cost - f[:, :, None]).mT, epsilon)
        if not len(g) or float((g - before).abs().max()) < SETTLED * epsilon:
            break
    return f.mean(1) + g.mean(1)


def own_cost(cost: Tensor, epsilon: float) -> Tensor:
    """The same between a cloud and itself, whose two potentials are one: half steps settle quickly (Feydy et
    al. 2019)."""
    f = cost.new_zeros(cost.shape[:2])
    for _ in range(SWEEPS):
        new = softmin(cost - f[:, None, :], epsilon)
        f, before = (f + new) / 2, f
        if not len(f) or float((f - before).abs().max()) < SETTLED * epsilon:
            break
    return f.mean(1) + softmin(cost - f[:, None, :], epsilon).mean(1)


def softmin(values: Tensor, epsilon: float) -> Tensor:
    """-epsilon ln of the mean of exp(-values / epsilon), over the last axis."""
    return -epsilon * (torch.logsumexp(-values / epsilon, -1) - math.log(values.shape[-1]))
