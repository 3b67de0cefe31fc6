"""Films of a room with spheres and boxes, some of which bounce and spin, by a camera that goes round them.

A sphere falls freely and is thrown back by the floor without loss. With v^2 = 2 gravity drop and T = 2 v /
gravity, its height above the floor and its orientation are

    h(t) = v s - gravity s^2 / 2,   s = (t + t_0) mod T,      Q(t) = exp(t [w]_x) Q(0)

(a homogeneous sphere spins at a constant w, and a smooth floor does not change it). The camera's path is
exact too, and each pixel is the exact crossing of its ray (``worldsim_kernels.rendering``): the only error of
a frame is rounding. Lengths have no unit.

World and camera have x to the right, y down and z forward. The camera looks at the middle of the bodies from
``distance``, by an angle ``pitch`` from above, and goes round the vertical at a steady rate or as it is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import System
from worldsim_kernels.multiview import pixel_grid
from worldsim_kernels.rendering import Bodies, Texture, brightness, sight
from worldsim_plugins.systems import integrated

Pixels = Annotated[int, Field(ge=16, le=128, description="pixels along each side of a frame")]
Colour = Annotated[bool, Field(description="red, green and blue instead of one brightness")]
Depth = Annotated[bool, Field(description="whether depth is part of what is seen, after the brightness")]
Still = Annotated[int, Field(ge=0, le=4, description="bodies that stand still, by turns boxes and spheres")]
Moving = Annotated[int, Field(ge=0, le=4, description="spheres that bounce and spin")]
Points = Annotated[int, Field(ge=1, le=1000, description="points of walls and bodies that are followed")]
Grain = Annotated[
    float, Field(gt=0, description="wavelength of the walls' texture, lengths; a quarter of it on bodies")
]
Gravity = Annotated[float, Field(gt=0, description="gravitational acceleration, lengths s-2")]
Spin = Annotated[float, Field(ge=0, description="rate at which moving bodies turn, rad s-1")]
Distance = Annotated[float, Field(ge=3, le=20, description="of the camera from the middle, lengths")]
Pitch = Annotated[float, Field(ge=0, le=1.2, description="of the camera's view, downwards, rad")]

RING, LARGEST, GAP = 1.0, 0.45, 0.9
"""Bodies stand on a ring; the radius of one, less where they would touch; and the share of room it takes."""
DROP = (0.4, 1.0)
"""Lowest and highest point that a bouncing sphere falls from, above the floor."""
WAVES = 3
BEYOND = 2.0
"""The walls are this much farther from the middle than the camera."""
SEEN_TO = 1e-9
"""A point is hidden when something is nearer by more than this share of its depth."""


@dataclass(frozen=True)
class Layout:
    """Where everything is at the start, for each of ``n`` trajectories, all float64.

    azimuth   ``[n]`` of the camera, rad
    ring      ``[n]`` angle of the first body on the ring, rad
    drop      ``[n, moving]`` height of fall
    phase     ``[n, moving]`` share of the bounce that is over
    rotation  ``[n, body, 3, 3]``, body to world
    spin      ``[n, moving, 3]``, rad s-1
    """

    azimuth: Tensor
    ring: Tensor
    drop: Tensor
    phase: Tensor
    rotation: Tensor
    spin: Tensor


class Scene:
    """States ``[trajectory, (row, column, component)]``: brightness in [0, 1], and depth where it is seen."""

    axes = ("row", "column", "component")

    def __init__(
        self,
        pixels: int,
        colour: bool,
        depth: bool,
        still: int,
        moving: int,
        points: int,
        grain: float,
        gravity: float,
        spin: float,
        distance: float,
        pitch: float,
    ) -> None:
        if still + moving == 0:
            raise ValueError("an empty room: set still or moving to 1 or more")
        self.pixels, self.depth_seen, self.bodies, self.moving = pixels, depth, still + moving, moving
        self.gravity, self.spin, self.distance, self.pitch = gravity, spin, distance, pitch
        self.channels = ("red", "green", "blue") if colour else ("brightness",)
        self.labels: Mapping[str, tuple[str, ...]] = {
            "component": (*self.channels, "depth") if depth else self.channels
        }
        lengths = ("depth", "translation", "places")
        self.units: Mapping[str, str] = dict.fromkeys((*self.channels, *lengths), "1") | {"time": "s"}
        middle = (pixels - 1) / 2
        self.intrinsics = torch.tensor(
            [[pixels, 0.0, middle], [0.0, pixels, middle], [0.0, 0.0, 1.0]], dtype=torch.float64
        )
        room = BEYOND + distance
        radius = min(LARGEST, GAP * RING * math.sin(math.pi / self.bodies)) if self.bodies > 1 else LARGEST
        self.radius = radius
        kinds = ["box" if i % 2 == 0 else "sphere" for i in range(still)] + ["sphere"] * moving + ["room"]
        # A box stands upright within its circle.
        sizes = {"box": radius / math.sqrt(2), "sphere": radius, "room": room}
        self.half = torch.tensor([[sizes[kind]] * 3 for kind in kinds], dtype=torch.float64)
        self.box = torch.tensor([kind != "sphere" for kind in kinds])
        self.hollow = torch.tensor([kind == "room" for kind in kinds])
        self.moves = torch.tensor([still <= i < self.bodies for i in range(len(kinds))])
        self.texture, self.where, self.followed = self.looks(points, grain)

    def looks(self, points: int, grain: float) -> tuple[Texture, Tensor, Tensor]:
        """The textures, and which bodies ``[point]`` the followed points are on and where ``[point, 3]``, in
        its coordinates: the same in every trajectory."""
        generator = torch.Generator().manual_seed(0)
        bodies = len(self.half)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        ways = torch.nn.functional.normalize(normal(bodies, WAVES, 3), dim=-1)
        lengths = integrated.between((0.8 * grain, 1.25 * grain), bodies * WAVES, generator).view(bodies, -1)
        lengths = torch.where(self.hollow[:, None], lengths, lengths / 4)
        phases = torch.rand(bodies, WAVES, len(self.channels), dtype=torch.float64, generator=generator)
        texture = Texture(2 * math.pi * ways / lengths[..., None], 2 * math.pi * phases)
        where = torch.arange(points) % bodies
        way = normal(points, 3)
        size = torch.where(self.box[where], way.abs().amax(-1), way.norm(dim=-1))
        return texture, where, way / size[:, None] * self.half[where]

    def sample(self, n: int, generator: torch.Generator) -> Layout:
        """``n`` rooms: the camera, the ring of bodies and the bounces begin anywhere on their way."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, dtype=torch.float64, generator=generator)

        upright = about_vertical(2 * math.pi * uniform(n, self.bodies - self.moving))
        axis = torch.randn(2, n, self.moving, 3, dtype=torch.float64, generator=generator)
        tumbled = turned(math.pi * torch.nn.functional.normalize(axis[0], dim=-1))
        return Layout(
            azimuth=2 * math.pi * uniform(n),
            ring=2 * math.pi * uniform(n),
            drop=DROP[0] + (DROP[1] - DROP[0]) * uniform(n, self.moving),
            phase=uniform(n, self.moving),
            rotation=torch.cat([upright, tumbled], 1),
            spin=self.spin * torch.nn.functional.normalize(axis[1], dim=-1),
        )

    def placed(self, start: Layout, seconds: Tensor) -> Bodies:
        """The bodies, and the room as the last one, a time ``seconds`` (no axes) after the start:
        ``[trajectory, body]``."""
        n = len(start.ring)
        angle = start.ring[:, None] + 2 * math.pi / self.bodies * torch.arange(self.bodies)
        rest = self.bodies - self.moving
        speed = (2 * self.gravity * start.drop).sqrt()
        period = 2 * speed / self.gravity
        since = torch.remainder(seconds / period + start.phase, 1.0) * period
        height = torch.zeros(n, self.bodies, dtype=torch.float64)
        height[:, rest:] = speed * since - self.gravity * since.square() / 2
        places = torch.stack(
            [RING * angle.cos(), -height - self.half[:-1, 0], RING * angle.sin()], -1
        )  # the floor is at y = 0, and y is down
        spun = turned(seconds * start.spin) @ start.rotation[:, rest:]
        middle = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64) * self.half[-1]
        room = torch.eye(3, dtype=torch.float64).expand(n, 1, 3, 3)
        return Bodies(
            torch.cat([places, middle.expand(n, 1, 3)], 1),
            torch.cat([start.rotation[:, :rest], spun, room], 1),
            self.half,
            self.box,
            self.hollow,
        )

    def looked_at(self) -> Tensor:
        """The point at which the camera looks, world."""
        return torch.tensor([0.0, -self.radius, 0.0], dtype=torch.float64)

    def pose(self, azimuth: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """R ``[..., 3, 3]`` and t ``[..., 3]`` of x_c = R x_w + t, of a camera at ``azimuth [...]``."""
        cos, sin = math.cos(self.pitch), math.sin(self.pitch)
        down = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]], dtype=torch.float64)
        rotation = down @ about_vertical(azimuth)
        ahead = torch.zeros(*distance.shape, 3, dtype=torch.float64)
        ahead[..., 2] = distance
        return rotation, ahead - rotation @ self.looked_at()

    def filmed(
        self, start: Layout, times: Tensor, azimuth: Tensor, distance: Tensor, actions: Tensor | None
    ) -> Trajectory:
        """What a camera at ``azimuth`` and ``distance`` ``[trajectory, time]`` sees.

        Observables: ``depth`` and ``body`` ``[row, column]`` (the number of the body seen; the room is the
        last), the pose ``rotation`` ``[3, 3]`` and ``translation`` ``[3]``, the ``places`` of the bodies
        ``[body, 3]`` in the world, and ``tracks`` ``[point, (u, v, depth, visible)]`` of the followed points.
        """
        rotation, translation = self.pose(azimuth, distance)
        frames: dict[str, list[Tensor]] = {
            name: [] for name in ("light", "depth", "body", "places", "tracks")
        }
        pixels = pixel_grid(self.pixels, self.pixels)
        for i, seconds in enumerate(times - times[0]):
            bodies, pose = self.placed(start, seconds), (rotation[:, i], translation[:, i])
            seen = sight(pixels, self.intrinsics, *pose, bodies)
            shape = (len(azimuth), self.pixels, self.pixels)
            frames["light"].append(brightness(seen, self.texture).reshape(*shape, -1))
            frames["depth"].append(seen.depth.reshape(shape))
            frames["body"].append(seen.body.reshape(shape))
            frames["places"].append(bodies.centre[:, :-1])
            frames["tracks"].append(self.tracked(bodies, *pose))
        found = {name: torch.stack(value, 1)[:, None] for name, value in frames.items()}
        light, depth = found.pop("light"), found["depth"]
        states = torch.cat([light, depth[..., None]], -1) if self.depth_seen else light
        found |= {"rotation": rotation[:, None], "translation": translation[:, None]}
        return Trajectory(states, times, actions, found, None, self.axes, self.labels, self.units)

    def tracked(self, bodies: Bodies, rotation: Tensor, translation: Tensor) -> Tensor:
        """``[trajectory, point, (u, v, depth, visible)]`` of the followed points; visible is 1 where a point
        is in front of the camera, in the picture, and hidden by nothing."""
        turn, centre = bodies.rotation[:, self.where], bodies.centre[:, self.where]
        world = (turn @ self.followed[..., None])[..., 0] + centre
        camera = world @ rotation.mT + translation[:, None]
        projected = camera @ self.intrinsics.mT
        z = camera[..., 2]
        pixels = projected[..., :2] / torch.where(z == 0, 1.0, z)[..., None]
        nearest = sight(pixels, self.intrinsics, rotation, translation, bodies)
        inside = ((pixels >= 0) & (pixels <= self.pixels - 1)).all(-1)
        visible = (z > 0) & inside & (z <= nearest.depth * (1 + SEEN_TO))
        return torch.cat([pixels, z[..., None], visible[..., None].double()], -1)

    def views(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Brightness ``[..., channel, row, column]`` and depth ``[..., row, column]``, None where it is not
        seen."""
        count = len(self.channels)
        return states[..., :count].movedim(-1, -3), states[..., count] if self.depth_seen else None


class Scenes(Scene):
    """The camera goes round at a steady rate."""

    def __init__(
        self,
        *,
        pixels: Pixels = 16,
        colour: Colour = False,
        depth: Depth = True,
        still: Still = 2,
        moving: Moving = 1,
        points: Points = 16,
        grain: Grain = 3.0,
        gravity: Gravity = 1.0,
        spin: Spin = 1.0,
        distance: Distance = 4.0,
        pitch: Pitch = 0.4,
        rate: Annotated[float, Field(gt=0, description="rate at which the camera turns, rad s-1")] = 0.5,
    ) -> None:
        super().__init__(pixels, colour, depth, still, moving, points, grain, gravity, spin, distance, pitch)
        self.rate = rate

    def simulate(
        self, start: Layout, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, row, column, component]``; see ``filmed`` for the observables."""
        if actions is not None:
            raise ValueError("scenes is not driven: leave actions out, or take driven_scenes")
        times = integrated.ascending(times)
        azimuth = start.azimuth[:, None] + self.rate * (times - times[0])
        return self.filmed(start, times, azimuth, torch.full_like(azimuth, self.distance), None)

    def camera_motion(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """R ``[..., 3, 3]`` and t ``[..., 3]`` of x' = R x + t, the camera's coordinates of a point at rest,
        a time ``seconds [...]`` later."""
        angle = self.rate * seconds.double()
        distance = torch.full_like(angle, self.distance)
        (turn, shift), (first, begun) = (self.pose(a, distance) for a in (angle, torch.zeros_like(angle)))
        rotation = turn @ first.mT
        return rotation, shift - (rotation @ begun[..., None])[..., 0]


class DrivenScenes(Scene):
    """The camera turns and approaches as it is told: actions ``[trajectory, time, (turn, approach)]``, rad
    s-1 round the vertical and lengths s-1 towards the middle, each held until the next frame. It comes no
    nearer and goes no farther than one length from ``distance``."""

    def __init__(
        self,
        *,
        pixels: Pixels = 16,
        colour: Colour = False,
        depth: Depth = True,
        still: Still = 2,
        moving: Moving = 1,
        points: Points = 16,
        grain: Grain = 3.0,
        gravity: Gravity = 1.0,
        spin: Spin = 1.0,
        distance: Distance = 4.0,
        pitch: Pitch = 0.4,
        turn: Annotated[float, Field(gt=0, description="largest rate of turning, rad s-1")] = 1.0,
        approach: Annotated[float, Field(ge=0, description="largest speed of approach, lengths s-1")] = 0.5,
        hold: Annotated[int, Field(ge=1, description="frames over which an action is held")] = 5,
    ) -> None:
        super().__init__(pixels, colour, depth, still, moving, points, grain, gravity, spin, distance, pitch)
        self.largest, self.hold = torch.tensor([turn, approach], dtype=torch.float64), hold

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """``[n, time, (turn, approach)]``, uniform, each held for ``hold`` frames."""
        draws = torch.rand(n, -(-len(times) // self.hold), 2, dtype=torch.float64, generator=generator)
        return (self.largest * (2 * draws - 1)).repeat_interleave(self.hold, 1)[:, : len(times)]

    def simulate(
        self, start: Layout, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, row, column, component]``; without actions the camera stands still."""
        times = integrated.ascending(times)
        n = len(start.azimuth)
        given = torch.zeros(n, len(times), 2, dtype=torch.float64) if actions is None else actions.double()
        if given.shape != (n, len(times), 2):
            expected = [n, len(times), 2]
            raise ValueError(f"actions must be [trajectory, time, (turn, approach)] = {expected}")
        azimuth, distance = [start.azimuth], [torch.full_like(start.azimuth, self.distance)]
        for i, length in enumerate(times.diff()):
            azimuth.append(azimuth[-1] + length * given[:, i, 0])
            moved = distance[-1] - length * given[:, i, 1]
            distance.append(moved.clamp(self.distance - 1, self.distance + 1))
        return self.filmed(start, times, torch.stack(azimuth, 1), torch.stack(distance, 1), actions)


def about_vertical(angle: Tensor) -> Tensor:
    """``[..., 3, 3]``, the rotation by ``angle [...]`` about y."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [cos, zero, sin, zero, one, zero, -sin, zero, cos]
    return torch.stack(rows, -1).reshape(*angle.shape, 3, 3)


def turned(vector: Tensor) -> Tensor:
    """``[..., 3, 3]``, the rotation about ``vector [..., 3]`` by its length, exp([v]_x)."""
    zero = torch.zeros_like(vector[..., 0])
    a, b, c = vector.unbind(-1)
    skew = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).reshape(*a.shape, 3, 3)
    return torch.linalg.matrix_exp(skew)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"scenes": Scenes, "driven_scenes": DrivenScenes}
