"""Eight-bit floating-point numbers for attention: block scales and incoherent processing.

A block of rows is divided by s = max|x| / 448, 448 the largest number of e4m3, and rounded. Before that,
queries and keys may be multiplied by one random orthogonal matrix M = diag(+-1) H / sqrt(d), H Hadamard's:
(Q M)(K M)' = Q K', but an outlier is spread over its whole row, so that the scale follows the bulk (Chee et
al. 2023; in attention Shah et al. 2024). This measures what a precision costs; torchao has the kernels that
gain from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


class Quantised(NamedTuple):
    """``values`` in e4m3 [..., n, d] and ``scale`` [..., blocks, 1, 1] in the dtype they came from."""

    values: Tensor
    scale: Tensor

    def restored(self) -> Tensor:
        """values times scale, [..., n, d]."""
        wide = self.values.to(self.scale.dtype)
        blocks = self.scale.shape[-3]
        split = torch.unflatten(wide, -2, (blocks, wide.shape[-2] // max(blocks, 1)))
        return (split * self.scale).flatten(-3, -2)


def quantise(x: Tensor, rows: int | None = None) -> Quantised:
    """x [..., n, d] in e4m3, with one scale for each block of ``rows`` rows; None is one block.

    Rounds to nearest. Raises ValueError when ``rows`` does not divide n.
    """
    _expect_rows("quantise", x, 2)
    length, width = x.shape[-2:]
    if width == 0:
        raise ValueError(f"quantise: x has shape {list(x.shape)}; expected at least one number in a row")
    rows = max(length, 1) if rows is None else rows
    if rows < 1 or length % rows:
        raise ValueError(f"quantise: rows is {rows}, which does not divide the {length} rows of x")
    blocks = torch.unflatten(x, -2, (length // rows, rows))
    # A block of zeros needs some scale; a subnormal one would overflow in the division.
    smallest = torch.finfo(x.dtype).tiny * LARGEST
    scale = blocks.abs().amax((-2, -1), keepdim=True).clamp(min=smallest) / LARGEST
    return Quantised((blocks / scale).flatten(-3, -2).to(E4M3), scale)


def incoherent(x: Tensor, signs: Tensor) -> Tensor:
    """x M = (x diag(signs)) H / sqrt(d), for x [..., d] and signs [d]; an orthogonal map.

    The fast Walsh-Hadamard transform, d log2 d additions a row. Raises ValueError unless d is a power of two.
    """
    _expect_rows("incoherent", x, 1)
    width = x.shape[-1]
    if width < 1 or width & (width - 1):
        raise ValueError(f"incoherent: x has rows of {width} numbers; a Hadamard matrix needs a power of two")
    expect("incoherent", "signs", signs, (("d", width),), like=x)
    half = 1
    made: Tensor = x * signs
    while half < width:
        left, right = torch.unflatten(made, -1, (width // (2 * half), 2, half)).unbind(-2)
        made = torch.stack((left + right, left - right), -2).flatten(-3)
        half *= 2
    return made.div(width**0.5)


def _expect_rows(kernel: str, x: Tensor, least: int) -> None:
    leading = x.dim() - least if isinstance(x, Tensor) else 0
    expect(kernel, "x", x, [("...", None)] * leading + [("n", None), ("d", None)][-least:])


def random_signs(width: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """[width] of -1 and 1 with equal odds, on the generator's device."""
    drawn = torch.randint(2, (width,), generator=generator, device=generator.device)
    return (2 * drawn - 1).to(dtype)
