"""A point that flies straight and is reflected by the wall of a table: rectangle, circle or stadium. Exact.

    H = |p|^2 / 2,   p -> p - 2 (p . n) n at the wall, with its normal n

A rectangle and a circle have a second invariant and are integrable; the stadium (two half circles joined by
straight walls) is chaotic: neighbours part exponentially (Bunimovich 1979, *On the ergodic properties of
nowhere dispersing billiards*). The way to the next wall is known in closed form, so only rounding is lost,
which the stadium enlarges at each bounce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

DRAWS = 64
"""Points drawn in a table's box for each start: that none lies on the table has a probability below 1e-42."""
BOUNCES = 2000


class Billiards:
    """States ``[trajectory, (x, y, px, py)]`` of a unit mass, the origin in the middle of the table; starts
    uniform on the table, in direction and in speed. There is no ``drift``: a bounce is no differential
    equation."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "y", "px", "py")}
    units: Mapping[str, str] = {
        **dict.fromkeys("xy", "m"),
        **dict.fromkeys(("px", "py"), "kg m s-1"),
        "angular_momentum": "kg m2 s-1",
        "energy": "J",
        "time": "s",
    }
    history_kinds: tuple[str, ...] = ("window_shift", "mirror")

    def __init__(
        self,
        *,
        table: Annotated[Literal["rectangle", "circle", "stadium"], Field(description="shape")] = "stadium",
        length: Annotated[
            float, Field(gt=0, description="of the straight walls along x, m; a circle has none")
        ] = 2.0,
        width: Annotated[float, Field(gt=0, description="distance of these walls, or diameter, m")] = 2.0,
        speed: Annotated[tuple[float, float], Field(description="lowest and highest speed, m s-1")] = (
            1.0,
            1.0,
        ),
    ) -> None:
        self.table = table
        self.half = 0.0 if table == "circle" else length / 2
        self.radius = width / 2
        self.speeds = integrated.ordered("speed", speed, 0.0)
        if self.speeds[0] == 0:
            raise ValueError("speed must be positive: a point at rest never meets a wall")
        self.conserved: tuple[str, ...] = ("energy", "angular_momentum") if table == "circle" else ("energy",)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (x, y, px, py)]``."""
        speed = integrated.between(self.speeds, n, generator)
        turn = 2 * math.pi * torch.rand(n, dtype=torch.float64, generator=generator)
        reach = self.half + (0.0 if self.table == "rectangle" else self.radius)
        box = torch.tensor([reach, self.radius], dtype=torch.float64)
        draws = box * (2 * torch.rand(n, DRAWS, 2, dtype=torch.float64, generator=generator) - 1)
        first = (self.depth(draws) > 0).long().argmax(1)  # the first that lies on the table
        q = draws[torch.arange(n), first]
        return torch.cat([q, speed[:, None] * torch.stack([turn.cos(), turn.sin()], -1)], -1)

    def depth(self, q: Tensor) -> Tensor:
        """The distance of ``q`` ``[..., (x, y)]`` from the wall, negative outside of the table ``[...]``."""
        x, y = q.abs().unbind(-1)
        if self.table == "rectangle":
            return torch.minimum(self.half - x, self.radius - y)
        beyond = (x - self.half).clamp_min(0.0)
        middle = (beyond == 0) & (y == 0)  # where a distance has no derivative
        return self.radius - torch.hypot(beyond, y.masked_fill(middle, 1.0)).masked_fill(middle, 0.0)

    def margin(self, states: Tensor) -> Tensor:
        """``depth`` of the place, ``[..., 1]``, for ``[..., (x, y, px, py)]``."""
        return self.depth(states[..., :2]).unsqueeze(-1)

    def within(self, states: Tensor) -> Tensor:
        """The nearest states on the table."""
        q, p = states.chunk(2, -1)
        sides = q.new_tensor([self.half, self.radius])
        if self.table == "rectangle":
            return torch.cat([q.clamp(-sides, sides), p], -1)
        middle = torch.stack([q[..., 0].clamp(-self.half, self.half), torch.zeros_like(q[..., 1])], -1)
        away = q - middle
        distance = torch.hypot(away[..., 0], away[..., 1])[..., None]
        outside = distance > self.radius
        shrunk = middle + away * (self.radius / torch.where(outside, distance, self.radius))
        return torch.cat([torch.where(outside, shrunk, q), p], -1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 4]``; raises ValueError for one that is not on the table."""
        states = integrated.checked(states, (4,))
        if bool((self.depth(states[:, :2]) < -1e-9).any()):
            raise ValueError("a point cannot start outside of the table")
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (x, y, px, py)]``, with observables energy and angular momentum."""
        if actions is not None:
            raise ValueError("billiards are not driven: leave the actions out")
        times = integrated.ascending(times)
        frames = [start]
        for length in times.diff().tolist():
            frames.append(self.flown(frames[-1], length))
        states = torch.stack(frames, 1).unsqueeze(1)
        return Trajectory(
            states=states,
            times=times,
            observables=self.observe(states),
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def flown(self, states: Tensor, length: float) -> Tensor:
        """``states`` ``[trajectory, 4]`` a time ``length`` later."""
        states, left = states.clone(), torch.full((len(states),), length, dtype=torch.float64)
        rows = torch.arange(len(states))
        for _ in range(BOUNCES):
            if not len(rows):
                return states
            q, p = states[rows].chunk(2, -1)
            until, normal = self.wall(q, p)
            bounces = until < left[rows]
            go = torch.where(bounces, until, left[rows])
            along = p[:, :1] * normal[:, :1] + p[:, 1:] * normal[:, 1:]
            turned = torch.where(bounces[:, None], p - 2 * along * normal, p)
            states[rows] = torch.cat([q + go[:, None] * p, turned], -1)
            left[rows] = left[rows] - go
            rows = rows[bounces]
        raise ValueError(
            f"{len(rows)} points meet the wall more than {BOUNCES} times between two times of the grid (row "
            f"{int(rows[0])}): one that grazes a curved wall never leaves it; choose another start"
        )

    def wall(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """How long ``q`` with ``p`` ``[trajectory, 2]`` flies to the wall, and the wall's outer normal there.

        A wall that is flown away from is not met again, whatever rounding says of where the point is.
        """
        sign = torch.where(p < 0, -1.0, 1.0).to(p)
        axes = torch.eye(2, dtype=p.dtype)
        sides = torch.tensor([self.half, self.radius], dtype=p.dtype)
        straight = ((sides - sign * q).clamp_min(0.0) / p.abs()).nan_to_num(math.inf, math.inf)
        if self.table == "rectangle":
            first = straight[:, 0] <= straight[:, 1]
            normal = sign * torch.where(first[:, None], axes[0], axes[1])
            return torch.where(first, straight[:, 0], straight[:, 1]), normal
        # Where the straight wall would be met; beyond its end, the half circle of that end is met before.
        x = q[:, 0] + straight[:, 1] * p[:, 0]
        level = p[:, 1] == 0
        end = self.half * torch.where(torch.where(level, p[:, 0], x) < 0, -1.0, 1.0)
        flat = (x.abs() <= self.half) & ~level & (self.half > 0)
        away = torch.stack([q[:, 0] - end, q[:, 1]], -1)
        # |away + t p|^2 = radius^2: its later root.
        square = p.square().sum(-1)
        middle = -(away[:, 0] * p[:, 0] + away[:, 1] * p[:, 1]) / square
        across = (away[:, 0] * p[:, 1] - away[:, 1] * p[:, 0]).square() / square
        curved = middle + ((self.radius**2 - across).clamp_min(0.0) / square).sqrt()
        normal = (away + curved[:, None] * p) / self.radius
        normal = normal / torch.hypot(normal[:, 0], normal[:, 1])[:, None]
        return torch.where(flat, straight[:, 1], curved), torch.where(flat[:, None], sign * axes[1], normal)

    def energy(self, states: Tensor) -> Tensor:
        """H in J, ``[...]`` for ``[..., (x, y, px, py)]``."""
        return states[..., 2:].square().sum(-1) / 2

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        x, y, px, py = states.unbind(-1)
        return {"energy": self.energy(states), "angular_momentum": x * py - y * px}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``mirror``: (q, p) and (-q, -p)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        mirrored = history.replace(states=-history.states, observables=self.observe(-history.states))
        return HistoryPairs(history, mirrored, align=torch.neg)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"billiards": Billiards}
