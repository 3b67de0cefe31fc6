"""Whether frames with depth are one solid scene under the known motion of the camera.

Pixels of frame t are carried to frame t + gap by the predicted depth and the true motion of the camera,
p' ~ K (R z K^-1 p + t), and what is shown there is sampled between pixels:

    photometric  mean |I'(p') - I(p)| over the pixels whose depth agrees within 5 %
    depth        mean |z' - D'(p')| / z'
    visible      share of pixels whose depth agrees
    loop         distance of a pixel, carried round frames 0, gap, 2 gap and back to 0, from where it began

Pixels count that can truly be seen from both views, of what does not move by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory
from worldsim_kernels.multiview import carried, mean_where, pixel_grid, view_agreement
from worldsim_plugins.metrics.seen_frames import ShowsViews, at_rest, movement, true_motion
from worldsim_plugins.metrics.view_pairs import Motion, gated, moving, over_pairs

ENOUGH = 0.5
"""Visible share below which colour says nothing."""
SHARED = 0.05
"""Least share of pixels that two views must truly have in common to be compared."""


class KnownPose:
    """See ``Consistency3D``. Raises ValueError where no depth is seen."""

    names = ("photometric", "depth_error", "loop")

    def __init__(self, system: ShowsViews, gap: int) -> None:
        if not system.depth_seen:
            raise ValueError(
                "consistency_3d with a known pose needs depth among what is seen: set depth of the system to "
                "true, or consistency_3d.pose to recovered"
            )
        self.system, self.gap = system, gap

    def score(self, truth: Trajectory, prediction: Trajectory) -> dict[str, Score]:
        """photometric, depth_error, visible, loop and moving of ``prediction`` ``[trajectory, draw, time,
        *state]``."""
        goes, truly = movement(self.system, self.gap, truth, prediction)
        gated(goes, truly)  # raises before the pixels are compared
        right, ours = (each_row(self.agreements, truth, part) for part in (truth, prediction))
        truly = truly & (right["counted"] > SHARED)
        if not bool(truly.any()):
            raise NotMeasurable("no two true views that move have enough in common; change gap")
        counted = gated(goes, truly)
        floors = {name: float(value[truly].mean()) for name, value in right.items()}
        scores = {
            "photometric": self.photometric(ours, counted, floors["photometric"]),
            "depth_error": over_pairs(ours["depth_error"], counted, floor=floors["depth_error"]),
            "visible": over_pairs(ours["visible"], counted, floor=floors["visible"], better="higher"),
        }
        if len(prediction.times) > 2 * self.gap:
            way, ours_way = (each_row(self.ways_round, truth, part)["loop"] for part in (truth, prediction))
            both = counted[:, :, [0]] & counted[:, :, [self.gap]] & way.isfinite()
            scores["loop"] = over_pairs(ours_way, both, floor=float(way.nanmean()))
        return scores | {"moving": moving(goes, truly)}

    def photometric(self, ours: Mapping[str, Tensor], counted: Tensor, floor: float) -> Score:
        """Over the visible pixels of all pairs that count; void where they are few."""
        moves = counted.flatten(1).any(1)
        shown = torch.where(counted, ours["visible"], 0.0).flatten(1).sum(1) / counted.flatten(1).sum(1)
        few = int((shown[moves] < ENOUGH).sum())
        if few:
            reason = (
                f"in {few} of {int(moves.sum())} predictions that move, the depths of less than {ENOUGH:.0%} "
                "of what both views see agree: colour says nothing"
            )
            return Score(float("nan"), n=int(moves.sum()), failed=few, reason=reason)
        return over_pairs(ours["photometric"], counted * ours["visible"], floor=floor)

    def agreements(self, truth: Trajectory, prediction: Trajectory) -> dict[str, Tensor]:
        """``photometric``, ``depth_error`` and ``visible`` of every pair, ``[trajectory, draw, pair]``, and
        the share of pixels ``counted``."""
        gap, k = self.gap, self.system.intrinsics
        starts = list(range(len(truth.times) - gap))
        camera = true_motion(truth, starts, [i + gap for i in starts])
        right = truth.observables["depth"].double()
        pixels = pixel_grid(*right.shape[-2:])
        true_ways = carried(pixels, right[:, :, :-gap].flatten(-2), right[:, :, gap:], k, *camera)
        counted = true_ways.visible.unflatten(-1, right.shape[-2:]) & at_rest(self.system, truth)[:, :, :-gap]
        images, depth = self.system.views(prediction.states.double())
        found = [
            view_agreement(
                (image[:, :, :-gap], image[:, :, gap:]),
                (depth[:, :, :-gap], depth[:, :, gap:]),
                k, *camera, counted=counted,
            )
            for image in images.unbind(-3)
        ]  # fmt: skip
        colours = torch.stack([agreement.photometric for agreement in found]).mean(0)
        return {
            "photometric": colours,
            "depth_error": found[0].depth,
            "visible": found[0].visible,
            "counted": counted.double().mean((-2, -1)).expand_as(colours),
        }

    def ways_round(self, truth: Trajectory, prediction: Trajectory) -> dict[str, Tensor]:
        """``loop``, pixels, ``[trajectory, draw, 1]``, over those that truly stay in sight all the way."""
        at = [0, self.gap, 2 * self.gap, 0]
        _, depth = self.system.views(prediction.states.double())
        right = truth.observables["depth"].double()
        camera = true_motion(truth, at[:-1], at[1:])
        begun = pixel_grid(*right.shape[-2:])

        def went(depths: Tensor) -> tuple[Tensor, Tensor]:
            places, z = begun, depths[:, :, 0].flatten(-2)
            seen = torch.ones_like(z, dtype=torch.bool)
            for step, frame in enumerate(at[1:]):
                motion = Motion(*(part[:, :, step] for part in camera))
                found = carried(places, z, depths[:, :, frame], self.system.intrinsics, *motion)
                places, z, seen = found.place, found.there, seen & found.visible
            return (places - begun).norm(dim=-1), seen

        counted = went(right)[1] & at_rest(self.system, truth)[:, :, 0].flatten(-2)
        return {"loop": mean_where(went(depth)[0], counted)[..., None]}


def each_row(
    measure: Callable[[Trajectory, Trajectory], dict[str, Tensor]], truth: Trajectory, prediction: Trajectory
) -> dict[str, Tensor]:
    """``measure`` of one trajectory after the other: all pairs of all frames at once are many pixels."""
    found = [measure(truth.rows([i]), prediction.rows([i])) for i in range(len(prediction))]
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}
