"""Frames of one solid room agree with each other under the camera's motion; each fault of a film shows."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from worldsim import NotMeasurable
from worldsim_kernels.multiview import carried, pixel_grid, rotation_error, view_agreement
from worldsim_kernels.rendering import brightness, sight
from worldsim_plugins.metrics import recovered_pose
from worldsim_plugins.metrics.consistency_3d import Consistency3D
from worldsim_plugins.metrics.seen_frames import true_motion
from worldsim_plugins.systems.scenes import DrivenScenes, Scenes

TIMES = torch.arange(0, 1.05, 0.1, dtype=torch.float64)
OPENCV = pytest.mark.skipif(find_spec("cv2") is None, reason="NOT RUN: needs the extra [vision]")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def film(system, n: int = 4, times=TIMES):
    return system.simulate(system.sample(n, generator()), times, None, generator())


SYSTEM = Scenes(pixels=32)
RIGHT = film(SYSTEM)


def shown(states, system=SYSTEM, right=RIGHT, **options):
    return Consistency3D(system, **{"gap": 2, **options}).score(right, right.replace(states=states), None)


def with_depth(depth):
    return torch.stack([RIGHT.states[..., 0], depth], -1)


def test_pixels_of_the_true_room_are_the_same_from_everywhere_to_rounding():
    """Between pixels nothing is interpolated here: the second view is rendered where the first one's go."""
    start = SYSTEM.sample(4, generator())
    pixels, rest = pixel_grid(32, 32), ~SYSTEM.moves
    pose = [tuple(RIGHT.observables[part][:, 0, i] for part in ("rotation", "translation")) for i in (0, 6)]
    camera = true_motion(RIGHT, [0], [6])
    bodies = [SYSTEM.placed(start, t) for t in (TIMES[0], TIMES[6])]
    first = sight(pixels, SYSTEM.intrinsics, *pose[0], bodies[0])
    went = carried(
        pixels, first.depth, RIGHT.observables["depth"][:, 0, 6], SYSTEM.intrinsics,
        camera.rotation[:, 0, 0], camera.translation[:, 0, 0],
    )  # fmt: skip
    second = sight(went.place, SYSTEM.intrinsics, *pose[1], bodies[1])
    both = went.inside & (second.depth >= went.depth * (1 - 1e-9)) & rest[first.body]
    assert float(both.double().mean()) > 0.4
    assert float((second.depth - went.depth)[both].abs().max()) < 1e-12
    apart = brightness(second, SYSTEM.texture) - brightness(first, SYSTEM.texture)
    assert float(apart[both].abs().max()) < 1e-12


def test_the_true_film_is_consistent_but_for_what_lies_between_pixels():
    """The error of interpolation falls with the square of a pixel's size."""
    found = {
        pixels: {name: score.value for name, score in shown(right.states, system, right).items()}
        for pixels in (16, 32, 64)
        for system in [Scenes(pixels=pixels)]
        for right in [film(system)]
    }
    assert set(found[32]) == {"photometric", "depth_error", "visible", "loop", "moving"}
    for pixels in (16, 32):
        assert found[pixels]["visible"] == found[pixels]["moving"] == 1.0
        assert found[pixels]["photometric"] > 1.8 * found[2 * pixels]["photometric"]
        assert found[pixels]["depth_error"] > 1.8 * found[2 * pixels]["depth_error"]
    assert found[64]["photometric"] < 5e-3
    assert found[64]["depth_error"] < 1e-3
    assert found[64]["loop"] < 0.02
    for score in shown(RIGHT.states).values():
        assert score.value == pytest.approx(score.floor)


def test_true_then_a_small_error_of_pose_then_shuffled_depth_then_a_static_clip():
    fast = Scenes(pixels=32, rate=1.05 * SYSTEM.rate)
    slightly = shown(film(fast).states)
    order = torch.randperm(32, generator=generator(3))
    shuffled = shown(with_depth(RIGHT.states[..., 1][..., order, :]))
    true = shown(RIGHT.states)
    for name in ("depth_error", "loop"):
        assert true[name].value < slightly[name].value < shuffled[name].value, name
    assert true["visible"].value > slightly["visible"].value > shuffled["visible"].value
    assert true["photometric"].value < 0.9 * slightly["photometric"].value
    # Where hardly a depth agrees, the few colours that are compared say nothing.
    assert math.isnan(shuffled["photometric"].value)
    assert "colour says nothing" in shuffled["photometric"].reason
    with pytest.raises(NotMeasurable, match="stands still where the truth moves"):
        shown(RIGHT.states[:, :, :1].expand_as(RIGHT.states))


