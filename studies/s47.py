"""Three-dimensional consistency of two views from pose and depth, on a scene whose depth is exact.

A wavy surface seen by two cameras, 64 x 64 pixels, float64: photometric error, relative depth error and
visible share for the true pose, for the motion the other way, for depths 1.2 times as large, and with the
second image upside down. Poses and phases of the surface are drawn anew for each seed.

Then films of a room with bodies that hide one another, some of which move (the system ``scenes``, 32 x 32):
the true one, one by a camera that turns 5 % faster than it says, one whose depths are those of other rows of
pixels, and one that stands still, by the metric ``consistency_3d``. What does not lie between pixels is
compared too: the matches of followed points, carried by their depth and the camera's motion.
"""

import math

import torch

from worldsim import NotMeasurable
from worldsim_kernels.multiview import reprojected, view_agreement
from worldsim_plugins.metrics.consistency_3d import Consistency3D
from worldsim_plugins.systems.scenes import Scenes

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "photometric wrong / true pose > 100; depth error catches scale, which leaves nothing visible to colour; "
    "films rank true < pose 5 % off < shuffled depth < still, and true matches are 0 to rounding"
)
PIXELS, FOCAL = 64, 80.0
F64 = torch.float64
K = torch.tensor([[FOCAL, 0, (PIXELS - 1) / 2], [0, FOCAL, (PIXELS - 1) / 2], [0, 0, 1]], dtype=F64)


def turned(angle, axis):
    skew = torch.zeros(3, 3, dtype=F64)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    skew[a, b], skew[b, a] = -1.0, 1.0
    return torch.linalg.matrix_exp(angle * skew)


def height(x, y, phase):
    """z of the surface over (x, y), in the world of the first camera."""
    return 4 + 0.15 * torch.sin(1.3 * x + phase[0]) * torch.cos(1.1 * y + phase[1])


def seen(rotation, translation, phase):
    """Image and depth ``[row, column]`` from the pose x_c = R x_w + t: rays meet the surface by fixed-point
    iteration, which contracts by the slope of the surface along them."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(PIXELS, dtype=F64)] * 2, indexing="xy"), -1)
    rays = torch.cat([grid, torch.ones(PIXELS, PIXELS, 1, dtype=F64)], -1) @ torch.linalg.inv(K).mT
    ways = rays @ rotation  # R^T times each ray
    origin = -translation @ rotation
    depth = torch.full((PIXELS, PIXELS), 4.0, dtype=F64)
    for _ in range(60):
        point = origin + depth[..., None] * ways
        depth = depth + (height(point[..., 0], point[..., 1], phase) - point[..., 2]) / ways[..., 2]
    x, y, _ = (origin + depth[..., None] * ways).unbind(-1)
    return 0.5 + 0.25 * torch.sin(2.5 * x + phase[2]) + 0.25 * torch.sin(2.1 * y + 0.7 * x + phase[3]), depth


def run(seed):
    draws = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(4, dtype=F64, generator=draws)
    jitter = 0.05 * torch.randn(2, dtype=F64, generator=draws)
    rotation = turned(0.12, 1) @ turned(0.03 + 0.2 * float(jitter[0]), 2)
    translation = torch.tensor([-0.45, 0.1, 0.05], dtype=F64) + jitter[1]
    still = torch.eye(3, dtype=F64), torch.zeros(3, dtype=F64)
    (image, depth), (other, there) = seen(*still, phase), seen(rotation, translation, phase)
    cases = {
        "true": ((image, other), (depth, there), rotation, translation),
        "wrong pose": ((image, other), (depth, there), rotation.mT, -translation),
        "depth x 1.2": ((image, other), (1.2 * depth, there), rotation, translation),
        "flipped": ((image, other.flip(0)), (depth, there), rotation, translation),
    }
    figures = {}
    for name, (images, depths, turn, shift) in cases.items():
        found = view_agreement(images, depths, K, turn, shift)
        figures[f"visible, {name}"] = float(found.visible)
        figures[f"depth, {name}"] = float(found.depth)
        # Of nothing visible there is no colour to compare.
        if float(found.visible) > 0.05:
            figures[f"photometric, {name}"] = float(found.photometric)
    return figures | films(seed)


def films(seed):
    """Figures of films of a room, by ``consistency_3d``."""
    draws = torch.Generator().manual_seed(seed)
    times = torch.arange(0, 1.05, 0.1, dtype=F64)
    room, fast = Scenes(pixels=32), Scenes(pixels=32, rate=1.05 * 0.5)
    start = room.sample(4, draws)
    right, off = (camera.simulate(start, times, None, draws) for camera in (room, fast))
    light, depth = right.states.unbind(-1)
    rows = torch.randperm(32, generator=draws)
    states = {
        "true": right.states,
        "pose 5 % off": off.states,
        "shuffled depth": torch.stack([light, depth[..., rows, :]], -1),
        "still": right.states[:, :, :1].expand_as(right.states),
    }
    figures = {"film matches": matches(room, right.observables)}
    for name, shown in states.items():
        try:
            scores = Consistency3D(room, gap=2).score(right, right.replace(states=shown), None)
        except NotMeasurable:
            continue
        measured = {key: score.value for key, score in scores.items() if not score.reason}
        figures |= {f"film {key}, {name}": value for key, value in measured.items()}
    return figures


def matches(room, seen):
    """Largest distance in pixels of points at rest from where depth and pose carry them from frame 0, of
    those that are in both pictures."""
    tracks, rotation, translation = (seen[name][:, 0] for name in ("tracks", "rotation", "translation"))
    turn = rotation @ rotation[:, :1].mT
    shift = translation - (turn @ translation[:, :1, :, None])[..., 0]
    first = tracks[:, :1].expand_as(tracks)
    at, _ = reprojected(first[..., :2], first[..., 2], room.intrinsics, turn, shift[..., None, :])
    counted = (first[..., 3] * tracks[..., 3] == 1) & ~room.moves[room.where]
    return float((at - tracks[..., :2]).norm(dim=-1)[counted].max())


def check(figures):
    assert figures["visible, true"] > 0.5
    assert figures["depth, true"] < 1e-3
    assert figures["photometric, wrong pose"] > 100 * figures["photometric, true"]
    assert figures["depth, depth x 1.2"] > 100 * figures["depth, true"]
    assert figures["visible, depth x 1.2"] < 0.05
    assert "photometric, depth x 1.2" not in figures
    assert figures["film matches"] < 1e-12
    true, off, shuffled = "true", "pose 5 % off", "shuffled depth"
    for name in ("depth_error", "loop"):
        found = [figures[f"film {name}, {kind}"] for kind in (true, off, shuffled)]
        assert found[0] < found[1] < found[2], name
    assert figures["film visible, true"] > figures["film visible, pose 5 % off"]
    assert figures["film visible, pose 5 % off"] > figures["film visible, shuffled depth"]
    assert figures["film photometric, true"] < figures["film photometric, pose 5 % off"]
    assert (
        figures.get("film photometric, shuffled depth", math.inf) > figures["film photometric, pose 5 % off"]
    )
    assert not [name for name in figures if "still" in name]  # not measurable, whatever is asked
    # Only colour sees a wrong picture on the right shape.
    assert figures["depth, flipped"] == figures["depth, true"]
    assert figures["photometric, flipped"] > 10 * figures["photometric, true"]
