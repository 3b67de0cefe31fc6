"""Gravity of all pairs in Triton: a program holds some bodies of one row while all others pass in blocks.

The sums over the others are formed block by block in an order that depends on the shapes alone: the same bits
every time. float32 and float64.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

OWN, OTHERS = 32, 64
"""Bodies that a program holds, and that pass at a time."""


@triton.jit
def _component(lines, row, K: tl.constexpr, at, bodies, DIM: tl.constexpr):
    """Component K of the vectors of bodies ``at`` in lines [row, DIM, body]; 0 from DIM on."""
    # Beyond DIM it reads the last component, which is there, and drops it.
    place = (row * DIM + min(K, DIM - 1)) * bodies + at
    return tl.load(lines + place, mask=at < bodies, other=0) * (1 if K < DIM else 0)


@triton.jit
def _inverse_root(dx, dy, dz, soft, apart):
    """1 / distance where ``apart``, else 0."""
    square = tl.where(apart, dx * dx + dy * dy + dz * dz + soft, 1.0)
    return tl.where(apart, 1 / tl.sqrt(square), 0.0)


@triton.jit
def _forward(
    x, m, constants, acceleration, potential, bodies,
    DIM: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    gravity, soft = tl.load(constants), tl.load(constants + 1)
    i = tl.program_id(1) * OWN + tl.arange(0, OWN)
    xi = _component(x, row, 0, i, bodies, DIM)
    yi = _component(x, row, 1, i, bodies, DIM)
    zi = _component(x, row, 2, i, bodies, DIM)
    ax, ay, az, phi = xi * 0, xi * 0, xi * 0, xi * 0
    for first in range(0, bodies, OTHERS):
        j = first + tl.arange(0, OTHERS)
        dx = _component(x, row, 0, j, bodies, DIM)[None, :] - xi[:, None]
        dy = _component(x, row, 1, j, bodies, DIM)[None, :] - yi[:, None]
        dz = _component(x, row, 2, j, bodies, DIM)[None, :] - zi[:, None]
        apart = (i[:, None] != j[None, :]) & (j < bodies)[None, :]
        w = _inverse_root(dx, dy, dz, soft, apart)
        f = tl.load(m + row * bodies + j, mask=j < bodies, other=0)[None, :] * w
        phi += tl.sum(f, axis=1)
        f = f * w * w
        ax += tl.sum(f * dx, axis=1)
        ay += tl.sum(f * dy, axis=1)
        az += tl.sum(f * dz, axis=1)
    inside, line = i < bodies, row * DIM * bodies + i
    tl.store(acceleration + line, gravity * ax, mask=inside)
    if DIM > 1:
        tl.store(acceleration + line + bodies, gravity * ay, mask=inside)
    if DIM > 2:
        tl.store(acceleration + line + 2 * bodies, gravity * az, mask=inside)
    tl.store(potential + row * bodies + i, -gravity * phi, mask=inside)


@triton.jit
def _backward(
    x, m, ga, gp, constants, places, masses, bodies,
    DIM: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    gravity, soft = tl.load(constants), tl.load(constants + 1)
    i = tl.program_id(1) * OWN + tl.arange(0, OWN)
    xi = _component(x, row, 0, i, bodies, DIM)
    yi = _component(x, row, 1, i, bodies, DIM)
    zi = _component(x, row, 2, i, bodies, DIM)
    gxi = _component(ga, row, 0, i, bodies, DIM)[:, None]
    gyi = _component(ga, row, 1, i, bodies, DIM)[:, None]
    gzi = _component(ga, row, 2, i, bodies, DIM)[:, None]
    mi = tl.load(m + row * bodies + i, mask=i < bodies, other=0)[:, None]
    pi = tl.load(gp + row * bodies + i, mask=i < bodies, other=0)[:, None]
    sx, sy, sz, sm = xi * 0, xi * 0, xi * 0, xi * 0
    for first in range(0, bodies, OTHERS):
        j = first + tl.arange(0, OTHERS)
        dx = _component(x, row, 0, j, bodies, DIM)[None, :] - xi[:, None]
        dy = _component(x, row, 1, j, bodies, DIM)[None, :] - yi[:, None]
        dz = _component(x, row, 2, j, bodies, DIM)[None, :] - zi[:, None]
        gx = _component(ga, row, 0, j, bodies, DIM)[None, :]
        gy = _component(ga, row, 1, j, bodies, DIM)[None, :]
        gz = _component(ga, row, 2, j, bodies, DIM)[None, :]
        mj = tl.load(m + row * bodies + j, mask=j < bodies, other=0)[None, :]
        pj = tl.load(gp + row * bodies + j, mask=j < bodies, other=0)[None, :]
        apart = (i[:, None] != j[None, :]) & (j < bodies)[None, :]
        w = _inverse_root(dx, dy, dz, soft, apart)
        cubed = w * w * w
        bx, by, bz = mi * gx - mj * gxi, mi * gy - mj * gyi, mi * gz - mj * gzi
        bend = 3 * w * w * (bx * dx + by * dy + bz * dz) + pi * mj + pj * mi
        sx += tl.sum(cubed * (bx - bend * dx), axis=1)
        sy += tl.sum(cubed * (by - bend * dy), axis=1)
        sz += tl.sum(cubed * (bz - bend * dz), axis=1)
        sm += tl.sum(cubed * (gx * dx + gy * dy + gz * dz) + pj * w, axis=1)
    inside, line = i < bodies, row * DIM * bodies + i
    tl.store(places + line, gravity * sx, mask=inside)
    if DIM > 1:
        tl.store(places + line + bodies, gravity * sy, mask=inside)
    if DIM > 2:
        tl.store(places + line + 2 * bodies, gravity * sz, mask=inside)
    tl.store(masses + row * bodies + i, -gravity * sm, mask=inside)


def forward(x: Tensor, m: Tensor, gravity: float, softening: float) -> tuple[Tensor, Tensor]:
    """Accelerations ``[row, body, dim]`` and potentials ``[row, body]``."""
    return _run(_forward, x, gravity, softening, x.mT.contiguous(), m.contiguous())


def backward(
    x: Tensor, m: Tensor, gravity: float, softening: float, da: Tensor, dp: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of positions and masses."""
    inputs = (x.mT.contiguous(), m.contiguous(), da.mT.contiguous(), dp.contiguous())
    return _run(_backward, x, gravity, softening, *inputs)


def _run(kernel: Any, x: Tensor, gravity: float, softening: float, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    rows, bodies, dim = x.shape
    # In memory, because a float argument of a kernel is a float32.
    constants = x.new_tensor([gravity, softening * softening])
    first, second = x.new_empty(rows, dim, bodies), x.new_empty(rows, bodies)
    if rows and bodies:
        grid = (rows, triton.cdiv(bodies, OWN))
        kernel[grid](*inputs, constants, first, second, bodies, DIM=dim, OWN=OWN, OTHERS=OTHERS)
    return first.mT.contiguous(), second
