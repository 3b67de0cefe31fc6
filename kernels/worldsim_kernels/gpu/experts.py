"""The grouped product in Triton. The offsets stay on the GPU: each program finds its group by itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = {4: (64, 64, 32, 4, 2), 2: (128, 128, 64, 8, 3)}
"""Bytes of a value -> rows, columns and depth of a tile, warps, stages."""


@triton.jit
def _product(
    x, weight, offsets, y, groups, inner, columns, x_row, x_inner, w_group, w_inner, w_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    tile, before, group = tl.program_id(0), tl.cast(0, tl.int64), tl.cast(-1, tl.int64)
    first, end = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    for e in range(groups):
        a, b = tl.load(offsets + e), tl.load(offsets + e + 1)
        after = before + tl.cdiv(b - a, ROWS)
        mine = (tile >= before) & (tile < after)
        group = tl.where(mine, e, group)
        first = tl.where(mine, a + (tile - before) * ROWS, first)
        end = tl.where(mine, b, end)
        before = after
    if group >= 0:
        row = (first + tl.arange(0, ROWS))[:, None]
        column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        depth = tl.arange(0, INNER)
        total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        x += row * x_row
        weight += group * w_group + column.to(tl.int64) * w_column
        for at in range(0, inner, INNER):
            k = (at + depth).to(tl.int64)
            left = tl.load(x + k[None, :] * x_inner, mask=(row < end) & (k[None, :] < inner), other=0)
            right = tl.load(
                weight + k[:, None] * w_inner, mask=(k[:, None] < inner) & (column < columns), other=0
            )
            total += tl.dot(left, right, input_precision="ieee")
        to = y + row * columns + column
        tl.store(to, total.to(y.dtype.element_ty), mask=(row < end) & (column < columns))


@triton.jit
def _outer(
    x, dy, offsets, dw, inner, columns, x_row, x_inner, dy_row, dy_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(columns, COLUMNS)
    k = ((tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = ((tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    start, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for at in range(0, end - start, INNER):
        row = start + at + tl.arange(0, INNER)
        left = tl.load(
            x + row[None, :] * x_row + k * x_inner, mask=(row[None, :] < end) & (k < inner), other=0
        )
        right = tl.load(
            dy + row[:, None] * dy_row + column * dy_column,
            mask=(row[:, None] < end) & (column < columns),
            other=0,
        )
        total += tl.dot(left, right, input_precision="ieee")
    to = dw + (group * inner + k) * columns + column
    tl.store(to, total.to(dw.dtype.element_ty), mask=(k < inner) & (column < columns))


def product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """x [M, K] sorted by group, weight [E, K, N] -> [M, N]; rows outside the offsets become zero."""
    groups, inner, columns = weight.shape
    y = x.new_zeros(len(x), columns)
    rows, width, depth, warps, stages = TILES[x.element_size()]
    if y.numel():
        # Each group may leave one tile that is not full.
        _product[(triton.cdiv(len(x), rows) + groups, triton.cdiv(columns, width))](
            *(x, weight, offsets.contiguous(), y, groups, inner, columns, *x.stride(), *weight.stride()),
            ROWS=rows, COLUMNS=width, INNER=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


def outer(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """x [M, K], dy [M, N] -> x^T dy of each group, [E, K, N]."""
    inner, columns, groups = x.shape[1], dy.shape[1], len(offsets) - 1
    dw = torch.empty(groups, inner, columns, dtype=x.dtype, device=x.device)
    rows, width, depth, warps, stages = TILES[x.element_size()]
    if dw.numel():
        _outer[(triton.cdiv(inner, rows) * triton.cdiv(columns, width), groups)](
            *(x, dy, offsets.contiguous(), dw, inner, columns, *x.stride(), *dy.stride()),
            ROWS=rows, COLUMNS=width, INNER=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return dw
