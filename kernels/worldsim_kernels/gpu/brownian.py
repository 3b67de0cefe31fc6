"""Counter-based normal numbers in Triton: a program has a tile of components and a pair of steps.

The integers are Philox4x32-10's, which Triton has; the transform is that of ``solve.philox``, its products
and sums not contracted, its root and quotient rounded to the nearest.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 256
HALF = tl.constexpr(0x3FE6A09E667F3BCD)
TWO_LN2 = tl.constexpr(2 * math.log(2))
QUARTER = tl.constexpr(math.pi / 2)


@triton.jit
def _unit(bits):
    k = ((bits >> 12) & 0xFFFFFFFFFFFFF).to(tl.float64)
    return (k + 0.5) * 2.220446049250313e-16


@triton.jit
def _normals(a, b, c, d):
    """Two normal numbers from four words, int64."""
    u = _unit((b << 32) | a)
    turn = (d << 32) | c
    bits = u.to(tl.int64, bitcast=True)
    e = (bits - HALF) >> 52
    m = (bits - (e << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = z * (1.0 / 21) + 1.0 / 19
    p = p * z + 1.0 / 17
    p = p * z + 1.0 / 15
    p = p * z + 1.0 / 13
    p = p * z + 1.0 / 11
    p = p * z + 1.0 / 9
    p = p * z + 1.0 / 7
    p = p * z + 1.0 / 5
    p = p * z + 1.0 / 3
    log = s + s * (z * p)
    r = tl.sqrt(log * -4.0 - e.to(tl.float64) * TWO_LN2)
    x = (_unit(turn << 2) - 0.5) * QUARTER
    y = x * x
    p = y * (-1.0 / 1307674368000) + 1.0 / 6227020800
    p = p * y + -1.0 / 39916800
    p = p * y + 1.0 / 362880
    p = p * y + -1.0 / 5040
    p = p * y + 1.0 / 120
    p = p * y + -1.0 / 6
    sine = x + x * (y * p)
    p = y * (1.0 / 20922789888000) + -1.0 / 87178291200
    p = p * y + 1.0 / 479001600
    p = p * y + -1.0 / 3628800
    p = p * y + 1.0 / 40320
    p = p * y + -1.0 / 720
    p = p * y + 1.0 / 24
    p = p * y + -1.0 / 2
    cosine = 1.0 + y * p
    swap = ((turn >> 62) & 1) == 1
    r = tl.where(turn < 0, -r, r)
    return r * tl.where(swap, sine, cosine), r * tl.where(swap, cosine, sine)


@triton.jit
def _grid_normals(
    ids, out, seed_low, seed_high, node_low, first, count, width, components, TILE: tl.constexpr
):  # fmt: skip
    pair = first // 2 + tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < width
    row = tl.load(ids + at // components, mask=inside, other=0)
    zero = tl.zeros([TILE], tl.int64)
    a, b, c, d = tl.philox_impl(
        (zero + pair).to(tl.uint32),
        (row & 0xFFFFFFFF).to(tl.uint32),
        (zero + node_low).to(tl.uint32),
        (((row >> 32) << 20) | (at % components)).to(tl.uint32),
        (zero + seed_low).to(tl.uint32),
        (zero + seed_high).to(tl.uint32),
    )
    one, two = _normals(a.to(tl.int64), b.to(tl.int64), c.to(tl.int64), d.to(tl.int64))
    step = zero + 2 * pair - first
    tl.store(out + step * width + at, one, mask=inside & (step >= 0))
    tl.store(out + (step + 1) * width + at, two, mask=inside & (step + 1 < count))


def on_grid(seed: int, node: int, ids: Tensor, components: int, first: int, count: int) -> Tensor:
    """``[count, row, component]`` float64, as ``solve.philox.on_grid``."""
    width = len(ids) * components
    out = torch.empty(count, len(ids), components, dtype=torch.float64, device=ids.device)
    pairs = (first + count + 1) // 2 - first // 2
    for begin in range(0, pairs, 65535):
        some = min(65535, pairs - begin)
        start = first if begin == 0 else 2 * (first // 2 + begin)
        grid = (triton.cdiv(width, TILE), some)
        _grid_normals[grid](
            ids.contiguous(), out[start - first :], seed & 0xFFFFFFFF, seed >> 32, node,
            start, first + count - start, width, components, TILE=TILE, enable_fp_fusion=False,
        )  # fmt: skip
    return out
