"""A blank frame before any world, and incompressible flow seen as velocities."""

from __future__ import annotations

import pytest
import torch

from worldsim import NotMeasurable, protocols
from worldsim.baselines import Truth
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.billiards import Billiards
from worldsim_plugins.systems.incompressible_flow import IncompressibleFlow
from worldsim_plugins.systems.mass_spring import DrivenMassSpring, MassSpring
from worldsim_plugins.systems.n_body import Kepler
from worldsim_plugins.systems.patterns import Vorticity
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.pendulum_frames import PendulumFrames
from worldsim_plugins.systems.transported_fields import Burgers
from worldsim_plugins.systems.unseen_start import UnseenStart

torch.set_num_threads(1)

TIMES = 0.1 * torch.arange(6, dtype=torch.float64)
PASSED = ("HasEnergy", "HasDrift", "HasObservables", "Separable", "HasGrid", "HasCamera", "HasActions")
PASSED += ("HasBodies", "HasBounds")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "inner",
    [Pendulum(), Kepler(), Billiards(), Burgers(points=16), DrivenMassSpring(), MassSpring(ends="free")],
    ids=lambda system: type(system).__name__,
)
def test_it_can_do_exactly_what_the_other_can_and_is_not_restarted(inner) -> None:
    world = UnseenStart(system=inner)
    for name in PASSED:
        capability = getattr(protocols, name)
        assert isinstance(world, capability) == isinstance(inner, capability), name
    assert isinstance(world, protocols.HasForecast)
    assert isinstance(world, protocols.HasUnseenStart)
    assert not isinstance(world, protocols.Restartable)


def test_frame_0_is_blank_and_the_rest_is_the_other_world_from_frame_1_on() -> None:
    inner = Kepler()
    world = UnseenStart(system=inner)
    seen = world.simulate(world.sample(4, rng()), TIMES, None, rng())
    whole = inner.simulate(inner.sample(4, rng()), TIMES[1:], None, rng())
    assert not seen.states[:, :, 0].any()
    assert torch.equal(seen.states[:, :, 1:], whole.states)
    assert torch.equal(seen.times, TIMES)
    for name, value in whole.observables.items():
        assert torch.equal(seen.observables[name][:, :, 1:], value)
        assert not seen.observables[name][:, :, 0].any()
    assert (seen.axes, seen.labels, seen.units) == (whole.axes, whole.labels, whole.units)
    assert not world.simulate(world.sample(4, rng()), TIMES[:1], None, rng()).states.any()


def test_what_it_says_of_a_blank_state_is_nothing_and_finite() -> None:
    """Kepler's own energy of zeros is infinite."""
    inner = Kepler()
    world = UnseenStart(system=inner)
    seen = world.simulate(world.sample(4, rng()), TIMES, None, rng())
    leaf = seen.states.clone().requires_grad_()
    energy = world.energy(leaf)
    assert not energy[:, :, 0].any()
    assert torch.equal(energy[:, :, 1:], inner.energy(leaf[:, :, 1:]))
    assert torch.autograd.grad(energy.sum(), leaf)[0].isfinite().all()
    assert not world.drift(TIMES[0], seen.states[:, 0, 0], None).any()
    assert world.conserved == ()


def test_actions_and_ragged_ends_are_passed_on() -> None:
    inner = DrivenMassSpring()
    world = UnseenStart(system=inner)
    actions = world.sample_actions(4, TIMES, rng(1))
    seen = world.simulate(world.sample(4, rng()), TIMES, actions, rng())
    whole = inner.simulate(inner.sample(4, rng()), TIMES[1:], actions[:, 1:], rng())
    assert torch.equal(seen.states[:, :, 1:], whole.states)
    assert torch.equal(seen.actions, actions)


def test_the_truth_beside_it_draws_other_trajectories_of_one_law() -> None:
    world = UnseenStart(system=Pendulum())
    seen = world.simulate(world.sample(300, rng()), TIMES, None, rng())
    future = Truth(world, seen).rollout(seen.span(0, 1), TIMES, None, 2, rng(5))
    assert future.states.shape == (300, 2, 6, 2)
    assert not future.states[:, :, 0].any()
    assert not torch.equal(future.states[:, :1], seen.states)
    assert not torch.equal(future.states[:, 0], future.states[:, 1])
    energies = [world.energy(x[:, :, 1:]) for x in (seen.states, future.states)]
    assert abs(float(energies[0].mean() - energies[1].mean())) < 0.1
    assert (energies[1] - energies[1][:, :, :1]).abs().max() < 1e-12


def test_a_context_that_shows_something_is_continued() -> None:
    world = UnseenStart(system=Pendulum())
    seen = world.simulate(world.sample(3, rng()), TIMES, None, rng())
    future = world.forecast(seen.span(0, 3), TIMES[2:], None, 2, rng(5))
    torch.testing.assert_close(future.states, seen.states[:, :, 2:].expand(-1, 2, -1, -1), rtol=0, atol=1e-12)


def test_what_has_no_blank_frame_or_cannot_go_on_is_refused() -> None:
    with pytest.raises(ValueError, match="none of them is blank"):
        UnseenStart(system=Automaton(preset="lattice"))

    world = UnseenStart(system=PendulumFrames())
    assert not isinstance(world.inner, protocols.Restartable)
    seen = world.simulate(world.sample(2, rng()), TIMES, None, rng())
    with pytest.raises(NotMeasurable, match="cannot be restarted"):
        world.forecast(seen, TIMES, None, 1, rng())


def test_the_velocities_are_those_of_the_vorticity() -> None:
    flow, turning = IncompressibleFlow(points=16), Vorticity(points=16)
    start = flow.sample(3, rng())
    w = turning.sample(3, rng())
    seen = flow.simulate(start, TIMES, None, rng())
    whole = turning.simulate(w, TIMES, None, rng())
    vorticity = flow.values(flow.vorticity(flow.to_fourier(seen.states)))
    torch.testing.assert_close(vorticity[..., 0, :, :], whole.states[..., 0], rtol=0, atol=1e-11)
    for name in ("energy", "enstrophy"):
        torch.testing.assert_close(seen.observables[name], whole.observables[name], rtol=1e-11, atol=0)


def test_a_flow_alone_decays_by_its_viscosity() -> None:
    """Taylor and Green's vortex: u = sin x cos y, v = -cos x sin y decays as exp(-2 viscosity t)."""
    flow = IncompressibleFlow(points=16, viscosity=0.1)
    at = flow.length * torch.arange(16, dtype=torch.float64) / 16
    y, x = torch.meshgrid(at, at, indexing="ij")
    start = torch.stack([x.sin() * y.cos(), -x.cos() * y.sin()], -1)[None]
    seen = flow.simulate(flow.restart(start), TIMES, None, rng())
    expected = start[:, None, None] * torch.exp(-0.2 * TIMES)[:, None, None, None]
    torch.testing.assert_close(seen.states, expected, rtol=0, atol=1e-12)
