"""Flows that draw the 8 x 8 digits of scikit-learn with one backbone or another, all else alike.

1,300 digits for training, ink from -1 to 1; flow matching over 16 tokens of 2 x 2 pixels, width 48, three
blocks, 2,500 steps of 64. Scored by exact W2 between 497 drawn ones and the 497 held out, in 16 principal
dimensions of the training digits; the floor is that of 497 training digits.
"""

from functools import cache

import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim_plugins.backbones.diffussm import DiffuSSM
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.flow import Flow
from worldsim_plugins.metrics.exact_transport import wasserstein2
from worldsim_plugins.systems.digits import TRAIN, pictures

BACKBONES = {
    "softmax": lambda: Transformer(depth=3),
    "linear": lambda: LinearDiT(depth=3),
    "ssm": lambda: SSM(depth=3),
    "diffussm": lambda: DiffuSSM(depth=3),
    "tmsa": lambda: Transformer(depth=3, conditioning="tmsa"),
}


def digits():
    """``[digit, row, column, 1]`` in [-1, 1], for training and held out."""
    ink = pictures()[0].float()[..., None] / 8 - 1
    return ink[:TRAIN], ink[TRAIN:]


def distance(one, other):
    """W2 in 16 principal dimensions of the training digits."""
    flat = digits()[0].flatten(1).double()
    axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:16].T
    return wasserstein2(one.flatten(1).double() @ axes, other.flatten(1).double() @ axes).W2_squared ** 0.5


def floor():
    train, test = digits()
    return distance(train[: len(test)], test)


@cache
def drawn(backbone, seed, steps=2500):
    """W2 of what a flow with this backbone draws, and its number of parameters."""
    train, test = digits()
    states = torch.stack([torch.zeros_like(train), train], 1)[:, None]
    truth = Trajectory(states, torch.tensor([0.0, 1.0], dtype=torch.float64))
    with forked(seed):
        model = Flow(truth, width=48, backbone=BACKBONES[backbone](), patch=(2, 2))
    settings = FitSettings(steps=steps, batch=64, learning_rate=2e-3, schedule="cosine")
    fit(model, truth, None, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(len(test), 1, 8, 8, 1, generator=generator)
        made = model.transport(noise, torch.zeros(len(test), 64))[:, 0]
    return distance(made, test), sum(weight.numel() for weight in model.parameters())
