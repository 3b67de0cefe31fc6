"""The affine scan in Triton: lanes side by side, steps one after another.

A program holds the state of its lanes in registers and reads every number once. The steps it will need next
are fetched ahead by the loop's pipeline (``num_stages``), which hides the memory's latency.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 256
WARPS = 4
STAGES = 8


@triton.jit
def _mine(lanes, LANES: tl.constexpr):
    """A program's batch member and its lanes. One axis of programs, as the others hold 65535 at most."""
    tiles = tl.cdiv(lanes, LANES)
    own = tl.program_id(0).to(tl.int64)
    return own // tiles, own % tiles * LANES + tl.arange(0, LANES)


@triton.jit
def _forward(
    a, b, initial, output, state,
    length, lanes, a_batch, a_time, a_lane, b_batch, b_time, b_lane, i_batch, i_lane,
    HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    batch, lane = _mine(lanes, LANES)
    inside = lane < lanes
    work = state.dtype.element_ty
    h = tl.zeros([LANES], dtype=work)
    if HAS_INITIAL:
        h = tl.load(initial + batch * i_batch + lane * i_lane, mask=inside, other=0).to(work)
    a += batch * a_batch + lane * a_lane
    b += batch * b_batch + lane * b_lane
    output += batch * length * lanes + lane
    # Products with a step must not wrap at 2^31.
    a_time, b_time, row = tl.cast(a_time, tl.int64), tl.cast(b_time, tl.int64), tl.cast(lanes, tl.int64)
    for step in tl.range(0, length, num_stages=STAGES):
        t = step
        if REVERSE:
            t = length - 1 - step
        decay = tl.load(a + t * a_time, mask=inside, other=0).to(work)
        h = decay * h + tl.load(b + t * b_time, mask=inside, other=0).to(work)
        tl.store(output + t * row, h.to(output.dtype.element_ty), mask=inside)
    tl.store(state + batch * lanes + lane, h, mask=inside)


@triton.jit
def _backward(
    a, initial, output, grad, grad_state, da, db, dinitial,
    length, lanes, a_batch, a_time, a_lane, i_batch, i_lane, g_batch, g_time, g_lane, e_batch, e_lane,
    HAS_INITIAL: tl.constexpr, HAS_GRAD: tl.constexpr, HAS_STATE: tl.constexpr,
    REVERSE: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    batch, lane = _mine(lanes, LANES)
    inside = lane < lanes
    work = db.dtype.element_ty
    carried = tl.zeros([LANES], dtype=work)
    if HAS_STATE:
        carried = tl.load(grad_state + batch * e_batch + lane * e_lane, mask=inside, other=0).to(work)
    first = tl.zeros([LANES], dtype=work)
    if HAS_INITIAL:
        first = tl.load(initial + batch * i_batch + lane * i_lane, mask=inside, other=0).to(work)
    a += batch * a_batch + lane * a_lane
    grad += batch * g_batch + lane * g_lane
    start = batch * length * lanes + lane
    a_time, g_time, row = tl.cast(a_time, tl.int64), tl.cast(g_time, tl.int64), tl.cast(lanes, tl.int64)
    for back in tl.range(0, length, num_stages=STAGES):
        step = length - 1 - back
        t, earlier = step, step - 1
        if REVERSE:
            t, earlier = length - 1 - step, length - step
        if HAS_GRAD:
            carried += tl.load(grad + t * g_time, mask=inside, other=0).to(work)
        preceded = inside & (lane < step * row)
        before = tl.load(output + start + earlier * row, mask=preceded, other=0).to(work)
        before = tl.where(preceded, before, first)
        tl.store(db + start + t * row, carried, mask=inside)
        tl.store(da + start + t * row, carried * before, mask=inside)
        carried *= tl.load(a + t * a_time, mask=inside, other=0).to(work)
    tl.store(dinitial + batch * lanes + lane, carried, mask=inside)


def forward(
    a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool, work: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Output in the dtype of b, and state, computed in ``work``; a and b [B, T, D], initial [B, D]."""
    batch, length, lanes = b.shape
    output = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    state = torch.empty((batch, lanes), dtype=work, device=b.device)
    start = state if initial is None else initial
    _forward[_grid(b)](
        a, b, start, output, state, length, lanes, *a.stride(), *b.stride(), *start.stride(),
        HAS_INITIAL=initial is not None, REVERSE=reverse, LANES=LANES, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return output, state


def backward(
    a: Tensor,
    initial: Tensor | None,
    output: Tensor,
    grad: Tensor | None,
    grad_state: Tensor | None,
    needed: Sequence[bool],
    reverse: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a, b and initial, in the dtype of ``output``, which is contiguous."""
    batch, length, lanes = output.shape
    da, db = torch.empty_like(output), torch.empty_like(output)
    dinitial = output.new_empty(batch, lanes)
    start = dinitial if initial is None else initial
    into = output if grad is None else grad
    last = dinitial if grad_state is None else grad_state
    _backward[_grid(output)](
        a, start, output, into, last, da, db, dinitial,
        length, lanes, *a.stride(), *start.stride(), *into.stride(), *last.stride(),
        HAS_INITIAL=initial is not None, HAS_GRAD=grad is not None, HAS_STATE=grad_state is not None,
        REVERSE=reverse, LANES=LANES, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return da, db, dinitial


def _grid(b: Tensor) -> tuple[int]:
    return (triton.cdiv(b.shape[2], LANES) * b.shape[0],)
