"""The row operations in C (csrc/rows.c), bound by ctypes. rows.py checks, converts and chooses.

All tensors of a call have one dtype, float32 or float64. Sums over rows go through blocks of fixed size, so
that a result has the same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels import native

BLOCK = 128
"""Rows of one work item, as in csrc/rows.c."""

SIGNATURES = {
    "norm_forward": "llldi plpl ppp pp i",
    "norm_backward": "llldi plpl pp plpl ppp i",
    "sum_blocks": "lll pp",
    "swiglu": "ll plpl pl ppp i",
    "shift": "llll pll pp p pp ppp i",
}
"""Argument kinds: l a 64-bit integer, d a double, i an int, p an address."""

KINDS = {"l": ctypes.c_int64, "d": ctypes.c_double, "i": ctypes.c_int, "p": ctypes.c_void_p}


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
    y, total = x.new_empty(rows, width), None if residual is None else x.new_empty(rows, width)
    _call(
        "norm_forward",
        x.dtype,
        *(rows, width, rows // max(groups, 1), eps, int(centred), *_rows(x), *_rows(residual)),
        *(_dense(weight), _dense(scale), _dense(shift), y, total, native.threads(8.0 * rows * width)),
    )
    return y, total


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
    group = rows // max(groups, 1)
    blocks = groups * -(-group // BLOCK)
    dx, along, across = (x.new_empty(n, width) for n in (rows, blocks, blocks))
    _call(
        "norm_backward",
        x.dtype,
        *(rows, width, group, eps, int(centred), *_rows(x), *_rows(residual)),
        *(_dense(weight), _dense(scale), *_rows(dy), *_rows(dtotal)),
        *(dx, along, across, native.threads(20.0 * rows * width)),
    )
    return dx, _sum_blocks(along, groups), _sum_blocks(across, groups)


def sum_rows(x: Tensor) -> Tensor:
    """[N, D] -> [D]."""
    return _sum_blocks(x.contiguous(), 1)[0]


def swiglu_forward(a: Tensor, b: Tensor) -> Tensor:
    """a sigmoid(a) b for rows [N, D]."""
    y = a.new_empty(a.shape)
    threads = native.threads(20.0 * a.numel())
    _call("swiglu", a.dtype, *a.shape, *_rows(a), *_rows(b), None, 0, y, None, None, threads)
    return y


def swiglu_backward(a: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a and b."""
    da, db = a.new_empty(a.shape), a.new_empty(a.shape)
    threads = native.threads(30.0 * a.numel())
    _call("swiglu", a.dtype, *a.shape, *_rows(a), *_rows(b), *_rows(dy), None, da, db, threads)
    return da, db


def shift_forward(x: Tensor, mu: Tensor, previous: Tensor) -> Tensor:
    """x [B, T, D], mu [M, D], previous [B, D] -> [M, B, T, D]."""
    y = x.new_empty(len(mu), *x.shape)
    _shift(x, mu, previous, y, None, None, None, None, None)
    return y


def shift_backward(
    x: Tensor, mu: Tensor, previous: Tensor, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, mu and previous, for T of at least 1."""
    dx, dprevious = x.new_empty(x.shape), x.new_empty(previous.shape)
    dmu = x.new_empty(len(x) * -(-x.shape[1] // BLOCK), mu.numel())
    _shift(x, mu, previous, None, _dense(dy), _dense(dlast), dx, dprevious, dmu)
    return dx, _sum_blocks(dmu, 1).view(mu.shape), dprevious


def _shift(x: Tensor, mu: Tensor, previous: Tensor, *others: Tensor | None) -> None:
    x = x if x.stride(2) == 1 else x.contiguous()
    threads = native.threads(6.0 * len(mu) * x.numel())
    shape = (len(mu), *x.shape, x, *x.stride()[:2])
    _call("shift", x.dtype, *shape, _dense(mu), _dense(previous), *others, threads)


def _sum_blocks(partial: Tensor, groups: int) -> Tensor:
    """[groups * blocks, D] -> [groups, D], each group's rows added up in order."""
    if len(partial) == groups:
        return partial
    out = partial.new_empty(groups, partial.shape[1])
    _call("sum_blocks", partial.dtype, groups, len(partial) // groups, partial.shape[1], partial, out)
    return out


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _rows(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Rows of unit stride inside, and the stride between them."""
    if x is None:
        return None, 0
    x = x if x.stride(1) == 1 else x.contiguous()
    return x, x.stride(0)


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Tensors become addresses here, so that they live until the call is over."""
    function = _functions()[name, dtype]
    if function(*(one.data_ptr() if isinstance(one, Tensor) else one for one in arguments)):
        raise MemoryError(f"{name}: no memory for one row")


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any]:
    library, found = native.library("rows"), {}
    for name, kinds in SIGNATURES.items():
        for suffix, dtype in (("f32", torch.float32), ("f64", torch.float64)):
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = [KINDS[kind] for kind in kinds if kind != " "]
            found[name, dtype] = function
    return found
