"""The rows of a stochastic equation on their way, and how torch takes them some steps further."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from worldsim_kernels.solve.sde import Carry, Scheme, Stretch
from worldsim_kernels.solve.sde_grid import Grid
from worldsim_kernels.solve.sde_increments import Increments
from worldsim_kernels.solve.terms import SDE, of_rows, wide


@dataclass
class Moving:
    """The rows that are still on their way: which they are, and where."""

    index: Tensor
    y: Tensor
    carry: Carry

    def rows(self, chosen: Tensor) -> Moving:
        return Moving(self.index[chosen], self.y[chosen], tuple(each[chosen] for each in self.carry))


@dataclass(frozen=True)
class Eager:
    """Steps of ``term`` by ``scheme``, one after another.

    block  increments that are drawn at once, 4 MB of them
    """

    block: ClassVar[int] = 2**19

    term: SDE
    scheme: Scheme
    grid: Grid
    draws: Increments

    def __call__(
        self, now: Moving, first: int, stop: int, keep: Collection[int]
    ) -> tuple[dict[int, Tensor], Moving]:
        """Takes the steps ``first``, ..., ``stop`` - 1, in which none of the rows ends.

        Gives the states after the numbers of steps in ``keep``, and the rows after all of them."""
        y, carry, grid, draws = now.y, now.carry, self.grid, self.draws
        rows, count = len(y), stop - first
        everyone = rows == len(draws.noise.rows)
        part = self.term if everyone else of_rows(self.term, now.index)
        w, area = draws.draw(first, count, None if everyone else now.index)
        shape = (count, rows, *shape_of_noise(part, y, draws.noise.components))
        w = w.reshape(shape)
        area = None if area is None else area.reshape(shape)
        t = (grid.t if grid.shared or everyone else grid.t[now.index])[:, first : stop + 1]
        step = t.diff(dim=1)
        lengths = step[0].tolist() if grid.shared else [wide(each, y) for each in step.unbind(1)]
        times = [each.expand(rows) for each in t.to(y.dtype).unbind(1)]
        states = {}
        for i in range(count):
            over = Stretch(times[i], times[i + 1], lengths[i], w[i], None if area is None else area[i])
            y, carry = self.scheme.advance(part, over, y, carry)
            if first + i + 1 in keep:
                states[first + i + 1] = y
        return states, Moving(now.index, y, carry)


def shape_of_noise(term: SDE, y: Tensor, motions: int) -> torch.Size:
    """Of the increments of a row of ``y`` ``[row, *state]``, so that they multiply its diffusion."""
    if term.noise in ("diagonal", "additive"):
        return y.shape[1:]
    return torch.Size([1] * (y.dim() - 1) if term.noise == "scalar" else [motions])
