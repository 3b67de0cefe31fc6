"""Momentum, mass, energy, action and reaction: what keeps its value, and each way to hold a model to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import Anchored, HasParametrisation, HasRetraction
from worldsim_kernels.project import Anchor, Status, project
from worldsim_plugins.constraints.action_reaction import ActionReaction
from worldsim_plugins.constraints.energy import Energy
from worldsim_plugins.constraints.mass import mass
from worldsim_plugins.constraints.momentum import momentum
from worldsim_plugins.systems.mass_spring import DrivenMassSpring, MassSpring
from worldsim_plugins.systems.n_body import Kepler, NBody
from worldsim_plugins.systems.patterns import GrayScott, Vorticity
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.robertson import Robertson
from worldsim_plugins.systems.transported_fields import Burgers
from worldsim_plugins.systems.unseen_start import UnseenStart

torch.set_num_threads(1)

BODIES = NBody(softening=1.0, masses=(1.0, 2.0, 3.0))
SPACE = NBody(softening=1.0, dim=3)
FIELD = Burgers(points=16, step=0.02)
CHAIN = MassSpring(bodies=3, ends="free")
CASES: dict[str, Any] = {
    "momentum": (BODIES, momentum(BODIES)),
    "momentum of a chain": (CHAIN, momentum(CHAIN)),
    "angular momentum": (BODIES, momentum(BODIES, angular=True)),
    "angular momentum in space": (SPACE, momentum(SPACE, angular=True)),
    "mass of a field": (FIELD, mass(FIELD)),
    "mass of a reaction": (Robertson(), mass(Robertson())),
    "action and reaction": (BODIES, ActionReaction(BODIES)),
    "action, reaction and torque": (SPACE, ActionReaction(SPACE, torque=True)),
    "energy": (Pendulum(), Energy(Pendulum())),
}
UNSEEN: dict[str, Any] = {
    name: (blank, make(blank))
    for name, blank, make in (
        ("momentum", UnseenStart(system=BODIES), momentum),
        ("angular momentum", UnseenStart(system=BODIES), lambda s: momentum(s, angular=True)),
        ("mass of a field", UnseenStart(system=FIELD), mass),
        ("action and reaction", UnseenStart(system=BODIES), ActionReaction),
        ("energy", UnseenStart(system=Pendulum()), Energy),
        ("energy of Kepler", UnseenStart(system=Kepler()), lambda s: Energy(s, scale=0.5)),
    )
}
BOTH = [pytest.param(*case, id=name) for name, case in CASES.items()] + [
    pytest.param(*case, id=f"{name}, unseen") for name, case in UNSEEN.items()
]


def truth(system, n: int = 6, frames: int = 9) -> Trajectory:
    rng = torch.Generator().manual_seed(1)
    times = 0.1 * torch.arange(frames, dtype=torch.float64)
    return system.simulate(system.sample(n, rng), times, None, rng)


def noisy(trajectory: Trajectory, size: float = 0.05) -> Trajectory:
    """The truth with noise, frame 0 as it is."""
    rng = torch.Generator().manual_seed(2)
    states = trajectory.states.clone()
    noise = torch.randn(states.shape, dtype=torch.float64, generator=rng)
    states[:, :, 1:] += (size * noise * states.std())[:, :, 1:]
    return trajectory.replace(states=states)


def projected(constraint, trajectory: Trajectory, **settings: Any):
    """By Gauss-Newton, as a model's rollout is."""

    def residual(x: Tensor) -> Tensor:
        bare = trajectory.replace(states=x[:, None], observables={}, length=None)
        return constraint.residual(bare)[:, 0]

    if isinstance(constraint, Anchored) and constraint.anchor == 1:
        settings["anchor"] = Anchor(constraint.value, 1, constraint.scale)
    local = constraint.local_in_time
    return project(residual, trajectory.states[:, 0], local=local, frozen=0, **settings)


@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_the_truth_obeys_and_noise_does_not(system, constraint) -> None:
    right = truth(system)
    residual = constraint.residual(right)
    assert residual.shape[:3] == right.states.shape[:3]
    assert residual.dtype == torch.float64
    assert residual.abs().max() < 1e-12
    assert constraint.residual(noisy(right)).abs().max() > 1e-2
    for states in (right.states, noisy(right).states):
        leaf = states.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            constraint.residual(right.replace(states=leaf)).square().sum(), leaf
        )
        assert gradient.isfinite().all()
        assert not gradient[:, :, 0].any()
    assert gradient.any()


