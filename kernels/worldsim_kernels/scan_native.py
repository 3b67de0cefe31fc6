"""The state recurrence in C (``csrc/state_scan.c``): forward and backward for one processor's caches.

Float32 and float64 run as they are and with any strides; float16 and bfloat16 are converted whole to float32.
The bits do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.scan import offsets_of, state_dtype


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 4))


_SIZES = ("sequences", "heads", "keys", "values", "length", "width", "group", "threads", "head_gate")
_READ = ("q", "k", "v", "g", "a", "b", "bonus", "initial", "output", "state")
_WRITTEN = ("d_output", "d_state", "dq", "dk", "dv", "dg", "da", "db", "d_bonus", "d_initial")
_GRADIENTS = dict(zip(_READ[:8], _WRITTEN[2:], strict=True))


class _Call(ctypes.Structure):
    """``call_t`` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        ("offsets", ctypes.c_void_p),
        *((name, _Tensor) for name in (*_READ, *_WRITTEN)),
    )


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
    """Output [B, T, H, V] and state [N, H, K, V]; see ``scan.state_scan``. Raises MemoryError."""
    dtype = state_dtype(q)
    call, offsets = _call(q, v, g, scale, cu_seqlens)
    output = q.new_empty(v.shape, dtype=dtype)
    state = q.new_empty(call.sequences, call.heads, call.keys, call.values, dtype=dtype)
    held = {"q": q, "k": k, "v": v, "g": g, "a": a, "b": b, "bonus": bonus, "initial": initial_state}
    kept = _fill(call, held | {"output": output, "state": state}, dtype)
    call.width = _width(call, dtype, call.threads)
    units = call.sequences * call.heads * -(-call.values // call.width)
    call.group = max(1, min(8, units // call.threads))
    _run("forward", dtype, call)
    del kept, offsets
    return output.to(q.dtype), state


def backward(
    grad_output: Tensor | None,
    grad_state: Tensor | None,
    needed: Sequence[bool],
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
    """Gradients of q, k, v, g, a, b, bonus and initial_state, None where absent or not needed.

    The states are recomputed from some that are kept: one for every 32 tokens up to 65,536 tokens, beyond
    that about 2048 for each sequence and head. Raises MemoryError.
    """
    dtype = state_dtype(q)
    call, offsets = _call(q, v, g, scale, cu_seqlens)
    held = {"q": q, "k": k, "v": v, "g": g, "a": a, "b": b, "bonus": bonus, "initial": initial_state}
    made: dict[str, Tensor | None] = {}
    for (name, given), want in zip(held.items(), needed, strict=True):
        if given is None or not want:
            made[_GRADIENTS[name]] = None
        else:
            shape = (call.sequences, 1, *given.shape) if name == "bonus" else given.shape
            made[_GRADIENTS[name]] = q.new_empty(shape, dtype=dtype)
    received = {"d_output": grad_output, "d_state": grad_state}
    kept = _fill(call, held | received | made, dtype)
    call.width = _width(call, dtype, 1)
    _run("backward", dtype, call)
    del kept, offsets
    d_bonus = made["d_bonus"]
    return (*list(made.values())[:6], None if d_bonus is None else d_bonus.sum((0, 1)), made["d_initial"])


def _call(
    q: Tensor, v: Tensor, g: Tensor | None, scale: float, cu_seqlens: Tensor | None
) -> tuple[Any, Tensor | None]:
    """The sizes of a call, and the offsets it points to, which must outlive it."""
    batch, length, heads, keys = q.shape
    offsets = None
    if cu_seqlens is not None:
        offsets_of(cu_seqlens, length)
        offsets = cu_seqlens.to(torch.int64).contiguous()
    call = _Call(
        sequences=batch if offsets is None else offsets.shape[0] - 1,
        heads=heads,
        keys=keys,
        values=v.shape[3],
        length=length,
        head_gate=int(g is not None and g.dim() == 3),
        scale=scale,
        offsets=native.pointer(offsets),
    )
    call.threads = native.threads(8.0 * batch * length * heads * keys * v.shape[3])
    return call, offsets


def _fill(call: Any, tensors: dict[str, Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Set the addresses and strides of ``tensors``, converted to ``dtype``, and return these."""
    kept = []
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel():
            wide = tensor.to(dtype)
            kept.append(wide)
            setattr(call, name, _Tensor(wide.data_ptr(), _four(wide.stride())))
    return kept


def _four(stride: Sequence[int]) -> Any:
    """Strides on four axes: batch, token, head, last."""
    middle = {2: (stride[0], 0, 0, stride[-1]), 3: (*stride, 0), 4: tuple(stride)}
    return (ctypes.c_int64 * 4)(*middle[len(stride)])


def _width(call: Any, dtype: torch.dtype, threads: int) -> int:
    """Columns of a tile of the state, one of those the C file is compiled for.

    It has four vectors, or fewer where that would leave some of ``threads`` idle or where a tile would be
    more than 32 KiB, to stay in the first-level cache.
    """
    lanes, vectors = _register() // dtype.itemsize, 4
    if dtype == torch.float64:
        return 2 * lanes
    while vectors > 1 and (
        (vectors // 2) * lanes >= call.values
        or call.keys * vectors * lanes * 4 > 2**15
        or call.sequences * call.heads * -(-call.values // (vectors * lanes)) < threads
    ):
        vectors //= 2
    return vectors * lanes


def _run(which: str, dtype: torch.dtype, call: Any) -> None:
    function = _functions()[which, dtype]
    if function(ctypes.byref(call)):
        raise MemoryError(f"state_scan: no memory for the scratch of the {which} pass")


@cache
def _register() -> int:
    """Bytes of the vectors that the library was compiled for."""
    size: int = native.library("state_scan").state_scan_register()
    return size


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any]:
    library = native.library("state_scan")
    found = {}
    for which in ("forward", "backward"):
        for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
            function = getattr(library, f"state_scan_{which}_{suffix}")
            function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
            found[which, dtype] = function
    return found
