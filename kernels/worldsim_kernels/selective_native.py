"""The selective scan in C (csrc/selective_scan.c)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.selective_torch import Arguments

STATES = 256
"""The most states per channel that it takes."""


@cache
def _function() -> Any:
    found = native.library("selective_scan").selective_scan
    found.argtypes, found.restype = [c_void_p, c_void_p, c_void_p, c_int64, c_int], c_int
    return found


def _run(
    call: Arguments, grads: Sequence[Tensor | None], made: Sequence[Tensor | None], blocks: int, each: int
) -> None:
    """``made`` in the order of job_t; ``each``: operations for one state at one token."""
    batch, length, channels = call.u.shape
    _, _, groups, states = call.B.shape
    grad = grads[0]
    small = [
        None if x is None else x.contiguous()
        for x in (call.D, call.delta_bias, call.initial_state, grads[1], call.A * 1.4426950408889634)
    ]
    skip, bias, initial, grad_state, rates = small
    tensors = (
        call.u,
        call.delta,
        rates,
        call.B,
        call.C,
        skip,
        call.z,
        bias,
        initial,
        grad,
        grad_state,
        *made,
    )
    addresses = (c_void_p * 22)(*map(native.pointer, tensors))
    sizes = (c_int64 * 6)(batch, length, groups, channels // groups, states, call.softplus)
    strides = [*call.u.stride(), *call.delta.stride()]
    strides += [*native.strides(call.z, 3), *native.strides(grad, 3), *call.B.stride(), *call.C.stride()]
    threads = native.threads(each * call.u.numel() * states)
    if _function()(addresses, sizes, (c_int64 * 20)(*strides), blocks, threads):
        raise MemoryError("selective_scan: no memory for the states that its backward keeps")


def forward(call: Arguments) -> tuple[Tensor, Tensor]:
    batch, _, channels = call.u.shape
    output = torch.empty(call.u.shape, dtype=call.u.dtype)
    state = output.new_empty(batch, channels, call.A.shape[1])
    _run(call, (None, None), (output, state, *[None] * 9), 0, 20)
    return output, state


def backward(call: Arguments, grad: Tensor | None, grad_state: Tensor | None) -> list[Tensor]:
    """Gradients in the order of the arguments; those of absent ones mean nothing.

    Sums over channels are added up by so many blocks of tiles, sums over time by batch member; the number
    of neither depends on the threads, so the bits do not.
    """
    batch, length, channels = call.u.shape
    groups, states = call.B.shape[2:]
    blocks = max(1, min(8, -(-channels // groups // 16)))
    du, ddelta, dz = (torch.empty(call.u.shape, dtype=call.u.dtype) for _ in range(3))
    db, dc = (du.new_zeros(blocks, batch, length, groups, states) for _ in range(2))
    da, dinitial = (du.new_empty(batch, channels, states) for _ in range(2))
    dd, dbias = (du.new_empty(batch, channels) for _ in range(2))
    _run(call, (grad, grad_state), (None, None, du, ddelta, da, db, dc, dd, dz, dbias, dinitial), blocks, 60)
    return [du, ddelta, da.sum(0), db.sum(0), dc.sum(0), dd.sum(0), dz, dbias.sum(0), dinitial]
