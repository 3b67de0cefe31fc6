"""Scores of an ensemble forecast beside what came true (Gneiting and Raftery 2007).

    CRPS = E|X - x| - E|X - X'| / 2,      energy score: the same with the Euclidean norm

Both are least in expectation for the true law. ``fair`` divides the spread by M (M - 1) and not by M^2, which
makes the expectation that of an infinite ensemble (Ferro 2014). The draw axis is the second.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.distances import pairwise

EXPECTED = 5
"""The fewest cases that a bin of the chi-square test should expect."""


class RankHistogram(NamedTuple):
    """counts      ``[M + 1]`` int64: how often the truth had each rank among the draws, 0 the lowest
    chi_square  Pearson's statistic, of ``degrees`` degrees of freedom for a truth that is one more draw
    degrees     M, or less where neighbouring ranks are counted together so that each bin expects 5 cases; 0
                with fewer than ten cases, and then there is no test
    p_value     P(a statistic at least as large | a truth that is one more draw); NaN without a test
    """

    counts: Tensor
    chi_square: Tensor
    degrees: int
    p_value: Tensor


def crps(draws: Tensor, truth: Tensor, *, fair: bool = True) -> Tensor:
    """``[n, ...]`` of ``draws`` ``[n, M, ...]`` for ``truth`` ``[n, ...]``. Raises ValueError for M < 2."""
    count = _members("crps", draws, truth)
    error = (draws - truth[:, None]).abs().mean(1)
    # The sum over pairs of |x_i - x_j|, from the order statistics.
    weight = 2 * torch.arange(1, count + 1, dtype=draws.dtype, device=draws.device) - count - 1
    ordered = draws.sort(dim=1).values
    spread = (ordered * weight.reshape(-1, *[1] * (draws.dim() - 2))).sum(1)
    found: Tensor = error - spread / (count * (count - 1 if fair else count))
    return found


def energy_score(draws: Tensor, truth: Tensor, *, fair: bool = True) -> Tensor:
    """``[n]`` of ``draws`` ``[n, M, d]`` for ``truth`` ``[n, d]``. Raises ValueError for M < 2."""
    count = _members("energy_score", draws, truth)
    error = (draws - truth[:, None]).norm(dim=-1).mean(1)
    spread = pairwise(draws, draws, squared=False).sum((1, 2)) / 2
    found: Tensor = error - spread / (count * (count - 1 if fair else count))
    return found


def spread_skill(draws: Tensor, truth: Tensor) -> Tensor:
    """sqrt((M + 1) / M) times the root mean variance of ``draws`` ``[n, M, ...]`` over the root mean square
    error of their mean for ``truth`` ``[n, ...]``: 1 for a truth that is one more draw (Fortin et al. 2014),
    less for a forecast that is too sure of itself. NaN where both are 0.
    """
    count = _members("spread_skill", draws, truth)
    variance = draws.var(1).mean() * (count + 1) / count
    return (variance / (draws.mean(1) - truth).square().mean()).sqrt()


def average_ranks(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Ranks ``[n]``, 0 to M, of ``truth`` ``[n, d]`` among ``draws`` ``[n, M, d]``: by the mean over d of the
    ranks of each component (Thorarinsdottir, Scheuerer and Heinz 2016). Uniform for a truth that is one more
    draw, whatever depends on what within a case; ties are broken at random.
    """
    _members("average_ranks", draws, truth)
    together = torch.cat([truth[:, None], draws], 1)
    order = together.sort(dim=1).values
    below = torch.searchsorted(order.movedim(1, -1).contiguous(), together.movedim(1, -1).contiguous())
    upto = torch.searchsorted(
        order.movedim(1, -1).contiguous(), together.movedim(1, -1).contiguous(), right=True
    )
    # Equal values share the mean of their ranks, so that all members stay exchangeable.
    mean = (below + upto).double().mean(1)
    coin = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    first, others = mean[:, :1], mean[:, 1:]
    tied = (others - first).abs() < 1e-9
    wins = torch.where(tied, coin[:, 1:] < coin[:, :1], others < first)
    return wins.sum(1)


def rank_histogram(ranks: Tensor, members: int) -> RankHistogram:
    """The histogram of independent ``ranks`` ``[n]`` among ``members`` draws, and whether it is flat.

    Raises ValueError for ranks out of range.
    """
    if len(ranks) and not (int(ranks.min()) >= 0 and int(ranks.max()) <= members):
        raise ValueError(f"rank_histogram: ranks lie in 0 .. {members} for {members} members")
    counts = torch.bincount(ranks, minlength=members + 1)
    bins = min(members + 1, len(ranks) // EXPECTED)
    nothing = torch.tensor(torch.nan, dtype=torch.float64)
    if bins < 2:
        return RankHistogram(counts, nothing, 0, nothing)
    home = torch.arange(members + 1) * bins // (members + 1)
    expected = len(ranks) * torch.bincount(home, minlength=bins).double() / (members + 1)
    found = torch.zeros(bins, dtype=torch.float64).index_add_(0, home, counts.double())
    chi_square = ((found - expected).square() / expected).sum()
    tail = torch.special.gammaincc(torch.tensor((bins - 1) / 2, dtype=torch.float64), chi_square / 2)
    return RankHistogram(counts, chi_square, bins - 1, tail)


def _members(kernel: str, draws: Tensor, truth: Tensor) -> int:
    if draws.dim() < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        raise ValueError(
            f"{kernel}: draws {list(draws.shape)} beside truth {list(truth.shape)}; expected [n, M, ...] and "
            "[n, ...]"
        )
    if draws.shape[1] < 2:
        raise ValueError(f"{kernel}: {draws.shape[1]} draw has no spread; at least 2 are needed")
    return int(draws.shape[1])
