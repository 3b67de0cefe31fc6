"""The row operations in Triton: a program holds whole rows (or tiles of them) in registers.

Every number is read once and written once; they are converted to float32 in registers. Sums over rows are
formed in blocks whose number depends on the shapes alone, then added up by torch: the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Values that a program holds of each tensor."""

PROGRAMS = 528
"""Programs that a backward sum over rows is split into: four for each of 132 multiprocessors."""


@triton.jit
def _centred_rows(x, residual, at_x, at_residual, inside, width, eps, CENTRED: tl.constexpr):
    """s, the sum of x and the residual, less its mean when CENTRED, the plain sum, and 1 / rms of s."""
    total = tl.load(x + at_x, mask=inside, other=0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + at_residual, mask=inside, other=0).to(tl.float32)
    s = total
    if CENTRED:
        s = tl.where(inside, s - tl.sum(s, axis=1)[:, None] / width, 0.0)
    return s, total, 1.0 / tl.sqrt(tl.sum(s * s, axis=1) / width + eps)


@triton.jit
def _norm_forward(
    x, residual, weight, scale, shift, y, sums,
    rows, width, group, x_step, residual_step, eps,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = row * width + column
    s, total, r = _centred_rows(
        x, residual, row * x_step + column, row * residual_step + column, inside, width, eps, CENTRED
    )
    if residual is not None:
        tl.store(sums + at, total.to(sums.dtype.element_ty), mask=inside)
    s = s * r[:, None]
    if weight is not None:
        s *= tl.load(weight + column, mask=column < width, other=0).to(tl.float32)
    at_group = row // group * width + column
    if scale is not None:
        s *= 1 + tl.load(scale + at_group, mask=inside, other=0).to(tl.float32)
    if shift is not None:
        s += tl.load(shift + at_group, mask=inside, other=0).to(tl.float32)
    tl.store(y + at, s.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    x, residual, weight, scale, dy, dtotal, dx, along, across,
    width, group, per, x_step, residual_step, dy_step, dtotal_step, eps,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    valid = column < width
    m = tl.full([1, BLOCK], 1.0, tl.float32)
    if weight is not None:
        m *= tl.load(weight + column, mask=valid, other=0).to(tl.float32)
    if scale is not None:
        m *= 1 + tl.load(scale + which * width + column, mask=valid, other=0).to(tl.float32)
    sum_along, sum_across = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, per, ROWS):
        in_group = block * per + first + tl.arange(0, ROWS)[:, None]
        inside = (first + tl.arange(0, ROWS)[:, None] < per) & (in_group < group) & valid
        row = which * group + in_group
        s, _, r = _centred_rows(
            x, residual, row * x_step + column, row * residual_step + column, inside, width, eps, CENTRED
        )
        n = s * r[:, None]
        g = tl.load(dy + row * dy_step + column, mask=inside, other=0).to(tl.float32)
        sum_along += tl.sum(g * n, axis=0)
        sum_across += tl.sum(g, axis=0)
        h = g * m
        d = h - n * (tl.sum(h * n, axis=1) / width)[:, None]
        if CENTRED:
            d -= (tl.sum(h, axis=1) / width)[:, None]
        d *= r[:, None]
        if dtotal is not None:
            d += tl.load(dtotal + row * dtotal_step + column, mask=inside, other=0).to(tl.float32)
        tl.store(dx + row * width + column, d.to(dx.dtype.element_ty), mask=inside)
    at = (which * tl.num_programs(1) + block) * width + tl.arange(0, BLOCK)
    tl.store(along + at, sum_along, mask=tl.arange(0, BLOCK) < width)
    tl.store(across + at, sum_across, mask=tl.arange(0, BLOCK) < width)


def norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor | None]:
    """(output, x + residual) of rows [N, D]; the sum is None without a residual."""
    rows, width = x.shape
    groups = next((len(one) for one in (scale, shift) if one is not None), 1)
    x, residual = _by_rows(x), _by_rows(residual)
    y = x.new_empty(rows, width)
    sums = None if residual is None else residual.new_empty(rows, width)
    tile, block, warps = _tile(width)
    if rows:
        _norm_forward[(triton.cdiv(rows, tile),)](
            *(x, residual, *map(_dense, (weight, scale, shift)), y, sums),
            *(rows, width, rows // groups, x.stride(0), _step(residual), eps),
            CENTRED=centred, ROWS=tile, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return y, sums


def norm_backward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    dy: Tensor,
    dtotal: Tensor | None,
    groups: int,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, and for each group [G, D] the sums over its rows of dy n and of dy."""
    rows, width = x.shape
    x, residual, dy, dtotal = _by_rows(x), _by_rows(residual), _by_rows(dy), _by_rows(dtotal)
    group, (tile, block, warps) = rows // max(groups, 1), _tile(width)
    if not group:
        nothing = x.new_zeros(groups, width, dtype=torch.float32)
        return x.new_empty(rows, width), nothing, nothing
    per = triton.cdiv(group, min(triton.cdiv(group, tile), triton.cdiv(PROGRAMS, groups)))
    blocks = triton.cdiv(group, per)
    # In float32 where x and the residual may want their own roundings of the one gradient.
    dx = x.new_empty(rows, width, dtype=x.dtype if residual is None else torch.float32)
    along, across = (x.new_empty(groups, blocks, width, dtype=torch.float32) for _ in range(2))
    _norm_backward[(groups, blocks)](
        *(x, residual, _dense(weight), _dense(scale), dy, dtotal, dx, along, across),
        *(width, group, per, x.stride(0), _step(residual), dy.stride(0), _step(dtotal), eps),
        CENTRED=centred, ROWS=tile, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return dx, along.sum(1), across.sum(1)


def sum_rows(x: Tensor) -> Tensor:
    """[N, D] -> [D]."""
    return x.sum(0)


@triton.jit
def _swiglu(
    a, b, dy, y, da, db, rows, width, a_step, b_step, dy_step,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    left = tl.load(a + row * a_step + column, mask=inside, other=0).to(tl.float32)
    right = tl.load(b + row * b_step + column, mask=inside, other=0).to(tl.float32)
    e = tl.exp(-tl.abs(left))
    gate = tl.where(left >= 0, 1.0, e) / (1.0 + e)
    at = row * width + column
    if dy is None:
        tl.store(y + at, (left * gate * right).to(y.dtype.element_ty), mask=inside)
    else:
        g = tl.load(dy + row * dy_step + column, mask=inside, other=0).to(tl.float32)
        tl.store(da + at, (g * right * gate * (1 + left * (1 - gate))).to(da.dtype.element_ty), mask=inside)
        tl.store(db + at, (g * left * gate).to(db.dtype.element_ty), mask=inside)


def swiglu_forward(a: Tensor, b: Tensor) -> Tensor:
    """a sigmoid(a) b for rows [N, D]."""
    y = a.new_empty(a.shape)
    _run_swiglu(a, b, None, y, None, None)
    return y


def swiglu_backward(a: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a and b."""
    da, db = a.new_empty(a.shape), b.new_empty(b.shape)
    _run_swiglu(a, b, dy, None, da, db)
    return da, db


def _run_swiglu(a: Tensor, b: Tensor, dy: Tensor | None, *made: Tensor | None) -> None:
    a, b, dy = _by_rows(a), _by_rows(b), _by_rows(dy)
    rows, width = a.shape
    tile, block, warps = _tile(min(width, 1024))
    if a.numel():
        _swiglu[(triton.cdiv(rows, tile), triton.cdiv(width, block))](
            *(a, b, dy, *made, rows, width, a.stride(0), b.stride(0), _step(dy)),
            ROWS=tile, BLOCK=block, num_warps=warps,
        )  # fmt: skip


@triton.jit
def _shift_tile(x, previous, batch, time, length, width, x_batch, x_time, column, inside):
    """x_t and x_{t-1} of a tile, in float32."""
    at = x + batch * x_batch + column
    now = tl.load(at + time * x_time, mask=inside, other=0).to(tl.float32)
    before = tl.load(at + (time - 1) * x_time, mask=inside & (time > 0), other=0).to(tl.float32)
    first = tl.load(previous + batch * width + column, mask=inside & (time == 0), other=0).to(tl.float32)
    return now, before + first


@triton.jit
def _shift_forward(
    x, mu, previous, y, mixes, batches, length, width, x_batch, x_time,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length, ROWS)
    batch, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0).to(tl.int64) % blocks
    time = (block * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (time < length) & (column < width)
    now, before = _shift_tile(x, previous, batch, time, length, width, x_batch, x_time, column, inside)
    for m in range(mixes):
        share = tl.load(mu + m * width + column, mask=column < width, other=0).to(tl.float32)
        at = ((m * batches + batch) * length + time) * width + column
        tl.store(y + at, (now + (before - now) * share).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _shift_backward(
    x, mu, previous, dy, dlast, dx, dprevious, dmu, mixes, batches, length, width, x_batch, x_time,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length, ROWS)
    batch, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0).to(tl.int64) % blocks
    time = (block * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (time < length) & (column < width)
    now, before = _shift_tile(x, previous, batch, time, length, width, x_batch, x_time, column, inside)
    grad, first = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    if dlast is not None:
        last = inside & (time == length - 1)
        grad += tl.load(dlast + batch * width + column, mask=last, other=0).to(tl.float32)
    for m in range(mixes):
        share = tl.load(mu + m * width + column, mask=column < width, other=0).to(tl.float32)
        at = dy + ((m * batches + batch) * length + time) * width + column
        g = tl.load(at, mask=inside, other=0).to(tl.float32)
        after = tl.load(at + width, mask=inside & (time + 1 < length), other=0).to(tl.float32)
        grad += g * (1 - share) + after * share
        first += g * share
        to = ((block * batches + batch) * mixes + m) * width + column
        tl.store(dmu + to, tl.sum(g * (before - now), axis=0)[None, :], mask=column < width)
    tl.store(dx + (batch * length + time) * width + column, grad.to(dx.dtype.element_ty), mask=inside)
    to = dprevious + batch * width + column + time * 0
    tl.store(to, first.to(dprevious.dtype.element_ty), mask=inside & (time == 0))


def shift_forward(x: Tensor, mu: Tensor, previous: Tensor) -> Tensor:
    """x [B, T, D], mu [M, D], previous [B, D] -> [M, B, T, D]."""
    batch, length, width = x.shape
    x, mu, previous = _by_rows(x), _dense(mu), _dense(previous)
    y = x.new_empty(len(mu), batch, length, width)
    if x.numel():
        _shift_forward[(batch * triton.cdiv(length, 32), triton.cdiv(width, 128))](
            *(x, mu, previous, y, len(mu), batch, length, width, x.stride(0), x.stride(1)),
            ROWS=32, BLOCK=128, num_warps=8,
        )  # fmt: skip
    return y


def shift_backward(
    x: Tensor, mu: Tensor, previous: Tensor, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, mu and previous, for T of at least 1."""
    batch, length, width = x.shape
    x, mu, previous = _by_rows(x), _dense(mu), _dense(previous)
    blocks = triton.cdiv(length, 32)
    dx, dprevious = x.new_empty(x.shape), previous.new_empty(previous.shape)
    dmu = x.new_empty(blocks * batch, len(mu), width, dtype=torch.float32)
    if x.numel():
        _shift_backward[(batch * blocks, triton.cdiv(width, 128))](
            *(x, mu, previous, _dense(dy), _dense(dlast), dx, dprevious, dmu),
            *(len(mu), batch, length, width, x.stride(0), x.stride(1)),
            ROWS=32, BLOCK=128, num_warps=8,
        )  # fmt: skip
    return dx, dmu.sum(0), dprevious


def _tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and warps."""
    block = triton.next_power_of_2(max(width, 1))
    rows = max(1, min(32, TILE // block))
    return rows, block, min(16, max(4, rows * block // 1024))


def _by_rows(x: Any) -> Any:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _dense(x: Any) -> Any:
    return None if x is None else x.contiguous()


def _step(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
