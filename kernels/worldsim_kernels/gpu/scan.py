"""The state recurrence of ``scan`` in Triton: the chunks of ``chunked``, with the state in registers.

A program takes one sequence, head and tile of the state's columns, holds that part of the state in registers
and streams the tokens chunk after chunk; between chunks nothing else goes through memory. The equations are
those of ``chunked`` with every output's own token apart: readers see strictly earlier tokens, and q carries
e^g where the output is read after its token's write. Every exponent is a sum of gates, never above 0:

none, scalar   P = x y^T times e^{c_i - b_j}, whose difference is taken in float64
vector         the chunk is halved again and again; pairs across a border are split there (``_border``)

The backward first stores the state before every ``SEGMENT`` chunks, then takes these in reverse, each time
running through its chunks once more. Gradients that sum over the tiles of columns are written for each tile
and added by torch, so their bits do not depend on the order of programs.

All arithmetic is float32. Products of half-precision inputs use TF32, whose mantissa of 10 bits is float16's,
and sums of gates then use three of them, which is float32's precision but for a bit or two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SEGMENT = 8
"""Chunks between two stored states; those inside are recomputed."""


@triton.jit
def _tile(p, first, count, by_token, by_column, columns, C: tl.constexpr, D: tl.constexpr):
    """Tokens first to first + C of [token, column] in float32, zeros outside."""
    token, column = tl.arange(0, C), tl.arange(0, D)
    mask = (token < count - first)[:, None] & (column < columns)[None, :]
    p += tl.cast(first, tl.int64) * by_token
    return tl.load(p + token[:, None] * by_token + column[None, :] * by_column, mask=mask, other=0).to(
        tl.float32
    )


@triton.jit
def _put(p, x, first, count, by_token, columns, C: tl.constexpr, D: tl.constexpr):
    token, column = tl.arange(0, C), tl.arange(0, D)
    mask = (token < count - first)[:, None] & (column < columns)[None, :]
    p += tl.cast(first, tl.int64) * by_token
    tl.store(p + token[:, None] * by_token + column[None, :], x.to(p.dtype.element_ty), mask=mask)


@triton.jit
def _gates(p, first, count, by_token, by_key, keys, KIND: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """[C] or [C, K], NaN where it is that; any number without decay, where it is not used."""
    if KIND == 1:
        token = tl.arange(0, C)
        p += tl.cast(first, tl.int64) * by_token
        g = tl.load(p + token * by_token, mask=token < count - first, other=0).to(tl.float32)
        g = tl.where(g < -120.0, -120.0, g)
    elif KIND == 2:
        g = _tile(p, first, count, by_token, by_key, keys, C, K)
        g = tl.where(g < -120.0, -120.0, g)
    else:
        g = 0.0
    return g


@triton.jit
def _below(C: tl.constexpr):
    """Ones below the diagonal."""
    place = tl.arange(0, C)
    return (place[:, None] > place[None, :]).to(tl.float32)


@triton.jit
def _diagonal(x, C: tl.constexpr):
    place = tl.arange(0, C)
    return tl.where(place[:, None] == place[None, :], x[:, None], 0.0)


@triton.jit
def _powers(g, KIND: tl.constexpr, C: tl.constexpr, SUMS: tl.constexpr):
    """e^c, e^{b_C - b}, e^{b_C} and e^g, to multiply [C, K], [C, K], [K, V] and [C, K]."""
    if KIND == 1:
        ends = tl.cumsum(g.to(tl.float64), 0)
        total = tl.sum(g.to(tl.float64), 0)
        into = tl.exp((ends - g).to(tl.float32))[:, None]
        out_of = tl.exp((total - ends).to(tl.float32))[:, None]
        whole = tl.exp(total.to(tl.float32))
        own = tl.exp(g)[:, None]
    elif KIND == 2:
        below = _below(C)
        into = tl.exp(tl.dot(below, g, input_precision=SUMS))
        out_of = tl.exp(tl.dot(tl.trans(below), g, input_precision=SUMS))
        whole = tl.exp(tl.sum(g, 0))[:, None]
        own = tl.exp(g)
    else:
        into, out_of, whole, own = 1.0, 1.0, 1.0, 1.0
    return into, out_of, whole, own


@triton.jit
def _matrix(g, KIND: tl.constexpr, C: tl.constexpr):
    """e^{c_i - b_j} below the diagonal and 0 elsewhere; ones below it where keys decay apart."""
    if KIND == 1:
        place = tl.arange(0, C)
        ends = tl.cumsum(g.to(tl.float64), 0)
        apart = ((ends - g)[:, None] - ends[None, :]).to(tl.float32)
        found = tl.exp(tl.where(place[:, None] > place[None, :], apart, float("-inf")))
    else:
        found = _below(C)
    return found


@triton.jit
def _border(g, half, C: tl.constexpr, SUMS: tl.constexpr):
    """Where a run of 2 half tokens is cut in two: its upper tokens [C, 1], the pairs of the same run [C, C],
    which gates lie between a token and the border [C, C], and e to their sum [C, K].
    """
    place = tl.arange(0, C)
    gate, token = place[None, :], place[:, None]
    upper = token % (2 * half) >= half
    between = (upper & (gate < token)) | ((token % (2 * half) < half) & (gate > token))
    passed = (between & (gate // half == token // half)).to(tl.float32)
    same = gate // (2 * half) == token // (2 * half)
    return upper, same, passed, tl.exp(tl.dot(passed, g, input_precision=SUMS))


@triton.jit
def _pairs(
    q, k, a, b, g, matrix,
    KIND: tl.constexpr, LOW: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """P of q and k, q and b, a and k, a and b, below the diagonal; without low rank all are the first."""
    if KIND == 2:
        qk = tl.zeros([C, C], dtype=tl.float32)
        qb, ak, ab = qk, qk, qk
        for level in range(LEVELS):
            upper, same, _, power = _border(g, 1 << level, C, SUMS)
            q_up, k_low = tl.where(upper, q * power, 0.0), tl.where(upper, 0.0, k * power)
            qk += tl.where(same, tl.dot(q_up, tl.trans(k_low), input_precision=PRECISION), 0.0)
            if LOW:
                a_up, b_low = tl.where(upper, a * power, 0.0), tl.where(upper, 0.0, b * power)
                qb += tl.where(same, tl.dot(q_up, tl.trans(b_low), input_precision=PRECISION), 0.0)
                ak += tl.where(same, tl.dot(a_up, tl.trans(k_low), input_precision=PRECISION), 0.0)
                ab += tl.where(same, tl.dot(a_up, tl.trans(b_low), input_precision=PRECISION), 0.0)
    else:
        qk = tl.dot(q, tl.trans(k), input_precision=PRECISION) * matrix
        qb, ak, ab = qk, qk, qk
        if LOW:
            qb = tl.dot(q, tl.trans(b), input_precision=PRECISION) * matrix
            ak = tl.dot(a, tl.trans(k), input_precision=PRECISION) * matrix
            ab = tl.dot(a, tl.trans(b), input_precision=PRECISION) * matrix
    return qk, qb, ak, ab


@triton.jit
def _inverse(x, C: tl.constexpr):
    """(I - x)^-1 for x below the diagonal, row by row: row i is e_i + x_i times the rows above."""
    place = tl.arange(0, C)
    found = (place[:, None] == place[None, :]).to(tl.float32)
    for i in range(1, C):
        here = (place == i)[:, None]
        row = tl.sum(tl.where(here, x, 0.0), 0)
        found += tl.where(here, tl.sum(row[:, None] * found, 0)[None, :], 0.0)
    return found


@triton.jit
def _mine(heads, values, V: tl.constexpr):
    """A program's sequence, head and tile of columns, and how many tiles there are. One axis of programs, as
    the others hold 65535 at most."""
    tiles = tl.cdiv(values, V)
    own = tl.program_id(0).to(tl.int64)
    return own // tiles // heads, own // tiles % heads, own % tiles, tiles


@triton.jit
def _place(n, cu, length, PACKED: tl.constexpr):
    """Of sequence n: its row, first token and length, and the tokens of all sequences before it."""
    if PACKED:
        start = tl.load(cu + n).to(tl.int64)
        count = tl.load(cu + n + 1).to(tl.int64) - start
        row, before = n * 0, start
    else:
        start, count, row, before = n * 0, n * 0 + length, n, n * length
    return row, start, count, before


@triton.jit
def _tokens(
    q, k, v, g, a, b, first, count, s, keys, values, scale,
    KIND: tl.constexpr, LOW: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """A chunk of every input; s are the strides of token and column of q, k, v, g, a, b."""
    q = _tile(q, first, count, s[0], s[1], keys, C, K) * scale
    k = _tile(k, first, count, s[2], s[3], keys, C, K)
    v = _tile(v, first, count, s[4], s[5], values, C, V)
    g = _gates(g, first, count, s[6], s[7], keys, KIND, C, K)
    if LOW:
        a = _tile(a, first, count, s[8], s[9], keys, C, K)
        b = _tile(b, first, count, s[10], s[11], keys, C, K)
    else:
        a, b = q, k
    return q, k, v, g, a, b


@triton.jit
def _solved(
    q, k, v, a, b, g, S,
    KIND: tl.constexpr, LOW: tl.constexpr, BONUS: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Powers, q with its own decay, P, (I - P_ab)^-1 and what the low-rank part writes, R."""
    powers = _powers(g, KIND, C, SUMS)
    matrix = _matrix(g, KIND, C)
    if not BONUS:
        q = q * powers[3]
    pairs = _pairs(q, k, a, b, g, matrix, KIND, LOW, C, LEVELS, PRECISION, SUMS)
    inverse, r = matrix, v
    if LOW:
        inverse = _inverse(pairs[3], C)
        z = tl.dot(pairs[2], v, input_precision=PRECISION)
        z += tl.dot(a * powers[0], S, input_precision=PRECISION)
        r = tl.dot(inverse, z, input_precision=PRECISION)
    return powers, matrix, q, pairs, inverse, r


