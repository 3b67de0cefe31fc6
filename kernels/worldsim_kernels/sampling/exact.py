"""Laws whose denoiser is known in closed form, to test samplers with."""

from __future__ import annotations

import torch
from torch import Tensor


class GaussianDenoiser:
    """D(x, sigma) = m + C (C + sigma^2 I)^-1 (x - m) of N(m, C), ``mean`` ``[dim]``, ``covariance``
    ``[dim, dim]``."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._scaled(x, self.variances / (self.variances + sigma**2))

    def endpoint(self, x: Tensor, start: Tensor | float, end: Tensor | float) -> Tensor:
        """Where the probability flow takes ``x`` ``[sample, dim]`` from level ``start`` to level ``end``:
        along each principal axis the deviation goes from sqrt(v + start^2) to sqrt(v + end^2)."""
        return self._scaled(x, ((self.variances + end**2) / (self.variances + start**2)).sqrt())

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        scaled: Tensor = self.mean + (x - self.mean) @ self.axes * factors @ self.axes.mT
        return scaled


class MixtureDenoiser:
    """Of normal laws N(m_k, s^2 I), equally likely: ``centres`` ``[component, dim]``, ``deviation`` s."""

    def __init__(self, centres: Tensor, deviation: float) -> None:
        self.centres, self.deviation = centres, deviation

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.deviation**2 + sigma**2
        weight = (-torch.cdist(x, self.centres).square() / (2 * total)).softmax(1)
        return (self.deviation**2 * x + sigma**2 * (weight @ self.centres)) / total

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, dim]``."""
        pick = torch.randint(len(self.centres), (n,), generator=generator)
        noise = torch.randn(n, self.centres.shape[1], dtype=torch.float64, generator=generator)
        return self.centres[pick] + self.deviation * noise.to(self.centres)
