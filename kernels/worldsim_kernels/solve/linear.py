"""Linear equations, one small dense system per row of a batch.

LAPACK takes one matrix at a time, so a row's bits should be its own; measured, they are not: with 9, 17 or 33
unknowns they change with the place of the row in memory, which decides how the library's vectors are aligned.
Systems are therefore filled up to 4 unknowns or a multiple of 8 by equations x = 0: then all are aligned
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """L U of ``n`` matrices A.

    matrix    ``[row, d, d]``, A, which gradients go to
    packed    ``[row, p, p]``, p >= d
    pivots    ``[row, p]`` int32
    singular  ``[row]`` bool: A is singular or not finite; what is solved there is finite and worthless
    """

    matrix: Tensor
    packed: Tensor
    pivots: Tensor
    singular: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """x ``[row, d]`` with A x = ``right`` ``[row, d]``; differentiable, also twice, in both."""
        solution: Tensor = _Solve.apply(self.matrix, right, self, False)  # type: ignore[no-untyped-call]
        return solution


def factorise(matrix: Tensor) -> Factors:
    """The factors of ``matrix`` ``[row, d, d]``."""
    plain = matrix.detach()
    n, size, _ = plain.shape
    filled = 4 if size <= 4 else -(-size // 8) * 8
    bad = ~plain.isfinite().flatten(1).all(1)
    system = torch.eye(filled, dtype=plain.dtype, device=plain.device).repeat(n, 1, 1)
    system[:, :size, :size] = torch.where(bad[:, None, None], system[:, :size, :size], plain)
    packed, pivots, _ = torch.linalg.lu_factor_ex(system)
    diagonal = packed.diagonal(dim1=1, dim2=2)
    zero = diagonal == 0
    diagonal += zero.to(diagonal.dtype)
    return Factors(matrix, packed, pivots, bad | zero.any(1))


class _Solve(torch.autograd.Function):
    """x = A^-1 b, or A^-T b. With g the gradient by x, that by b is z = A^-T g and that by A is -z x^T."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor, factors: Factors, transposed: bool) -> Tensor:
        n, size = right.shape
        filled = right.new_zeros(n, factors.packed.shape[-1], 1)
        filled[:, :size, 0] = right
        x: Tensor = torch.linalg.lu_solve(factors.packed, factors.pivots, filled, adjoint=transposed)[
            :, :size, 0
        ]
        ctx.save_for_backward(matrix, x)
        ctx.factors, ctx.transposed = factors, transposed
        return x

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrix, x = ctx.saved_tensors
        z = _Solve.apply(matrix, gradient[0], ctx.factors, not ctx.transposed)  # type: ignore[no-untyped-call]
        by_matrix = None
        if ctx.needs_input_grad[0]:
            first, second = (x, z) if ctx.transposed else (z, x)
            by_matrix = -first.unsqueeze(2) * second.unsqueeze(1)
        return by_matrix, z, None, None
