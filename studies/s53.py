"""Estimates of mutual information between Gaussians, where the answer is known: -d ln(1 - rho^2) / 2.

Nearest neighbours in one and one dimension, the mean of four samples of 3000, and their refusal in ten and
ten; the Gaussian copula in one and one; the contrastive bound in ten and ten at a true 2, 4 and 8 nats, which
cannot exceed the log of its batch, 64, and says so where it is near it.
"""

import math

import torch

from worldsim_kernels.information import gaussian_copula, info_nce, nearest_neighbours

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "1-D: KSG bias <= 0.05, copula within 3 se; 10-D: KSG refused, InfoNCE < ln 64, flagged at 8 nats only"
)
RHOS = (0.0, 0.5, 0.9, 0.99)


def pair(rho, n, d, generator):
    z = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]


def run(seed=0, steps=200, samples=2048):
    generator, figures = torch.Generator().manual_seed(seed), {}
    for rho in RHOS:
        exact = -math.log(1 - rho**2) / 2
        drawn = [pair(rho, 3000, 1, generator) for _ in range(4)]
        mean = sum(nearest_neighbours(x, y).value for x, y in drawn) / 4
        figures[f"KSG bias {rho:g}"] = mean - exact
        copula = gaussian_copula(*drawn[0])
        figures[f"copula error {rho:g} / se"] = (copula.value - exact) / copula.standard_error
    for nats in (2, 4, 8):
        x, y = pair(math.sqrt(1 - math.exp(-2 * nats / 10)), samples, 10, generator)
        found = info_nce(x, y, batch=64, steps=steps, generator=generator)
        figures[f"InfoNCE {nats}"], figures[f"flagged {nats}"] = found.value, float(found.capped)
    try:
        figures["10-D KSG"] = nearest_neighbours(x, y).value
    except ValueError:
        figures["10-D refused"] = 1.0
    return figures


def check(figures):
    for rho in RHOS:
        assert abs(figures[f"KSG bias {rho:g}"]) < 0.05
        assert abs(figures[f"copula error {rho:g} / se"]) < 3
    assert figures["10-D refused"] == 1
    for nats, flagged in ((2, 0), (4, 0), (8, 1)):
        assert figures[f"InfoNCE {nats}"] < min(nats, math.log(64))
        assert figures[f"flagged {nats}"] == flagged
    assert figures["InfoNCE 2"] < figures["InfoNCE 4"] < figures["InfoNCE 8"]
