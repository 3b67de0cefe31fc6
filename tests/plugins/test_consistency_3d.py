"""Geometry of two views: nothing is off in a true scene, and each fault is seen by what should see it."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.consistency_3d import Consistency3D, carrying
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.scenes import Scenes
from worldsim_plugins.systems.tracked_points import TrackedPoints
from worldsim_plugins.systems.unseen_start import UnseenStart

SYSTEM = TrackedPoints()
TIMES = torch.linspace(0, 4, 21, dtype=torch.float64)
METRIC = Consistency3D(SYSTEM)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth() -> Trajectory:
    return SYSTEM.simulate(SYSTEM.sample(8, generator()), TIMES, None, generator())


def values(states) -> dict[str, float]:
    right = truth()
    return {n: s.value for n, s in METRIC.score(right, right.replace(states=states), None).items()}


def test_tracks_are_those_of_a_camera_that_goes_round():
    """After a whole turn every point is where it was; half-way, the near side is the far one."""
    period = 2 * math.pi / SYSTEM.rate
    times = torch.tensor([0.0, period / 2, period], dtype=torch.float64)
    start = SYSTEM.sample(3, generator(1))
    tracks = SYSTEM.simulate(start, times, None, generator()).states[:, 0]
    torch.testing.assert_close(tracks[:, 2], tracks[:, 0])
    torch.testing.assert_close(tracks[:, 1, :, 2], 2 * SYSTEM.distance - tracks[:, 0, :, 2])
    torch.testing.assert_close(SYSTEM.seen(SYSTEM.places(start)), start)
    again = SYSTEM.simulate(SYSTEM.restart(tracks[:, 1]), times[1:] - times[1], None, generator())
    torch.testing.assert_close(again.states[:, 0, 1], tracks[:, 2])


def test_nothing_is_off_in_a_true_scene():
    found = values(truth().states)
    assert set(found) == {
        "sampson", "reprojection", "depth_error", "rotation_error", "translation_error", "loop_rotation",
        "loop_translation", "moving",
    }  # fmt: skip
    assert found.pop("moving") == 1.0
    assert max(found.values()) < 1e-9


def test_a_point_off_its_line_is_as_far_off_as_it_is():
    """The second view two pixels down: epipolar lines of a camera that turns about the vertical are nearly
    level, and to Sampson half of the square is each view's."""
    states = truth().states.clone()
    states[:, :, 4:, :, 1] += 2.0
    found = METRIC.score(truth().span(0, 5), truth().span(0, 5).replace(states=states[:, :, :5]), None)
    assert found["reprojection"].value == pytest.approx(2.0, abs=1e-9)
    assert found["sampson"].value == pytest.approx(math.sqrt(2), rel=0.05)
    assert found["depth_error"].value < 1e-9


def test_true_then_a_small_error_of_pose_then_shuffled_depth():
    right = truth()
    fast = SYSTEM.simulate(right.states[:, 0, 0], 1.05 * TIMES, None, generator())
    slightly = values(fast.states)
    states = right.states.clone()
    order = torch.randperm(SYSTEM.points, generator=generator(2))
    states[..., 2] = states[..., order, 2]
    shuffled = values(states)
    true = values(right.states)
    for name in ("reprojection", "depth_error", "translation_error", "rotation_error"):
        assert true[name] < 1e-9 < 1e-3 < slightly[name] < shuffled[name], name
    assert shuffled["sampson"] < 1e-9  # tracks alone do not know the depth
    assert slightly["rotation_error"] == pytest.approx(math.degrees(0.05 * 0.5 * 0.8), rel=1e-6)
    torn = values(right.states + 0.5 * torch.randn(right.states.shape, generator=generator(3)).double())
    assert torn["loop_rotation"] > 0.1


def test_a_still_clip_is_not_measured_and_half_a_still_one_says_so():
    right = truth()
    still = right.states[:, :, :1].expand_as(right.states)
    with pytest.raises(NotMeasurable, match="stands still where the truth moves"):
        values(still)
    half = right.states.clone()
    half[:4] = still[:4]
    found = METRIC.score(right, right.replace(states=half), None)
    assert found["moving"].value == 0.5
    assert found["sampson"].n == 4
    with pytest.raises(NotMeasurable, match="lessen gap"):
        METRIC.score(right.span(0, 3), right.span(0, 3), None)
    with pytest.raises(ValueError, match="Pendulum has none"):
        Consistency3D(Pendulum())


@pytest.mark.parametrize("inner", [SYSTEM, Scenes()], ids=["tracks", "frames"])
def test_a_blank_first_frame_is_no_view(inner):
    system = UnseenStart(system=inner)
    right = system.simulate(system.sample(4, generator()), TIMES[:9], None, generator())
    later = right.replace(times=right.times - right.times[1]).span(1)
    found, known = (
        Consistency3D(system).score(right, right, None),
        Consistency3D(inner).score(later, later, None),
    )
    assert {name: s.value for name, s in found.items()} == pytest.approx(
        {n: s.value for n, s in known.items()}
    )
    assert found["moving"].value == 1.0


@pytest.mark.trial(7)
def test_geometry_that_is_not_finite_is_no_number():
    states = truth().states.clone()
    states[0, :, 5] = torch.nan
    right = truth()
    found = METRIC.score(right, right.replace(states=states), None)
    assert {s.failed for s in found.values()} == {1}
    assert all(math.isnan(s.value) and "1 of 8 predictions" in s.reason for s in found.values())
    flat = right.states.clone()
    flat[0, :, :, :, 2] = 0.0  # every point in the camera itself
    found = METRIC.score(right, right.replace(states=flat), None)
    assert found["translation_error"].failed == 0
    off = [s for s in found.values() if math.isnan(s.value)]
    assert off
    assert all(s.failed == 1 and "none is left out" in s.reason for s in off)


def test_the_motion_between_two_clouds_is_no_reflection():
    points = torch.randn(5, 7, 3, dtype=torch.float64, generator=generator(4))
    rotation = torch.linalg.qr(torch.randn(5, 3, 3, dtype=torch.float64, generator=generator(5)))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    shift = torch.randn(5, 3, dtype=torch.float64, generator=generator(6))
    found = carrying(points, points @ rotation.mT + shift[:, None])
    torch.testing.assert_close(found.rotation, rotation)
    torch.testing.assert_close(found.translation, shift)
    mirrored = carrying(points, points * torch.tensor([-1.0, 1.0, 1.0]).double())
    assert (torch.linalg.det(mirrored.rotation) > 0).all()
