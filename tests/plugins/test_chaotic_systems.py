"""Lorenz, Henon-Heiles and three bodies: known values, symmetries, bounds."""

import math

import pytest
import torch

from worldsim_plugins.systems.henon_heiles import ESCAPE, HenonHeiles
from worldsim_plugins.systems.lorenz import Lorenz
from worldsim_plugins.systems.three_body import PERIOD, ThreeBody

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_lorenz_is_on_its_attractor():
    system = Lorenz()
    start = system.sample(400, seeded(0))
    # Means and deviations of the attractor: <z> = 23.55, sd(x) = 7.93, sd(z) = 8.62 (to 1 %, long averages).
    assert start[:, 2].mean().item() == pytest.approx(23.55, abs=1.2)
    assert start[:, 0].std().item() == pytest.approx(7.93, rel=0.08)
    assert start[:, 2].std().item() == pytest.approx(8.62, rel=0.08)


def test_lorenz_has_its_divergence_and_fixed_points():
    system = Lorenz()
    root = math.sqrt(8 / 3 * 27)
    fixed = torch.tensor([[0.0, 0, 0], [root, root, 27], [-root, -root, 27]], dtype=F64)
    assert system.drift(torch.tensor(0.0), fixed, None).abs().max() < 1e-13
    x = system.sample(3, seeded(0))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: system.drift(torch.tensor(0.0), y, None)))(x)
    assert torch.allclose(jacobian.diagonal(dim1=1, dim2=2).sum(1), torch.full((3,), -41 / 3, dtype=F64))


def test_lorenz_separates_at_the_rate_of_its_exponent():
    """The largest Lyapunov exponent of the classical parameters is 0.9056 (Sprott 2003)."""
    system = Lorenz()
    start = system.sample(64, seeded(1))
    times = torch.tensor([0.0, 2.0, 12.0], dtype=F64)
    near = start + 1e-9 * torch.randn(64, 3, dtype=F64, generator=seeded(2))
    apart = (system.flow(start, times) - system.flow(near, times)).norm(dim=-1)
    rate = (apart[:, 2] / apart[:, 1]).log().mean().item() / 10
    assert rate == pytest.approx(0.9056, abs=0.12)


def test_henon_heiles_starts_with_its_energy_inside_of_the_triangle():
    system = HenonHeiles(energy=(0.01, 0.16))
    start = system.sample(2000, seeded(0))
    energy = system.energy(start)
    assert energy.min() >= 0.01 - 1e-12
    assert energy.max() <= 0.16 + 1e-12
    assert energy.mean().item() == pytest.approx(0.085, abs=0.004)
    assert torch.equal(system.restart(start), start)
    later = system.simulate(start[:20], torch.tensor([0.0, 200.0], dtype=F64), None, seeded(0))
    assert later.states.abs().max() < 1.0
    assert (later.observables["energy"].diff(dim=2).abs() < 1e-11).all()
    system.restart(later.states[:, 0, 1])


def test_henon_heiles_refuses_what_may_escape():
    system = HenonHeiles()
    for outside in ([0.0, 1.2, 0.0, 0.0], [0.0, 0.0, 0.6, 0.0], [0.0, -0.6, 0.0, 0.0]):
        with pytest.raises(ValueError, match="below the energy 1/6"):
            system.restart(torch.tensor([outside], dtype=F64))
    with pytest.raises(ValueError, match="energy must be"):
        HenonHeiles(energy=(0.1, ESCAPE))


def test_three_bodies_dance_their_figure_of_eight():
    system = ThreeBody(spread=0.0)
    third = torch.tensor([0.0, PERIOD / 3, PERIOD], dtype=F64)
    states = system.simulate(system.sample(1, seeded(0)), third, None, seeded(0)).states[0, 0]
    assert (states[2] - states[0]).abs().max() < 1e-6
    order = [(states[1, i] - states[0]).abs().amax(1).argmin().item() for i in range(3)]
    assert sorted(order) == [0, 1, 2]
    assert order != [0, 1, 2]
    assert (states[1] - states[0][order]).abs().max() < 1e-6


def test_three_bodies_start_in_the_frame_of_their_centre():
    start = ThreeBody(spread=0.1).sample(50, seeded(0))
    assert start.sum(1).abs().max() < 1e-14
    assert (start[0] != start[1]).all()
