"""Brownian motion that is a function of (seed, row, component, time), never of the order of the questions.

Over a step of length h, with w and v independent standard normal numbers of the step's counter,

    W = sqrt(h) w        the increment
    H = sqrt(h / 12) v   the space-time Levy area: integral of (W_s - W_t) ds = h (W / 2 + H)

Without a ``cell``, the step is the n-th of a solve, whatever its length. With one, the motion lives on cells
of that length from ``start`` on, and inside each on a dyadic tree: the halves of an interval of length h are

    W = W / 2 +- (3 H / 2 + z),   H = H / 4 - z / 2 +- n / 2,   z ~ N(0, h / 16),  n ~ N(0, h / 12)

so that coarse increments and areas are those of the fine ones put together, and any two solves of a row see
one path.

Sources: ``philox``; Foster, Lyons, Oberhauser 2020, *An optimal polynomial approximation of Brownian motion*;
Jelincic, Foster, Kidger 2024, *Single-seed generation of Brownian paths and integrals*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldsim_kernels.solve.philox import at_counters, counters, on_grid

AREA = 2**31
"""The node whose numbers are the areas of cells; 0 has their increments, 1 and up are the tree's."""
DEPTH = 30
"""Levels of the tree: a time is a cell's start and a multiple of 2^-30 cells."""


