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

import torch
from torch import Tensor

EXACT = 1e-12  # distances are compared after rounding here, so that equal predictions tie
BLUR = 0.5
SWEEPS, SETTLED = 300, 1e-6


def divergence(first: Tensor, second: Tensor, scale: Tensor, kind: str = "auto") -> Tensor:
    """D(t) ``[..., time]`` between futures ``[..., draw, time, feature]``; +inf where one is not finite.

    ``scale`` is ``[feature]``. ``auto`` is nrmse for one draw each, else energy.
    """
    x, y = ((future / scale).transpose(-3, -2) for future in (first, second))
    d = x.shape[-1]
    if kind == "auto":
        kind = "nrmse" if x.shape[-2] == y.shape[-2] == 1 else "energy"
    if kind == "nrmse":
        distance = (x.mean(-2) - y.mean(-2)).square().mean(-1).sqrt()
    elif kind == "energy":
        distance = energy_distance(x, y) / d**0.25
    else:
        finite = torch.isfinite(x).all((-1, -2)) & torch.isfinite(y).all((-1, -2))
        distance = torch.full(finite.shape, torch.inf, dtype=x.dtype)
        distance[finite] = (sinkhorn_divergence(x[finite], y[finite], BLUR**2 * d) / d).sqrt()
    distance = torch.where(torch.isfinite(distance), distance, torch.inf)
    return torch.where(distance < EXACT, 0.0, distance)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """``[...]``, the square root, from samples ``[..., draw, feature]``."""

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean((-1, -2))

    return (2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)).clamp(min=0).sqrt()


def sinkhorn_divergence(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """S(x, y) ``[problem]`` of many small clouds ``[problem, draw, feature]`` at once, at least 0.

    To about 0.1 % of W2^2: iterations stop after ``SWEEPS``, where points are far apart on epsilon's scale.
    """

    def cost(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()

    own = (own_cost(cost(x, x), epsilon) + own_cost(cost(y, y), epsilon)) / 2
    return (entropic_cost(cost(x, y), epsilon) - own).clamp(min=0)


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