def test_flicker_does_not_make_a_static_clip_consistent():
    """Noise passes the gate, and the depth that stands still does not follow the camera."""
    still = RIGHT.states[:, :, :1].expand_as(RIGHT.states).clone()
    still[..., 0] += 0.1 * torch.randn(still.shape[:-1], generator=generator(1), dtype=torch.float64)
    found, true = shown(still), shown(RIGHT.states)
    assert found["moving"].value == 1.0
    assert found["depth_error"].value > 10 * true["depth_error"].value
    assert found["photometric"].value > 5 * true["photometric"].value


def test_a_wrong_scale_of_depth_is_seen_by_depth_and_a_wrong_picture_by_colour():
    larger = shown(with_depth(1.2 * RIGHT.states[..., 1]))
    assert larger["depth_error"].value > 2 * larger["depth_error"].floor  # a larger room, too small a way
    breathing = RIGHT.states[..., 1].clone()
    breathing[:, :, 1::2] *= 1.2
    scaled = shown(with_depth(breathing), gap=1)
    assert scaled["depth_error"].value == pytest.approx((0.2 + 0.2 / 1.2) / 2, rel=0.1)
    assert scaled["visible"].value < 0.02
    assert math.isnan(scaled["photometric"].value)
    dim = RIGHT.states.clone()
    dim[:, :, 1::2, ..., 0] = dim[:, :, 1::2, ..., 0].flip(-2)  # every second picture upside down
    wrong = shown(dim, gap=1)
    assert wrong["photometric"].value > 10 * wrong["photometric"].floor
    assert wrong["depth_error"].value == pytest.approx(wrong["depth_error"].floor)


def test_what_moves_by_itself_is_left_out():
    """The sphere painted white where it bounces, and put at another depth, changes nothing."""
    states = RIGHT.states.clone()
    states[SYSTEM.moves[RIGHT.observables["body"]]] = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found, true = shown(states), shown(RIGHT.states)
    assert found["visible"].value > 0.99
    assert found["depth_error"].value == pytest.approx(true["depth_error"].value, rel=0.2)


def test_some_of_the_pairs_may_stand_still_and_some_of_the_draws():
    states = RIGHT.states.clone()
    states[:2] = states[:2, :, :1]
    found = shown(states)
    assert found["moving"].value == 0.5
    assert found["depth_error"].n == 2
    drawn = RIGHT.replace(states=torch.cat([RIGHT.states, RIGHT.states], 1))
    twice = Consistency3D(SYSTEM, gap=2).score(RIGHT, drawn, None)
    assert twice["photometric"].value == pytest.approx(shown(RIGHT.states)["photometric"].value)


def test_a_driven_camera_is_followed_by_its_poses():
    system = DrivenScenes(pixels=32)
    start, actions = system.sample(4, generator()), system.sample_actions(4, TIMES, generator(1))
    right = system.simulate(start, TIMES, actions, generator())
    true = shown(right.states, system, right)
    other = system.simulate(start, TIMES, system.sample_actions(4, TIMES, generator(2)), generator())
    blind = shown(other.states, system, right)
    assert true["depth_error"].value < 3e-3 < 3 * true["depth_error"].value < blind["depth_error"].value


def test_films_that_cannot_be_compared_say_why():
    with pytest.raises(NotMeasurable, match="lessen gap"):
        shown(RIGHT.states[:, :, :2], right=RIGHT.span(0, 2))
    still = RIGHT.replace(states=RIGHT.states[:, :, :1].expand_as(RIGHT.states))
    with pytest.raises(NotMeasurable, match="the true views stand still"):
        shown(RIGHT.states, right=still)
    states = RIGHT.states.clone()
    states[0, :, 3] = torch.nan
    lost = shown(states)
    assert {score.failed for score in lost.values()} == {1}
    with pytest.raises(ValueError, match="needs depth among what is seen"):
        Consistency3D(Scenes(depth=False))


