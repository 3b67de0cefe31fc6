"""Pictures of textured spheres, ellipsoids and boxes, by the exact crossing of each pixel's ray.

A body with centre c, rotation Q (body to world) and half sizes h is the set |Q^T (x - c) / h|_p <= 1, with
p = 2 for an ellipsoid and p = infinity for a box. A camera (R, t) has x_c = R x_w + t and p ~ K x_c as in
``multiview``; the points that fall on pixel p are

    x = o + z d,   o = -R^T t,   d = R^T K^-1 (p, 1),   z their depth

so that one quadratic, or three slabs (Kay and Kajiya 1986), gives the depth itself. What is nearest is seen;
a hollow body is seen from within. Brightness is a sum of waves through the solid body, without lights: it is
the same from every side.

Everything is differentiable in poses, centres, rotations and sizes where one body stays in sight; that a
silhouette passes over a pixel is a jump, to which no gradient belongs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.multiview import homogeneous

PARALLEL = 1e-12
"""A ray nearer than this to the plane of a face runs along it."""


class Bodies(NamedTuple):
    """centre    ``[..., body, 3]``, world
    rotation  ``[..., body, 3, 3]``, body to world
    half      ``[body, 3]``, half sizes along the body's own axes
    box       ``[body]`` bool; the others are ellipsoids
    hollow    ``[body]`` bool: seen from within, as a room is
    """

    centre: Tensor
    rotation: Tensor
    half: Tensor
    box: Tensor
    hollow: Tensor


class Texture(NamedTuple):
    """Brightness 1/2 + 1/2 mean_k sin(w_k . y + phase_k) at the body's own coordinates y, in [0, 1].

    waves   ``[body, wave, 3]``, radians per length
    phases  ``[body, wave, channel]``
    """

    waves: Tensor
    phases: Tensor


class Sight(NamedTuple):
    """What lies behind each pixel.

    depth  ``[..., pixel]`` along the camera's axis; infinite where nothing is
    body   ``[..., pixel]`` int64: which one; -1 where nothing is
    place  ``[..., pixel, 3]`` in the coordinates of that body
    """

    depth: Tensor
    body: Tensor
    place: Tensor


def sight(pixels: Tensor, intrinsics: Tensor, rotation: Tensor, translation: Tensor, bodies: Bodies) -> Sight:
    """What a camera of pose ``rotation`` ``[..., 3, 3]`` and ``translation`` ``[..., 3]`` sees at ``pixels``
    ``[..., pixel, (u, v)]``, which need not be whole numbers."""
    ways = homogeneous(pixels) @ torch.linalg.inv(intrinsics).mT @ rotation
    origin = -(translation[..., None, :] @ rotation)[..., 0, :]
    depth, body = crossings(origin, ways, bodies).min(-1)
    seen = depth.isfinite()
    reach = torch.where(seen, depth, 0.0)
    world = origin[..., None, :] + reach[..., None] * ways
    centre = torch.take_along_dim(bodies.centre, body[..., None], -2)
    turn = torch.take_along_dim(bodies.rotation.flatten(-2), body[..., None], -2).reshape(*body.shape, 3, 3)
    place = (turn.mT @ (world - centre)[..., None])[..., 0]
    return Sight(depth, torch.where(seen, body, -1), place)


def crossings(origin: Tensor, ways: Tensor, bodies: Bodies) -> Tensor:
    """Depth ``[..., pixel, body]`` at which rays from ``origin`` ``[..., 3]`` along ``ways``
    ``[..., pixel, 3]`` enter each body, or leave a hollow one; infinite where they miss it, or it lies
    behind."""
    inward = bodies.rotation.mT / bodies.half[..., None]
    start = (inward @ (origin[..., None, :] - bodies.centre)[..., None])[..., None, :, :, 0]
    along = torch.einsum("...bij,...pj->...pbi", inward, ways)
    round_, flat = _ellipsoid(start, along), _box(start, along)
    near, far = (torch.where(bodies.box, of_box, of_ball) for of_box, of_ball in zip(flat, round_))
    depth = torch.where(bodies.hollow, far, near)
    return torch.where((near < far) & (depth > 0), depth, torch.inf)


def _ellipsoid(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """The two roots z of |start + z along|^2 = 1; equal where there are none."""
    a, b = along.square().sum(-1), (start * along).sum(-1)
    square = b.square() - a * (start.square().sum(-1) - 1)
    meets = square > 0
    # The root of a miss is taken of 1: its gradient would be infinite at 0, and NaN times 0.
    root = torch.where(meets, torch.where(meets, square, 1.0).sqrt(), 0.0)
    return (-b - root) / a, (-b + root) / a


def _box(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """The last entry into and the first exit from the three slabs |x_i| <= 1."""
    along = torch.where(along.abs() < PARALLEL, PARALLEL, along)
    one, two = (-1 - start) / along, (1 - start) / along
    return torch.minimum(one, two).amax(-1), torch.maximum(one, two).amin(-1)


def brightness(seen: Sight, texture: Texture) -> Tensor:
    """``[..., pixel, channel]``; 0 where nothing is seen."""
    body = seen.body.clamp(min=0)
    angle = (texture.waves[body] * seen.place[..., None, :]).sum(-1)
    light = 0.5 + 0.5 * (angle[..., None] + texture.phases[body]).sin().mean(-2)
    return torch.where((seen.body >= 0)[..., None], light, 0.0)
