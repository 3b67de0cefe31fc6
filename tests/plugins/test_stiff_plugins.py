"""The stiff solvers by name, and the stiff systems against an independent integrator."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from worldsim.protocols import HasDrift, HasObservables, Restartable
from worldsim_plugins.solvers import stiff
from worldsim_plugins.systems.robertson import Robertson
from worldsim_plugins.systems.van_der_pol import VanDerPol

SOLVERS = stiff.worldsim_solvers()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def grid(end, count):
    return torch.linspace(0, end, count, dtype=torch.float64)


class Relaxing:
    """dx/dt = rate (u - x): a decay of 1e5 towards an action that is held."""

    def drift(self, t, x, u):
        return 1e5 * (u - x)


class Noisy(Relaxing):
    def diffusion(self, t, x, u):
        return torch.ones_like(x)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_holds_actions_and_gives_gradients(name):
    solver = SOLVERS[name](rtol=1e-4, atol=1e-4, max_steps=400)
    times, x = grid(1.0, 4), torch.zeros(2, 1, dtype=torch.float64)
    actions = torch.randn(2, 4, 1, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    states = solver.solve(Relaxing(), x, times, actions, None)
    assert (states[:, 1:] - actions[:, :-1]).abs().max() < 1e-3
    (gradient,) = torch.autograd.grad(states[:, -1].sum(), actions)
    assert (gradient[:, 2] - 1).abs().max() < 1e-3
    assert gradient[:, :2].abs().max() < 1e-3
    with pytest.raises(ValueError, match="diffusion"):
        solver.solve(Noisy(), x, times, actions, None)


def radau(field, start, times):
    y, frames = start, [start]
    for a, b in pairwise(times):
        y = solve_ivp(field, (a, b), y, method="Radau", rtol=1e-10, atol=1e-15).y[:, -1]
        frames.append(y)
    return np.array(frames)


def test_robertson_is_radaus_and_keeps_its_mass():
    system = Robertson()
    times, start = grid(40.0, 4), system.sample(6, seeded(0))
    truth = system.simulate(start, times, None, seeded(1))
    assert isinstance(system, HasObservables)
    assert isinstance(system, Restartable)
    mass = truth.observables["mass"]
    assert (mass - mass[:, :, :1]).abs().max() < 1e-14

    def field(t, y):
        return system.drift(None, torch.from_numpy(y), None).numpy()

    exact = radau(field, start[0].numpy(), times.numpy())
    assert np.abs(truth.states[0, 0].numpy()[1:] / exact[1:] - 1).max() < 1e-7
    # A trajectory has the same bits alone, and continued from a frame.
    alone = system.simulate(start[2:3], times, None, seeded(1))
    assert torch.equal(alone.states[0], truth.states[2])
    later = system.simulate(system.restart(truth.states[:, 0, 1]), times[1:] - times[1], None, seeded(1))
    assert torch.equal(later.states[:, 0, 1], truth.states[:, 0, 2])
    with pytest.raises(ValueError, match="rates"):
        Robertson(rates=(-1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="not driven"):
        system.simulate(start, times, torch.zeros(6, 4, 1), seeded(1))


def test_van_der_pol_is_radaus_on_both_sides_of_stiffness():
    for mu, end in ((5.0, 8.0), (300.0, 8.0)):
        system = VanDerPol(mu=(mu, mu))
        times, start = grid(end, 3), system.sample(2, seeded(0))
        truth = system.simulate(start, times, None, seeded(1))

        def field(t, y, system=system):
            return system.drift(None, torch.from_numpy(y), None).numpy()

        exact = radau(field, start.states[0].numpy(), times.numpy())
        assert np.abs(truth.states[0, 0].numpy() - exact).max() < 1e-6


def test_van_der_pols_limit_cycle_and_its_hidden_parameter():
    # For small mu the cycle is x = 2 cos t; its amplitude does not depend on the start.
    weak = VanDerPol(mu=(0.05, 0.05), extent=1.0)
    truth = weak.simulate(weak.sample(3, seeded(0)), grid(160.0, 641), None, seeded(1))
    assert (truth.states[:, 0, -100:, 0].abs().amax(1) - 2).abs().max() < 0.02
    spread = VanDerPol(mu=(1.0, 100.0))
    assert not isinstance(spread, Restartable)
    assert not isinstance(spread, HasDrift)
    assert isinstance(weak, Restartable)
    assert isinstance(weak, HasDrift)
    start = spread.sample(8, seeded(0))
    truth = spread.simulate(start, grid(2.0, 3), None, seeded(1))
    assert torch.equal(truth.observables["mu"][:, 0, 0], start.mu)
    assert 1 <= start.mu.min() < 10 < start.mu.max() <= 100
    turned = spread.equivalent_histories("half_turn", 4, grid(1.0, 3), seeded(2))
    assert torch.equal(turned.align(turned.second.states), turned.first.states)
    for bad in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="mu"):
            VanDerPol(mu=bad)
