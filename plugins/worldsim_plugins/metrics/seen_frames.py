"""Frames of a scene as the scores of consistency see them: what moves, and how the camera truly does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from worldsim import Trajectory
from worldsim_plugins.metrics.view_pairs import Motion, check_length

STILL = 0.25
"""A pair of views moves where its mean change of brightness is above this share of the true one."""
LEAST = 1e-3
"""The true one must be above this, of a brightness in [0, 1]."""


@runtime_checkable
class ShowsViews(Protocol):
    """A system whose states are frames, and whose observables are ``rotation`` ``[3, 3]``, ``translation``
    ``[3]`` (x_c = R x_w + t), ``depth`` and ``body`` ``[row, column]``."""

    intrinsics: Tensor
    """K ``[3, 3]``, pixels."""
    moves: Tensor
    """``[body]`` bool: whether it moves by itself."""
    depth_seen: bool
    """Whether depth is part of a frame."""

    def views(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Brightness ``[..., channel, row, column]`` in [0, 1] and depth ``[..., row, column]``, None where
        it is not seen."""


def movement(
    system: ShowsViews, gap: int, truth: Trajectory, prediction: Trajectory
) -> tuple[Tensor, Tensor]:
    """Which pairs of frames ``gap`` apart move, of the prediction and of the truth, ``[trajectory, draw,
    pair]``. Raises NotMeasurable where there are no pairs."""
    check_length(len(prediction.times), gap)

    def change(states: Tensor) -> Tensor:
        images, _ = system.views(states.double())
        return (images[:, :, gap:] - images[:, :, :-gap]).abs().mean((-3, -2, -1))

    right = change(truth.states)
    return change(prediction.states) > STILL * right, right > LEAST


def true_motion(truth: Trajectory, first: list[int], second: list[int]) -> Motion:
    """The camera's from frames ``first`` to frames ``second``, ``[trajectory, 1, pair]``."""
    rotation, translation = (truth.observables[name].double() for name in ("rotation", "translation"))
    turn = rotation[:, :, second] @ rotation[:, :, first].mT
    begun = (turn @ translation[:, :, first, :, None])[..., 0]
    return Motion(turn, translation[:, :, second] - begun)


def at_rest(system: ShowsViews, truth: Trajectory) -> Tensor:
    """Pixels of what does not move by itself, ``[trajectory, 1, time, row, column]``."""
    return ~system.moves[truth.observables["body"]]
