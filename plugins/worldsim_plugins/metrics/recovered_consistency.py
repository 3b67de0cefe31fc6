"""Whether frames are one solid scene, by the motion of the camera that can be recovered from them alone.

    sampson         median distance of followed corners from their epipolar lines, pixels
    rotation_error  angle between the recovered rotation and the true one
    loop_rotation   recovered rotations round frames 0, gap, 2 gap and back to 0, from the identity

What the truth itself scores, its floor, is the error of the recovery.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory
from worldsim_kernels.multiview import loop_closure, rotation_error
from worldsim_plugins.metrics.recovered_pose import FEWEST, recovered, require_opencv
from worldsim_plugins.metrics.seen_frames import ShowsViews, movement, true_motion
from worldsim_plugins.metrics.view_pairs import gated, moving, over_pairs


class RecoveredPose:
    """See ``Consistency3D``."""

    names = ("sampson", "rotation_error", "loop_rotation")

    def __init__(self, system: ShowsViews, gap: int) -> None:
        self.system, self.gap = system, gap

    def score(self, truth: Trajectory, prediction: Trajectory) -> dict[str, Score]:
        """sampson, rotation_error, loop_rotation and moving, of views that follow each other by ``gap``."""
        require_opencv()
        goes, truly = movement(self.system, self.gap, truth, prediction)
        goes, truly = goes[..., :: self.gap], truly[..., :: self.gap]
        right = self.recoveries(truth, truth, truly)
        truly = truly & right["sampson"].isfinite()
        if not bool(truly.any()):
            raise NotMeasurable(
                f"the true motion cannot be recovered: fewer than {FEWEST} corners of the true frames can be "
                "followed; take more pixels, a finer texture or a smaller gap"
            )
        counted = gated(goes, truly)
        ours = self.recoveries(truth, prediction, counted)
        lost = f" (fewer than {FEWEST} corners can be followed)"

        def over(name: str, counts: Tensor, units: str) -> Score:
            there = counts & right[name].isfinite()
            floor = float(right[name].nanmean())
            return over_pairs(ours[name], there, units=units, floor=floor, lost=lost)

        scores = {
            "sampson": over("sampson", counted, "1"),
            "rotation_error": over("rotation_error", counted, "degree"),
            "moving": moving(goes, truly),
        }
        if counted.shape[-1] > 1:
            scores["loop_rotation"] = over("loop_rotation", counted[:, :, [0]] & counted[:, :, [1]], "degree")
        return scores

    def recoveries(self, truth: Trajectory, shown: Trajectory, counted: Tensor) -> dict[str, Tensor]:
        """``sampson`` and ``rotation_error`` of the pairs ``counted`` ``[trajectory, draw, pair]``, and the
        ``loop_rotation`` ``[trajectory, draw, 1]`` round the first three views; NaN where no motion can be
        recovered, or none was asked for."""
        images, _ = self.system.views(shown.states.double())
        grey, gap = images.mean(-3), self.gap
        starts = list(range(0, len(truth.times) - gap, gap))
        camera = true_motion(truth, starts, [i + gap for i in starts])

        def nothing(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        off, turns = nothing(*counted.shape), nothing(*counted.shape, 3, 3)
        closing = nothing(*counted.shape[:2], 1)
        for row, draw, pair in counted.nonzero().tolist():
            here = starts[pair]
            got = recovered(grey[row, draw, here], grey[row, draw, here + gap], self.system.intrinsics)
            if got is not None:
                turns[row, draw, pair], off[row, draw, pair] = got[0].rotation, got[1]
        angle = rotation_error(turns, camera.rotation.expand_as(turns))
        if len(starts) > 1:
            for row, draw in (counted[:, :, 0] & counted[:, :, 1]).nonzero().tolist():
                back = recovered(grey[row, draw, 2 * gap], grey[row, draw, 0], self.system.intrinsics)
                if back is not None:
                    way = torch.stack([*turns[row, draw, :2], back[0].rotation])
                    closing[row, draw, 0] = loop_closure(way, torch.zeros(3, 3).to(way))[0]
        return {"sampson": off, "rotation_error": angle, "loop_rotation": closing}
