"""Gravity of all pairs in C (csrc/nbody.c), bound by ctypes. ``nbody`` checks and chooses."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from worldsim_kernels import native

MULTIPLE = 64
"""Bodies are padded to this: four of the widest vectors of float32."""
KINDS = {"l": ctypes.c_int64, "d": ctypes.c_double, "i": ctypes.c_int, "p": ctypes.c_void_p}
SIGNATURES = {"nbody_forward": "lllldd pp pp i", "nbody_backward": "lllldd pppp pp i"}
"""Argument kinds: l a 64-bit integer, d a double, i an int, p an address."""


def forward(x: Tensor, m: Tensor, gravity: float, softening: float) -> tuple[Tensor, Tensor]:
    """Accelerations ``[row, body, dim]`` and potentials ``[row, body]``."""
    return _run("nbody_forward", x, gravity, softening, (_lines(x), _padded(m)), 20.0)


def backward(
    x: Tensor, m: Tensor, gravity: float, softening: float, da: Tensor, dp: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of positions and masses."""
    inputs = (_lines(x), _padded(m), _lines(da), _padded(dp))
    return _run("nbody_backward", x, gravity, softening, inputs, 50.0)


def _run(
    name: str, x: Tensor, gravity: float, softening: float, inputs: tuple[Tensor, ...], flops: float
) -> tuple[Tensor, Tensor]:
    rows, bodies, dim = x.shape
    padded = inputs[0].shape[2]
    first, second = x.new_empty(rows, dim, padded), x.new_empty(rows, padded)
    _functions()[name, x.dtype](
        *(rows, bodies, padded, dim, gravity, softening * softening),
        *map(native.pointer, (*inputs, first, second)),
        native.threads(flops * rows * bodies * bodies),
    )
    return first[:, :, :bodies].mT.contiguous(), second[:, :bodies].contiguous()


def _lines(x: Tensor) -> Tensor:
    """``[row, body, dim]`` -> ``[row, dim, padded]``."""
    return _padded(x.mT)


def _padded(x: Tensor) -> Tensor:
    return pad(x, (0, -x.shape[-1] % MULTIPLE)).contiguous()


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any]:
    library, found = native.library("nbody"), {}
    for name, kinds in SIGNATURES.items():
        for suffix, dtype in (("f32", torch.float32), ("f64", torch.float64)):
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = [KINDS[kind] for kind in kinds if kind != " "]
            function.restype = None
            found[name, dtype] = function
    return found
