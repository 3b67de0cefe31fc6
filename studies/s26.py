"""Known equations at states nobody has seen replace data: two noisy trajectories of a Duffing oscillator.

16 frames each over 5 time units, noise 0.05; a field 2-64-64-2, 1,500 steps. From 64 new starts over 5 time
units: the root mean square error of a forecast, with the known right-hand side at 256 drawn states in every
step (weights 0.1 and 1), and without.
"""

import torch

from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim.truth import time_grid, with_noise
from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.pinode import PINODE
from worldsim_plugins.systems.duffing import Duffing

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "with collocation of weight 1, error <= 0.35 and <= 1/3 of that without; weight 0.1 lies between"


def simulated(system, n, times, generator):
    return system.simulate(system.sample(n, generator), times, None, generator)


def error(system, train, test, seed, steps, **settings):
    with forked(seed):
        model = Wrapped(lambda truth: PINODE(system, truth, law="starts", **settings), "none", train)
    fit(model, train, None, FitSettings(steps=steps, batch=2, learning_rate=2e-3, schedule="cosine"), seed)
    guess = model.rollout(test.span(0, 1), test.times, None, 1, torch.Generator().manual_seed(seed))
    return float((guess.states - test.states).square().mean().sqrt())


def run(seed=0, steps=1500):
    system, generator = Duffing(), torch.Generator().manual_seed(seed)
    times = time_grid(1 / 3, 5.0)
    train = with_noise(simulated(system, 2, times, generator), {"states": 0.05}, generator)
    test = simulated(system, 64, times, generator)
    figures = {}
    for weight in (0.0, 0.1, 1.0):
        figures[f"error {weight:g}"] = error(system, train, test, seed, steps, collocation=weight)
    return figures


def check(figures):
    assert figures["error 1"] <= 0.35
    assert figures["error 1"] <= figures["error 0"] / 3
    assert figures["error 1"] < figures["error 0.1"] < figures["error 0"]
