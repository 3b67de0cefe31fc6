"""Pairs of views: the gate for still pictures, and means over the pairs that pass it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim_plugins.metrics.comparison import mean_interval


class Motion(NamedTuple):
    """``rotation [..., 3, 3]`` and ``translation [..., 3]`` of x' = R x + t."""

    rotation: Tensor
    translation: Tensor


def check_length(frames: int, gap: int) -> None:
    """Raises NotMeasurable where no two of ``frames`` views are ``gap`` apart."""
    if frames <= gap:
        raise NotMeasurable(f"{frames} frames hold no two views {gap} frames apart; lessen gap")


def gated(goes: Tensor, truly: Tensor) -> Tensor:
    """The pairs ``[trajectory, draw, pair]`` that count: those that move, of those that ``truly`` move.
    Raises NotMeasurable where there are none."""
    if not bool(truly.any()):
        raise NotMeasurable("the true views stand still from one to the next; lengthen gap")
    if not bool((goes & truly).any()):
        raise NotMeasurable(
            "the prediction stands still where the truth moves: any still picture is consistent"
        )
    return goes & truly


def moving(goes: Tensor, truly: Tensor) -> Score:
    """The share of pairs that move, of those that truly do."""
    share = (goes & truly).flatten(1).sum(1) / truly.expand_as(goes).flatten(1).sum(1).double()
    interval = mean_interval(share)
    return Score(float(share.nanmean()), better="higher", floor=1.0, interval=interval, n=len(share))


def over_pairs(
    value: Tensor,
    weight: Tensor,
    *,
    units: str = "1",
    floor: float = 0.0,
    better: Literal["lower", "higher"] = "lower",
    lost: str = "",
) -> Score:
    """The mean of ``value [trajectory, draw, pair]`` by ``weight`` of the same shape; trajectories are
    independent. ``lost`` says why a value may not be finite."""
    weight = weight.expand_as(value).double()
    moves = (weight > 0).flatten(1).any(1)
    if not bool(moves.any()):
        reason = "no way round has views that move"
        return Score(float("nan"), better=better, units=units, n=0, reason=reason)
    total = torch.where(weight > 0, weight * value, 0.0).flatten(1).sum(1)
    rows = total[moves] / weight.flatten(1).sum(1)[moves]
    failed = int((~torch.isfinite(rows)).sum())
    if failed:
        reason = (
            f"{failed} of {len(rows)} predictions that move have no finite geometry{lost}; none is left out"
        )
        return Score(float("nan"), better=better, units=units, n=len(rows), failed=failed, reason=reason)
    interval = mean_interval(rows)
    return Score(float(rows.mean()), better=better, units=units, floor=floor, interval=interval, n=len(rows))
