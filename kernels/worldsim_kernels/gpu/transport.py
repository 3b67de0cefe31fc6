"""The log-domain half-step of Sinkhorn on a GPU, without a matrix of costs.

    out_i = ln sum_j exp(score_j - rate |x_i - y_j|^2)
          = -rate |x_i|^2 + ln sum_j exp([score_j - rate |y_j|^2] + 2 rate x_i . y_j)

is the log-sum-exp of attention with a bias. One program keeps a running maximum and sum for a block of rows
and walks over blocks of columns, so that memory is O(n + m). Products are in float32 without TF32: an error
of 5e-4 of x . y would be one of 5e-4 / epsilon in an exponent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
# Features at once -> rows and columns of a block, warps, stages.
SHAPES = {16: (64, 64, 4, 3), 32: (64, 64, 4, 3), 64: (64, 64, 4, 2)}


@triton.jit
def _log_sums(
    x,
    y,
    bias,
    out,
    rows,
    columns,
    width,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDTH)
    x_at = x + i.to(tl.int64)[:, None] * width + k[None, :]
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, columns, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        y_at = y + j.to(tl.int64)[None, :] * width + k[:, None]
        dot = tl.zeros([ROWS, COLUMNS], tl.float32)
        for part in range(0, width, WIDTH):
            inside = k < width - part
            left = tl.load(x_at + part, mask=(i < rows)[:, None] & inside[None, :], other=0.0)
            right = tl.load(y_at + part, mask=(j < columns)[None, :] & inside[:, None], other=0.0)
            dot += tl.dot(left, right, input_precision="ieee")
        here = tl.load(bias + j, mask=j < columns, other=float("-inf"))
        score = dot * scale + here[None, :]
        higher = tl.maximum(most, tl.max(score, 1))
        total = total * tl.exp2(most - higher) + tl.sum(tl.exp2(score - higher[:, None]), 1)
        most = higher
    tl.store(out + i, most + tl.log2(total), mask=i < rows)


def softmin(x: Tensor, y: Tensor, score: Tensor, rate: float) -> Tensor:
    """ln sum_j exp(score_j - rate |x_i - y_j|^2) ``[n]``.

    ``x`` ``[n, d]``, ``y`` ``[m, d]`` and ``score`` ``[m]`` are float32 and contiguous.
    """
    (n, d), m = x.shape, len(y)
    out = torch.empty_like(x[:, 0])
    width = next((each for each in SHAPES if each >= d), max(SHAPES))
    rows, columns, warps, stages = SHAPES[width]
    bias = LOG2E * (score - rate * y.square().sum(1))
    _log_sums[(triton.cdiv(n, rows),)](
        *(x, y, bias, out, n, m, d, 2 * rate * LOG2E),
        ROWS=rows,
        COLUMNS=columns,
        WIDTH=width,
        num_warps=warps,
        num_stages=stages,
    )
    return out / LOG2E - rate * x.square().sum(1)
