"""Samples of the law of trajectories: from what was scored, and afresh from the true system for the floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldsim import NotMeasurable
from worldsim.protocols import System
from worldsim_plugins.metrics.truth_samples import truth_samples


@dataclass(frozen=True)
class Feature:
    """What of a trajectory is one point of the sample.

    kind     the state at the end, the trajectory at ``frames`` times, or states at any time
    points   largest number of points in a sample
    as_path  a point is a path ``[frame, component + 1]``, its last channel the time from 0 to 1; a trajectory
             that ends early rests at its last state and time
    """

    kind: Literal["final_state", "trajectory", "state"]
    frames: int
    points: int
    as_path: bool = False

    def needed_frames(self, valid: Tensor) -> Tensor:
        """Indices of the frames that the feature reads, from ``valid`` ``[trajectory, time]``."""
        count = valid.shape[1]
        if self.kind == "trajectory":
            if not (valid.all() or self.as_path):
                raise NotMeasurable(
                    "trajectories end at different times: compare final_state or state instead"
                )
            return torch.linspace(0, count, min(self.frames, count) + 1).round()[1:].long() - 1
        if self.kind == "final_state" and valid.all():
            return torch.tensor([count - 1])
        return torch.arange(count)

    def sample(self, states: Tensor, valid: Tensor) -> Tensor:
        """Points ``[point, d]``, or paths, of ``states`` ``[trajectory, frame, component]`` there."""
        rows = valid.any(1)
        if self.as_path:
            return _paths(states[rows], valid[rows])[: self.points]
        if self.kind == "trajectory":
            points = states[rows].flatten(1)
        elif self.kind == "final_state":
            points = states[rows, valid[rows].sum(1) - 1]
        else:
            # Spread over trajectories and times alike: a stride that visits every trajectory.
            points = states[valid]
            return points[torch.linspace(0, len(points) - 1, min(self.points, len(points))).round().long()]
        return points[: self.points]

    def size(self, trajectories: int) -> int:
        """How many of them a sample is made from."""
        return trajectories if self.kind == "state" else min(trajectories, self.points)


def _paths(states: Tensor, valid: Tensor) -> Tensor:
    count = valid.shape[1]
    last = torch.where(valid, torch.arange(count), 0).cummax(1).values
    time = (last + 1).double()[..., None] / count
    return torch.cat([states.gather(1, last[..., None].expand_as(states)), time], 2)


def fresh_samples(
    system: System,
    feature: Feature,
    n: int,
    times: Tensor,
    frames: Tensor,
    scale: Tensor,
    count: int,
    seed: int,
) -> list[Tensor]:
    """``count`` independent samples of the truth, each from ``n`` trajectories, in units of ``scale``.

    Raises NotMeasurable where no two samples differ.
    """
    drawn = truth_samples(system, count, n, times, frames, seed)
    samples = [feature.sample(states / scale, reached) for states, reached in drawn]
    if samples[0].shape == samples[1].shape and torch.equal(samples[0], samples[1]):
        raise NotMeasurable(f"{type(system).__name__} goes to one state from all starts")
    return samples
