"""The increments and areas of rows' Brownian motions over the steps of their grid."""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim_kernels.solve.brownian import DEPTH, Brownian
from worldsim_kernels.solve.sde_grid import Grid
from worldsim_kernels.solve.sums import root

Drawn = tuple[Tensor, Tensor | None]


class Increments:
    """W and H ``[step, row, component]`` of some steps at a time.

    Which formula a row's numbers come from is decided on the whole of its own grid, so that they have the
    same bits in any batch, however its steps are asked for.
    """

    def __init__(self, noise: Brownian, grid: Grid, area: bool, dtype: torch.dtype) -> None:
        self.noise, self.grid, self.area, self.dtype = noise, grid, area, dtype
        self.places = None if noise.cell is None else places(noise, grid)
        step = grid.t.diff(dim=1)
        self.scale, self.area_scale = root(step), root(step / 12) if area else None

    def draw(self, first: int, count: int, index: Tensor | None) -> Drawn:
        """Of ``count`` steps from ``first`` on, of the rows ``index`` (None for all), which take them all."""
        noise = self.noise if index is None else self.noise.of_rows(index)
        own = index is not None and not self.grid.shared
        t = (self.grid.t[index] if own else self.grid.t)[:, first : first + count + 1]
        if self.places is None:
            w = self._numbered(noise, self.scale[index] if own else self.scale, first, count, False)
            if self.area_scale is None:
                return w, None
            scale = self.area_scale[index] if own else self.area_scale
            return w, self._numbered(noise, scale, first, count, True)
        level, place = self.places if not own else (each[index] for each in self.places)
        shape = (count, len(noise.rows), noise.components)
        w, h = (torch.empty(shape, dtype=torch.float64, device=t.device) for _ in range(2))
        pairs = torch.stack([level, place + first], 1).expand(len(noise.rows), -1)
        for at, begin in sorted(set(map(tuple, pairs.tolist()))):
            rows = ((pairs[:, 0] == at) & (pairs[:, 1] == begin)).nonzero()[:, 0]
            some = noise.of_rows(rows)
            if at <= DEPTH:
                w[:, rows], h[:, rows] = some.increments(begin, count, at)
            else:
                times = t.expand(len(noise.rows), -1)[rows]
                w[:, rows], h[:, rows] = (each.transpose(0, 1) for each in some.between(times))
        return w.to(self.dtype), h.to(self.dtype) if self.area else None

    def _numbered(self, noise: Brownian, scale: Tensor, first: int, count: int, area: bool) -> Tensor:
        scale = scale[:, first : first + count]
        if self.grid.shared:
            return noise.normals(first, count, scale=scale[0], area=area, dtype=self.dtype)
        return (noise.normals(first, count, area=area) * scale.T.unsqueeze(-1)).to(self.dtype)


def places(noise: Brownian, grid: Grid) -> tuple[Tensor, Tensor]:
    """Level and first interval of each row of the grid on the noise's dyadic tree, ``[row or 1]``; the level
    is DEPTH + 1 where its steps are not such intervals."""
    assert noise.cell is not None
    step = grid.t.diff(dim=1)
    moving = torch.arange(step.shape[1], device=step.device) < grid.count[:, None]
    first = step[:, :1] if step.shape[1] else grid.t.new_ones(len(grid.t), 1)
    level = torch.log2(noise.cell / first.clamp(min=1e-300)).round()
    place = ((grid.t - noise.start) / (noise.cell * torch.exp2(-level))).nan_to_num(-1, -1, -1)
    begin = place[:, :1].round()
    wanted = begin + torch.arange(grid.t.shape[1], device=step.device)
    close = ((place - wanted)[:, 1:].abs() <= 1e-6) | ~moving
    fits = close.all(1) & ((place - wanted)[:, 0].abs() <= 1e-6) & (begin[:, 0] >= 0) & (level[:, 0] <= DEPTH)
    return torch.where(fits, level[:, 0], DEPTH + 1).long(), torch.where(fits, begin[:, 0], 0).long()
