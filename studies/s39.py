"""Reflow on eight Gaussians: one more round on the flow's own paths makes them straight, and one step enough.

The law and the network of s38. One fit of 8,000 steps: rectified flow for the first half, and for the second
the pairs (z, where the first flow carries z by 25 midpoint steps), drawn afresh for every batch of 256.
Straightness S of both rounds, and W2 of 2,000 samples made by the second with 1 and with 50 Euler steps.
"""

import torch

from studies.s38 import POINTS, made, ring, windows
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.generators.flow import Flow, straightness
from worldsim_plugins.metrics.exact_transport import wasserstein2

SEEDS = (0, 1, 2)
CLAIM = "S falls >= 50 times; W2 at 1 step <= 0.35 and <= 1.5 times that at 50"


def run(seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = windows(ring(20_000, generator))
    with forked(seed):
        model = Flow(data, width=128, depth=3, reflow=1)
    fit(model, data, None, FitSettings(steps=8000, batch=256), seed)
    truth = ring(POINTS, generator)
    noise, context = torch.randn(POINTS, 1, 2, generator=generator), torch.zeros(POINTS, 2)
    figures = {"floor": wasserstein2(truth, ring(POINTS, generator)).W2_squared ** 0.5}
    model.field, model.earlier = model.earlier, model.field
    figures["S of the first round"] = straightness(model, noise, context)
    model.field, model.earlier = model.earlier, model.field
    figures["S of the second"] = straightness(model, noise, context)
    model.method = "euler"
    for steps in (1, 50):
        figures[f"W2 at {steps}"] = wasserstein2(made(model, steps, generator), truth).W2_squared ** 0.5
    return figures


def check(figures):
    assert figures["S of the first round"] >= 50 * figures["S of the second"]
    assert figures["W2 at 1"] <= 0.35
    assert figures["W2 at 1"] <= 1.5 * figures["W2 at 50"]
