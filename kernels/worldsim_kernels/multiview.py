"""Geometry of two views: how far poses, matches and depths are from belonging to one rigid scene.

A pose (R, t) takes world to camera coordinates, x_c = R x_w + t; a pixel is p ~ K x_c (Hartley and Zisserman
2004, *Multiple View Geometry*, chapters 6, 9 and 11). Everything is batched over leading axes and float64
where it is given so.

A static clip agrees with itself perfectly: a consistency is a score only where the camera or the scene has
moved. ``moved`` is that gate, and what does not pass it is not measurable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def rotation_error(found: Tensor, true: Tensor) -> Tensor:
    """Angle of R^T R' in degrees, ``[...]`` of rotations ``[..., 3, 3]``.

    By atan2 of sine and cosine: arccos((trace - 1) / 2) alone loses half of the digits near 0 and 180.
    """
    relative = true.mT @ found
    skew = torch.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        -1,
    )
    cosine = relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.rad2deg(torch.atan2(skew.norm(dim=-1), cosine))


def fitted_scale(found: Tensor, true: Tensor) -> Tensor:
    """The one factor s, ``[...]``, that brings s ``found`` nearest to ``true`` ``[..., frame, 3]``: monocular
    positions and depths have no unit. NaN where ``found`` is 0 throughout."""
    return (found * true).sum((-2, -1)) / found.square().sum((-2, -1))


def translation_error(found: Tensor, true: Tensor) -> Tensor:
    """Root mean square distance of positions ``[..., frame, 3]`` after the scale is fitted, over that of the
    true ones from their mean, ``[...]``; both are taken relative to their first frame. NaN for a camera that
    does not move."""
    found, true = (x - x[..., :1, :] for x in (found, true))
    rest = true - fitted_scale(found, true)[..., None, None] * found
    spread = (true - true.mean(-2, keepdim=True)).square().sum(-1).mean(-1)
    error = rest.square().sum(-1).mean(-1)
    return torch.where(spread > 0, (error / spread).sqrt(), torch.nan)


def fundamental(intrinsics: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """F ``[..., 3, 3]`` with p'^T F p = 0 for matches p, p' of one camera before and after the motion
    x' = R x + t (its own coordinates): K^-T [t]_x R K^-1. 0 for a camera that only turns."""
    zero = torch.zeros_like(translation[..., 0])
    a, b, c = translation.unbind(-1)
    cross = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).reshape(*a.shape, 3, 3)
    inverse = torch.linalg.inv(intrinsics)
    matrix: Tensor = inverse.mT @ cross @ rotation @ inverse
    return matrix


def homogeneous(points: Tensor) -> Tensor:
    """``[..., d]`` to ``[..., d + 1]``."""
    return torch.cat([points, torch.ones_like(points[..., :1])], -1)


