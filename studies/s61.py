"""Noise paired with data by optimal transport within the batch: straight paths from the first round.

The law and the network of s38, 3,000 steps of batches of 256, once with independent pairs and once paired by
exact transport (OT-CFM: Pooladian et al. 2023; Tong et al. 2023). Straightness S of both, and W2 of 2,000
samples made with one Euler step.
"""

import torch

from studies.s38 import POINTS, made, ring, windows
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.generators.flow import Flow, straightness
from worldsim_plugins.metrics.exact_transport import wasserstein2

SEEDS = (0, 1, 2)
CLAIM = "S of OT-CFM <= 0.1 and <= 0.1 of the independent one's; W2 at 1 step <= 0.45"


def run(seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = windows(ring(20_000, generator))
    truth = ring(POINTS, generator)
    noise, context = torch.randn(POINTS, 1, 2, generator=generator), torch.zeros(POINTS, 2)
    figures = {"floor": wasserstein2(truth, ring(POINTS, generator)).W2_squared ** 0.5}
    for coupling in ("independent", "minibatch_ot"):
        with forked(seed):
            model = Flow(data, width=128, depth=3, method="euler", coupling=coupling)
        fit(model, data, None, FitSettings(steps=3000, batch=256), seed)
        figures[f"S {coupling}"] = straightness(model, noise, context)
        figures[f"W2 at 1 {coupling}"] = wasserstein2(made(model, 1, generator), truth).W2_squared ** 0.5
    return figures


def check(figures):
    assert figures["S minibatch_ot"] <= 0.1
    assert figures["S minibatch_ot"] <= 0.1 * figures["S independent"]
    assert figures["W2 at 1 minibatch_ot"] <= 0.45
