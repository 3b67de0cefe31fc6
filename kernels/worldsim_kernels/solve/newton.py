"""The equations z = h f(t, known + gamma z) of a diagonally implicit stage, solved for every row by itself.

First simplified Newton, whose iterations, and those of all stages of a step, share the matrix I - h gamma J
of the step's start (Hairer and Wanner 1996, *Solving Ordinary Differential Equations II*, IV.8); then, for
the rows that it leaves, Newton with a matrix of their own for every iteration. A row that has settled is
frozen there, so how long its companions take changes none of its bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldsim_kernels.solve.jacobian import linearised
from worldsim_kernels.solve.linear import Factors, factorise
from worldsim_kernels.solve.terms import of_rows

SIMPLIFIED, FULL = 6, 8
"""Iterations of the two kinds: beyond six of the first, the second is cheaper."""
SETTLED, TOLERATED = 64.0, 1e4
"""Multiples of the dtype's rounding unit: an error that ends the iteration, and one that is put up with when
the rounding of the field itself lets nothing better be had."""


@dataclass(frozen=True)
class Stage:
    """z = width f(time, known + gamma z).

    time   ``[row]``
    width  ``[row, 1]``, h
    known  ``[row, d]``
    shape  of the states that the term takes, ``*state``
    """

    term: Any
    time: Tensor
    width: Tensor
    known: Tensor
    shape: torch.Size
    gamma: float

    def state(self, z: Tensor) -> Tensor:
        """``[row, *state]``."""
        return (self.known + self.gamma * z).reshape(-1, *self.shape)

    def increment(self, z: Tensor) -> Tensor:
        """The right-hand side, ``[row, d]``."""
        slope: Tensor = self.term(self.time, self.state(z))
        return self.width * slope.flatten(1)

    def linearised(self, z: Tensor) -> tuple[Tensor, Tensor, int]:
        """The right-hand side; the Jacobian ``[row, d, d]`` of z minus it; evaluations of the field."""
        at = linearised(self.term, self.time, self.state(z))
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        matrix = identity - (self.gamma * self.width).unsqueeze(2) * at.by_state
        return self.width * at.slope.flatten(1), matrix, at.evaluations

    def rows(self, index: Tensor) -> Stage:
        """The equations of the rows ``index``."""
        term = of_rows(self.term, index)
        parts = (self.time[index], self.width[index], self.known[index])
        return Stage(term, *parts, self.shape, self.gamma)


class Newton:
    """The iteration for one stage: its rows, and how far each has come.

    z            ``[row, d]``, finite
    settled      ``[row]`` bool
    evaluations  ``[row]`` int64, of the field
    """

    def __init__(self, stage: Stage, guess: Tensor, factors: Factors, size: Tensor) -> None:
        usable = guess.isfinite().all(1)
        self.stage, self.factors, self.size = stage, factors, size
        self.z = torch.where(usable[:, None], guess, torch.zeros_like(guess))
        self.settled = torch.zeros_like(usable)
        self.evaluations = torch.zeros(len(guess), dtype=torch.int64, device=guess.device)
        self.before = torch.full_like(size, float("inf"))
        self.unit = torch.finfo(guess.dtype).eps

    def solve(self) -> None:
        """Iterate until every row has settled or no more can be hoped for."""
        for _ in range(SIMPLIFIED):
            change = self.factors.solve(self.stage.increment(self.z) - self.z)
            self._move(slice(None), change, ~self.factors.singular & ~self.settled, 1)
            if bool(self.settled.all()):
                return
        self.before.fill_(float("inf"))
        for _ in range(FULL):
            left = (~self.settled).nonzero()[:, 0]
            if not len(left):
                return
            z = self.z[left]
            right, matrix, evaluations = self.stage.rows(left).linearised(z)
            factors = factorise(matrix)
            self._move(left, factors.solve(right - z), ~factors.singular, evaluations)

    def _move(self, index: Tensor | slice, change: Tensor, moving: Tensor, evaluations: int) -> None:
        """Add ``change`` to the rows of ``index`` that are ``moving``, and see whether it was their last."""
        now = change.abs().amax(1) / self.size[index]
        moving = moving & now.isfinite()
        # Changes shrink by a factor a step, and the error left is the sum of those to come.
        factor = now / self.before[index]
        known = (factor > 0) & (factor < 1)
        left = torch.where(known, torch.minimum(now, now * factor / (1 - factor)), now)
        close = left <= SETTLED * self.unit
        close |= (factor >= 1) & (now <= TOLERATED * self.unit)
        self.z[index] = torch.where(moving[:, None], self.z[index] + change, self.z[index])
        self.before[index] = torch.where(moving, now, self.before[index])
        self.settled[index] |= moving & close
        self.evaluations[index] += moving * evaluations


def newton(stage: Stage, guess: Tensor, factors: Factors, size: Tensor) -> Newton:
    """The solution of ``stage``, iterated from ``guess`` ``[row, d]``.

    factors  of about the Jacobian of z - increment(z)
    size     ``[row]``: what an error is measured against, in the largest component
    """
    iteration = Newton(stage, guess, factors, size)
    iteration.solve()
    return iteration


def attached(stage: Stage, z: Tensor) -> Tensor:
    """``z`` ``[row, d]``, found without a graph, with the gradients of the implicit function: one more Newton
    step from it, whose matrix is that at the solution.

    Gradients of gradients are refused: they would lack the derivative of the matrix.
    """
    with torch.no_grad():
        _, matrix, _ = stage.linearised(z)
    step: Tensor = _Once.apply(  # type: ignore[no-untyped-call]
        factorise(matrix).solve(stage.increment(z) - z)
    )
    return z + step


class _Once(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return gradient[0]
