"""Whether what a model shows is one solid scene: geometry of two views, with the camera's motion known.

For frames t and t + gap of one prediction, their tracks p, p' and depths z, z':

    sampson       |p'^T F p| / sqrt(|F p|^2 + |F^T p'|^2), F = K^-T [t]_x R K^-1       (Sampson 1982)
    reprojection  |p' - K (R z K^-1 p + t)|
    depth         |z' - z_p| / z_p, z_p the depth of the point carried over
    rotation      angle between R and the rotation that carries the model's points over (Kabsch 1976)
    translation   of that motion, its error over the length of the true one
    loop          motions of the model's points round frames 0, g, 2 g and back to 0, from the identity

A still picture agrees with itself and with nothing that moves: pairs whose tracks do not move are let out and
counted, and where none moves nothing is measured. Of frames instead of tracks, see ``frame_consistency``
and ``recovered_consistency``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Score, Trajectory, hookimpl
from worldsim.protocols import HasCamera, HasUnseenStart, Metric, Model, System
from worldsim_kernels.multiview import (
    fundamental,
    loop_closure,
    moved,
    reprojected,
    rotation_error,
    sampson_distance,
    unprojected,
)
from worldsim_plugins.metrics.frame_consistency import KnownPose
from worldsim_plugins.metrics.recovered_consistency import RecoveredPose
from worldsim_plugins.metrics.seen_frames import ShowsViews
from worldsim_plugins.metrics.view_pairs import Motion, check_length, gated, moving, over_pairs

TRACKS = ("u", "v", "depth")
NAMES = ("sampson", "reprojection", "depth_error", "rotation_error", "translation_error")
UNITS = {"loop_rotation": "degree", "rotation_error": "degree"}


class Consistency3D:
    """Means over points, pairs and trajectories; over tracks ``[..., point, (u, v, depth)]``:

    sampson, reprojection      pixels
    depth_error, translation_error  relative
    rotation_error             degrees
    loop_rotation, loop_translation  degrees; length over the length of the way round

    over frames with depth, by the known motion of the camera:

    photometric                brightness; not measurable where less than half of the pixels are visible
    depth_error                relative
    visible                    share of the pixels whose depths agree, of those that both views truly see
    loop                       pixels

    and over frames, where ``pose`` is recovered: sampson, rotation_error and loop_rotation. In all cases

    moving                     share of pairs that move, of those that truly do: tracks by more than ``still``
                               pixels, frames by more than a quarter of the true change of brightness

    Each but ``moving`` is over the pairs that move, with what the truth scores as its floor. Needs a system
    with a camera. NotMeasurable for a prediction that stands still, for fewer than ``gap`` + 1 frames, and
    for a pose that cannot be recovered: without OpenCV (the extra ``vision``), or from too few corners.
    """

    met_by: Mapping[str, str] = {
        "*": "shuffled and memoriser, which show true scenes, though others",
    }

    def __init__(
        self,
        system: System,
        *,
        gap: Annotated[int, Field(ge=1, le=10_000, description="frames between the two views")] = 4,
        still: Annotated[
            float, Field(ge=0, description="median displacement up to which tracks stand still, pixels")
        ] = 0.5,
        pose: Annotated[
            Literal["known", "recovered"],
            Field(
                description="frames only: compare depths and colours under the camera's known motion, or the "
                "motion that OpenCV recovers from what is shown"
            ),
        ] = "known",
    ) -> None:
        kind = KnownPose if pose == "known" else RecoveredPose
        self.frames = kind(system, gap) if isinstance(system, ShowsViews) else None
        tracks = getattr(system, "labels", {}).get("component") == TRACKS
        if self.frames is None and not (tracks and isinstance(system, HasCamera)):
            raise ValueError(
                "consistency_3d needs tracks [point, (u, v, depth)] or frames, seen by a camera whose motion "
                f"is known; {type(system).__name__} has none"
            )
        self.system, self.gap, self.still = system, gap, still

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above of ``prediction`` ``[trajectory, draw, time, *state]``."""
        if isinstance(self.system, HasUnseenStart):  # its first frame is blank
            truth, prediction = truth.span(1), prediction.span(1)
        check_length(len(prediction.times), self.gap)
        states = prediction.states.double()
        failed = int((~torch.isfinite(states)).flatten(1).any(1).sum())
        if failed:
            reason = f"{failed} of {len(states)} predictions are not finite; none is left out"
            names = NAMES if self.frames is None else self.frames.names
            return {name: Score(float("nan"), n=len(states), failed=failed, reason=reason) for name in names}
        if self.frames is not None:
            return self.frames.score(truth, prediction)
        first, second = states[:, :, : -self.gap], states[:, :, self.gap :]
        goes = moved(first[..., :2], second[..., :2], self.still)
        right = truth.states.double()
        truly = moved(right[:, :, : -self.gap, :, :2], right[:, :, self.gap :, :, :2], self.still)
        counted = gated(goes, truly)
        seconds = prediction.times[self.gap :] - prediction.times[: -self.gap]
        found = self.measured(first, second, Motion(*self.system.camera_motion(seconds)))
        scores = {
            name: over_pairs(value, counted, units=UNITS.get(name, "1")) for name, value in found.items()
        }
        if len(prediction.times) > 2 * self.gap:
            scores |= self.loops(states, counted)
        return scores | {"moving": moving(goes, truly)}

    def measured(self, first: Tensor, second: Tensor, camera: Motion) -> dict[str, Tensor]:
        """Each score of every pair of views, ``[trajectory, draw, pair]``."""
        k = self.system.intrinsics
        matrix = fundamental(k, *camera)
        pixels, depth = reprojected(
            first[..., :2], first[..., 2], k, camera.rotation, camera.translation[:, None]
        )
        carried = carrying(self.places(first), self.places(second))
        off = (carried.translation - camera.translation).norm(dim=-1)
        values = (
            sampson_distance(matrix, first[..., :2], second[..., :2]).mean(-1),
            (pixels - second[..., :2]).norm(dim=-1).mean(-1),
            ((second[..., 2] - depth) / depth).abs().mean(-1),
            rotation_error(carried.rotation, camera.rotation),
            off / camera.translation.norm(dim=-1),
        )
        return dict(zip(NAMES, values, strict=True))

    def loops(self, states: Tensor, goes: Tensor) -> dict[str, Score]:
        """Round the frames 0, gap, 2 gap, and back, where both ways out move: ``goes [trajectory, draw,
        pair]``."""
        at = self.places(states[:, :, [0, self.gap, 2 * self.gap, 0]])
        motion = carrying(at[:, :, :-1], at[:, :, 1:])
        found = loop_closure(motion.rotation, motion.translation)
        round_trip = (goes[:, :, 0] & goes[:, :, self.gap])[..., None]
        return {
            name: over_pairs(value[..., None], round_trip, units=UNITS.get(name, "1"))
            for name, value in zip(("loop_rotation", "loop_translation"), found)
        }

    def places(self, states: Tensor) -> Tensor:
        """Places in the camera's coordinates ``[..., point, 3]``."""
        return unprojected(states[..., :2], states[..., 2], self.system.intrinsics)


def carrying(first: Tensor, second: Tensor) -> Motion:
    """The rigid motion that brings points ``[..., point, 3]`` nearest to ``second`` (Kabsch 1976)."""
    one, two = first.mean(-2), second.mean(-2)
    u, _, v = torch.linalg.svd((first - one[..., None, :]).mT @ (second - two[..., None, :]))
    turn = torch.ones_like(one)
    turn[..., 2] = torch.linalg.det(u @ v).sign()  # a reflection is no motion
    rotation = (v.mT * turn[..., None, :]) @ u.mT
    return Motion(rotation, two - (rotation @ one[..., None])[..., 0])


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"consistency_3d": Consistency3D}
