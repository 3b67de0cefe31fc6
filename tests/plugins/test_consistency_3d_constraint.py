"""Tracks that obey the camera's motion have residual 0; what does not obey is off by as much as it is."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels.project import project
from worldsim_plugins.constraints.consistency_3d import Consistency3D
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.scenes import Scenes
from worldsim_plugins.systems.tracked_points import TrackedPoints
from worldsim_plugins.systems.unseen_start import UnseenStart

SYSTEM = TrackedPoints()
TIMES = 0.3 + torch.linspace(0, 3, 11, dtype=torch.float64)
FIRST, SECOND = Consistency3D(SYSTEM, scale=1.0), Consistency3D(SYSTEM, scale=1.0, reference="second")
BOTH = pytest.mark.parametrize("constraint", [FIRST, SECOND], ids=["first", "second"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth():
    return SYSTEM.simulate(SYSTEM.sample(5, generator()), TIMES, None, generator())


def noisy(size: float = 0.5):
    right = truth()
    states = right.states + size * torch.randn(
        right.states.shape, generator=generator(1), dtype=torch.float64
    )
    states[:, :, 0] = right.states[:, :, 0]
    return right.replace(states=states)


@BOTH
def test_nothing_is_off_in_the_truth_and_the_residual_has_a_slope_there(constraint):
    right = truth()
    residual = constraint.residual(right)
    assert residual.shape == (5, 1, 11, SYSTEM.points, 3)
    assert float(residual.abs().max()) < 1e-13
    assert bool((residual[:, :, : constraint.anchor + 1] == 0).all())
    leaf = right.states.clone().requires_grad_()
    later = constraint.residual(right.replace(states=leaf))[:, :, 2:]
    (gradient,) = torch.autograd.grad(later.sum(), leaf)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[:, :, 2:] != 0).all(-1).any())
    # The given frame is a constant; one that is generated moves as the others do.
    assert not gradient[:, :, 0].any()
    assert bool(gradient[:, :, 1].any()) == (constraint.anchor == 1)


def test_a_point_that_is_off_is_off_by_its_distance_over_the_scale():
    right = truth()
    places = SYSTEM.places(right.states)
    places[:, :, 7, 3] += torch.tensor([0.3, 0.0, 0.4], dtype=torch.float64)
    residual = Consistency3D(SYSTEM, scale=0.25).residual(right.replace(states=SYSTEM.seen(places)))
    off = residual.norm(dim=-1)
    torch.testing.assert_close(off[:, :, 7, 3], torch.full((5, 1), 2.0, dtype=torch.float64))
    off[:, :, 7, 3] = 0
    assert float(off.max()) < 1e-13
    still = right.replace(states=right.states[:, :, :1].expand_as(right.states))
    from_axis = (SYSTEM.places(still.states[:, :, 0]) - SYSTEM.middle())[..., [0, 2]].norm(dim=-1)
    turn = SYSTEM.rate * float(TIMES[-1] - TIMES[0])
    chord = FIRST.residual(still)[:, :, -1].norm(dim=-1)
    torch.testing.assert_close(chord, 2 * math.sin(turn / 2) * from_axis)
    # Twelve points of a unit ball are this far from their mean on average: sqrt(3/5 * 11/12).
    assert Consistency3D(SYSTEM).scale == pytest.approx((0.6 * 11 / 12) ** 0.5, rel=0.03)


def test_a_blank_first_frame_is_compared_with_nothing():
    right = truth()
    blank = right.states.clone()
    blank[:, :, 0] = 0.0
    assert float(SECOND.residual(right.replace(states=blank)).abs().max()) < 1e-13
    assert float(FIRST.residual(right.replace(states=blank)).abs().max()) > 1
    assert (FIRST.anchor, FIRST.local_in_time) == (0, True)
    assert (SECOND.anchor, SECOND.local_in_time) == (1, False)
    unseen = UnseenStart(system=SYSTEM)
    found = Consistency3D(unseen)
    assert (found.anchor, found.scale) == (1, pytest.approx(Consistency3D(SYSTEM).scale))
    drawn = unseen.simulate(unseen.sample(3, generator()), TIMES, None, generator())
    assert not drawn.states[:, :, 0].any()
    assert float(found.residual(drawn).abs().max()) < 1e-13
    torch.testing.assert_close(
        found.obeying(found.free(drawn), TIMES).states, drawn.states, rtol=0, atol=1e-11
    )
    with pytest.raises(ValueError, match=r"set consistency_3d\.reference to second"):
        Consistency3D(unseen, reference="first")
    one = right.span(0, 1)
    assert not SECOND.residual(one).any()


def test_each_residual_depends_on_its_own_frame_alone():
    wrong = noisy()
    leaf = wrong.states.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(FIRST.residual(wrong.replace(states=leaf))[:, :, 4].sum(), leaf)
    gradient[:, :, 4] = 0
    assert not gradient.any()


@BOTH
def test_what_is_carried_obeys_whatever_was_generated(constraint):
    right = truth()
    back = constraint.obeying(constraint.free(right), TIMES)
    torch.testing.assert_close(back.states, right.states, rtol=0, atol=1e-11)
    free = constraint.free(noisy(2.0))
    assert free.states.shape == (5, 1, 2, SYSTEM.points, 3)
    made = constraint.obeying(free, TIMES)
    assert float(constraint.residual(made).abs().max()) < 1e-12
    assert torch.equal(made.states[:, :, 0], free.states[:, :, 0])
    assert made.labels == right.labels
    assert torch.equal(constraint.obeying(free.span(0, 1), TIMES[:1]).states, free.states[:, :, :1])


def test_a_body_that_was_not_generated_is_not_carried():
    with pytest.raises(ValueError, match="generate one more"):
        SECOND.obeying(truth().span(0, 1), TIMES)


@BOTH
def test_the_nearest_body_obeys_and_leaves_what_obeys(constraint):
    right = truth()
    torch.testing.assert_close(constraint.retract(right).states, right.states, rtol=0, atol=1e-10)
    wrong = noisy()
    nearest = constraint.retract(wrong)
    assert float(constraint.residual(nearest).abs().max()) < 1e-12
    assert torch.equal(nearest.states[:, :, 0], wrong.states[:, :, 0])

    def apart(one):
        off = constraint.places(one.states) - constraint.places(wrong.states)
        return float(off[:, :, 1:].square().sum())

    if constraint.anchor:  # the mean is nearer than any one frame, and than what is a little beside it
        assert apart(nearest) < apart(constraint.obeying(constraint.free(wrong), TIMES))
        beside = nearest.replace(states=nearest.states + 1e-3)
        assert apart(nearest) < apart(constraint.obeying(constraint.free(beside), TIMES))


def test_projection_by_its_slope_finds_the_same_body():
    wrong = noisy()

    def residual(states):
        return FIRST.residual(wrong.replace(states=states[:, None]))[:, 0]

    found = project(residual, wrong.states[:, 0], local=True, frozen=0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x[:, None], FIRST.retract(wrong).states, rtol=0, atol=1e-7)


def test_what_has_no_tracks_or_no_camera_is_refused():
    for system in (Pendulum(), Scenes()):
        with pytest.raises(ValueError, match="needs tracks"):
            Consistency3D(system)