def _lines(matrix: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p'^T F p and the normals of both epipolar lines, squared, ``[..., match]``."""
    p, q = homogeneous(first), homogeneous(second)
    there, here = p @ matrix.mT, q @ matrix
    value = (q * there).sum(-1)
    return value, there[..., :2].square().sum(-1), here[..., :2].square().sum(-1)


def sampson_distance(matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """|p'^T F p| / sqrt(|F p|_12^2 + |F^T p'|_12^2) in pixels, ``[..., match]``: to first order the distance
    of a match from the nearest one that obeys F (Sampson 1982)."""
    value, there, here = _lines(matrix, first, second)
    return value.abs() / (there + here).sqrt()


def epipolar_distance(matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Symmetric epipolar distance in pixels, ``[..., match]``: the mean over both images of how far a point
    is from the line of its partner."""
    value, there, here = _lines(matrix, first, second)
    return value.abs() * (1 / there.sqrt() + 1 / here.sqrt()) / 2


def unprojected(pixels: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Places in the camera's coordinates ``[..., 3]`` of points at ``depth`` ``[...]`` behind ``pixels``
    ``[..., 2]``."""
    places: Tensor = homogeneous(pixels) @ torch.linalg.inv(intrinsics).mT * depth[..., None]
    return places


def reprojected(
    pixels: Tensor, depth: Tensor, intrinsics: Tensor, rotation: Tensor, translation: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixels ``[..., 2]`` and depths ``[...]`` in the second view of points at ``depth`` behind ``pixels`` of
    the first, for the motion x' = R x + t."""
    moved = unprojected(pixels, depth, intrinsics) @ rotation.mT + translation
    projected = moved @ intrinsics.mT
    return projected[..., :2] / projected[..., 2:], moved[..., 2]


def reprojection_error(
    first: Tensor,
    second: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    rotation: Tensor,
    translation: Tensor,
) -> Tensor:
    """Distance in pixels of matches ``second`` from where ``first`` at ``depth`` goes, ``[..., match]``."""
    found = reprojected(first, depth, intrinsics, rotation, translation)[0]
    error: Tensor = torch.linalg.vector_norm(found - second, dim=-1)
    return error


def loop_closure(rotations: Tensor, translations: Tensor) -> tuple[Tensor, Tensor]:
    """How far relative motions ``[..., step, 3, 3]`` and ``[..., step, 3]`` round a loop are from the
    identity: degrees, and length over the length of the way. NaN for a way of no length."""
    rotation = torch.eye(3).to(rotations).expand(*rotations.shape[:-3], 3, 3)
    place = torch.zeros_like(translations[..., 0, :])
    for turn, shift in zip(rotations.unbind(-3), translations.unbind(-2), strict=True):
        rotation = turn @ rotation
        place = (turn @ place[..., None])[..., 0] + shift
    way = translations.norm(dim=-1).sum(-1)
    closed = torch.where(way > 0, place.norm(dim=-1) / way, torch.nan)
    return rotation_error(rotation, torch.eye(3).to(rotation)), closed


class Agreement(NamedTuple):
    """How two images with depth agree under a motion, each over the pixels that count.

    photometric  mean |I'(p') - I(p)| over those that are visible; NaN when nothing is
    depth        mean |z' - D'(p')| / z' over those that fall into the second image, whether or not the depths
                 agree: visibility cannot hide a wrong scale from it
    visible      share of those whose point is in front, inside, and not occluded
    """

    photometric: Tensor
    depth: Tensor
    visible: Tensor


class Carried(NamedTuple):
    """Where the pixels of one view go in another.

    place    ``[..., pixel, (u, v)]``
    depth    ``[..., pixel]``, z'
    there    ``[..., pixel]`` depth of the second view at that place; beyond its edge, that of the edge
    inside   ``[..., pixel]`` bool: in front of the second view and in its picture
    visible  ``[..., pixel]`` bool: inside, and not occluded: |z' - there| < tolerance z'
    """

    place: Tensor
    depth: Tensor
    there: Tensor
    inside: Tensor
    visible: Tensor


def sampled(picture: Tensor, place: Tensor) -> Tensor:
    """``picture`` ``[..., height, width]`` at ``place`` ``[..., pixel, (u, v)]``, bilinear, ``[..., pixel]``;
    beyond its edge, the value of the edge."""
    *batch, height, width = picture.shape
    place = place.expand(*batch, *place.shape[-2:])
    grid = 2 * place / torch.tensor([width - 1, height - 1]).to(place) - 1
    count = picture.shape[:-2].numel()
    found = grid_sample(
        picture.reshape(count, 1, height, width),
        grid.reshape(count, 1, *place.shape[-2:]),
        padding_mode="border",
        align_corners=True,
    )
    return found.reshape(*batch, -1)


def carried(
    places: Tensor,
    depth: Tensor,
    second: Tensor,
    intrinsics: Tensor,
    rotation: Tensor,
    translation: Tensor,
    tolerance: float = 0.05,
) -> Carried:
    """What is at ``places`` ``[..., pixel, (u, v)]`` and ``depth`` ``[..., pixel]`` of one view, in a view of
    depths ``second`` ``[..., height, width]`` after the motion x' = R x + t."""
    at, z = reprojected(places, depth, intrinsics, rotation, translation[..., None, :])
    size = torch.tensor([second.shape[-1] - 1, second.shape[-2] - 1]).to(at)
    inside = ((at >= 0) & (at <= size)).all(-1) & (z > 0)
    there = sampled(second, at)
    return Carried(at, z, there, inside, inside & ((z - there).abs() < tolerance * z))


def view_agreement(
    images: tuple[Tensor, Tensor],
    depths: tuple[Tensor, Tensor],
    intrinsics: Tensor,
    rotation: Tensor,
    translation: Tensor,
    tolerance: float = 0.05,
    counted: Tensor | None = None,
) -> Agreement:
    """Photometric and geometric consistency of ``images`` and ``depths`` ``[..., height, width]``, two views.

    A point is visible when it is inside the second image, in front of it, and |z' - D'(p')| < tolerance z'
    (Bian et al. 2019, who weigh by it). A low visible share voids the photometric number. ``counted``
    ``[..., height, width]`` bool leaves pixels out of all three; left out, all count.
    """
    pixels = pixel_grid(*images[0].shape[-2:]).to(depths[0])
    found = carried(pixels, depths[0].flatten(-2), depths[1], intrinsics, rotation, translation, tolerance)
    counts = torch.ones_like(found.inside) if counted is None else counted.flatten(-2)
    apart = (found.depth - found.there).abs() / found.depth
    change = (sampled(images[1], found.place) - images[0].flatten(-2)).abs()
    visible = found.visible & counts
    return Agreement(
        mean_where(change, visible),
        mean_where(apart, found.inside & counts),
        visible.double().sum(-1) / counts.sum(-1),
    )


def mean_where(value: Tensor, counted: Tensor) -> Tensor:
    """Mean over the last axis where ``counted``; NaN where nothing is."""
    return torch.where(counted, value, 0.0).sum(-1) / counted.sum(-1)


def pixel_grid(height: int, width: int) -> Tensor:
    """Centres ``[height * width, (u, v)]`` of the pixels of a picture, row by row, float64."""
    down, right = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return torch.stack([right.flatten(), down.flatten()], -1)


def moved(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """The gate: whether the median displacement of matches ``[..., match, 2]`` is above ``threshold`` pixels,
    ``[...]``. Where it is not, every consistency is that of a still picture and measures nothing."""
    shift = torch.linalg.vector_norm(second - first, dim=-1)
    passed: Tensor = shift.median(-1).values > threshold
    return passed
