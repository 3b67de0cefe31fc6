"""Two-sample statistics of a kernel k: how far two laws are apart, unbiased, and a test with an exact level.

    MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)                    (Gretton et al. 2012)

With k = -|x - y| it is the squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo
2013); scipy's ``energy_distance`` is its square root. Both are U-statistics: unbiased, so that between
samples of one law they are as often negative as positive. The standard error is the jackknife's (Arvesen
1969), which errs to the large side where the laws are equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, finite
from worldsim_kernels.distances import pairwise
from worldsim_kernels.laws.estimate import Estimate as Estimate
from worldsim_kernels.laws.estimate import expect_samples

TIE = 1e-12
"""Statistics that differ by less than this part of the largest entry count as equal."""


class TwoSample(NamedTuple):
    """Float64, without axes.

    value           differentiable; unbiased
    standard_error  of ``value``; NaN below three points
    p_value         P(a statistic at least as large | equal laws), at least 1 / (permutations + 1); 1 for none
    """

    value: Tensor
    standard_error: Tensor
    p_value: Tensor


def mmd_squared(
    x: Tensor,
    y: Tensor,
    bandwidth: float | None = None,
    *,
    paired: bool = False,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> TwoSample:
    """MMD^2 of ``x`` ``[n, d]`` and ``y`` ``[m, d]`` for k(x, y) = exp(-|x - y|^2 / (2 h^2)).

    bandwidth  h; None takes the median of the distances between all points of both samples together (the
               median heuristic of Gretton et al. 2012, which leaves the test exact)
    The others as for ``two_sample``. Raises ValueError for shapes, for fewer than two points, for points that
    are not finite and for a bandwidth that is not positive.
    """
    pooled = torch.cat(expect_samples("mmd_squared", x, y, least=2))
    width = float(median_distance(pooled)) if bandwidth is None else float(bandwidth)
    if not width > 0:
        raise ValueError(f"mmd_squared: the bandwidth is {width}; expected a positive number")
    gram = (pairwise(pooled, pooled) / (-2 * width**2)).exp()
    return two_sample(gram, len(x), paired=paired, permutations=permutations, generator=generator)


def energy_distance_squared(
    x: Tensor,
    y: Tensor,
    *,
    paired: bool = False,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> TwoSample:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of ``x`` ``[n, d]`` and ``y`` ``[m, d]``, as ``two_sample``.

    Raises ValueError for shapes, for fewer than two points and for points that are not finite.
    """
    pooled = torch.cat(expect_samples("energy_distance_squared", x, y, least=2))
    gram = -pairwise(pooled, pooled, squared=False)
    return two_sample(gram, len(x), paired=paired, permutations=permutations, generator=generator)


def median_distance(points: Tensor) -> Tensor:
    """The median of |x_i - x_j| over i < j, for ``points`` ``[n, d]``; the lower one for an even count."""
    i, j = torch.triu_indices(len(points), len(points), 1)
    return pairwise(points.detach().double(), points.detach().double(), squared=False)[i, j].median()


def two_sample(
    gram: Tensor,
    n: int,
    *,
    paired: bool = False,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> TwoSample:
    """The statistic of ``gram`` ``[n + m, n + m]``, symmetric: k between the points of x, then of y.

    paired        row i of x and row i of y belong together and may depend on each other; the pairs are
                  independent. k(x_i, y_i) is then left out (Gretton et al. 2012, lemma 6), which keeps the
                  statistic unbiased, and the test swaps within pairs: its hypothesis is that x_i and y_i can
                  be exchanged, as two draws from one law given what they share can.
    permutations  of the test; independent samples are reassigned as a whole (Fisher). Its level is exact when
                  k does not depend on which points are x and which are y
    generator     of the permutations

    Raises ValueError for a gram that is not square or not finite, for fewer than two points on either side,
    for pairs of unequal number, and for permutations without a generator.
    """
    total = len(gram)
    expect("two_sample", "gram", gram, [("n + m", total), ("n + m", total)])
    finite("two_sample", "gram", gram)
    if min(n, total - n) < 2:
        raise ValueError(f"two_sample: {n} and {total - n} points; at least 2 of each are needed")
    if paired and total != 2 * n:
        raise ValueError(f"two_sample: {n} and {total - n} points are no pairs")
    if permutations and generator is None:
        raise ValueError("two_sample: permutations need a generator")
    off = gram.to(torch.float64, copy=True).fill_diagonal_(0)
    return (_paired if paired else _independent)(off, n, permutations, generator)


def _paired(off: Tensor, n: int, permutations: int, generator: torch.Generator | None) -> TwoSample:
    """With h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j): a swap within pair i negates it."""
    across = off[:n, n:]
    h = off[:n, :n] + off[n:, n:] - across - across.T
    h = h.fill_diagonal_(0)
    rows, pairs = h.sum(1), n * (n - 1)
    value = rows.sum() / pairs
    signs = 2.0 * _coins(permutations, n, generator) - 1
    swapped = ((signs @ h.detach()) * signs).sum(1) / pairs
    return TwoSample(value, _jackknife(_without(rows.detach(), n)).sqrt(), _p_value(value, swapped, off))


def _independent(off: Tensor, n: int, permutations: int, generator: torch.Generator | None) -> TwoSample:
    m = len(off) - n
    in_x = torch.zeros(1, n + m, dtype=off.dtype, device=off.device)
    in_x[0, :n] = 1
    value = _statistic(off, in_x, n, m)[0]
    order = [torch.randperm(n + m, generator=generator)[:n] for _ in range(permutations)]
    chosen = torch.zeros(permutations, n + m, dtype=off.dtype, device=off.device)
    if order:
        chosen.scatter_(1, torch.stack(order).to(off.device), 1.0)
    fixed = off.detach()
    reassigned = _statistic(fixed, chosen, n, m)
    own_x, own_y, across = fixed[:n, :n], fixed[n:, n:], fixed[:n, n:]
    leave_x = _without(own_x.sum(1), n) - 2 * (across.sum() - across.sum(1)) / ((n - 1) * m)
    leave_y = _without(own_y.sum(1), m) - 2 * (across.sum() - across.sum(0)) / ((m - 1) * n)
    error = (_jackknife(leave_x) + _jackknife(leave_y)).sqrt()
    return TwoSample(value, error, _p_value(value, reassigned, off))


def _statistic(off: Tensor, in_x: Tensor, n: int, m: int) -> Tensor:
    """``[k]`` for the assignments ``in_x`` ``[k, n + m]`` of 0 and 1."""
    rows = in_x @ off
    inside, both = (rows * in_x).sum(1), rows.sum(1)
    across = both - inside
    outside = off.sum() - both - across
    return inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * across / (n * m)


def _without(rows: Tensor, n: int) -> Tensor:
    """The mean over i != j with one point left out, ``[n]``, from row sums of what has no diagonal."""
    return (rows.sum() - 2 * rows) / ((n - 1) * (n - 2)) if n > 2 else torch.full_like(rows, torch.nan)


def _jackknife(left_out: Tensor) -> Tensor:
    return (len(left_out) - 1) * left_out.var(correction=0)


def _coins(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2, (count, n), generator=generator).double()


def _p_value(value: Tensor, others: Tensor, entries: Tensor) -> Tensor:
    if not len(others):
        return value.new_ones(())
    tie = TIE * entries.detach().abs().max()
    return (1 + (others >= value.detach() - tie).sum()).double() / (1 + len(others))
