"""Steps of constant length from t0 through the saved times to t1, each row with its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The steps of rows; the first axis is 1 where all rows have the same.

    t      ``[row or 1, step + 1]`` float64; beyond a row's ``count`` the last time repeats
    count  ``[row or 1]`` int64
    saved  ``[row or 1, time]`` int64, the step at whose start each saved time is; -1 for an absent one
    cut    ``[row or 1]`` bool, whether t1 was too many steps away
    """

    t: Tensor
    count: Tensor
    saved: Tensor
    cut: Tensor

    @property
    def shared(self) -> bool:
        return len(self.t) == 1


def constant(t0: Tensor, t1: Tensor, step: Tensor, times: Tensor | None, most: int) -> Grid:
    """Between two targets (t0, saved times, t1) steps are alike and no longer than ``step``; the h of a step
    is by definition the difference of its two times.

    t0, t1, step  ``[row]`` float64, t0 <= t1
    times         ``[row, time]`` float64, ascending, NaN for absent ones at the end of a row
    most          no row has more steps
    """
    times = t0.new_zeros(len(t0), 0) if times is None else times
    if all(bool((each == each[:1]).all()) for each in (t0, t1, step, times.nan_to_num(torch.inf))):
        t0, t1, step, times = t0[:1], t1[:1], step[:1], times[:1]
    absent = times.isnan()
    targets = torch.cat([t0[:, None], torch.where(absent, t1[:, None], times), t1[:, None]], 1)
    gaps = targets.diff(dim=1)
    # The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1.
    parts = (gaps / step[:, None] * (1 - 1e-9)).ceil().clamp(min=0, max=2.0**40).long()
    ends = torch.cat([torch.zeros_like(parts[:, :1]), parts.cumsum(1)], 1)
    total = ends[:, -1]
    number = torch.arange(int(total.clamp(max=most).max()) + 1, device=t0.device)
    number = number.expand(len(t0), -1).contiguous()
    segment = (torch.searchsorted(ends, number, right=True) - 1).clamp(max=gaps.shape[1] - 1)
    length = gaps / parts.clamp(min=1)
    t = targets.gather(1, segment) + (number - ends.gather(1, segment)) * length.gather(1, segment)
    t = torch.where(number >= total[:, None], t1[:, None], t)
    saved = torch.where(absent | (ends[:, 1:-1] > most), -1, ends[:, 1:-1])
    return Grid(t, total.clamp(max=most), saved, total > most)
