"""A rigid cloud of points seen by a camera that goes round it at a steady rate. Exact.

    x(t) = R(w t) (x(0) - c) + c,   (u, v) = (f x / z + u0, f y / z + v0)

x is a point in the camera's coordinates, c = (0, 0, distance) the middle of the cloud, R the rotation about
the vertical. What is seen is the track of each point in the picture, and its depth z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_kernels.multiview import unprojected
from worldsim_plugins.systems import integrated


class TrackedPoints:
    """States ``[trajectory, point, (u, v, depth)]``, pixels and lengths. Points start uniformly in a ball."""

    axes = ("point", "component")
    conserved: tuple[str, ...] = ("size",)
    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        points: Annotated[int, Field(ge=4, le=1000, description="points of the cloud")] = 12,
        rate: Annotated[float, Field(gt=0, description="rate at which the camera turns, rad s-1")] = 0.5,
        distance: Annotated[float, Field(gt=1, description="of the camera from the middle, radii")] = 4.0,
        focal: Annotated[float, Field(gt=0, description="focal length, pixels")] = 80.0,
        centre: Annotated[float, Field(ge=0, description="principal point, both ways, pixels")] = 32.0,
    ) -> None:
        self.points, self.rate, self.distance = points, rate, distance
        self.intrinsics = torch.tensor(
            [[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]], dtype=torch.float64
        )
        self.labels: Mapping[str, tuple[str, ...]] = {"component": ("u", "v", "depth")}
        self.units: Mapping[str, str] = dict.fromkeys(("u", "v", "depth", "size"), "1") | {"time": "s"}

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, point, (u, v, depth)]``."""
        way = torch.randn(n, self.points, 3, dtype=torch.float64, generator=generator)
        radius = torch.rand(n, self.points, 1, dtype=torch.float64, generator=generator) ** (1 / 3)
        return self.seen(radius * way / way.norm(dim=-1, keepdim=True) + self.middle())

    def middle(self) -> Tensor:
        return torch.tensor([0.0, 0.0, self.distance], dtype=torch.float64)

    def seen(self, places: Tensor) -> Tensor:
        """Pixels and depth ``[..., (u, v, depth)]`` of places in the camera's coordinates ``[..., 3]``."""
        projected = places @ self.intrinsics.mT
        return torch.cat([projected[..., :2] / projected[..., 2:], places[..., 2:]], -1)

    def places(self, states: Tensor) -> Tensor:
        """The inverse of ``seen``."""
        return unprojected(states[..., :2], states[..., 2], self.intrinsics)

    def camera_motion(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation ``[..., 3, 3]`` and translation ``[..., 3]`` of x' = R x + t, the camera's coordinates a
        time ``seconds [...]`` later."""
        angle = self.rate * seconds.double()
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [cos, zero, sin, zero, torch.ones_like(angle), zero, -sin, zero, cos]
        rotation = torch.stack(rows, -1).reshape(*angle.shape, 3, 3)
        return rotation, self.middle() - rotation @ self.middle()

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, point, 3]``."""
        return integrated.checked(states, (self.points, 3))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, point, 3]``, with the observable ``size`` of the cloud."""
        if actions is not None:
            raise ValueError("tracked_points is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        rotation, translation = self.camera_motion(times - times[0])
        moved = self.places(start)[:, None] @ rotation.mT + translation[:, None]
        states = self.seen(moved).unsqueeze(1)
        return Trajectory(
            states, times, observables=self.observe(states), axes=self.axes, labels=self.labels,
            units=self.units,
        )  # fmt: skip

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """``size``: root mean square distance of the points from their mean, ``[...]``."""
        places = self.places(states)
        away = places - places.mean(-2, keepdim=True)
        return {"size": away.square().sum(-1).mean(-1).sqrt()}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        return integrated.window_shift(self.simulate(self.sample(n, generator), times, None, generator))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"tracked_points": TrackedPoints}
