"""The error of a diffusion sampler against its number of network evaluations, with an exact denoiser.

Eight Gaussians on a ring, noise levels even in ln sigma. DDIM is the first-order exponential integrator of
the probability flow (Song, Meng and Ermon 2021), DPM-Solver++ 2M the second-order one with one evaluation a
step (Lu et al. 2022). Their distance from the fine solution is fitted as C NFE^-p, and the distance of the
samples from the data as a floor and C NFE^-p together: the floor is that of two samples of the data.
"""

import math
from itertools import pairwise

import numpy as np
import torch

from worldsim_plugins.metrics.exact_transport import wasserstein2
from worldsim_plugins.metrics.scaling_law import fit_law

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "order in NFE 20..80: DDIM 1.0 +- 0.15, 2M >= 1.5; W2 flat within 0.02 from 10 NFE on (2M)"
F64, WIDE, FINE = torch.float64, 20.0, 0.02
ANGLE = torch.arange(8, dtype=F64) * math.pi / 4
CENTRES, SPREAD = torch.stack([ANGLE.cos(), ANGLE.sin()], 1), 0.15
NFES, COARSE = (20, 28, 40, 57, 80), (2, 3, 4, 6, 8, 10, 16, 32)


def data(n, generator):
    pick = torch.randint(8, (n,), generator=generator)
    return CENTRES[pick] + SPREAD * torch.randn(n, 2, dtype=F64, generator=generator)


def denoised(x, sigma):
    """E[data | data + sigma noise = x], in closed form."""
    total = SPREAD**2 + sigma**2
    weight = (-torch.cdist(x, CENTRES).square() / (2 * total)).softmax(1)
    return (SPREAD**2 * x + sigma**2 * (weight @ CENTRES)) / total


def sampled(x, nfe, second):
    """From noise ``x`` at sigma = WIDE down to FINE, by ``nfe`` evaluations; 2M if ``second``."""
    logs = torch.linspace(math.log(WIDE), math.log(FINE), nfe + 1, dtype=F64).tolist()
    before = None
    for here, there in pairwise(logs):
        clean = denoised(x, math.exp(here))
        # Steps are even in ln sigma, so the ratio of the last step to this one is 1.
        aim = clean if before is None or not second else 1.5 * clean - 0.5 * before
        keep = math.exp(there - here)
        x, before = keep * x + (1 - keep) * aim, clean
    return x


def run(seed=0, n=512):
    generator = torch.Generator().manual_seed(seed)
    noise = WIDE * torch.randn(n, 2, dtype=F64, generator=generator)
    truth, again = data(n, generator), data(n, generator)
    exact, figures = sampled(noise, 1280, True), {}
    for name, second in (("DDIM", False), ("2M", True)):
        errors = [float((sampled(noise, k, second) - exact).square().sum(1).mean().sqrt()) for k in NFES]
        fit = fit_law("power", np.array(NFES), np.array(errors), floored=False)
        figures[f"{name} order"] = fit.parameters["order"]
        figures[f"{name} order, half interval"] = fit.intervals["order"][1] - fit.parameters["order"]
    figures["W2 floor"] = wasserstein2(truth, again).W2_squared ** 0.5
    distances = [wasserstein2(truth, sampled(noise, k, True)).W2_squared ** 0.5 for k in COARSE]
    fit = fit_law("power", np.array(COARSE), np.array(distances))
    figures["fitted floor"] = fit.parameters["floor"]
    figures["W2, 2 NFE"] = distances[0]
    settled = np.array(distances[COARSE.index(10) :])
    figures["W2, furthest from its last, from 10 NFE"] = float(np.abs(settled - settled[-1]).max())
    return figures


def check(figures):
    assert abs(figures["DDIM order"] - 1) < 0.15
    assert figures["2M order"] >= 1.5
    assert figures["W2, 2 NFE"] > 1.3 * figures["fitted floor"]
    assert figures["W2, furthest from its last, from 10 NFE"] < 0.02
    assert 0.5 < figures["fitted floor"] / figures["W2 floor"] < 2
