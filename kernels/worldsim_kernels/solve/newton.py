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

from worldsim_kernels.solve.jacobian import linearised
from worldsim_kernels.solve.linear import Factors, factorise
from worldsim_kernels.solve.terms import of_rows

SIMPLIFIED, FULL = 6, 8
"""Most iterations of the two kinds: beyond six of the first, the second is cheaper."""
TOLERATED = 1e4
"""Multiples of the dtype's rounding unit in the largest component: an error that is put up with when the
rounding of the field itself lets nothing better be had."""


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

    def __init__(
        self, stage: Stage, guess: Tensor, wanted: Tensor, factors: Factors, scale: Tensor, size: Tensor
    ) -> None:
        usable = guess.isfinite().all(1)
        self.wanted = wanted
        self.stage, self.factors, self.scale = stage, factors, scale
        self.floor = TOLERATED * torch.finfo(guess.dtype).eps * size
        self.z = torch.where(usable[:, None], guess, torch.zeros_like(guess))
        self.settled = torch.zeros_like(usable)
        self.evaluations = torch.zeros(len(guess), dtype=torch.int64, device=guess.device)

    def solve(self) -> None:
        """Iterate until every wanted row has settled or no more can be hoped for."""
        moving = self.wanted & ~self.factors.singular
        before = torch.full_like(self.floor, float("inf"))
        for done in range(1, SIMPLIFIED + 1):
            change = self.factors.solve(self.stage.increment(self.z) - self.z)
            factor, now = self._move(slice(None), change, before, moving, 1)
            # Leave to the other kind what will not end in time, before it strays.
            hoped = now
            for _ in range(done, SIMPLIFIED):
                hoped = hoped * factor
            slow = ~(hoped <= 1) & before.isfinite()
            moving, before = moving & ~self.settled & ~slow, now
            if not bool(moving.any()):
                break
        left = (self.wanted & ~self.settled).nonzero()[:, 0]
        before = torch.full_like(self.floor, float("inf"))[left]
        for _ in range(FULL):
            if not len(left):
                return
            z = self.z[left]
            right, matrix, evaluations = self.stage.rows(left).linearised(z)
            factors = factorise(matrix)
            change = factors.solve(right - z)
            factor, before = self._move(left, change, before, ~factors.singular, evaluations)
            hopeful = ~self.settled[left] & ~factors.singular & (factor < 1)
            left, before = left[hopeful], before[hopeful]

    def _move(
        self, index: Tensor | slice, change: Tensor, before: Tensor, moving: Tensor, evaluations: int
    ) -> tuple[Tensor, Tensor]:
        """Add ``change`` to the rows of ``index`` that are ``moving``; settle those whose last it was.

        Returns the factor by which the change of each row shrank, and its size in ``scale``.
        """
        now = (change / self.scale[index]).abs().amax(1)
        moving = moving & now.isfinite()
        # Changes shrink by a factor a step, and the error left is the sum of those to come.
        factor = now / before
        known = (factor > 0) & (factor < 1)
        left = torch.where(known, torch.minimum(now, now * factor / (1 - factor)), now)
        close = (left <= 1) | ((factor >= 1) & (change.abs().amax(1) <= self.floor[index]))
        self.z[index] = torch.where(moving[:, None], self.z[index] + change, self.z[index])
        self.settled[index] |= moving & close
        self.evaluations[index] += moving * evaluations
        return factor, now


def newton(
    stage: Stage, guess: Tensor, wanted: Tensor, factors: Factors, scale: Tensor, size: Tensor
) -> Newton:
    """The solution of ``stage``, iterated from ``guess`` ``[row, d]``.

    wanted   ``[row]`` bool; the others do not settle
    factors  of about the Jacobian of z - increment(z)
    scale    ``[row, d]``, the error that is allowed
    size     ``[row]``, the largest component of the state
    """
    iteration = Newton(stage, guess, wanted, factors, scale, size)
    iteration.solve()
    return iteration


def attached(stage: Stage, z: Tensor) -> Tensor:
    """``z`` ``[row, d]``, found without a graph, with the first and second derivatives of the implicit
    function: two more Newton steps from it, by the matrix at the solution. That matrix may be a constant:
    with F = z - increment(z), each step makes one more order of the derivatives of F along z vanish.
    """
    with torch.no_grad():
        _, matrix, _ = stage.linearised(z)
    factors = factorise(matrix)
    for _ in range(2):
        z = z + factors.solve(stage.increment(z) - z)
    return z
