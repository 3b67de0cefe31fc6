"""Wasserstein distances along lines: the mean over directions, and the worst direction.

    SW2^2(x, y) = mean over directions theta of W2^2(<theta, x>, <theta, y>)     (Rabin et al. 2012)
    max-SW2^2   = max over directions                                             (Deshpande et al. 2019)

On a line the optimum sorts. Its dual potential is f(x) = x^2 - 2 phi(x) with phi' the monotone map; the
trapezoid rule over the sorted points gives one that is exactly feasible and tight, from which comes the
standard error around the expectation (del Barrio and Loubes 2019; Manole, Balakrishnan and Wasserman 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect
from worldsim_kernels.laws.estimate import Estimate, expect_samples, sampling_variance

STARTS = 8
"""Directions from which the worst one is sought."""


def random_directions(count: int, d: int, generator: torch.Generator) -> Tensor:
    """Independent uniform unit vectors ``[count, d]``, float64."""
    drawn = torch.randn(count, d, dtype=torch.float64, generator=generator)
    units: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return units


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Estimate:
    """SW2^2 of ``x`` ``[n, d]`` and ``y`` ``[m, d]``, cost |x - y|^2, over unit ``directions`` ``[l, d]``.

    The standard error counts the choice of directions as well as the samples. For d = 1 it is W2^2.
    Raises ValueError for shapes and for points that are not finite.
    """
    x, y = expect_samples("sliced_wasserstein", x, y)
    expect("sliced_wasserstein", "directions", directions, [("l", None), ("d", x.shape[1])], like=x)
    line = _Line(len(x), len(y))
    costs, f, g = line.transport(directions.double() @ x.T, directions.double() @ y.T)
    variance = sampling_variance(f.mean(0), g.mean(0))
    if len(directions) > 1:
        variance = variance + costs.detach().var() / len(directions)
    return Estimate(costs.mean(), variance.sqrt())


def max_sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor, *, steps: int = 100) -> Estimate:
    """max-SW2^2 of ``x`` ``[n, d]`` and ``y`` ``[m, d]``, by ascent over the sphere from the best of the unit
    ``directions`` ``[l, d]`` and of that between the means. Any direction gives a lower bound, so this is
    one.

    The standard error is that at the worst direction (Danskin). Raises ValueError as ``sliced_wasserstein``.
    """
    x, y = expect_samples("max_sliced_wasserstein", x, y)
    expect("max_sliced_wasserstein", "directions", directions, [("l", None), ("d", x.shape[1])], like=x)
    line = _Line(len(x), len(y))
    apart = (x.mean(0) - y.mean(0)).detach()[None]
    candidates = torch.cat([directions.double(), apart / apart.norm().clamp(min=1e-300)])
    with torch.no_grad():
        costs = line.transport(candidates @ x.T, candidates @ y.T)[0]
        best = candidates[costs.topk(min(STARTS, len(costs))).indices]
        worst = _ascended(line, x, y, best, steps)
    costs, f, g = line.transport(worst @ x.T, worst @ y.T)
    return Estimate(costs[0], sampling_variance(f[0], g[0]).sqrt())


def _ascended(line: _Line, x: Tensor, y: Tensor, theta: Tensor, steps: int) -> Tensor:
    """The best direction ``[1, d]`` that is reached from ``theta`` ``[k, d]``."""
    value, slope = line.slope(x, y, theta)
    length = torch.ones_like(value)
    for _ in range(steps):
        along = slope - (slope * theta).sum(1, keepdim=True) * theta
        step = along / along.norm(dim=1, keepdim=True).clamp(min=1e-300)
        moved = theta + length[:, None] * step
        moved = moved / moved.norm(dim=1, keepdim=True)
        reached, there = line.slope(x, y, moved)
        better = reached > value
        theta, slope = torch.where(better[:, None], moved, theta), torch.where(better[:, None], there, slope)
        value, length = torch.where(better, reached, value), torch.where(better, length, length / 2)
    return theta[value.argmax()][None]


class _Line:
    """The optimal coupling of n sorted points and m sorted points of equal weights: a chain of segments.

    at_x, at_y  which sorted points each segment couples, ``[segment]``
    weights     the mass that it carries, ``[segment]``
    """

    def __init__(self, n: int, m: int) -> None:
        # Whole numbers, in units of 1 / (n m): no two ends differ by rounding.
        ends = torch.tensor(sorted({*range(m, n * m + 1, m), *range(n, n * m + 1, n)}))
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        self.weights = (ends - starts).double() / (n * m)
        self.at_x, self.at_y = starts // m, starts // n
        self.first_x = torch.searchsorted(self.at_x, torch.arange(n))
        self.first_y = torch.searchsorted(self.at_y, torch.arange(m))

    def transport(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W2^2 ``[l]`` of ``x`` ``[l, n]`` and ``y`` ``[l, m]``, and potentials ``[l, n]``, ``[l, m]``."""
        (low, order_x), (high, order_y) = x.sort(dim=1), y.sort(dim=1)
        a, b = low[:, self.at_x], high[:, self.at_y]
        costs = ((a - b).square() * self.weights).sum(1)
        with torch.no_grad():
            rise = (a.diff(dim=1) * (b[:, 1:] + b[:, :-1]) / 2).cumsum(1)
            f = a.square() - 2 * torch.cat([torch.zeros_like(a[:, :1]), rise], 1)
            g = (a - b).square() - f
            f = torch.empty_like(x).scatter_(1, order_x, f[:, self.first_x])
            g = torch.empty_like(y).scatter_(1, order_y, g[:, self.first_y])
        return costs, f, g

    def slope(self, x: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """W2^2 ``[k]`` along ``theta`` ``[k, d]`` and its gradient ``[k, d]``."""
        (low, order_x), (high, order_y) = (theta @ x.T).sort(dim=1), (theta @ y.T).sort(dim=1)
        apart = (low[:, self.at_x] - high[:, self.at_y]) * self.weights
        ends = x[order_x[:, self.at_x]] - y[order_y[:, self.at_y]]
        gradient = 2 * (apart[..., None] * ends).sum(1)
        return (gradient * theta).sum(1) / 2, gradient
