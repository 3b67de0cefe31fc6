"""The selective scan in Triton: a program holds the states of some channels and walks the tokens.

What the next tokens need is fetched ahead by the loop's pipeline (``num_stages``). The backward first keeps
the states of every CHUNK-th token; then, chunk by chunk from the last, it recomputes the states inside and
walks back. Sums over channels leave a program as one partial sum for each block of channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldsim_kernels.selective_torch import Arguments

CHUNK = 32
FORWARD = {"CHANNELS": 8, "STAGES": 8, "num_warps": 1}
BACKWARD = {"CHANNELS": 32, "num_warps": 4}


@triton.jit
def _softplus(x):
    e = tl.exp2(-tl.abs(x) * 1.4426950408889634)
    # log1p(e): the quotient takes back what rounding 1 + e lost.
    one = 1.0 + e
    rest = one - 1.0
    log1p = tl.where(rest == 0.0, e, tl.log(one) * (e / tl.where(rest == 0.0, 1.0, rest)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _sigmoid(x):
    e = tl.exp2(-tl.abs(x) * 1.4426950408889634)
    return tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _step(delta, t, stride, bias, inside, SOFTPLUS: tl.constexpr):
    """The raw step with its bias, and the step."""
    raw = tl.load(delta + t * stride, mask=inside, other=0).to(tl.float32) + bias
    step = raw
    if SOFTPLUS:
        step = _softplus(raw)
    # Channels past the end must stay at rest.
    return raw, tl.where(inside, step, 0.0)


@triton.jit
def _mine(width, channels, CHANNELS: tl.constexpr):
    """A program's member of the batch, group and block of its channels, and how many blocks a group has. One
    axis of programs, as the others hold 65535 at most."""
    groups, blocks = width // channels, tl.cdiv(channels, CHANNELS)
    own = tl.program_id(0).to(tl.int64)
    return own // blocks // groups, own // blocks % groups, own % blocks, blocks


@triton.jit
def _forward(
    u, delta, a, b, c, d, z, bias, initial, output, state, length, width, channels, states,
    u_batch, u_time, u_lane, delta_batch, delta_time, delta_lane, z_batch, z_time, z_lane,
    b_batch, b_time, b_group, b_n, c_batch, c_time, c_group, c_n,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    batch, group, block, _ = _mine(width, channels, CHANNELS)
    own = block * CHANNELS + tl.arange(0, CHANNELS)
    inside, lane = own < channels, group * channels + own
    n = tl.arange(0, STATES)
    real = n < states
    both = inside[:, None] & real[None, :]
    rates = tl.load(a + lane[:, None] * states + n[None, :], mask=both, other=0) * 1.4426950408889634
    h = tl.zeros([CHANNELS, STATES], dtype=tl.float32)
    corner = (batch * width + lane)[:, None] * states + n[None, :]
    if HAS_INITIAL:
        h = tl.load(initial + corner, mask=both, other=0)
    shift, skip = tl.zeros([CHANNELS], dtype=tl.float32), tl.zeros([CHANNELS], dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + lane, mask=inside, other=0)
    if HAS_D:
        skip = tl.load(d + lane, mask=inside, other=0)
    u += batch * u_batch + lane * u_lane
    delta += batch * delta_batch + lane * delta_lane
    z += batch * z_batch + lane * z_lane
    b += batch * b_batch + group * b_group + n * b_n
    c += batch * c_batch + group * c_group + n * c_n
    output += batch * length * width + lane
    # Products with a token must not wrap at 2^31.
    u_time, delta_time, z_time = (
        tl.cast(u_time, tl.int64),
        tl.cast(delta_time, tl.int64),
        tl.cast(z_time, tl.int64),
    )
    b_time, c_time, row = tl.cast(b_time, tl.int64), tl.cast(c_time, tl.int64), tl.cast(width, tl.int64)
    for t in tl.range(0, length, num_stages=STAGES):
        _raw, step = _step(delta, t, delta_time, shift, inside, SOFTPLUS)
        x = tl.load(u + t * u_time, mask=inside, other=0).to(tl.float32)
        written = tl.load(b + t * b_time, mask=real, other=0).to(tl.float32)
        read = tl.load(c + t * c_time, mask=real, other=0).to(tl.float32)
        h = tl.exp2(step[:, None] * rates) * h + (step * x)[:, None] * written[None, :]
        y = tl.sum(h * read[None, :], axis=1) + skip * x
        if HAS_Z:
            gate = tl.load(z + t * z_time, mask=inside, other=0).to(tl.float32)
            y *= gate * _sigmoid(gate)
        tl.store(output + t * row, y, mask=inside)
    tl.store(state + corner, h, mask=both)


@triton.jit
def _backward(
    u, delta, a, b, c, d, z, bias, initial, grad, grad_state,
    du, ddelta, da, db, dc, dd, dz, dbias, dinitial, kept, inner,
    length, width, channels, states,
    u_batch, u_time, u_lane, delta_batch, delta_time, delta_lane, z_batch, z_time, z_lane,
    g_batch, g_time, g_lane, b_batch, b_time, b_group, b_n, c_batch, c_time, c_group, c_n,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HAS_GRAD: tl.constexpr, HAS_STATE: tl.constexpr,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    batch, group, block, blocks = _mine(width, channels, CHANNELS)
    own = block * CHANNELS + tl.arange(0, CHANNELS)
    inside, lane = own < channels, group * channels + own
    n = tl.arange(0, STATES)
    real = n < states
    both = inside[:, None] & real[None, :]
    rates = tl.load(a + lane[:, None] * states + n[None, :], mask=both, other=0)
    h = tl.zeros([CHANNELS, STATES], dtype=tl.float32)
    corner = (batch * width + lane)[:, None] * states + n[None, :]
    if HAS_INITIAL:
        h = tl.load(initial + corner, mask=both, other=0)
    shift, skip = tl.zeros([CHANNELS], dtype=tl.float32), tl.zeros([CHANNELS], dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + lane, mask=inside, other=0)
    if HAS_D:
        skip = tl.load(d + lane, mask=inside, other=0)
    u += batch * u_batch + lane * u_lane
    delta += batch * delta_batch + lane * delta_lane
    z += batch * z_batch + lane * z_lane
    grad += batch * g_batch + lane * g_lane
    b += batch * b_batch + group * b_group + n * b_n
    c += batch * c_batch + group * c_group + n * c_n
    u_time, delta_time, z_time = (
        tl.cast(u_time, tl.int64),
        tl.cast(delta_time, tl.int64),
        tl.cast(z_time, tl.int64),
    )
    b_time, c_time, g_time = tl.cast(b_time, tl.int64), tl.cast(c_time, tl.int64), tl.cast(g_time, tl.int64)
    row, chunks = tl.cast(width, tl.int64), tl.cdiv(length, CHUNK)
    start = batch * length * width + lane
    place = own[:, None] * STATES + n[None, :]
    program, groups = tl.program_id(0).to(tl.int64), width // channels
    padded = tl.cast(CHANNELS * STATES, tl.int64)
    kept += program * chunks * padded + (place - block * padded)
    inner += program * CHUNK * padded + (place - block * padded)
    for t in range(length):
        if t % CHUNK == 0:
            tl.store(kept + (t // CHUNK) * padded, h)
        _raw, step = _step(delta, t, delta_time, shift, inside, SOFTPLUS)
        x = tl.load(u + t * u_time, mask=inside, other=0).to(tl.float32)
        written = tl.load(b + t * b_time, mask=real, other=0).to(tl.float32)
        decay = tl.exp2(step[:, None] * rates * 1.4426950408889634)
        h = decay * h + (step * x)[:, None] * written[None, :]

    tl.debug_barrier()
    carried = tl.zeros([CHANNELS, STATES], dtype=tl.float32)
    if HAS_STATE:
        carried = tl.load(grad_state + corner, mask=both, other=0)
    sum_a = tl.zeros([CHANNELS, STATES], dtype=tl.float32)
    sum_d, sum_bias = tl.zeros([CHANNELS], dtype=tl.float32), tl.zeros([CHANNELS], dtype=tl.float32)
    part = block * (tl.num_programs(0) // blocks // groups) + batch
    for back in range(chunks):
        chunk = chunks - 1 - back
        first = chunk * CHUNK
        size = tl.minimum(length - first, CHUNK)
        h = tl.load(kept + chunk * padded)
        for k in range(size):
            t = first + k
            tl.store(inner + k * padded, h)
            _raw, step = _step(delta, t, delta_time, shift, inside, SOFTPLUS)
            x = tl.load(u + t * u_time, mask=inside, other=0).to(tl.float32)
            written = tl.load(b + t * b_time, mask=real, other=0).to(tl.float32)
            h = (
                tl.exp2(step[:, None] * rates * 1.4426950408889634) * h
                + (step * x)[:, None] * written[None, :]
            )
        # Another thread may read what one has written.
        tl.debug_barrier()
        chunk_a = tl.zeros([CHANNELS, STATES], dtype=tl.float32)
        for k in range(size):
            t = first + size - 1 - k
            before = tl.load(inner + (size - 1 - k) * padded)
            raw, step = _step(delta, t, delta_time, shift, inside, SOFTPLUS)
            x = tl.load(u + t * u_time, mask=inside, other=0).to(tl.float32)
            written = tl.load(b + t * b_time, mask=real, other=0).to(tl.float32)
            read = tl.load(c + t * c_time, mask=real, other=0).to(tl.float32)
            g = tl.zeros([CHANNELS], dtype=tl.float32)
            if HAS_GRAD:
                g = tl.load(grad + t * g_time, mask=inside, other=0).to(tl.float32)
            decay = tl.exp2(step[:, None] * rates * 1.4426950408889634)
            after = decay * before + (step * x)[:, None] * written[None, :]
            if HAS_Z:
                gate = tl.load(z + t * z_time, mask=inside, other=0).to(tl.float32)
                slope = _sigmoid(gate)
                y = tl.sum(after * read[None, :], axis=1) + skip * x
                tl.store(dz + start + t * row, g * y * slope * (1.0 + gate * (1.0 - slope)), mask=inside)
                g *= gate * slope
            multiplier = carried + g[:, None] * read[None, :]
            line = ((part * length + t) * groups + group) * states + n
            tl.store(dc + line, tl.sum(g[:, None] * after, axis=0), mask=real)
            tl.store(db + line, tl.sum(multiplier * (step * x)[:, None], axis=0), mask=real)
            by_b = tl.sum(multiplier * written[None, :], axis=1)
            carried = decay * multiplier
            product = carried * before
            dstep = tl.sum(product * rates, axis=1) + x * by_b
            if SOFTPLUS:
                dstep *= _sigmoid(raw)
            chunk_a += product * step[:, None]
            tl.store(du + start + t * row, g * skip + step * by_b, mask=inside)
            tl.store(ddelta + start + t * row, dstep, mask=inside)
            sum_d += g * x
            sum_bias += tl.where(inside, dstep, 0.0)
        sum_a += chunk_a
        tl.debug_barrier()
    tl.store(da + corner, sum_a, mask=both)
    tl.store(dinitial + corner, carried, mask=both)
    tl.store(dd + batch * width + lane, sum_d, mask=inside)
    tl.store(dbias + batch * width + lane, sum_bias, mask=inside)


def _given(call: Arguments) -> tuple[list[Tensor], dict[str, bool | int]]:
    """Pointers to the arguments, u standing for absent ones, and what the kernels specialise on."""
    small = (call.A, call.D, call.delta_bias, call.initial_state)
    rates, skip, bias, initial = (None if x is None else x.contiguous() for x in small)
    pointers = (call.u, call.delta, rates, call.B, call.C, skip, call.z, bias, initial)
    settings: dict[str, bool | int] = {
        "HAS_D": skip is not None,
        "HAS_Z": call.z is not None,
        "HAS_BIAS": bias is not None,
        "HAS_INITIAL": initial is not None,
        "SOFTPLUS": call.softplus,
        "STATES": triton.next_power_of_2(call.A.shape[1]),
    }
    return [call.u if x is None else x for x in pointers], settings


def _blocks(call: Arguments, size: int) -> tuple[int, int]:
    """Blocks of ``size`` channels in a group, and programs."""
    batch, _, channels = call.u.shape
    groups = call.B.shape[2]
    blocks = triton.cdiv(channels // groups, size)
    return blocks, blocks * groups * batch


def forward(call: Arguments) -> tuple[Tensor, Tensor]:
    """Output in the dtype of u, and state. u, delta, B, C and z may have any dtype, the others float32."""
    batch, length, channels = call.u.shape
    states, share = call.A.shape[1], channels // call.B.shape[2]
    output = call.u.new_empty(call.u.shape)
    state = output.new_empty((batch, channels, states), dtype=torch.float32)
    pointers, settings = _given(call)
    z = pointers[6]
    _, programs = _blocks(call, FORWARD["CHANNELS"])
    _forward[(programs,)](
        *pointers, output, state, length, channels, share, states,
        *call.u.stride(), *call.delta.stride(), *z.stride(), *call.B.stride(), *call.C.stride(),
        **settings, **FORWARD,
    )  # fmt: skip
    return output, state


def backward(call: Arguments, grad: Tensor | None, grad_state: Tensor | None) -> list[Tensor]:
    """Gradients in the order of the arguments; those of absent ones mean nothing."""
    batch, length, channels = call.u.shape
    groups, states = call.B.shape[2:]
    pointers, settings = _given(call)
    blocks, programs = _blocks(call, BACKWARD["CHANNELS"])
    du, ddelta, dz = (x.new_empty(x.shape) for x in (call.u, call.delta, pointers[6]))
    wide = call.u.new_empty(0, dtype=torch.float32)
    da, dinitial = (wide.new_empty(batch, channels, states) for _ in range(2))
    db, dc = (wide.new_empty(blocks, batch, length, groups, states) for _ in range(2))
    dd, dbias = (wide.new_empty(batch, channels) for _ in range(2))
    size = BACKWARD["CHANNELS"] * int(settings["STATES"])
    kept = wide.new_empty(programs, triton.cdiv(length, CHUNK), size)
    inner = wide.new_empty(programs, CHUNK, size)
    into = call.u if grad is None else grad
    last = call.u if grad_state is None else grad_state.contiguous()
    _backward[(programs,)](
        *pointers, into, last, du, ddelta, da, db, dc, dd, dz, dbias, dinitial, kept, inner,
        length, channels, channels // groups, states,
        *call.u.stride(), *call.delta.stride(), *pointers[6].stride(), *into.stride(),
        *call.B.stride(), *call.C.stride(),
        HAS_GRAD=grad is not None, HAS_STATE=grad_state is not None, CHUNK=CHUNK, **settings, **BACKWARD,
    )  # fmt: skip
    return [du, ddelta, da.sum(0), db.sum(0), dc.sum(0), dd.sum(0), dz, dbias.sum(0), dinitial]
