"""Positivity, walls, incompressible flow, and causality, which no trajectory by itself can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim.baselines import Persistence, Truth
from worldsim.protocols import HasParametrisation, HasRetraction, JudgesModels, ShapesModels
from worldsim_kernels.project import Status, project
from worldsim_plugins.constraints.boundary import Boundary
from worldsim_plugins.constraints.causality import Causality
from worldsim_plugins.constraints.divergence_free import DivergenceFree
from worldsim_plugins.constraints.positivity import Positivity
from worldsim_plugins.systems.billiards import Billiards
from worldsim_plugins.systems.bouncing_balls import BouncingBalls
from worldsim_plugins.systems.geometric_brownian import GeometricBrownian
from worldsim_plugins.systems.incompressible_flow import IncompressibleFlow
from worldsim_plugins.systems.mass_spring import DrivenMassSpring, MassSpring
from worldsim_plugins.systems.patterns import GrayScott, Vorticity
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.robertson import Robertson
from worldsim_plugins.systems.unseen_start import UnseenStart

torch.set_num_threads(1)

FLOW = IncompressibleFlow(points=8)
UNSEEN = UnseenStart(system=GeometricBrownian())
WORLDS: dict[str, Any] = {
    "prices": (GeometricBrownian(dim=2), Positivity(GeometricBrownian(dim=2))),
    "one price": (GeometricBrownian(dim=2), Positivity(GeometricBrownian(dim=2), components=("x2",))),
    "concentrations": (Robertson(), Positivity(Robertson())),
    "a field": (GrayScott(points=8, dims=1), Positivity(GrayScott(points=8, dims=1))),
    "stadium": (Billiards(), Boundary(Billiards())),
    "circle": (Billiards(table="circle"), Boundary(Billiards(table="circle"))),
    "rectangle": (Billiards(table="rectangle"), Boundary(Billiards(table="rectangle"))),
    "floor": (BouncingBalls(balls=2), Boundary(BouncingBalls(balls=2))),
    "flow": (FLOW, DivergenceFree(FLOW)),
    "unseen prices": (UNSEEN, Positivity(UNSEEN)),
    "unseen table": (UnseenStart(system=Billiards()), Boundary(UnseenStart(system=Billiards()))),
    "unseen flow": (UnseenStart(system=FLOW), DivergenceFree(UnseenStart(system=FLOW))),
}
EACH = [pytest.param(*case, id=name) for name, case in WORLDS.items()]


def truth(system, n: int = 6, frames: int = 5) -> Trajectory:
    rng = torch.Generator().manual_seed(1)
    times = 0.2 * torch.arange(frames, dtype=torch.float64)
    return system.simulate(system.sample(n, rng), times, None, rng)


def noisy(trajectory: Trajectory, size: float) -> Trajectory:
    """The truth with noise, frame 0 as it is."""
    rng = torch.Generator().manual_seed(2)
    states = trajectory.states.clone()
    noise = torch.randn(states.shape, dtype=torch.float64, generator=rng)
    states[:, :, 1:] += (size * noise * states.std())[:, :, 1:]
    return trajectory.replace(states=states)


@pytest.mark.parametrize(("system", "constraint"), EACH)
def test_the_truth_obeys_and_noise_does_not(system, constraint) -> None:
    right, wrong = truth(system), noisy(truth(system), 2.0)
    residual = constraint.residual(right)
    assert residual.shape[:3] == right.states.shape[:3]
    assert residual.abs().max() < 1e-12
    assert constraint.residual(wrong).abs().max() > 1e-2
    for states in (right.states, wrong.states):
        leaf = states.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(constraint.residual(right.replace(states=leaf)).sum(), leaf)
        assert gradient.isfinite().all()
    assert gradient.any() or isinstance(constraint, DivergenceFree)  # whose sum is 0 on a periodic grid
    assert constraint.local_in_time
    assert constraint.equality == isinstance(constraint, DivergenceFree)


@pytest.mark.parametrize(("system", "constraint"), EACH)
def test_a_retraction_obeys_and_is_what_gauss_newton_finds(system, constraint) -> None:
    wrong = noisy(truth(system), 2.0)
    assert isinstance(constraint, HasRetraction)
    moved = constraint.retract(wrong)
    assert constraint.residual(moved).abs().max() <= 1e-12
    assert torch.equal(moved.states[:, :, 0], wrong.states[:, :, 0])
    assert (constraint.retract(moved).states - moved.states).abs().max() < 1e-13

    def residual(x):
        return constraint.residual(wrong.replace(states=x[:, None], observables={}))[:, 0]

    found = project(residual, wrong.states[:, 0], local=True, frozen=0)
    assert found.converged.all()
    distance = [(x - wrong.states[:, 0]).norm() for x in (moved.states[:, 0], found.x)]
    assert distance[0] <= distance[1] * (1 + 1e-9)


@pytest.mark.parametrize(("system", "constraint"), EACH)
def test_what_a_model_generates_instead_obeys_whatever_it_is(system, constraint) -> None:
    assert isinstance(constraint, HasParametrisation)
    right = truth(system)
    free = constraint.free(right)
    back = constraint.obeying(free, right.times)
    torch.testing.assert_close(back.states, right.states, rtol=0, atol=1e-11)
    assert (back.axes, back.labels, back.units) == (right.axes, right.labels, right.units)
    for size in (0.3, 30.0):
        other = constraint.obeying(noisy(free, size), right.times)
        assert constraint.residual(other).abs().max() <= 1e-10
    assert torch.equal(constraint.free(right.span(0, 1)).states, free.states[:, :, :1])


@pytest.mark.parametrize(("system", "constraint"), EACH)
def test_what_follows_a_ragged_end_counts_for_nothing(system, constraint) -> None:
    right = truth(system)
    states = right.states.clone()
    states[1, :, 3:] = torch.nan
    length = torch.full(states.shape[:2], 5)
    length[1] = 3
    leaf = states.requires_grad_()
    residual = constraint.residual(right.replace(states=leaf, length=length))
    assert residual.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(residual.sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.trial(7)
def test_a_rollout_that_is_not_finite_is_flagged() -> None:
    constraint, wrong = Boundary(Billiards()), noisy(truth(Billiards()), 2.0)
    wrong.states[2, 0, 3, 0] = torch.nan
    found = project(
        lambda x: constraint.residual(wrong.replace(states=x[:, None], observables={}))[:, 0],
        wrong.states[:, 0],
        local=True,
        frozen=0,
    )
    assert found.status.tolist() == [0, 0, Status.NOT_FINITE, 0, 0, 0]


def test_a_blank_frame_is_not_mapped_far_away() -> None:
    """softplus gives 0 of minus infinity alone: one such frame would spoil the scale of all others."""
    right = truth(UNSEEN)
    free = Positivity(UNSEEN).free(right)
    assert not free.states[:, :, 0].any()
    assert free.states[:, :, 1:].abs().max() < 20


def test_a_trifle_is_generated_at_its_own_size():
    """Robertson's second substance is absent at first and stays at 1e-5: made of a number that varies as
    little as it does, an error of that number is one of the same size."""
    system = Robertson()
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(12, dtype=torch.float64)
    truth = system.simulate(system.sample(32, generator), times, None, generator)
    free = Positivity(system).free(truth).states.std((0, 1, 2), correction=0)
    assert bool((free < 4 * truth.states.std((0, 1, 2), correction=0)).all())


def test_walls_reflect_what_is_near_and_keep_what_is_inside() -> None:
    constraint = Boundary(BouncingBalls())
    y = Trajectory(torch.tensor([[[[1.0, 2.0], [-0.25, 2.0]]]], dtype=torch.float64), torch.arange(2.0))
    expected = torch.tensor([[[[1.0, 2.0], [0.25, 2.0]]]], dtype=torch.float64)
    assert torch.equal(constraint.obeying(y, y.times).states, expected)
    # In a circle of radius 1, from 1.25 straight back to 0.75.
    constraint = Boundary(Billiards(table="circle"))
    y = Trajectory(torch.tensor([[[[0.0, -1.25, 0.3, 0.4]]]], dtype=torch.float64), torch.arange(1.0))
    torch.testing.assert_close(
        constraint.obeying(y, y.times).states[0, 0, 0, :2], torch.tensor([0.0, -0.75], dtype=torch.float64)
    )


def test_the_divergence_is_that_of_a_known_flow() -> None:
    """u = sin x, v = sin 2 y on a square of side 2 pi: cos x + 2 cos 2 y, less nothing."""
    constraint = DivergenceFree(FLOW, scale=1.0)
    at = FLOW.length * torch.arange(8, dtype=torch.float64) / 8
    y, x = torch.meshgrid(at, at, indexing="ij")
    field = Trajectory(torch.stack([x.sin(), (2 * y).sin()], -1)[None, None, None], torch.zeros(1))
    torch.testing.assert_close(constraint.residual(field)[0, 0, 0], x.cos() + 2 * (2 * y).cos())


def test_what_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="q, p of Pendulum can be negative"):
        Positivity(Pendulum())
    with pytest.raises(ValueError, match="no component 'd'; it has a, b, c"):
        Positivity(Robertson(), components=("d",))
    with pytest.raises(ValueError, match="Pendulum has none"):
        Boundary(Pendulum())
    with pytest.raises(ValueError, match="field on a square"):
        DivergenceFree(Pendulum())
    with pytest.raises(ValueError, match="velocity"):
        DivergenceFree(Vorticity(points=8))
    with pytest.raises(ValueError, match="takes no actions"):
        Causality(MassSpring())


# Causality.


class Leaking(Truth):
    """The truth, seen a little through the last action of all."""

    def rollout(self, context, times, actions, draws, generator):
        out = super().rollout(context, times, actions, draws, generator)
        return out.replace(states=out.states + 1e-3 * actions[:, -1:].unsqueeze(1))


def driven(n: int = 5, frames: int = 9) -> tuple[DrivenMassSpring, Trajectory]:
    system, rng = DrivenMassSpring(), torch.Generator().manual_seed(4)
    times = 0.2 * torch.arange(frames, dtype=torch.float64)
    actions = system.sample_actions(n, times, rng)
    return system, system.simulate(system.sample(n, rng), times, actions, rng)


def test_a_causal_model_has_exactly_no_leak_and_a_leaking_one_is_caught() -> None:
    system, right = driven()
    constraint = Causality(system, draws=2)
    rng = torch.Generator().manual_seed
    for model in (Truth(system, right), Persistence(system, right)):
        residual = constraint.model_residual(right, model, rng(0))
        assert residual.shape == (5, 2, 9, 4)
        assert not residual.any()
    leak = constraint.model_residual(right, Leaking(system, right), rng(0))
    assert leak.abs().max() > 1e-4
    assert torch.equal(leak, constraint.model_residual(right, Leaking(system, right), rng(0)))


def test_causality_is_asked_of_models_and_can_be_built_in() -> None:
    system, right = driven()
    constraint = Causality(system)
    assert isinstance(constraint, JudgesModels)
    assert isinstance(constraint, ShapesModels)
    assert constraint.parameters == {"causal": True}
    with pytest.raises(NotMeasurable, match="no trajectory by itself"):
        constraint.residual(right)
    with pytest.raises(NotMeasurable, match="at least three frames"):
        constraint.model_residual(right.span(0, 2), Truth(system, right), torch.Generator())
