"""Samplers that draw: noise is added at the level it will be removed from.

Every draw is made on the CPU in float64 from ``generator``, so that the type and the place of ``x`` change no
draw. ``x`` ``[sample, ...]`` is noisy at the first level of ``sigmas`` and is taken to the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from worldsim_kernels.sampling.deterministic import Denoise, heun_step

Jump: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x at level t, t, r) -> where the probability flow takes it at level r."""


def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, generator: torch.Generator, *, eta: float = 1.0
) -> Tensor:
    """Down to a lower level than the next one, and up to that with fresh noise:

        up = eta sigma' sqrt(1 - sigma'^2 / sigma^2),    down^2 = sigma'^2 - up^2

    eta = 1 has the reverse variance of Ho, Jain and Abbeel (2020), eta = 0 is DDIM (Song, Meng and Ermon
    2021). One evaluation a step; of order 1 in the law.
    """
    for here, there in pairwise(sigmas):
        up = eta * there * (1 - (there / here) ** 2).clamp(min=0).sqrt()
        ratio = (there**2 - up**2).clamp(min=0).sqrt() / here
        x = ratio * x + (1 - ratio) * denoise(x, here) + up * _noise(x, generator)
    return x


def stochastic_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    generator: torch.Generator,
    *,
    churn: float = 0.0,
    churn_from: float = math.inf,
    churn_to: float = 0.0,
    inflate: float = 1.0,
) -> Tensor:
    """Heun's rule from a level raised by fresh noise (Karras et al. 2022, algorithm 2).

    churn             S_churn: a step from sigma is taken from (1 + min(churn / steps, sqrt 2 - 1)) sigma
    churn_from, _to   highest and lowest level that is raised, S_max and S_min
    inflate           S_noise: deviation of the noise added, 1 where the denoiser loses no detail
    """
    raised = 1 + min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for here, there in pairwise(sigmas):
        if churn_to <= here <= churn_from:
            noise = inflate * _noise(x, generator)
            x, here = x + here * math.sqrt(raised**2 - 1) * noise, raised * here
        x = heun_step(denoise, x, here, there)
    return x


def gamma_sampling(
    jump: Jump, x: Tensor, sigmas: Tensor, generator: torch.Generator, *, gamma: float
) -> Tensor:
    """Jump to sqrt(1 - gamma^2) of the next level and add gamma of it as noise (Kim et al. 2023).

    gamma = 0 follows the probability flow, gamma = 1 jumps to the data and noises it again, which is the
    multistep sampling of consistency models (Song et al. 2023).
    """
    for here, there in pairwise(sigmas):
        x = jump(x, here, math.sqrt(1 - gamma**2) * there)
        if gamma > 0 and there > 0:
            x = x + gamma * there * _noise(x, generator)
    return x


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)
