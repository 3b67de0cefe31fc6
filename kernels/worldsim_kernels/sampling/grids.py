"""Grids of noise levels, descending, ``[steps + 1]`` in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def karras_grid(steps: int, lowest: float, highest: float, *, rho: float = 7.0, zero: bool = True) -> Tensor:
    """sigma_i^(1/rho) even from ``highest`` to ``lowest`` (Karras et al. 2022, eq. 5).

    zero  whether the last step goes from ``lowest`` to 0, as published, or the grid ends at ``lowest``
    """
    _check(steps, lowest, highest, zero)
    root = torch.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps + (not zero), dtype=torch.float64)
    return _ended(root**rho, zero)


def log_snr_grid(steps: int, lowest: float, highest: float, *, zero: bool = True) -> Tensor:
    """ln sigma even from ``highest`` to ``lowest``, and so the log signal-to-noise ratio (Lu et al. 2022)."""
    _check(steps, lowest, highest, zero)
    logs = torch.linspace(math.log(highest), math.log(lowest), steps + (not zero), dtype=torch.float64)
    return _ended(logs.exp(), zero)


def _ended(levels: Tensor, zero: bool) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)]) if zero else levels


def _check(steps: int, lowest: float, highest: float, zero: bool) -> None:
    if steps < 1 or not 0 < lowest <= highest < math.inf:
        raise ValueError(
            f"a grid of {steps} steps from {highest} to {lowest}; give at least one step and "
            "0 < lowest <= highest"
        )