@dataclass(frozen=True)
class Brownian:
    """The Brownian motions of some rows.

    seed        0 <= seed < 2^64
    rows        ``[row]`` int64 in [0, 2^44): who a row is, wherever it stands in a batch
    components  motions of each row, at most 2^20
    cell        length of the cells of a path in time; None for increments that belong to the n-th step
    start       the time at which the path is zero
    Raises ValueError for values out of range, TypeError for rows that are not int64.
    """

    seed: int
    rows: Tensor
    components: int = 1
    cell: float | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2^64), it is {self.seed}")
        if self.rows.dtype != torch.int64 or self.rows.dim() != 1:
            found = f"{self.rows.dtype} {list(self.rows.shape)}"
            raise TypeError(f"rows must be ids [row] in int64, as torch.arange gives; they are {found}")
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < 2**44:
            raise ValueError("rows must be in [0, 2^44)")
        if not 1 <= self.components <= 2**20:
            raise ValueError(f"components must be in [1, 2^20], there are {self.components}")
        if self.cell is not None and not 0 < self.cell < math.inf:
            raise ValueError(f"cell must be positive and finite, it is {self.cell}")
        if not math.isfinite(self.start):
            raise ValueError(f"start must be finite, it is {self.start}")

    def of_rows(self, index: Tensor) -> Brownian:
        """The motions of the rows ``index`` (a LongTensor or a mask) alone."""
        return replace(self, rows=self.rows[index])

    def normals(
        self,
        first: int,
        count: int,
        *,
        scale: Tensor | None = None,
        area: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """``[count, row, component]``: the numbers w (v with ``area``) of the steps ``first``, first + 1, ...

        scale  ``[count]``, a factor for each step
        Raises ValueError for steps out of [0, 2^32).
        """
        if first < 0 or count < 0 or first + count > 2**32:
            raise ValueError(f"steps must be in [0, 2^32), asked for {count} from {first} on")
        node = AREA if area else 0
        return on_grid(self.seed, node, self.rows, self.components, first, count, scale, dtype)

    def increments(self, first: int, count: int, level: int = 0) -> tuple[Tensor, Tensor]:
        """W and H, both ``[count, row, component]`` float64, of intervals ``first``, first + 1, ...
        of length ``cell / 2^level``: parts of cells for a positive level, 2^-level cells together for a
        negative one.

        Raises ValueError without a cell, for intervals before the start, or a level above DEPTH.
        """
        cell = self._cell()
        if level > DEPTH:
            raise ValueError(f"level must be at most {DEPTH}, it is {level}")
        if level < 0:
            many = 2**-level
            w, h = self._cells(first * many, count * many, cell)
            shape = (count, many, *w.shape[1:])
            return combined(w.reshape(shape), h.reshape(shape))
        begin, end = first >> level, -(-(first + count) >> level)
        w, h = self._cells(begin, end - begin, cell)
        cells = torch.arange(begin, end, device=self.rows.device)
        w, h = w.unsqueeze(1), h.unsqueeze(1)
        for depth in range(level):
            node = 2**depth + torch.arange(2**depth, device=self.rows.device)
            z, n = self._node(cells[:, None, None], node[:, None])
            w, h = (
                torch.stack(pair, 2).flatten(1, 2) for pair in zip(*halved(w, h, z, n, cell * 2.0**-depth))
            )
        at = first - (begin << level)
        return w.flatten(0, 1)[at : at + count], h.flatten(0, 1)[at : at + count]

    def path(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """W(t) and the integral of W from the start to t, ``[row, time, component]`` float64.

        times  ``[row, time]`` in any order, taken to the nearest multiple of cell / 2^30; what a time has
               does not depend on the others
        Raises ValueError without a cell, or for times before the start.
        """
        cell = self._cell()
        offset = (times.double() - self.start) / cell
        which = offset.floor()
        inside = ((offset - which) * 2.0**DEPTH).round().long()
        which, inside = which.long() + (inside >> DEPTH), inside & (2**DEPTH - 1)
        if which.numel() == 0:
            empty = torch.zeros(*times.shape, self.components, dtype=torch.float64, device=times.device)
            return empty, empty
        if int(which.min()) < 0:
            raise ValueError(f"times must not be before the start of the path, {self.start}")
        w, h = self._cells(0, int(which.max()) + 1, cell)
        since, area = accumulated(w, h, cell)
        at = which.T.unsqueeze(-1).expand(-1, -1, self.components)
        w, h, since, area = (each.gather(0, at).transpose(0, 1) for each in (w, h, since, area))
        # Down the tree: the left end of the interval that has t, and the interval itself.
        for depth in range(DEPTH):
            if not bool((inside & (2 ** (DEPTH - depth) - 1)).any()):
                break
            length = cell * 2.0**-depth
            node = 2**depth + (inside >> (DEPTH - depth))
            z, n = self._node(which.unsqueeze(-1), node.unsqueeze(-1), self.rows[:, None, None])
            (w_left, h_left), (w_right, h_right) = halved(w, h, z, n, length)
            right = (inside >> (DEPTH - 1 - depth) & 1).bool().unsqueeze(-1)
            area = torch.where(right, area + length / 2 * (since + w_left / 2 + h_left), area)
            since = torch.where(right, since + w_left, since)
            w, h = torch.where(right, w_right, w_left), torch.where(right, h_right, h_left)
        return since, area

    def between(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """W and H, ``[row, time - 1, component]`` float64, between successive ``times`` ``[row, time]``.

        The area of an interval much shorter than a cell is a difference of larger numbers: it is right to
        some 1e-16 cell^1.5 over the interval's length.
        """
        w, area = self.path(times)
        step = times.double().diff(dim=1).unsqueeze(-1)
        rise = w.diff(dim=1)
        mean = torch.where(step == 0, 0.0, (area.diff(dim=1) - w[:, :-1] * step) / step.where(step != 0, 1.0))
        return rise, mean - rise / 2

    def _cell(self) -> float:
        if self.cell is None:
            raise ValueError("this Brownian motion has no path in time: give it a cell")
        return self.cell

    def _cells(self, first: int, count: int, cell: float) -> tuple[Tensor, Tensor]:
        w, h = (self.normals(first, count, area=area) for area in (False, True))
        return w * math.sqrt(cell), h * math.sqrt(cell / 12)

    def _node(self, cell: Tensor, node: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The two numbers of a node of a cell's tree, ``[..., row, component]``, or of ``rows`` as given."""
        ids = self.rows[:, None] if rows is None else rows
        cell = cell if rows is not None else cell.unsqueeze(-1)
        node = node if rows is not None else node.unsqueeze(-1)
        return at_counters(counters(cell, ids, node, self.components), self.seed)


Pair = tuple[Tensor, Tensor]


def halved(w: Tensor, h: Tensor, z: Tensor, n: Tensor, length: float) -> tuple[Pair, Pair]:
    """(W, H) of both halves of intervals of this ``length``, from theirs and two standard normal numbers."""
    tilt = 1.5 * h + math.sqrt(length / 16) * z
    shared, apart = h / 4 - math.sqrt(length / 64) * z, math.sqrt(length / 48) * n
    return (w / 2 + tilt, shared + apart), (w / 2 - tilt, shared - apart)


def combined(w: Tensor, h: Tensor) -> Pair:
    """(W, H) of k intervals of equal length in one, from theirs ``[..., k, row, component]``."""
    total, area = accumulated(w.movedim(-3, 0), h.movedim(-3, 0), 1.0)
    whole = total[-1]
    return whole, area[-1] / w.shape[-3] - whole / 2


def accumulated(w: Tensor, h: Tensor, cell: float) -> Pair:
    """W and its integral at the ends of cells, ``[k + 1, ...]`` from zero on, for (W, H) ``[k, ...]``."""
    zero = torch.zeros_like(w[:1])
    since = torch.cat([zero, w.cumsum(0)])
    return since, torch.cat([zero, (cell * (since[:-1] + w / 2 + h)).cumsum(0)])