@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_gauss_newton_reaches_it(system, constraint) -> None:
    wrong = noisy(truth(system))
    found = projected(constraint, wrong)
    assert found.converged.all()
    assert torch.equal(found.x[:, 0], wrong.states[:, 0, 0])
    moved = wrong.replace(states=found.x[:, None])
    assert constraint.residual(moved).abs().max() <= 1e-10


@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_a_retraction_is_the_nearest_that_obeys(system, constraint) -> None:
    if not isinstance(constraint, HasRetraction):
        assert not isinstance(constraint, HasParametrisation) or isinstance(constraint, Energy)
        return
    wrong = noisy(truth(system))
    moved = constraint.retract(wrong)
    assert constraint.residual(moved).abs().max() <= 1e-12
    # Of a linear constraint, one Gauss-Newton step is the projection in the metric of the components' spread.
    spread = getattr(getattr(constraint, "linear", constraint), "spread", None)
    nearest = projected(constraint, wrong, metric=spread).x
    torch.testing.assert_close(moved.states[:, 0], nearest, rtol=0, atol=1e-9)


def test_a_trace_of_a_substance_does_not_pay_for_the_whole() -> None:
    """Robertson's B is 1e-5 of the others: mass that lacks is not its to make up."""
    system = Robertson()
    right = truth(system)
    lacking = right.replace(states=right.states * torch.tensor([0.9, 1.0, 1.0], dtype=torch.float64))
    lacking.states[:, :, 0] = right.states[:, :, 0]
    constraint = mass(system)
    for moved in (constraint.retract(lacking), constraint.obeying(lacking, right.times)):
        assert constraint.residual(moved).abs().max() <= 1e-12
        assert float((moved.states - lacking.states)[..., 1].abs().max()) < 1e-6


@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_what_a_model_generates_instead_obeys_whatever_it_is(system, constraint) -> None:
    if not isinstance(constraint, HasParametrisation):
        return
    right = truth(system)
    free = constraint.free(right)
    back = constraint.obeying(free, right.times)
    torch.testing.assert_close(back.states, right.states, rtol=0, atol=1e-11)
    assert (back.axes, back.labels, back.units) == (right.axes, right.labels, right.units)
    other = constraint.obeying(noisy(free), right.times)
    assert constraint.residual(other).abs().max() <= 1e-10
    assert not torch.equal(other.states, back.states)
    one = constraint.free(right.span(0, 1))
    assert torch.equal(one.states, free.states[:, :, :1])
    assert constraint.residual(right.span(0, 1)).abs().max() == 0


