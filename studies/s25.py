"""No flow on a line takes x to -x; a flow in the plane does.

64 points of [-1, 1], each to be taken to its mirror image in a unit of time, are learned by a plain neural
ODE and by one with a component appended; 400 steps each. Solved in 20 steps: in one, the map would be a
network and no flow, and could fold the line.
"""

import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.augmented_neural_ode import AugmentedNeuralODE
from worldsim_plugins.solvers.symplectic import rk4

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "plain error > 0.3 (taking all to 0 has 0.344), with one component more < 1e-3"


def mirrored(count=64):
    """``[trajectory, 1, (0, 1), 1]``."""
    x = torch.linspace(-1, 1, count, dtype=torch.float64)
    states = torch.stack([x, -x], dim=1)[:, None, :, None]
    return Trajectory(states=states, times=torch.tensor([0.0, 1.0], dtype=torch.float64))


def error(augment, seed):
    """Mean squared error of the end points after training."""
    truth = mirrored()

    def build(scaled):
        return AugmentedNeuralODE(scaled, augment=augment, width=32, solver=rk4(step=0.05))

    with forked(seed):
        model = Wrapped(build, "component", truth)
    fit(model, truth, None, FitSettings(steps=400, batch=64, learning_rate=1e-2, schedule="cosine"), seed)
    rng = torch.Generator().manual_seed(seed)
    guess = model.rollout(truth.span(0, 1), truth.times, None, 1, rng)
    return float((guess.states - truth.states)[:, :, 1].square().mean())


def run(seed=0):
    truth = mirrored()
    figures = {"error zero": float(truth.states[:, :, 1].square().mean())}
    return figures | {f"error +{augment}": error(augment, seed) for augment in (0, 1)}


def check(figures):
    assert figures["error +0"] > 0.3
    assert figures["error +1"] < 1e-3
