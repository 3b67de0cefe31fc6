"""Rectified flow, first round, on eight Gaussians: its paths are far from straight.

Eight Gaussians of deviation 0.1 on a ring of radius 2; a network of 3 x 128 learns 4,000 steps from
independent pairs of noise and data. Straightness S along 100 Euler steps, and W2 of 2,000 samples made with
1 and 8 Euler steps; beside it the floor, W2 of two samples of the truth.
"""

import math

import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.generators.flow import Flow, straightness
from worldsim_plugins.metrics.exact_transport import wasserstein2

SEEDS = (0, 1, 2)
CLAIM = "S >= 1.0; W2 at 8 steps <= 0.35"
POINTS = 2000


def ring(n, generator):
    """``[n, 2]``."""
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return centre + 0.1 * torch.randn(n, 2, generator=generator)


def windows(points):
    """A point law as trajectories of two frames: the given one is zero, the generated one is the point."""
    states = torch.stack([torch.zeros_like(points), points], dim=1)[:, None]
    return Trajectory(states, torch.tensor([0.0, 1.0], dtype=torch.float64))


def fitted(seed, generator):
    truth = windows(ring(20_000, generator))
    with forked(seed):
        model = Flow(truth, width=128, depth=3, method="euler")
    fit(model, truth, None, FitSettings(steps=4000, batch=256), seed)
    return model


@torch.no_grad()
def made(model, steps, generator):
    model.steps = steps
    noise, context = torch.randn(POINTS, 1, 2, generator=generator), torch.zeros(POINTS, 2)
    return model.transport(noise, context)[:, 0]


def run(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = fitted(seed, generator)
    truth = ring(POINTS, generator)
    figures = {"floor": wasserstein2(truth, ring(POINTS, generator)).W2_squared ** 0.5}
    noise = torch.randn(POINTS, 1, 2, generator=generator)
    figures["S"] = straightness(model, noise, torch.zeros(POINTS, 2))
    for steps in (1, 8):
        figures[f"W2 at {steps}"] = wasserstein2(made(model, steps, generator), truth).W2_squared ** 0.5
    return figures


def check(figures):
    assert figures["S"] >= 1.0
    assert figures["W2 at 8"] <= 0.35
    assert figures["W2 at 1"] > 1.0