@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_what_follows_a_ragged_end_counts_for_nothing(system, constraint) -> None:
    right = truth(system)
    states = right.states.clone()
    states[1, :, 5:] = torch.nan
    states[2, :, 1:] = torch.nan
    length = torch.full(states.shape[:2], 9)
    length[1], length[2] = 5, 1
    leaf = states.requires_grad_()
    residual = constraint.residual(right.replace(states=leaf, length=length))
    assert residual.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(residual.square().sum() + residual.sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.trial(7)
@pytest.mark.parametrize(("system", "constraint"), BOTH)
def test_a_rollout_that_is_not_finite_is_flagged_and_harms_nobody(system, constraint) -> None:
    wrong = noisy(truth(system))
    wrong.states[2, 0, 4] = torch.nan
    found = projected(constraint, wrong)
    assert found.status.tolist() == [0, 0, Status.NOT_FINITE, 0, 0, 0]


def test_an_energy_below_the_bottom_of_the_well_is_unreachable() -> None:
    constraint = Energy(Pendulum(), scale=1.0)
    x = noisy(truth(Pendulum())).states[:, 0]
    found = project(lambda y: constraint.energy(y) + 0.5, x[:, 1:], local=True)
    assert (found.status == Status.UNREACHABLE).all()
    assert (found.violation >= 0.5).all()


def test_momentum_is_shared_out_by_mass() -> None:
    """Every velocity of a frame is changed alike."""
    constraint, right = momentum(BODIES), truth(BODIES)
    wrong = noisy(constraint.free(right))
    change = (constraint.obeying(wrong, right.times).states - wrong.states)[..., 2:] / BODIES.masses[:, None]
    assert change.abs().max() > 1e-3
    assert (change - change[..., :1, :]).abs().max() < 1e-14


def test_a_push_from_nowhere_is_found_in_its_interval() -> None:
    right = truth(BODIES)
    right.states[:, :, 4:, 0, 2] += 0.3
    residual = ActionReaction(BODIES, scale=0.1).residual(right)
    torch.testing.assert_close(residual[:, :, 4, 0], torch.full((6, 1), 3.0, dtype=torch.float64))
    residual[:, :, 4, 0] = 0
    assert residual.abs().max() < 1e-12


def test_a_pair_of_forces_that_turns_is_found_by_its_torque() -> None:
    """Equal and opposite pushes across the line between two bodies."""
    right = truth(BODIES)
    right.states[:, :, 4:, 0, 2:] += 0.3
    right.states[:, :, 4:, 1, 2:] -= 0.3
    assert ActionReaction(BODIES).residual(right).abs().max() < 1e-12
    turned = ActionReaction(BODIES, torque=True).residual(right)
    assert turned[..., :2].abs().max() < 1e-12
    assert turned[..., 2].abs().max() > 1e-2


def test_default_scales_are_those_that_are_documented() -> None:
    rng = torch.Generator().manual_seed(3)
    start = Robertson().sample(20_000, rng)
    assert mass(Robertson()).scale == pytest.approx(float(start.sum(1).std()), rel=0.1)
    # n_body starts at rest as a whole: the scale is that of independent momenta.
    p = BODIES.sample(20_000, rng)[..., 2:]
    assert momentum(BODIES).scale == pytest.approx(float(p.var(0).sum(0).mean().sqrt()), rel=0.2)
    assert mass(FIELD, scale=3.0).scale == 3.0


def test_systems_that_do_not_conserve_it_are_refused() -> None:
    for make, system, said in (
        (momentum, MassSpring(), "conserves energy"),
        (momentum, DrivenMassSpring(ends="free"), "conserves nothing"),
        (mass, GrayScott(), "conserves nothing"),
        (mass, Pendulum(), "conserves energy"),
        (ActionReaction, MassSpring(), "from outside"),
        (ActionReaction, DrivenMassSpring(ends="free"), "from outside"),
        (Energy, UnseenStart(system=Vorticity()), "does not conserve"),
    ):
        with pytest.raises(ValueError, match=said):
            make(system)
    with pytest.raises(ValueError, match="no torque"):
        ActionReaction(CHAIN, torque=True)
    with pytest.raises(ValueError, match="frame 0 of UnseenStart is blank"):
        momentum(UnseenStart(system=BODIES), reference="first")


def test_the_second_frame_can_be_the_reference_anywhere() -> None:
    right = truth(Pendulum())
    right.states[:, :, 0] *= 1.5
    assert Energy(Pendulum()).residual(right).abs().max() > 0.1
    constraint = Energy(Pendulum(), reference="second")
    assert constraint.residual(right).abs().max() < 1e-13
    assert not constraint.local_in_time


def test_an_integrated_start_keeps_its_energy_over_a_hundred_frames_and_is_the_truth() -> None:
    for system in (Pendulum(), CHAIN):
        constraint, right = Energy(system, reference="second"), truth(system, frames=101)
        found = constraint.obeying(constraint.free(right), right.times)
        assert constraint.residual(found).abs().max() < 1e-11
        torch.testing.assert_close(found.states, right.states, rtol=0, atol=1e-11)


def test_a_start_that_cannot_be_followed_is_not_finite_and_harms_nobody() -> None:
    constraint, right = Energy(Pendulum(), reference="second"), truth(Pendulum())
    free = constraint.free(right)
    free.states[2, 0, 1] = torch.nan
    found = constraint.obeying(free, right.times).states
    assert found[2, 0, 2:].isnan().all()
    keep = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(found[keep], constraint.obeying(free.rows(keep), right.times).states)
