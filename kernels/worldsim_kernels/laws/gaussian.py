"""The Wasserstein distance of Gaussians, and of two samples taken for Gaussian (Frechet distance).

    W2^2 = |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)        (Olkin and Pukelsheim 1982)

Between samples it sees two moments alone, and is biased upwards by about d / n. Its derivative by the law of
x is the quadratic potential f(x) = u' (I - S) u + 2 u' (m_a - m_b) with u = x - m_a and S the linear part of
the optimal map, whence the standard error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim_kernels.laws.estimate import Estimate, expect_samples, sampling_variance

SINGULAR = 1e-10
"""A covariance whose eigenvalues spread more than this has no derivative that can be trusted."""


def bures(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """W2^2 of two Gaussians. Means ``[d]``, covariances ``[d, d]``.

    Raises ValueError for a covariance that is not symmetric and positive semi-definite.
    """
    root = _root(cov_a.double())
    cross = _root(root @ _symmetric(cov_b.double()) @ root)
    shift = (mean_a.double() - mean_b.double()).square().sum()
    return float(shift + torch.trace(cov_a.double() + cov_b.double() - 2 * cross))


def frechet(x: Tensor, y: Tensor) -> Estimate:
    """W2^2 of the Gaussians with the means and (unbiased) covariances of ``x`` ``[n, d]``, ``y`` ``[m, d]``.

    The standard error is NaN where a covariance is singular. Raises ValueError for shapes, for fewer than two
    points and for points that are not finite.
    """
    x, y = (each.detach() for each in expect_samples("frechet", x, y, least=2))
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x, cov_y = (torch.cov(each.T).reshape(x.shape[1], x.shape[1]) for each in (x, y))
    value = bures(mean_x, cov_x, mean_y, cov_y)
    f = _potential(x - mean_x, mean_x - mean_y, cov_x, cov_y)
    g = _potential(y - mean_y, mean_y - mean_x, cov_y, cov_x)
    return Estimate(x.new_tensor(max(value, 0.0)), sampling_variance(f, g).sqrt())


def _potential(centred: Tensor, shift: Tensor, own: Tensor, other: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(own)
    if float(values[0]) <= SINGULAR * float(values[-1]):
        return torch.full_like(centred[:, 0], torch.nan)
    root, inverse = ((vectors * values.pow(power)) @ vectors.T for power in (0.5, -0.5))
    linear = inverse @ _root(root @ other @ root) @ inverse
    stretched = centred.square().sum(1) - ((centred @ linear) * centred).sum(1)
    found: Tensor = stretched + 2 * centred @ shift
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    size = float(matrix.abs().max())
    if float((matrix - matrix.mT).abs().max()) > 1e-10 * size:
        raise ValueError("a covariance must be symmetric")
    if float(torch.linalg.eigvalsh(matrix).min()) < -1e-10 * size:
        raise ValueError("a covariance must be positive semi-definite")
    return (matrix + matrix.mT) / 2


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root