def test_views_are_compared_pair_by_pair_as_one_by_one():
    images, depth = RIGHT.states[:, 0, :3].unbind(-1)
    turn, shift = (part[:, 0] for part in true_motion(RIGHT, [0, 1], [1, 2]))
    counted = torch.rand(images[:, :2].shape, generator=generator()) < 0.7
    options = {"counted": counted, "tolerance": 0.02}
    views = (images[:, :-1], images[:, 1:]), (depth[:, :-1], depth[:, 1:])
    found = view_agreement(*views, SYSTEM.intrinsics, turn, shift, **options)
    alone = view_agreement(
        *(tuple(each[2, 1] for each in pair) for pair in views), SYSTEM.intrinsics, turn[2, 1], shift[2, 1],
        tolerance=0.02, counted=counted[2, 1],
    )  # fmt: skip
    for several, one in zip(found, alone):
        torch.testing.assert_close(several[2, 1], one)


# The pose recovered from the pictures.


SEEN = Scenes(pixels=64, grain=1.5, depth=False, moving=0)


@OPENCV
def test_a_motion_is_recovered_from_two_pictures():
    right = film(SEEN, 6, TIMES[:2])
    true = true_motion(right, [0], [1])
    angles, ways = [], []
    for row in range(6):
        pictures = right.states[row, 0, 0, ..., 0], right.states[row, 0, 1, ..., 0]
        (rotation, translation), off = recovered_pose.recovered(*pictures, SEEN.intrinsics)
        again = recovered_pose.recovered(*pictures, SEEN.intrinsics)[0]
        assert torch.equal(again.rotation, rotation)
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double())
        assert float(translation.norm()) == pytest.approx(1)
        assert float(off) < 0.1
        angles.append(float(rotation_error(rotation, true.rotation[row, 0, 0])))
        ways.append(float(torch.nn.functional.normalize(true.translation[row, 0, 0], dim=0) @ translation))
    assert sorted(angles)[2] < 1.0  # of a turn of 2.9 degrees
    assert sorted(ways)[3] > 0.95


@OPENCV
def test_true_films_then_a_slower_camera_then_pictures_of_different_rooms():
    right = film(SEEN, 2, TIMES[:4])
    states = {
        "true": right.states,
        "slower": film(Scenes(pixels=64, grain=1.5, depth=False, moving=0, rate=0.25), 2, TIMES[:4]).states,
    }
    found = {name: shown(each, SEEN, right, gap=1, pose="recovered") for name, each in states.items()}
    assert set(found["true"]) == {"sampson", "rotation_error", "loop_rotation", "moving"}
    assert found["true"]["rotation_error"].value < 1.2
    assert found["true"]["rotation_error"].units == "degree"
    assert found["true"]["sampson"].value < 0.1
    turn = math.degrees(0.5 * 0.1)
    assert found["slower"]["rotation_error"].value == pytest.approx(turn / 2, abs=1)
    assert found["slower"]["rotation_error"].value > found["true"]["rotation_error"].value
    noise = torch.rand(right.states.shape, generator=generator(1), dtype=torch.float64)
    torn = shown(noise, SEEN, right, gap=1, pose="recovered")
    assert not torn["sampson"].value <= 2 * found["true"]["sampson"].value
    with pytest.raises(NotMeasurable, match="stands still"):
        shown(right.states[:, :, :1].expand_as(right.states), SEEN, right, gap=1, pose="recovered")


@OPENCV
def test_pictures_without_corners_have_no_pose():
    right = film(SEEN, 2, TIMES[:4])
    fading = torch.ones_like(right.states) * TIMES[:4, None, None, None]
    found = shown(fading, SEEN, right, gap=1, pose="recovered")
    assert math.isnan(found["sampson"].value)
    assert "fewer than 12 corners" in found["sampson"].reason
    with pytest.raises(NotMeasurable, match="the true motion cannot be recovered"):
        shown(fading, SEEN, right.replace(states=fading), gap=1, pose="recovered")


def test_without_opencv_no_pose_is_recovered(monkeypatch):
    monkeypatch.setattr(recovered_pose, "find_spec", lambda name: None)
    right = film(SEEN, 2, TIMES[:4])
    with pytest.raises(NotMeasurable, match=r"worldsim\[vision\]"):
        shown(right.states, SEEN, right, gap=1, pose="recovered")
