"""Networks of other paths as denoisers of x = x_0 + sigma z, by a change of variables.

A variance-preserving path alpha x_0 + beta z with alpha^2 + beta^2 = 1 is alpha x at sigma = beta / alpha;
the straight path of flows s x_0 + (1 - s) z is s x at sigma = (1 - s) / s, that is s = 1 / (1 + sigma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from worldsim_kernels.sampling.deterministic import Denoise

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def of_noise(noise: Field) -> Denoise:
    """D = x - sigma e of a network e(alpha x, sigma) that estimates z (Ho, Jain and Abbeel 2020)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma * noise(x / (1 + sigma**2) ** 0.5, sigma)

    return denoise


def of_v(v: Field) -> Denoise:
    """D = alpha^2 x - beta v of a network v(alpha x, sigma) that estimates alpha z - beta x_0 (Salimans and
    Ho 2022)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        alpha = 1 / (1 + sigma**2) ** 0.5
        return alpha**2 * x - alpha * sigma * v(alpha * x, sigma)

    return denoise


def of_velocity(velocity: Field) -> Denoise:
    """D = x_s + (1 - s) v of a velocity v(x_s, s) that estimates x_0 - z (Liu, Gong and Liu 2022)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = 1 / (1 + sigma)
        return s * x + (1 - s) * velocity(s * x, s)

    return denoise


def velocity_of(denoise: Denoise) -> Field:
    """The inverse of ``of_velocity``: v = (D - x_s) / (1 - s), for 0 < s < 1."""

    def velocity(x: Tensor, s: Tensor) -> Tensor:
        return (denoise(x / s, (1 - s) / s) - x) / (1 - s)

    return velocity
