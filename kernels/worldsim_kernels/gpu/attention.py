"""Softmax attention in Triton: a tile of scores at a time, in registers (Dao 2023).

Forward and the gradient of q by blocks of queries, those of k and v by blocks of keys, that of the bias by
blocks of the bias itself, which sum over the axes it is broadcast along: no atomics, so the same bits in
every run, and no array of the size of the scores. Products take the inputs' own precision (float32 exactly)
and are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Block(NamedTuple):
    queries: int
    keys: int
    warps: int
    stages: int


BLOCKS = {
    16: (Block(64, 64, 4, 2), Block(64, 32, 4, 2), Block(32, 32, 4, 1)),
    32: (Block(32, 32, 4, 1), Block(32, 16, 4, 1), Block(16, 16, 4, 1)),
}
"""Bits of a number -> blocks for heads of at most 64, 128 and 256 numbers. Chosen so that no kernel takes
more than the 99 KiB of shared memory of any GPU since Ampere (for sm_90 the compiler says at most 81, and
that the backward's longest spill some registers); not tuned, as none has been timed."""


@triton.jit
def _place(length, SIZE: tl.constexpr):
    """Which of the batches and heads a program works on, and where its block of ``length`` begins. One axis
    of programs, as the others hold 65535 at most."""
    blocks = tl.cdiv(length, SIZE)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * SIZE


@triton.jit
def _rows(x, at, inside, row, lane, width, WIDTH: tl.constexpr):
    """[rows, WIDTH] of an array with strides ``row`` and ``lane``; zeros outside."""
    lanes = tl.arange(0, WIDTH)
    kept = inside[:, None] & (lanes < width)[None, :]
    return tl.load(x + (at.to(tl.int64) * row)[:, None] + lanes[None, :] * lane, mask=kept, other=0)


@triton.jit
def _tile(
    q, k, bias, mask, at, to, scale, cooling, queries, keys, window,
    bias_t, bias_s, mask_t, mask_s,
    BIAS: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Scores of queries q at ``at`` and keys k at ``to``, -inf where a key is not seen."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    seen = (at < queries)[:, None] & (to < keys)[None, :]
    if BIAS:
        there = bias + (at.to(tl.int64) * bias_t)[:, None] + (to.to(tl.int64) * bias_s)[None, :]
        s += tl.load(there, mask=seen, other=0).to(tl.float32)
    s *= cooling
    if MASK:
        there = mask + (at.to(tl.int64) * mask_t)[:, None] + (to.to(tl.int64) * mask_s)[None, :]
        seen = seen & (tl.load(there, mask=seen, other=0) != 0)
    lead = to[None, :] - (at + (keys - queries))[:, None]
    if CAUSAL:
        seen = seen & (lead <= 0)
    if WINDOW:
        seen = seen & (lead > -window)
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _key_range(first_query, queries, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
               M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Where the keys of a block of queries begin, on a multiple of N, and end."""
    first, last = 0, keys
    if WINDOW:
        first = tl.maximum(0, first_query + keys - queries - window + 1) // N * N
    if CAUSAL:
        last = tl.minimum(keys, first_query + M + keys - queries)
    return first, last


@triton.jit
def _forward(
    q, k, v, bias, mask, tau, output, lse, scale, queries, keys, heads, shared, width, values, window,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    biases, bias_b, bias_h, bias_t, bias_s, masks, mask_b, mask_h, mask_t, mask_s,
    BIAS: tl.constexpr, MASK: tl.constexpr, TAU: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    member, first_query = _place(queries, M)
    b, h = (member // heads).to(tl.int64), (member % heads).to(tl.int64)
    q += b * q_b + h * q_h
    k += b * k_b + h // shared * k_h
    v += b * v_b + h // shared * v_h
    bias += b % biases * bias_b + h * bias_h
    mask += b % masks * mask_b + h * mask_h
    cooling = 1.0
    if TAU:
        cooling = 1.0 / tl.load(tau + h)
    at = first_query + tl.arange(0, M)
    query = _rows(q, at, at < queries, q_t, q_d, width, K)
    top = tl.full([M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)
    mixed = tl.zeros([M, V], dtype=tl.float32)
    first, last = _key_range(first_query, queries, keys, window, CAUSAL, WINDOW, M, N)
    for start in tl.range(first, last, N):
        to = start + tl.arange(0, N)
        key = _rows(k, to, to < keys, k_t, k_d, width, K)
        value = _rows(v, to, to < keys, v_t, v_d, values, V)
        s = _tile(query, key, bias, mask, at, to, scale, cooling, queries, keys, window,
                  bias_t, bias_s, mask_t, mask_s, BIAS, MASK, CAUSAL, WINDOW)  # fmt: skip
        higher = tl.maximum(top, tl.max(s, 1))
        # Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(s - shift[:, None])
        fade = tl.exp(top - shift)
        total = total * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        top = higher
    blind = total == 0
    total = tl.where(blind, 1.0, total)
    mixed = mixed / total[:, None]
    place = (b * queries + at) * heads + h
    lanes = tl.arange(0, V)
    kept = (at < queries)[:, None] & (lanes < values)[None, :]
    tl.store(output + place[:, None] * values + lanes[None, :], mixed.to(output.dtype.element_ty), mask=kept)
    tl.store(lse + place, tl.where(blind, float("-inf"), top + tl.log(total)), mask=at < queries)


@triton.jit
def _slopes(
    query, key, value, grad, bias, mask, at, to, norm, d_row, scale, cooling, queries, keys, window,
    bias_t, bias_s, mask_t, mask_s,
    BIAS: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Scores, weights P, dP = dO V' and dS = P (dP - d_row) of a tile."""
    s = _tile(query, key, bias, mask, at, to, scale, cooling, queries, keys, window,
              bias_t, bias_s, mask_t, mask_s, BIAS, MASK, CAUSAL, WINDOW)  # fmt: skip
    p = tl.exp(s - norm[:, None])
    d_p = tl.dot(grad, tl.trans(value), input_precision="ieee")
    return s, p, d_p, p * (d_p - d_row[:, None])


@triton.jit
def _backward_queries(
    q, k, v, bias, mask, tau, grad, norm, d_row, d_lse, d_q, heat,
    scale, queries, keys, heads, shared, width, values, window,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    biases, bias_b, bias_h, bias_t, bias_s, masks, mask_b, mask_h, mask_t, mask_s, g_b, g_t, g_h, g_d,
    BIAS: tl.constexpr, MASK: tl.constexpr, TAU: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEAT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    member, first_query = _place(queries, M)
    b, h = (member // heads).to(tl.int64), (member % heads).to(tl.int64)
    q += b * q_b + h * q_h
    k += b * k_b + h // shared * k_h
    v += b * v_b + h // shared * v_h
    grad += b * g_b + h * g_h
    bias += b % biases * bias_b + h * bias_h
    mask += b % masks * mask_b + h * mask_h
    cooling = 1.0
    if TAU:
        cooling = 1.0 / tl.load(tau + h)
    at = first_query + tl.arange(0, M)
    inside = at < queries
    place = (b * queries + at) * heads + h
    query = _rows(q, at, inside, q_t, q_d, width, K)
    do = _rows(grad, at, inside, g_t, g_d, values, V)
    row_norm = tl.load(norm + place, mask=inside, other=float("inf"))
    row = tl.load(d_row + place, mask=inside, other=0)
    found = tl.zeros([M, K], dtype=tl.float32)
    mean_d = tl.zeros([M], dtype=tl.float32)
    mean_s = tl.zeros([M], dtype=tl.float32)
    mean_both = tl.zeros([M], dtype=tl.float32)
    first, last = _key_range(first_query, queries, keys, window, CAUSAL, WINDOW, M, N)
    for start in tl.range(first, last, N):
        to = start + tl.arange(0, N)
        key = _rows(k, to, to < keys, k_t, k_d, width, K)
        value = _rows(v, to, to < keys, v_t, v_d, values, V)
        s, p, d_p, d_s = _slopes(query, key, value, do, bias, mask, at, to, row_norm, row, scale, cooling,
                                 queries, keys, window, bias_t, bias_s, mask_t, mask_s,
                                 BIAS, MASK, CAUSAL, WINDOW)  # fmt: skip
        found += tl.dot(d_s.to(key.dtype), key, input_precision="ieee")
        if HEAT:
            known = tl.where(s == float("-inf"), 0.0, s)
            mean_d += tl.sum(p * d_p, 1)
            mean_s += tl.sum(p * known, 1)
            mean_both += tl.sum(p * d_p * known, 1)
    lanes = tl.arange(0, K)
    kept = inside[:, None] & (lanes < width)[None, :]
    found *= scale * cooling
    tl.store(d_q + place[:, None] * width + lanes[None, :], found.to(d_q.dtype.element_ty), mask=kept)
    if HEAT:
        level = mean_d - tl.load(d_lse + place, mask=inside, other=0)
        tl.store(heat + place, mean_both - level * mean_s, mask=inside)


@triton.jit
def _backward_keys(
    q, k, v, bias, mask, tau, grad, norm, d_row, d_k, d_v,
    scale, queries, keys, heads, shared, width, values, window,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    biases, bias_b, bias_h, bias_t, bias_s, masks, mask_b, mask_h, mask_t, mask_s, g_b, g_t, g_h, g_d,
    BIAS: tl.constexpr, MASK: tl.constexpr, TAU: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    pair, first_key = _place(keys, N)
    groups = heads // shared
    b, group = (pair // groups).to(tl.int64), (pair % groups).to(tl.int64)
    to = first_key + tl.arange(0, N)
    inside = to < keys
    key = _rows(k + b * k_b + group * k_h, to, inside, k_t, k_d, width, K)
    value = _rows(v + b * v_b + group * v_h, to, inside, v_t, v_d, values, V)
    found_k = tl.zeros([N, K], dtype=tl.float32)
    found_v = tl.zeros([N, V], dtype=tl.float32)
    first, last = 0, queries
    if CAUSAL:
        first = tl.maximum(0, first_key - (keys - queries)) // M * M
    if WINDOW:
        last = tl.minimum(queries, first_key + N - 1 - (keys - queries) + window)
    for member in tl.range(0, shared):
        h = group * shared + member
        cooling = 1.0
        if TAU:
            cooling = 1.0 / tl.load(tau + h)
        bias_here = bias + b % biases * bias_b + h * bias_h
        mask_here = mask + b % masks * mask_b + h * mask_h
        for start in tl.range(first, last, M):
            at = start + tl.arange(0, M)
            place = (b * queries + at) * heads + h
            query = _rows(q + b * q_b + h * q_h, at, at < queries, q_t, q_d, width, K)
            do = _rows(grad + b * g_b + h * g_h, at, at < queries, g_t, g_d, values, V)
            row_norm = tl.load(norm + place, mask=at < queries, other=float("inf"))
            row = tl.load(d_row + place, mask=at < queries, other=0)
            _, p, _, d_s = _slopes(query, key, value, do, bias_here, mask_here, at, to, row_norm, row,
                                   scale, cooling, queries, keys, window, bias_t, bias_s, mask_t, mask_s,
                                   BIAS, MASK, CAUSAL, WINDOW)  # fmt: skip
            found_v += tl.dot(tl.trans(p).to(do.dtype), do, input_precision="ieee")
            d_s *= scale * cooling
            found_k += tl.dot(tl.trans(d_s).to(query.dtype), query, input_precision="ieee")
    place = (b * keys + to) * groups + group
    lanes = tl.arange(0, K)
    kept = inside[:, None] & (lanes < width)[None, :]
    tl.store(d_k + place[:, None] * width + lanes[None, :], found_k.to(d_k.dtype.element_ty), mask=kept)
    lanes = tl.arange(0, V)
    kept = inside[:, None] & (lanes < values)[None, :]
    tl.store(d_v + place[:, None] * values + lanes[None, :], found_v.to(d_v.dtype.element_ty), mask=kept)


@triton.jit
def _backward_bias(
    q, k, v, bias, mask, tau, grad, norm, d_row, d_bias,
    scale, queries, keys, heads, shared, width, values, window,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    biases, bias_b, bias_h, bias_t, bias_s, masks, mask_b, mask_h, mask_t, mask_s, g_b, g_t, g_h, g_d,
    batch, own_heads, own_queries, own_keys,
    BIAS: tl.constexpr, MASK: tl.constexpr, TAU: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    ALL_HEADS: tl.constexpr, ALL_QUERIES: tl.constexpr, ALL_KEYS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """A tile of the bias's own shape [biases, own_heads, own_queries, own_keys]; ALL_HEADS, ALL_QUERIES
    and ALL_KEYS are the axes of one, over which it sums."""
    tiles_s = tl.cdiv(own_keys, N)
    pair, first = _place(tl.cdiv(own_queries, M) * tiles_s, 1)
    own_b, own_h = pair // own_heads, pair % own_heads
    tile_t, tile_s = first // tiles_s * M, first % tiles_s * N
    last_t, last_s, last_h = tile_t + 1, tile_s + 1, own_h + 1
    if ALL_QUERIES:
        last_t = queries
    if ALL_KEYS:
        last_s = keys
    if ALL_HEADS:
        last_h = heads
    found = tl.zeros([M, N], dtype=tl.float32)
    for member in tl.range(own_b, batch, biases):
        b = tl.cast(member, tl.int64)
        for head in tl.range(own_h, last_h):
            h = tl.cast(head, tl.int64)
            cooling = 1.0
            if TAU:
                cooling = 1.0 / tl.load(tau + h)
            bias_here = bias + b % biases * bias_b + h * bias_h
            mask_here = mask + b % masks * mask_b + h * mask_h
            for start in tl.range(tile_t, last_t, M):
                at = start + tl.arange(0, M)
                place = (b * queries + at) * heads + h
                query = _rows(q + b * q_b + h * q_h, at, at < queries, q_t, q_d, width, K)
                do = _rows(grad + b * g_b + h * g_h, at, at < queries, g_t, g_d, values, V)
                row_norm = tl.load(norm + place, mask=at < queries, other=float("inf"))
                row = tl.load(d_row + place, mask=at < queries, other=0)
                for begin in tl.range(tile_s, last_s, N):
                    to = begin + tl.arange(0, N)
                    key = _rows(k + b * k_b + h // shared * k_h, to, to < keys, k_t, k_d, width, K)
                    value = _rows(v + b * v_b + h // shared * v_h, to, to < keys, v_t, v_d, values, V)
                    _, _, _, d_s = _slopes(query, key, value, do, bias_here, mask_here, at, to, row_norm, row,
                                           scale, cooling, queries, keys, window,
                                           bias_t, bias_s, mask_t, mask_s,
                                           BIAS, MASK, CAUSAL, WINDOW)  # fmt: skip
                    found += d_s * cooling
    if ALL_QUERIES:
        found = tl.broadcast_to(tl.sum(found, 0)[None, :], [M, N])
    if ALL_KEYS:
        found = tl.broadcast_to(tl.sum(found, 1)[:, None], [M, N])
    at = tile_t + tl.arange(0, M)
    to = tile_s + tl.arange(0, N)
    kept = (at < own_queries)[:, None] & (to < own_keys)[None, :]
    into = d_bias + pair.to(tl.int64) * own_queries * own_keys
    tl.store(into + (at.to(tl.int64) * own_keys)[:, None] + to[None, :], found, mask=kept)


class _Call(NamedTuple):
    """What all four kernels are given: pointers, numbers and strides, in their order, and constants."""

    pointers: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    strides: tuple[int, ...]
    constants: dict[str, int | bool]
    block: Block


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
) -> _Call:
    heads, width, values = q.shape[2], q.shape[3], v.shape[3]
    widest = max(width, values)
    block = BLOCKS[q.element_size() * 8][0 if widest <= 64 else 1 if widest <= 128 else 2]
    tau = q if temperature is None else temperature.float().contiguous()
    # A bool has no Triton type of its own in every version; its bytes do.
    seen = q if mask is None else mask.view(torch.uint8)
    pointers = (q, k, v, q if bias is None else bias, seen, tau)
    shared, far = heads // k.shape[2], 0 if window is None else window
    numbers = (scale, q.shape[1], k.shape[1], heads, shared, width, values, far)
    strides = (*q.stride(), *k.stride(), *v.stride(), *_broadcast(bias), *_broadcast(mask))
    flags = {"BIAS": bias is not None, "MASK": mask is not None, "TAU": temperature is not None}
    flags |= {"CAUSAL": causal, "WINDOW": window is not None}
    sizes = {"M": block.queries, "N": block.keys, "K": _padded(width), "V": _padded(values)}
    return _Call(pointers, numbers, strides, flags | sizes, block)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and lse, as ``attend``; bias and mask have 4 axes, temperature [H]."""
    call = _call(q, k, v, bias, mask, temperature, causal, window, scale)
    batch, queries, heads, _ = q.shape
    output, lse = q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)
    grid = (triton.cdiv(queries, call.block.queries) * batch * heads,)
    _forward[grid](*call.pointers, output, lse, *call.numbers, *call.strides, **_launch(call))
    return output, lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, bias and temperature, in the layout of ``attend``; None where not ``needed``."""
    call = _call(q, k, v, bias, mask, temperature, causal, window, scale)
    batch, queries, heads, _ = q.shape
    # A row that sees nothing has lse = -inf; +inf makes its weights zero.
    norm = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    level = torch.zeros_like(norm) if d_lse is None else d_lse.float().contiguous()
    d_row = ((d_output.float() * output.float()).sum(-1) - level).contiguous()
    grad = d_output.to(q.dtype)
    strides, launch = (*call.strides, *grad.stride()), _launch(call)
    d_q = d_k = d_v = d_bias = d_tau = None
    if needed[0] or needed[4]:
        d_q, heat = q.new_empty(q.shape), torch.empty_like(norm)
        grid = (triton.cdiv(queries, call.block.queries) * batch * heads,)
        _backward_queries[grid](
            *call.pointers, grad, norm, d_row, level, d_q, heat, *call.numbers, *strides,
            HEAT=needed[4], **launch,
        )  # fmt: skip
        if temperature is not None and needed[4]:
            d_tau = -heat.sum((0, 1)) / temperature.float()
    if needed[1] or needed[2]:
        d_k, d_v = k.new_empty(k.shape), v.new_empty(v.shape)
        grid = (triton.cdiv(k.shape[1], call.block.keys) * batch * k.shape[2],)
        _backward_keys[grid](
            *call.pointers, grad, norm, d_row, d_k, d_v, *call.numbers, *strides, **launch
        )  # fmt: skip
    if bias is not None and needed[3]:
        d_bias = bias.new_empty(bias.shape, dtype=torch.float32)
        tiles = triton.cdiv(bias.shape[2], call.block.queries) * triton.cdiv(bias.shape[3], call.block.keys)
        grid = (tiles * bias.shape[0] * bias.shape[1],)
        _backward_bias[grid](
            *call.pointers, grad, norm, d_row, d_bias, *call.numbers, *strides, batch, *bias.shape[1:],
            ALL_HEADS=bias.shape[1] == 1, ALL_QUERIES=bias.shape[2] == 1, ALL_KEYS=bias.shape[3] == 1,
            **launch,
        )  # fmt: skip
    return d_q, d_k, d_v, d_bias, d_tau


def _broadcast(x: Tensor | None) -> tuple[int, ...]:
    """How many batches there are, and the strides of four axes; zero along an axis of one."""
    if x is None:
        return 1, 0, 0, 0, 0
    return x.shape[0], *(0 if size == 1 else step for size, step in zip(x.shape, x.stride()))


def _launch(call: _Call) -> dict[str, int | bool]:
    return {**call.constants, "num_warps": call.block.warps, "num_stages": call.block.stages}


def _padded(width: int) -> int:
    """A product needs at least sixteen, and powers of two."""
    return int(max(16, triton.next_power_of_2(width)))