@triton.jit
def _advanced(S, k, v, b, r, out_of, whole, LOW: tl.constexpr, PRECISION: tl.constexpr):
    """The state after the chunk."""
    S = S * whole + tl.dot(tl.trans(k * out_of), v, input_precision=PRECISION)
    if LOW:
        S += tl.dot(tl.trans(b * out_of), r, input_precision=PRECISION)
    return S


@triton.jit
def _forward(
    q, k, v, g, a, b, bonus, cu, initial, output, state, starts,
    rows, heads, s, scale, length, head_count, keys, all_values,
    KIND: tl.constexpr, LOW: tl.constexpr, BONUS: tl.constexpr, PACKED: tl.constexpr, INITIAL: tl.constexpr,
    OUTPUT: tl.constexpr, SEGMENT: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    LEVELS: tl.constexpr, PRECISION: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Output and last state, or else (not OUTPUT) the state before every SEGMENT chunks."""
    n, h, tile, _ = _mine(head_count, all_values, V)
    column = tile * V
    values = all_values - column
    row, start, count, before = _place(n, cu, length, PACKED)
    q += row * rows[0] + start * s[0] + h * heads[0]
    k += row * rows[1] + start * s[2] + h * heads[1]
    v += row * rows[2] + start * s[4] + h * heads[2] + column * s[5]
    if KIND != 0:
        g += row * rows[3] + start * s[6] + h * heads[3]
    if LOW:
        a += row * rows[4] + start * s[8] + h * heads[4]
        b += row * rows[5] + start * s[10] + h * heads[5]
    wide = head_count * all_values
    size = keys * all_values
    own = (n * head_count + h) * size + column
    if OUTPUT:
        output += (row * length + start) * wide + h * all_values + column
    else:
        # Sequences before this one have at most so many segments.
        starts += ((before // (SEGMENT * C) + n) * head_count + h) * size + column
    u = tl.full([1, K], 1.0, dtype=tl.float32)
    if BONUS:
        u = tl.sum(_tile(bonus, h, h + 1, keys, 1, keys, 16, K), 0)[None, :]
    S = tl.zeros([K, V], dtype=tl.float32)
    if INITIAL:
        S += _tile(initial + own, 0, keys, all_values, 1, values, K, V)
    for first in range(0, count, C):
        if not OUTPUT and first % (SEGMENT * C) == 0:
            _put(starts, S, 0, keys, all_values, values, K, V)
            starts += head_count * size
        x = _tokens(q, k, v, g, a, b, first, count, s, keys, values, scale, KIND, LOW, C, K, V)
        found = _solved(x[0], x[1], x[2], x[4], x[5], x[3], S, KIND, LOW, BONUS, C, LEVELS, PRECISION, SUMS)
        powers, pairs, r = found[0], found[3], found[5]
        if OUTPUT:
            own_k = tl.sum(x[0] * u * x[1], 1)
            o = tl.dot(found[2] * powers[0], S, input_precision=PRECISION)
            o += tl.dot(pairs[0], x[2], input_precision=PRECISION) + own_k[:, None] * x[2]
            if LOW:
                o += tl.dot(pairs[1], r, input_precision=PRECISION)
                if not BONUS:
                    o += tl.sum(x[0] * x[5], 1)[:, None] * r
            _put(output, o, first, count, wide, values, C, V)
        S = _advanced(S, x[1], x[2], x[5], r, powers[1], powers[2], LOW, PRECISION)
    if OUTPUT:
        _put(state + own, S, 0, keys, all_values, values, K, V)


@triton.jit
def _backward(
    q, k, v, g, a, b, bonus, cu, grad_output, grad_state, starts, inner,
    dq, dk, dv, dg, da, db, dbonus, dinitial,
    rows, heads, s, scale, length, head_count, keys, all_values, gap,
    KIND: tl.constexpr, LOW: tl.constexpr, BONUS: tl.constexpr, PACKED: tl.constexpr,
    SEGMENT: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    LEVELS: tl.constexpr, PRECISION: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    n, h, tile, tiles = _mine(head_count, all_values, V)
    column = tile * V
    values = all_values - column
    row, start, count, before = _place(n, cu, length, PACKED)
    q += row * rows[0] + start * s[0] + h * heads[0]
    k += row * rows[1] + start * s[2] + h * heads[1]
    v += row * rows[2] + start * s[4] + h * heads[2] + column * s[5]
    if KIND != 0:
        g += row * rows[3] + start * s[6] + h * heads[3]
    if LOW:
        a += row * rows[4] + start * s[8] + h * heads[4]
        b += row * rows[5] + start * s[10] + h * heads[5]
    grad_output += row * rows[6] + start * s[12] + h * heads[6] + column * s[13]
    token = row * length + start
    across, wide = head_count * keys, head_count * all_values
    dv += token * wide + h * all_values + column
    # Sums over columns: every tile has its own copy, ``gap`` tokens long.
    of_keys = (tile * gap + token) * across + h * keys
    of_heads = (tile * gap + token) * head_count + h
    size = keys * all_values
    own = (n * head_count + h) * size + column
    starts += ((before // (SEGMENT * C) + n) * head_count + h) * size + column
    inner += tl.program_id(0).to(tl.int64) * (SEGMENT * K * V)
    u = tl.full([1, K], 1.0, dtype=tl.float32)
    if BONUS:
        u = tl.sum(_tile(bonus, h, h + 1, keys, 1, keys, 16, K), 0)[None, :]
    du = tl.zeros([K], dtype=tl.float32)
    dS = _tile(grad_state + own, 0, keys, all_values, 1, values, K, V)
    place = tl.arange(0, C)
    below = _below(C)
    above = tl.trans(below)
    segments = tl.cdiv(count, SEGMENT * C)
    for back in range(segments):
        segment = segments - 1 - back
        origin = segment * SEGMENT * C
        chunks = tl.cdiv(tl.minimum(count - origin, SEGMENT * C), C)
        S = _tile(starts + segment * head_count * size, 0, keys, all_values, 1, values, K, V)
        for i in range(chunks):
            _put(inner + i * K * V, S, 0, K, V, V, K, V)
            x = _tokens(q, k, v, g, a, b, origin + i * C, count, s, keys, values, scale, KIND, LOW, C, K, V)
            f = _solved(x[0], x[1], x[2], x[4], x[5], x[3], S, KIND, LOW, BONUS, C, LEVELS, PRECISION, SUMS)
            S = _advanced(S, x[1], x[2], x[5], f[5], f[0][1], f[0][2], LOW, PRECISION)
        tl.debug_barrier()
        for j in range(chunks):
            i = chunks - 1 - j
            first = origin + i * C
            S = _tile(inner + i * K * V, 0, K, V, 1, V, K, V)
            x = _tokens(q, k, v, g, a, b, first, count, s, keys, values, scale, KIND, LOW, C, K, V)
            q_, k_, v_, g_, a_, b_ = x[0], x[1], x[2], x[3], x[4], x[5]
            do = _tile(grad_output, first, count, s[12], s[13], values, C, V)
            f = _solved(q_, k_, v_, a_, b_, g_, S, KIND, LOW, BONUS, C, LEVELS, PRECISION, SUMS)
            into, out_of, whole, grow = f[0][0], f[0][1], f[0][2], f[0][3]
            matrix, qx, r = f[1], f[2], f[5]
            qk, qb, ak = f[3][0], f[3][1], f[3][2]
            qr, kw = qx * into, k_ * out_of

            own_k = tl.sum(do * v_, 1)
            v_own = tl.sum(q_ * u * k_, 1)
            grad_v = tl.dot(tl.trans(qk), do, input_precision=PRECISION) + v_own[:, None] * do
            grad_v += tl.dot(kw, dS, input_precision=PRECISION)
            carried = dS * whole + tl.dot(tl.trans(qr), do, input_precision=PRECISION)
            dqk = tl.dot(do, tl.trans(v_), input_precision=PRECISION)
            dqr = tl.dot(do, tl.trans(S), input_precision=PRECISION)
            dkw = tl.dot(v_, tl.trans(dS), input_precision=PRECISION)
            read, written = qr * dqr, kw * dkw
            if LOW:
                ar, bw = a_ * into, b_ * out_of
                dr = tl.dot(tl.trans(qb), do, input_precision=PRECISION)
                dr += tl.dot(bw, dS, input_precision=PRECISION)
                if not BONUS:
                    dr += tl.sum(q_ * b_, 1)[:, None] * do
                dz = tl.dot(tl.trans(f[4]), dr, input_precision=PRECISION)
                grad_v += tl.dot(tl.trans(ak), dz, input_precision=PRECISION)
                carried += tl.dot(tl.trans(ar), dz, input_precision=PRECISION)
                dqb = tl.dot(do, tl.trans(r), input_precision=PRECISION)
                dak = tl.dot(dz, tl.trans(v_), input_precision=PRECISION)
                dab = tl.dot(dz, tl.trans(r), input_precision=PRECISION)
                dar = tl.dot(dz, tl.trans(S), input_precision=PRECISION)
                dbw = tl.dot(r, tl.trans(dS), input_precision=PRECISION)
                read += ar * dar
                written += bw * dbw
            _put(dv, grad_v, first, count, wide, values, C, V)

            grad_q, grad_k = dqr * into, dkw * out_of
            if LOW:
                grad_a, grad_b = dar * into, dbw * out_of
            if KIND == 2:
                grad_g = tl.dot(above, read, input_precision=SUMS)
                grad_g += tl.dot(below, written, input_precision=SUMS)
                grad_g += tl.sum(dS * S, 1)[None, :] * tl.trans(whole)
                for level in range(LEVELS):
                    upper, same, passed, power = _border(g_, 1 << level, C, SUMS)
                    q_up, k_low = tl.where(upper, qx * power, 0.0), tl.where(upper, 0.0, k_ * power)
                    inside = tl.where(same, dqk, 0.0)
                    dq_up = tl.dot(inside, k_low, input_precision=PRECISION)
                    dk_low = tl.dot(tl.trans(inside), q_up, input_precision=PRECISION)
                    if LOW:
                        a_up, b_low = tl.where(upper, a_ * power, 0.0), tl.where(upper, 0.0, b_ * power)
                        to_b, from_a = tl.where(same, dqb, 0.0), tl.where(same, dak, 0.0)
                        low = tl.where(same, dab, 0.0)
                        dq_up += tl.dot(to_b, b_low, input_precision=PRECISION)
                        dk_low += tl.dot(tl.trans(from_a), a_up, input_precision=PRECISION)
                        da_up = tl.dot(from_a, k_low, input_precision=PRECISION)
                        da_up += tl.dot(low, b_low, input_precision=PRECISION)
                        db_low = tl.dot(tl.trans(to_b), q_up, input_precision=PRECISION)
                        db_low += tl.dot(tl.trans(low), a_up, input_precision=PRECISION)
                    apart = q_up * dq_up + k_low * dk_low
                    grad_q += tl.where(upper, dq_up * power, 0.0)
                    grad_k += tl.where(upper, 0.0, dk_low * power)
                    if LOW:
                        apart += a_up * da_up + b_low * db_low
                        grad_a += tl.where(upper, da_up * power, 0.0)
                        grad_b += tl.where(upper, 0.0, db_low * power)
                    grad_g += tl.dot(tl.trans(passed), apart, input_precision=SUMS)
            else:
                straddling = dqk * qk
                dqk = dqk * matrix
                grad_q += tl.dot(dqk, k_, input_precision=PRECISION)
                grad_k += tl.dot(tl.trans(dqk), qx, input_precision=PRECISION)
                if LOW:
                    straddling += dqb * qb + dak * ak + dab * f[3][3]
                    dqb, dak, dab = dqb * matrix, dak * matrix, dab * matrix
                    grad_q += tl.dot(dqb, b_, input_precision=PRECISION)
                    grad_k += tl.dot(tl.trans(dak), a_, input_precision=PRECISION)
                    grad_a += tl.dot(dak, k_, input_precision=PRECISION)
                    grad_a += tl.dot(dab, b_, input_precision=PRECISION)
                    grad_b += tl.dot(tl.trans(dqb), qx, input_precision=PRECISION)
                    grad_b += tl.dot(tl.trans(dab), a_, input_precision=PRECISION)
                if KIND == 1:
                    grad_g = tl.sum(tl.dot(above, straddling, input_precision=SUMS) * below, 1)
                    grad_g += tl.sum(above * tl.sum(read, 1)[None, :], 1)
                    grad_g += tl.sum(below * tl.sum(written, 1)[None, :], 1)
                    grad_g += whole * tl.sum(tl.sum(dS * S, 1), 0)
            if not BONUS:
                if KIND == 2:
                    grad_g += qx * grad_q
                if KIND == 1:
                    grad_g += tl.sum(qx * grad_q, 1)
                grad_q = grad_q * grow
            grad_q += own_k[:, None] * u * k_
            grad_k += own_k[:, None] * u * q_
            if BONUS:
                du += tl.sum(own_k[:, None] * q_ * k_, 0)
            if LOW:
                if not BONUS:
                    own_b = tl.sum(do * r, 1)[:, None]
                    grad_q += own_b * b_
                    grad_b += own_b * q_
                _put(da + of_keys, grad_a, first, count, across, keys, C, K)
                _put(db + of_keys, grad_b, first, count, across, keys, C, K)
            _put(dq + of_keys, grad_q * scale, first, count, across, keys, C, K)
            _put(dk + of_keys, grad_k, first, count, across, keys, C, K)
            if KIND == 1:
                at = first + place
                tl.store(dg + of_heads + at.to(tl.int64) * head_count, grad_g, mask=at < count)
            if KIND == 2:
                _put(dg + of_keys, grad_g, first, count, across, keys, C, K)
            dS = carried
        tl.debug_barrier()
    _put(dinitial + own, dS, 0, keys, all_values, values, K, V)
    if BONUS:
        at = tl.arange(0, K)
        to = dbonus + (tile * (tl.num_programs(0) // tiles) + n * head_count + h) * keys
        tl.store(to + at, du, mask=at < keys)


def refuses(q: Tensor | None = None, k: Tensor | None = None, **others: Any) -> str | None:
    """Why these kernels cannot run a call of ``state_scan``; None when they can."""
    if q is None:
        return None
    if q.dtype == torch.float64:
        return "its state is float32, the input is float64"
    if q.shape[3] > 256:
        return f"it holds at most 256 keys in registers, q has {q.shape[3]}"
    tokens = (q, k, *(others.get(name) for name in ("v", "g", "a", "b")))
    if any(32 * x.stride(1) + 256 * x.stride(-1) >= 1 << 31 for x in tokens if isinstance(x, Tensor)):
        return "the strides of a chunk of tokens reach beyond 2^31 elements"
    return None


class _Launch:
    """What forward and backward share: sizes, specialisations and strides of a call."""

    def __init__(
        self,
        tokens: tuple[Tensor | None, ...],
        bonus: Tensor | None,
        scale: float,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> None:
        q, _, v, g, a, _ = tokens[:6]
        assert q is not None
        assert v is not None
        self.rows, self.length, self.heads, self.keys = q.shape
        self.values = v.shape[3]
        self.sequences = self.rows if cu_seqlens is None else cu_seqlens.shape[0] - 1
        kind = 0 if g is None else g.dim() - 2
        chunk, columns, warps = table(kind, a is not None, self.keys, reverse)
        width = max(16, triton.next_power_of_2(self.keys))
        columns = min(columns, max(16, triton.next_power_of_2(self.values)))
        self.tiles, self.segment = triton.cdiv(self.values, columns), SEGMENT * chunk
        self.grid = (self.tiles * self.sequences * self.heads,)
        self.inner = self.grid[0] * SEGMENT * width * columns
        self.segments = self.rows * self.length // self.segment + self.sequences
        self.sizes = (
            tuple(0 if x is None else x.stride(0) for x in tokens),
            tuple(0 if x is None else x.stride(2) for x in tokens),
            sum(((0, 0) if x is None else (x.stride(1), x.stride(-1)) for x in tokens), ()),
            scale,
            self.length,
            self.heads,
            self.keys,
            self.values,
        )
        self.options = {
            "KIND": kind,
            "LOW": a is not None,
            "BONUS": bonus is not None,
            "PACKED": cu_seqlens is not None,
            "SEGMENT": SEGMENT,
            "C": chunk,
            "K": width,
            "V": columns,
            "LEVELS": chunk.bit_length() - 1,
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
            "SUMS": "ieee" if q.dtype == torch.float32 else "tf32x3",
            "num_warps": warps,
            "num_stages": 1,
        }


def table(kind: int, low_rank: bool, keys: int, reverse: bool) -> tuple[int, int, int]:
    """Tokens in a chunk, columns in a tile and warps, so that the state and a chunk's rows fit registers.

    Chosen by the registers that the compiler reports for compute capability 9.0; no time was measured.
    """
    chunk = 16 if low_rank or kind == 2 or keys > 128 else 32
    columns = 64 if keys <= 64 else 32 if keys <= 128 else 16
    if reverse and keys > 64:
        columns = max(16, columns // 2)
    return chunk, columns, 8 if reverse or keys > 128 else 4


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output [B, T, H, V] and the last state [N, H, K, V]; arguments as in ``scan.state_scan``.

    Tokens may have any strides; bonus, initial_state and cu_seqlens are copied unless contiguous.
    """
    call = _Launch((q, k, v, g, a, b), bonus, scale, cu_seqlens, reverse=False)
    bonus, cu_seqlens = _dense(bonus), _dense(cu_seqlens)
    output = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    state = _states(q, call.sequences, call)
    _run_forward(call, q, k, v, g, a, b, bonus, cu_seqlens, initial_state, output, state, None)
    return output, state


def backward(
    grad_output: Tensor | None,
    grad_state: Tensor | None,
    needed: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, g, a, b, bonus and initial_state, None where that is absent.

    An absent gradient counts as zeros, and a state's is copied if it is not contiguous.
    """
    grad_output = torch.zeros_like(v) if grad_output is None else grad_output
    call = _Launch((q, k, v, g, a, b, grad_output), bonus, scale, cu_seqlens, reverse=True)
    bonus, cu_seqlens = _dense(bonus), _dense(cu_seqlens)
    grad_state = _states(q, call.sequences, call).zero_() if grad_state is None else grad_state.contiguous()
    starts = _states(q, call.segments, call)
    _run_forward(call, q, k, v, g, a, b, bonus, cu_seqlens, initial_state, None, None, starts)

    def parts(x: Tensor | None) -> Tensor | None:
        """For every tile of columns its own part of the gradient."""
        return (
            None if x is None else torch.empty((call.tiles, *x.shape), dtype=torch.float32, device=q.device)
        )

    made = [parts(x) for x in (q, k, None, g, a, b)]
    made[2] = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    shape = (call.tiles, call.sequences, call.heads, call.keys)
    grad_bonus = None if bonus is None else torch.empty(shape, dtype=torch.float32, device=q.device)
    first, inner = torch.empty_like(grad_state), grad_state.new_empty(call.inner)
    given = (q, k, v, g, a, b, bonus, cu_seqlens, grad_output, grad_state, starts, inner)
    if call.grid[0]:
        _backward[call.grid](
            *given, *made, grad_bonus, first, *call.sizes, call.rows * call.length, **call.options
        )
    summed = [x if x is None or i == 2 else x.sum(0) for i, x in enumerate(made)]
    return (
        *summed,
        None if grad_bonus is None else grad_bonus.sum((0, 1)),
        None if initial_state is None else first,
    )


def _run_forward(call: _Launch, *arguments: Tensor | None) -> None:
    """Arguments as in ``_forward`` up to ``starts``; without an output it finds the starts of segments."""
    initial_state, output, state, starts = arguments[-4:]
    stored = (_dense(initial_state), output, state, starts)
    flags = {"INITIAL": initial_state is not None, "OUTPUT": output is not None}
    if call.grid[0]:
        _forward[call.grid](*arguments[:-4], *stored, *call.sizes, **call.options, **flags)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _states(q: Tensor, count: int, call: _Launch) -> Tensor:
    return torch.empty((count, call.heads, call.keys, call.values), dtype=torch.float32, device=q.device)
