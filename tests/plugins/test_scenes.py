"""Films of a room: frames are what the camera's rays meet, bodies move as they must, and tracks are exact."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim.baselines import Truth
from worldsim.protocols import HasActions, HasCamera, HasForecast, Restartable
from worldsim_kernels.multiview import reprojected
from worldsim_plugins.systems.scenes import DrivenScenes, Scenes

TIMES = torch.arange(0, 2.05, 0.1, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def film(system, n: int = 3, times=TIMES, actions=None) -> Trajectory:
    return system.simulate(system.sample(n, generator()), times, actions, generator())


def test_frames_are_brightness_and_depth():
    system = Scenes()
    shown = film(system)
    assert shown.states.shape == (3, 1, 21, 16, 16, 2)
    assert shown.labels["component"] == ("brightness", "depth")
    light, depth = shown.states.unbind(-1)
    assert float(light.min()) >= 0
    assert float(light.max()) <= 1
    assert float(light.std()) > 0.1
    assert torch.equal(depth, shown.observables["depth"])
    # Nothing is nearer than the middle of the ring less its bodies, or farther than the room is wide.
    assert 2 < float(depth.min()) < float(depth.max()) < 2 * math.sqrt(2) * 6
    bodies = shown.observables["body"]
    assert set(bodies.unique().tolist()) == {0, 1, 2, 3}
    assert system.moves.tolist() == [False, False, True, False]
    images, seen = system.views(shown.states)
    assert torch.equal(images[..., 0, :, :], light)
    assert torch.equal(seen, depth)


def test_what_is_seen_can_be_colour_and_need_not_be_depth():
    shown = film(Scenes(colour=True, depth=False, pixels=20))
    assert shown.state_shape == (20, 20, 3)
    assert shown.labels["component"] == ("red", "green", "blue")
    assert Scenes(colour=True, depth=False).views(shown.states)[1] is None
    assert not torch.equal(shown.states[..., 0], shown.states[..., 1])
    with pytest.raises(ValueError, match="an empty room"):
        Scenes(still=0, moving=0)


def test_a_sphere_falls_and_is_thrown_back_without_loss():
    system = Scenes(still=1, moving=2, gravity=2.0)
    start = system.sample(4, generator(1))
    times = torch.linspace(0, 3, 601, dtype=torch.float64)
    places = torch.stack([system.placed(start, t).centre for t in times], 1)
    height = -places[:, :, 1:3, 1] - system.radius  # the floor is at 0, and y is down
    assert float(height.min()) >= 0
    torch.testing.assert_close(height.amax(1), start.drop, rtol=0, atol=1e-5)
    step = float(times[1])
    speed = (height[:, 2:] - height[:, :-2]) / (2 * step)
    fall = (height[:, 2:] - 2 * height[:, 1:-1] + height[:, :-2]) / step**2
    free = height[:, 1:-1] > 2 * step * speed.abs().amax()
    torch.testing.assert_close(fall[free], torch.full_like(fall[free], -2.0), rtol=1e-6, atol=1e-6)
    energy = speed.square() / 2 + 2 * height[:, 1:-1]
    torch.testing.assert_close(
        energy[free], (2 * start.drop)[:, None].expand_as(energy)[free], rtol=0, atol=1e-8
    )
    assert torch.equal(places[:, 0, 0], places[:, -1, 0])  # the box stands


def test_a_sphere_spins_at_a_steady_rate():
    system = Scenes(spin=1.5)
    start = system.sample(2, generator())
    turns = [
        system.placed(start, torch.tensor(t, dtype=torch.float64)).rotation[:, 2] for t in (0.0, 0.4, 0.8)
    ]
    first, second = turns[1] @ turns[0].mT, turns[2] @ turns[1].mT
    torch.testing.assert_close(first, second)
    cosine = (first.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(0.6)))


def test_bodies_do_not_touch_whatever_their_number():
    for still in range(5):
        for moving in range(5 if still else 1, 5):
            system = Scenes(still=still, moving=moving)
            bodies = system.placed(system.sample(3, generator()), torch.tensor(0.0))
            flat = bodies.centre[:, :-1, [0, 2]]
            apart = torch.cdist(flat, flat) + 10 * torch.eye(still + moving).double()
            assert float(apart.min()) > 2 * system.radius
            corner = bodies.half[:-1, 0] * torch.where(bodies.box[:-1], math.sqrt(2), 1.0)
            assert float(corner.max()) <= system.radius + 1e-12
    for moving in range(1, 5):
        assert Scenes(still=0, moving=moving).bodies == moving


@pytest.mark.parametrize("kind", [Scenes, DrivenScenes])
def test_tracks_are_the_matches_of_the_pictures(kind):
    """Points at rest, carried by their depth and the camera's motion: 0 to rounding."""
    system = kind(points=60, pixels=96)
    actions = system.sample_actions(3, TIMES, generator(2)) if kind is DrivenScenes else None
    shown = film(system, actions=actions).observables
    tracks, rotation, translation = (shown[name][:, 0] for name in ("tracks", "rotation", "translation"))
    rest = ~system.moves[system.where]
    turn = rotation[:, 1:] @ rotation[:, :1].mT
    shift = translation[:, 1:] - (turn @ translation[:, :1, :, None])[..., 0]
    first = tracks[:, :1, rest].expand(-1, 20, -1, -1)
    at, depth = reprojected(first[..., :2], first[..., 2], system.intrinsics, turn, shift[..., None, :])
    assert float((depth - tracks[:, 1:, rest, 2]).abs().max()) < 1e-11
    ahead = tracks[:, 1:, rest, 2] > 0.1
    assert float((at - tracks[:, 1:, rest, :2]).norm(dim=-1)[ahead].max()) < 1e-9
    pictured = (tracks[:, :1, rest, 3] * tracks[:, 1:, rest, 3]) == 1
    assert float((at - tracks[:, 1:, rest, :2]).norm(dim=-1)[pictured].max()) < 1e-12
    # What is visible is where the picture has that body, but for the pixel at its edge.
    seen = tracks[..., 3] == 1
    framed = ((tracks[..., :2] >= 0) & (tracks[..., :2] <= 95)).all(-1) & (tracks[..., 2] > 0)
    pixel = tracks[..., :2].round().long().clamp(0, 95)
    row = torch.arange(3)[:, None, None]
    at_pixel = row, 0, torch.arange(21)[None, :, None], pixel[..., 1], pixel[..., 0]
    shows, nearer = shown["body"][at_pixel], tracks[..., 2] - shown["depth"][at_pixel]
    hidden = framed & ~seen
    assert int(seen.sum()) > 300 < int(hidden.sum())
    assert not (seen & ~framed).any()
    assert float((shows == system.where)[seen].double().mean()) > 0.9
    assert float((nearer.abs() < 0.3)[seen].double().mean()) > 0.9
    assert float((nearer > 0)[hidden].double().mean()) > 0.9


