"""One solid body under a camera whose motion is known, for tracks with depth.

    X_t = z K^-1 (u, v, 1),      residual[t] = (X_t - (R(t - r) X_r + s(t - r))) / scale,   0 before r

X_t is where a point is in the camera's coordinates, r the frame that the others are compared with, and
x' = R x + s the camera's motion for a point at rest. The residual knows no pixels: it is a length, the same
for near and far points.

Held to frame 0, which is given, the camera's motion leaves nothing free: there is one trajectory that obeys.
In a world whose frame 0 is blank the body is generated in frame 1, and its law is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasCamera, System
from worldsim_kernels.multiview import unprojected
from worldsim_plugins.constraints import anchored

TRACKS = ("u", "v", "depth")
SHUFFLED = "shuffled and memoriser, which show true scenes, though others"


class Consistency3D:
    """Residual ``[trajectory, draw, time, point, 3]`` float64, exactly 0 up to the reference frame.

    ``scale`` is a length. By default it is the root mean square distance of the points from their mean over
    starts of the system, so that 1 means "off by the size of the body".

    Raises ValueError for a system without a camera of known motion, and for one whose states are not
    ``[point, (u, v, depth)]``.
    """

    equality = True
    needs = ("HasCamera",)

    def __init__(
        self,
        system: System,
        *,
        scale: Annotated[
            float | None,
            Field(
                gt=0, description="distance that counts as 1; left out: the size of the body, over its starts"
            ),
        ] = None,
        reference: anchored.Reference = None,
    ) -> None:
        labels = getattr(system, "labels", {}).get("component")
        if not isinstance(system, HasCamera) or labels != TRACKS:
            raise ValueError(
                "consistency_3d needs tracks [point, (u, v, depth)] seen by a camera whose motion is known; "
                f"{type(system).__name__} has none"
            )
        self.system, self.anchor = system, anchored.anchor_of(system, reference, "consistency_3d")
        # The second frame is generated, and moves as the others do.
        self.local_in_time = self.anchor == 0
        self.met_by: Mapping[str, str] = {"violation_*": SHUFFLED} if self.anchor else {}
        if scale is None:
            places = self.places(anchored.starts_of(system))
            scale = float((places - places.mean(-2, keepdim=True)).square().sum(-1).mean().sqrt())
        self.scale = scale

    def residual(self, trajectory: Trajectory) -> Tensor:
        """How far each point is from where the camera's motion carries it from the reference frame."""
        places = self.places(trajectory.states)
        off = torch.zeros_like(places)
        if places.shape[2] > self.anchor:
            here = places[:, :, self.anchor]
            here = here if self.anchor else here.detach()
            later = slice(self.anchor, None)
            off[:, :, later] = places[:, :, later] - self.moved(here, trajectory.times)[:, :, later]
        return off / self.scale

    def free(self, trajectory: Trajectory) -> Trajectory:
        """Frames 0 and 1 (one where there is one): of them, the reference frame says all."""
        return trajectory.span(0, 2)

    def obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """The body of the reference frame of ``free``, carried to ``times``; frame 0 as it is. Raises
        ValueError where ``free`` does not reach the reference frame."""
        if len(free.times) <= min(self.anchor, len(times) - 1):
            raise ValueError(
                f"consistency_3d carries the body of frame {self.anchor}, and there are {len(free.times)} "
                "frames: generate one more, or set reference to first"
            )
        given = free.states.to(torch.float64)
        states = given[:, :, :1]
        if len(times) > 1:
            carried = self.seen(self.moved(self.places(given[:, :, self.anchor]), times))
            states = torch.cat([states, carried[:, :, 1:]], 2)
        return free.replace(states=states, times=times, actions=None, observables={}, length=None)

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """The nearest trajectory that obeys, by distances in space: of the first frame, the only one; of the
        second, that of each point's mean place, all frames but the first carried back to it."""
        if not self.anchor or len(trajectory.times) < 2:
            return self.obeying(trajectory, trajectory.times)
        rotation, shift = self.motion(trajectory.times)
        states = trajectory.states.to(torch.float64)
        back = (self.places(states) - shift[:, None]) @ rotation  # by the inverse, R^T
        mean = self.seen(back[:, :, 1:].mean(2, keepdim=True))
        first_two = torch.cat([states[:, :, :1], mean], 2)
        return self.obeying(
            trajectory.replace(states=first_two, times=trajectory.times[:2]), trajectory.times
        )

    def motion(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The camera's from the reference frame to ``times``, ``[time, 3, 3]`` and ``[time, 3]``."""
        return self.system.camera_motion(times - times[self.anchor])

    def moved(self, places: Tensor, times: Tensor) -> Tensor:
        """``places`` ``[trajectory, draw, point, 3]`` at the reference frame, at all ``times``."""
        rotation, shift = self.motion(times)
        carried: Tensor = places[:, :, None] @ rotation.mT + shift[:, None]
        return carried

    def places(self, states: Tensor) -> Tensor:
        """Where points ``[..., (u, v, depth)]`` are in the camera's coordinates, float64 ``[..., 3]``."""
        states = states.to(torch.float64)
        return unprojected(states[..., :2], states[..., 2], self.system.intrinsics.to(states))

    def seen(self, places: Tensor) -> Tensor:
        """The inverse of ``places``."""
        projected = places @ self.system.intrinsics.to(places).mT
        return torch.cat([projected[..., :2] / projected[..., 2:], places[..., 2:]], -1)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Consistency3D]]:
    return {"consistency_3d": Consistency3D}
