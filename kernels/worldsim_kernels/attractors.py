"""Distances between the long-term statistics of two worlds: marginals, occupied states, power spectra.

Beyond the Lyapunov time no forecast follows a chaotic truth, and what can be right is its climate.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 1e-6
"""Added to the occupation of each bin, so that a state the model never visits costs much and not infinity."""


def wasserstein1(x: Tensor, y: Tensor) -> Tensor:
    """W1 of each column, ``[d]`` float64, between ``x`` ``[n, d]`` and ``y`` ``[m, d]``: the area between the
    two distribution functions (Vallender 1974), exact."""
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"samples {list(x.shape)} and {list(y.shape)}: give [n, d] and [m, d], n and m >= 1")
    first, second = (z.double().mT.contiguous().sort(-1).values for z in (x, y))
    both = torch.cat([first, second], -1).sort(-1).values
    below = both[:, :-1].contiguous()
    share = [torch.searchsorted(z, below, right=True) / z.shape[-1] for z in (first, second)]
    return ((share[0] - share[1]).abs().double() * both.diff(dim=-1)).sum(-1)


def occupation_divergence(x: Tensor, y: Tensor, bins: int, low: Tensor, high: Tensor) -> float:
    """D_stsp = KL(p | q) in nats between the occupations of a grid of ``bins`` a side over ``low`` ..
    ``high`` ``[d]`` by ``x`` ``[n, d]`` (p) and by ``y`` ``[m, d]`` (q); what lies outside is in a bin of its
    own (Koppe et al. 2019; Hess et al. 2023, there without that bin)."""
    keys, counts = torch.unique(torch.cat([_cells(z, bins, low, high) for z in (x, y)]), return_inverse=True)
    p, q = (
        torch.bincount(part, minlength=len(keys)).double() / len(part)
        for part in torch.split(counts, [len(x), len(y)])
    )
    total = 1 + SMOOTHING * (float(bins) ** x.shape[1] + 1)
    p, q = (p + SMOOTHING) / total, (q + SMOOTHING) / total  # a bin that both leave empty adds 0
    return float((p * (p / q).log()).sum())


def _cells(x: Tensor, bins: int, low: Tensor, high: Tensor) -> Tensor:
    """The bin of each row of ``x`` ``[n, d]``, ``[n]``; -1 outside."""
    place = (x.double() - low) / (high - low)
    inside = ((place >= 0) & (place <= 1)).all(1)
    digit = (place.nan_to_num(0.0) * bins).floor().clamp(0, bins - 1).long()
    weight = bins ** torch.arange(x.shape[1])
    return torch.where(inside, (digit * weight).sum(1), -1)


def power_spectrum(x: Tensor) -> Tensor:
    """Mean periodogram over rows of ``x`` ``[row, time, d]`` without each row's mean: shares of the variance
    by frequency, ``[frequency, d]``, from the lowest above 0 on; 0 for a component that never varies."""
    moved = x.double() - x.double().mean(1, keepdim=True)
    power = torch.fft.rfft(moved, dim=1).abs().square().mean(0)[1:]
    total = power.sum(0)
    rounding = x.double().abs().amax((0, 1)).square() * x.shape[1] ** 2 * 1e-24
    return torch.where(total > rounding, power / total.clamp(min=1e-300), 0.0)


def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """sqrt(1 - sum_i sqrt(p_i q_i)) of each column, ``[d]``, of laws ``p``, ``q`` ``[n, d]``; in [0, 1]."""
    return (1 - (p * q).sqrt().sum(0)).clamp(min=0).sqrt()
