"""The true systems that are differential equations: closed forms, invariants, equivalent histories."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from worldsim.protocols import (
    HasActions,
    HasDrift,
    HasEnergy,
    HasEquivalentHistories,
    HasObservables,
    Restartable,
)
from worldsim_plugins.systems import integrated
from worldsim_plugins.systems.double_pendulum import DoublePendulum
from worldsim_plugins.systems.mass_spring import DrivenMassSpring, MassSpring
from worldsim_plugins.systems.n_body import Kepler, NBody, eccentric_anomaly
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import DrivenPendulum, Pendulum

CONSERVATIVE = {
    "pendulum": Pendulum(mass=0.7, length=1.3, gravity=2.0, energy=(0.05, 8.0)),
    "double_pendulum": DoublePendulum(masses=(1.0, 0.7), lengths=(1.0, 1.3)),
    "mass_spring": MassSpring(bodies=5, stiffness=2.0),
    "free_mass_spring": MassSpring(bodies=3, ends="free"),
    "kepler": Kepler(eccentricity=(0.0, 0.9)),
    "kepler_in_space": Kepler(dim=3, mu=2.0, semi_major=(0.5, 2.0)),
    "n_body": NBody(masses=(1.0, 2.0, 1.0), softening=1.0),
    "n_body_in_space": NBody(dim=3, masses=(1.0, 0.5, 1.0), softening=1.0),
}
OTHERS = {
    "damped_pendulum": Pendulum(damping=0.1),
    "driven_pendulum": DrivenPendulum(torque=1.0, damping=0.05),
    "driven_mass_spring": DrivenMassSpring(bodies=2),
    "ornstein_uhlenbeck": OrnsteinUhlenbeck(dim=2),
}
SYSTEMS = CONSERVATIVE | OTHERS
ORDINARY = {name: system for name, system in SYSTEMS.items() if name != "ornstein_uhlenbeck"}
KINDS = [(name, kind) for name, system in SYSTEMS.items() for kind in system.history_kinds]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(end: float, count: int) -> Tensor:
    return torch.linspace(0, end, count, dtype=torch.float64)


def truth(system, n: int, times: Tensor, seed: int = 0, rows: slice = slice(None)):
    start = system.sample(n, seeded(seed))[rows]
    actions = None
    if isinstance(system, HasActions):
        actions = system.sample_actions(n, times, seeded(seed + 1))[rows]
    return system.simulate(start, times, actions, seeded(seed + 2))


@cache
def histories(name: str, kind: str):
    return SYSTEMS[name].equivalent_histories(kind, 4, grid(2, 9), seeded(3))


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_what_is_conserved_stays(name):
    system = CONSERVATIVE[name]
    found = truth(system, 2, grid(100, 26))
    for observable in system.conserved:
        value = found.observables[observable]
        # Momenta that are zero are measured against one.
        size = value[:, :, :1].abs().clamp_min(1.0 if "momentum" in observable else 0.0)
        assert ((value - value[:, :, :1]).abs() <= 1e-8 * size).all(), observable
    assert "energy" in system.conserved


@pytest.mark.parametrize("name", ORDINARY)
def test_the_record(name):
    system, times = ORDINARY[name], grid(3, 7)
    found = truth(system, 4, times)
    assert found.states.dtype == torch.float64
    assert found.states.shape[:3] == (4, 1, 7)
    assert len(found.axes) == len(found.state_shape)
    assert tuple(len(found.labels[axis]) for axis in found.axes) == found.state_shape
    assert {*found.labels["component"], "time", "energy"} <= set(found.units)
    driving = None if found.actions is None else found.actions[:, None]
    torch.testing.assert_close(
        found.observables["derivative"], system.drift(times[0], found.states, driving), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_the_drift_is_the_symplectic_gradient_of_the_energy(name):
    system = CONSERVATIVE[name]
    states = truth(system, 3, grid(5, 6)).states.requires_grad_()
    (gradient,) = torch.autograd.grad(system.energy(states).sum(), states)
    by_q, by_p = gradient.chunk(2, dim=-1)
    drift = system.drift(torch.tensor(0.0), states, None)
    torch.testing.assert_close(drift, torch.cat([by_p, -by_q], dim=-1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ORDINARY)
def test_the_truth_solves_its_equation(name):
    system = ORDINARY[name]
    step = 1e-3
    times = step * torch.arange(5, dtype=torch.float64)
    found = truth(system, 3, times)
    if found.actions is not None:
        held = found.actions[:, :1].expand_as(found.actions)
        found = system.simulate(found.states[:, 0, 0], times, held, seeded(0))
    x, middle = found.states[:, 0], found.observables["derivative"][:, 0, 2]
    slope = (x[:, 0] - 8 * x[:, 1] + 8 * x[:, 3] - x[:, 4]) / (12 * step)
    torch.testing.assert_close(slope, middle, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_generator_gives_the_same_bits_and_the_global_one_is_untouched(name):
    before = torch.get_rng_state()
    first, second = (truth(SYSTEMS[name], 3, grid(2, 5)) for _ in range(2))
    assert torch.equal(first.states, second.states)
    assert not torch.equal(first.states, truth(SYSTEMS[name], 3, grid(2, 5), seed=9).states)
    for kind in SYSTEMS[name].history_kinds[1:]:
        again = SYSTEMS[name].equivalent_histories(kind, 4, grid(2, 9), seeded(3))
        assert torch.equal(again.second.states, histories(name, kind).second.states)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ORDINARY)
def test_a_trajectory_has_the_same_bits_in_every_batch(name):
    system, times = ORDINARY[name], grid(4, 9)
    whole = truth(system, 7, times)
    for rows in (slice(2, 3), slice(1, 6)):
        assert torch.equal(truth(system, 7, times, rows=rows).states, whole.states[rows])


@pytest.mark.parametrize("name", ORDINARY)
def test_a_restart_continues_the_trajectory(name):
    system, times = ORDINARY[name], grid(8, 17)
    whole = truth(system, 4, times)
    start = system.restart(whole.states[:, 0, 8])
    actions = None if whole.actions is None else whole.actions[:, 8:]
    rest = system.simulate(start, times[8:], actions, seeded(0))
    torch.testing.assert_close(rest.states, whole.states[:, :, 8:], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_equivalent_histories_have_one_future(name, kind):
    system, pairs = SYSTEMS[name], histories(name, kind)
    first, second = pairs.first, pairs.second
    assert first.times[-1] == second.times[-1]
    torch.testing.assert_close(
        pairs.align(second.states[:, :, -1]), first.states[:, :, -1], rtol=1e-10, atol=1e-10
    )
    ahead = grid(3, 4)
    actions = system.sample_actions(4, ahead, seeded(4)) if isinstance(system, HasActions) else None
    futures = [
        system.simulate(system.restart(past.states[:, 0, -1]), ahead, actions, seeded(5)).states
        for past in (first, second)
    ]
    aligned = futures[1] if name == "ornstein_uhlenbeck" else pairs.align(futures[1])
    torch.testing.assert_close(aligned, futures[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_equivalent_histories_are_different_true_histories(name, kind):
    system, pairs = SYSTEMS[name], histories(name, kind)
    if kind == "window_shift":
        assert len(pairs.second.times) == 5
        assert torch.equal(pairs.second.states, pairs.first.states[:, :, 4:])
    else:
        apart = (pairs.first.states - pairs.second.states).abs().flatten(1).amax(1)
        assert (apart > 1e-2).all()
    if name == "ornstein_uhlenbeck":
        return
    for past in (pairs.first, pairs.second):
        start = system.restart(past.states[:, 0, 0])
        again = system.simulate(start, past.times, past.actions, seeded(0))
        torch.testing.assert_close(again.states, past.states, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_capabilities(name):
    system = SYSTEMS[name]
    ordinary = name in ORDINARY
    assert isinstance(system, Restartable)
    assert isinstance(system, HasEquivalentHistories)
    assert all(isinstance(system, kind) == ordinary for kind in (HasObservables, HasEnergy, HasDrift))
    assert isinstance(system, HasActions) == name.startswith("driven")


def test_conserved_is_empty_where_something_drives_or_damps():
    assert Pendulum(damping=0.1).conserved == DrivenPendulum().conserved == DrivenMassSpring().conserved == ()


@pytest.mark.parametrize("name", SYSTEMS)
def test_bad_input_is_refused(name):
    system = SYSTEMS[name]
    start = system.sample(2, seeded(0))
    with pytest.raises(ValueError, match="unknown kind of equivalent histories 'nonsense'"):
        system.equivalent_histories("nonsense", 2, grid(1, 9), seeded(0))
    with pytest.raises(ValueError, match="at least 3 history times"):
        system.equivalent_histories("window_shift", 2, grid(1, 2), seeded(0))
    with pytest.raises(ValueError, match="strictly increasing"):
        system.simulate(start, torch.tensor([0.0, 1.0, 1.0]), None, seeded(0))
    with pytest.raises(ValueError, match="shape"):
        system.restart(start[..., 1:])
    with pytest.raises(ValueError, match="finite"):
        system.restart(start * math.nan)
    if not isinstance(system, HasActions):
        with pytest.raises(ValueError, match="not driven"):
            system.simulate(start, grid(1, 3), torch.zeros(2, 3, 1), seeded(0))


@pytest.mark.parametrize(
    ("builder", "parameters"),
    [
        (Pendulum, {"energy": (-0.1, 1.0)}),
        (Pendulum, {"energy": (2.0, 1.0)}),
        (Pendulum, {"energy": (2.0, 2.0)}),
        (DoublePendulum, {"energy": (1.0, math.inf)}),
        (DoublePendulum, {"masses": (1.0, 0.0)}),
        (MassSpring, {"energy": (math.nan, 1.0)}),
        (Kepler, {"eccentricity": (0.5, 1.0)}),
        (Kepler, {"semi_major": (0.0, 1.0)}),
        (NBody, {"masses": (1.0,)}),
        (NBody, {"masses": (1.0, -1.0)}),
    ],
)
def test_bad_parameters_are_refused(builder, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        builder(**parameters)


@pytest.mark.parametrize("name", ["pendulum", "double_pendulum", "mass_spring", "free_mass_spring"])
def test_starting_energies_lie_where_they_are_asked_for(name):
    system = CONSERVATIVE[name]
    energy = system.energy(system.sample(500, seeded(0)))
    low, high = system.energies
    assert low <= energy.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < energy.max() <= high + 1e-9


def test_the_pendulum_follows_the_elliptic_functions():
    system = Pendulum(mass=0.7, length=1.3, gravity=2.0, energy=(0.05, 8.0))
    energy = torch.tensor([0.1, 1.0, 3.0, 4.5, 8.0], dtype=torch.float64)  # the separatrix is at 3.64
    phase = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    start = system.on_orbit(energy, phase)
    torch.testing.assert_close(system.energy(start), energy, rtol=1e-13, atol=1e-13)
    end = system.simulate(start, grid(100, 51), None, seeded(0)).states[:, 0, -1]
    exact = system.on_orbit(energy, phase, 100.0)
    turns = ((end - exact) / (2 * math.pi)).round() * torch.tensor([2 * math.pi, 0.0])
    torch.testing.assert_close(end - turns, exact, rtol=0, atol=1e-9)


def test_pendulum_phases_are_uniform_in_time():
    system = Pendulum(energy=(1.9, 1.9))
    states = system.sample(4000, seeded(0))
    later = system.simulate(states, torch.tensor([0.0, 3.0]), None, seeded(0)).states[:, 0, 1]
    for component in (0, 1):
        before, after = states[:, component].sort()[0], later[:, component].sort()[0]
        assert (before - after).abs().mean() < 0.1 * before.std()


def test_friction_takes_energy_and_torque_balances_it():
    system = DrivenPendulum(damping=0.2, torque=0.5)
    times = grid(2, 401)
    start = system.sample(3, seeded(0))
    actions = system.sample_actions(3, grid(2, 2), seeded(1))[:, :1].expand(3, 401, 1)
    found = system.simulate(start, times, actions, seeded(0))
    momentum = found.states[:, 0, :, 1]
    power = (actions[..., 0] - 0.2 * momentum) * momentum
    gained = found.observables["energy"][:, 0, -1] - found.observables["energy"][:, 0, 0]
    simpson = torch.ones(401, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    torch.testing.assert_close((power * simpson).sum(1) * (2 / 400) / 3, gained, rtol=0, atol=1e-8)


def test_torques_are_held_and_bounded():
    actions = DrivenPendulum(torque=0.3, hold=4).sample_actions(5, grid(1, 10), seeded(0))
    assert actions.shape == (5, 10, 1)
    assert actions.abs().max() <= 0.3
    assert (actions[:, 0] == actions[:, 3]).all()
    assert (actions[:, 3] != actions[:, 4]).all()


def test_forced_histories_end_in_the_very_same_state_and_next_action():
    pairs = DrivenPendulum(torque=1.0).equivalent_histories("forced", 4, grid(5, 51), seeded(0))
    assert torch.equal(pairs.first.states[:, :, -1], pairs.second.states[:, :, -1])
    assert torch.equal(pairs.first.actions[:, -1], pairs.second.actions[:, -1])
    assert not torch.equal(pairs.first.actions[:, -2], pairs.second.actions[:, -2])


@pytest.mark.parametrize("ends", ["fixed", "free"])
def test_the_chain_has_the_modes_of_its_stiffness_matrix(ends):
    system = MassSpring(bodies=4, stiffness=3.0, ends=ends)
    places = torch.eye(4, 8, dtype=torch.float64)
    matrix = -system.drift(torch.tensor(0.0), places, None)[:, 4:]
    torch.testing.assert_close(
        system.shapes @ matrix @ system.shapes.T, system.frequencies.square().diag(), rtol=0, atol=1e-13
    )


def test_one_mass_between_two_walls_is_a_harmonic_oscillator():
    system = MassSpring(bodies=1, stiffness=2.0)
    found = system.simulate(torch.tensor([[1.0, 0.0]]).double(), grid(10, 11), None, seeded(0)).states[0, 0]
    torch.testing.assert_close(found[:, 0], torch.cos(2 * grid(10, 11)), rtol=0, atol=1e-13)


def test_forcing_null_needs_enough_history():
    with pytest.raises(ValueError, match="more than 7 history times"):
        DrivenMassSpring(bodies=3).equivalent_histories("forcing_null", 2, grid(1, 7), seeded(0))


def test_kepler_closes_its_orbit_after_one_period():
    system = Kepler(mu=2.0, semi_major=(1.5, 1.5), eccentricity=(0.95, 0.95))
    period = 2 * math.pi * math.sqrt(1.5**3 / 2.0)
    found = system.simulate(
        system.sample(20, seeded(0)),
        torch.tensor([0.0, period, 10 * period], dtype=torch.float64),
        None,
        seeded(0),
    )
    start = found.states[:, :, :1].expand_as(found.states)
    torch.testing.assert_close(found.states, start, rtol=0, atol=1e-11)


def test_kepler_agrees_with_the_integrated_equation():
    system = Kepler(dim=3, eccentricity=(0.0, 0.7))
    start, times = system.sample(4, seeded(0)), grid(20, 41)
    exact = system.simulate(start, times, None, seeded(0)).states[:, 0]
    flown = integrated.flow(lambda x, u: system.drift(times[0], x, u), start, times)
    torch.testing.assert_close(flown, exact, rtol=0, atol=1e-10)


def test_the_kepler_equation_is_solved_for_every_eccentricity():
    eccentricity = torch.tensor([0.0, 0.5, 0.9, 0.999, 1 - 1e-9]).double()[:, None]
    mean = torch.linspace(-math.pi, math.pi, 201, dtype=torch.float64)
    x = eccentric_anomaly(torch.zeros_like(eccentricity), eccentricity, mean)
    torch.testing.assert_close(x - eccentricity * torch.sin(x), mean.expand_as(x), rtol=0, atol=1e-14)


def test_kepler_refuses_orbits_that_are_not_bound_or_fall_into_the_centre():
    for state in ([1.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.5, 0.0]):
        with pytest.raises(ValueError, match="bound orbits"):
            Kepler().restart(torch.tensor([state]))


def test_two_bodies_move_as_kepler_says():
    pair = NBody(masses=(1.0, 3.0), softening=0.0)
    centre = Kepler(mu=4.0)
    relative, times = centre.sample(3, seeded(0)), grid(10, 21)
    q, v = relative.chunk(2, dim=-1)
    bodies = torch.stack([torch.cat([-0.75 * q, -0.75 * v], -1), torch.cat([0.25 * q, 0.75 * v], -1)], dim=1)
    found = pair.simulate(pair.restart(bodies), times, None, seeded(0)).states
    exact = centre.simulate(relative, times, None, seeded(0)).states
    torch.testing.assert_close(found[..., 1, :2] - found[..., 0, :2], exact[..., :2], rtol=0, atol=1e-10)


def test_bodies_that_collide_are_refused():
    system = NBody(masses=(1.0, 1.0), softening=0.0)
    start = system.restart(torch.tensor([[[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]]))
    with pytest.raises(ValueError, match="collision"):
        system.simulate(start, torch.tensor([0.0, 3.0]), None, seeded(0))


def test_n_body_starts_at_the_virial_ratio_in_the_frame_of_the_centre():
    system = NBody(dim=3, masses=(1.0, 2.0, 0.5), virial=0.3)
    states = system.sample(10, seeded(0))
    potential = system.energy(torch.cat([states[..., :3], torch.zeros_like(states[..., 3:])], dim=-1))
    torch.testing.assert_close(system.energy(states), 0.7 * potential)
    assert system.observe(states)["momentum"].abs().max() < 1e-12
    assert NBody(masses=(1.0, 2.0)).history_kinds == ("window_shift", "rotation", "translation")


def test_ornstein_uhlenbeck_has_its_law():
    system = OrnsteinUhlenbeck(dim=1, rate=0.7, mean=2.0, volatility=0.9)
    start = torch.full((20000, 1), 5.0, dtype=torch.float64)
    states = system.simulate(start, torch.tensor([0.0, 0.3, 1.0]), None, seeded(0)).states[:, 0, 2]
    mean, variance = system.law(start[:1], 1.0)
    assert mean.item() == pytest.approx(2 + 3 * math.exp(-0.7), rel=1e-12)
    assert variance.item() == pytest.approx(0.81 * (1 - math.exp(-1.4)) / 1.4, rel=1e-12)
    assert abs(states.mean() - mean).item() < 4 * (variance.item() / 20000) ** 0.5
    assert abs(states.var() / variance - 1).item() < 4 * (2 / 20000) ** 0.5
    with pytest.raises(ValueError, match="dt"):
        system.law(start, -1.0)


def test_ornstein_uhlenbeck_pasts_of_a_common_end_are_as_correlated_as_the_process():
    system = OrnsteinUhlenbeck(rate=0.5)
    pairs = system.equivalent_histories("common_end", 20000, grid(2, 3), seeded(0))
    first, second = pairs.first.states[:, 0, :, 0], pairs.second.states[:, 0, :, 0]
    between_pasts = (first[:, 0] * second[:, 0]).mean() * 2 * system.rate
    along = (first[:, 0] * first[:, 2]).mean() * 2 * system.rate
    assert between_pasts.item() == pytest.approx(math.exp(-2), abs=0.03)
    assert along.item() == pytest.approx(math.exp(-1), abs=0.03)