def test_the_motion_of_the_camera_is_that_of_its_poses():
    system = Scenes(rate=0.7)
    shown = film(system).observables
    rotation, translation = (shown[name][:, 0] for name in ("rotation", "translation"))
    turn, shift = system.camera_motion(TIMES[3:] - TIMES[:-3])
    torch.testing.assert_close(turn.expand(3, -1, -1, -1) @ rotation[:, :-3], rotation[:, 3:])
    carried = (turn @ translation[:, :-3, :, None])[..., 0] + shift
    torch.testing.assert_close(carried, translation[:, 3:])
    assert isinstance(system, HasCamera)
    assert not isinstance(DrivenScenes(), HasCamera)  # its motion is known from its actions alone
    assert isinstance(DrivenScenes(), HasActions)


def test_a_camera_goes_where_it_is_told():
    steady, driven = Scenes(rate=0.5), DrivenScenes()
    actions = torch.tensor([0.5, 0.0], dtype=torch.float64).expand(3, 21, 2)
    torch.testing.assert_close(film(driven, actions=actions).states, film(steady).states)
    still = film(driven).states
    body = film(driven).observables["body"]
    rest = ~driven.moves[body] & ~driven.moves[body[:, :, :1]]
    assert torch.equal(still[rest], still[:, :, :1].expand_as(still)[rest])
    assert not torch.equal(still[:, :, 1], still[:, :, 0])  # the sphere bounces
    near = torch.tensor([0.0, 10.0], dtype=torch.float64).expand(3, 21, 2)
    pose = film(driven, actions=near).observables
    middle = pose["rotation"][:, 0, -1] @ driven.looked_at() + pose["translation"][:, 0, -1]
    torch.testing.assert_close(middle, torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64).expand(3, 3))
    with pytest.raises(ValueError, match="turn, approach"):
        film(driven, actions=actions[:, :, :1])
    with pytest.raises(ValueError, match="driven_scenes"):
        film(steady, actions=actions)


def test_the_truth_replays_what_a_frame_does_not_say():
    system = Scenes()
    assert not isinstance(system, (Restartable, HasForecast))
    right = film(system)
    truth = Truth(system, right)
    truth.known = right
    guess = truth.rollout(right.span(0, 1), TIMES, None, 2, generator())
    assert torch.equal(guess.states, right.states.expand(-1, 2, *[-1] * 4))
