"""The probability flow dx/dsigma = (x - D(x, sigma)) / sigma (Song et al. 2021; Karras et al. 2022).

Each function takes ``x`` ``[sample, ...]``, noisy at the first level of ``sigmas``, to the last one. Between
two levels, with D held,

    x' = r x + (1 - r) D,    r = sigma' / sigma

is exact, and r = 0 lands on D. Levels are numbers, or broadcast over ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""D: (x ``[sample, ...]``, sigma, a tensor that broadcasts over x) -> E[x_0 | x], as x."""


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """D held over each step (Song, Meng and Ermon 2021): Euler's rule in sigma. Order 1; one evaluation a
    step."""
    for here, there in pairwise(sigmas):
        ratio = there / here
        x = ratio * x + (1 - ratio) * denoise(x, here)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's rule in sigma (Karras et al. 2022, algorithm 1). Order 2; two evaluations a step, one in a last
    step to 0."""
    for here, there in pairwise(sigmas):
        x = heun_step(denoise, x, here, there)
    return x


def heun_step(denoise: Denoise, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    slope = (x - denoise(x, here)) / here
    ahead = x + (there - here) * slope
    if not bool((there > 0).all()):
        return ahead
    return x + (there - here) * (slope + (ahead - denoise(ahead, there)) / there) / 2


def dpm_solver_pp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """D extrapolated in lambda = -ln sigma to the middle of each step (Lu et al. 2022, DPM-Solver++(2M)):

        D + (D - D_before) h / (2 h_before),    h = lambda' - lambda

    Order 2; one evaluation a step. The first step, and one to 0, where h is infinite, hold D.
    """
    last: tuple[Tensor, Tensor] | None = None
    for here, there in pairwise(sigmas):
        clean, ratio = denoise(x, here), there / here
        h, aim = -ratio.log(), clean
        if last is not None and bool((there > 0).all()):
            before, h_before = last
            aim = clean + h / (2 * h_before) * (clean - before)
        x = ratio * x + (1 - ratio) * aim
        last = clean, h
    return x
