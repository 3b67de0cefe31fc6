"""Films of a pendulum and of a mass on a spring: what a model sees is pixels, and the state is hidden.

A frame shows the bob as a soft white spot on black,

    brightness(x) = exp(-|x - c(q)|^2 / (2 w^2)),    less a black level, 0 below it

at the centres of its pixels, so it is a continuous function of the position q, and wide enough for its pixels
not to alias; no momentum can be seen in a single frame. Position is read back as the centroid of brightness
squared, and momentum by differences in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems import integrated
from worldsim_plugins.systems.pendulum import Pendulum

Pixels = Annotated[int, Field(ge=16, le=128, description="pixels along each side of a frame")]
WIDTH, MARGIN = 0.24, 0.7
"""w, and what is seen beyond the farthest that the bob can be, which is at 1 from the middle."""
BLACK = 0.01
"""Without it every dark pixel would vary, by 1e-30, and a score in units of its spread would mean nothing."""


class Mechanism(Protocol):
    """What is filmed: states ``[..., (q, p)]``."""

    inertia: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor: ...

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory: ...

    def energy(self, states: Tensor) -> Tensor: ...


class Film:
    """States ``[trajectory, (row, column)]``, brightness in [0, 1]; q, p and energy are observables."""

    axes = ("row", "component")

    def __init__(self, mechanism: Mechanism, pixels: int, units: Mapping[str, str]) -> None:
        self.mechanism, self.pixels = mechanism, pixels
        self.units = {"brightness": "1", "q": units["q"], "p": units["p"], "energy": "J", "time": "s"}
        self.labels: Mapping[str, tuple[str, ...]] = {}

    def place(self, q: Tensor) -> Tensor:
        """Where the bob is at position ``q`` ``[...]``: ``[..., (right, up)]``, in [-1, 1]."""
        raise NotImplementedError

    def position(self, place: Tensor) -> Tensor:
        """The inverse of ``place``, continuous along the last axis of the result, ``[..., time]``."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q, p)]``: the hidden start."""
        return self.mechanism.sample(n, generator)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, row, column]``, with observables q, p and energy."""
        hidden = self.mechanism.simulate(start, times, actions, generator)
        q, p = hidden.states.unbind(-1)
        observables = {"q": q, "p": p, "energy": self.mechanism.energy(hidden.states)}
        return Trajectory(self.filmed(q), hidden.times, None, observables, None, self.axes, {}, self.units)

    def filmed(self, q: Tensor) -> Tensor:
        """Frames ``[..., row, column]`` of positions ``q`` ``[...]``."""
        right, up = self.place(q)[..., None, None, :].unbind(-1)
        along = self.grid().to(q)
        square = (along - right).square() + (-along[:, None] - up).square()
        return (torch.exp(-square / (2 * WIDTH**2)) - BLACK).clamp(min=0) / (1 - BLACK)

    def grid(self) -> Tensor:
        """Centres of pixels along an axis, ``[pixels]``."""
        cells = torch.arange(self.pixels, dtype=torch.float64) + 0.5
        return (1 + MARGIN) * (2 * cells / self.pixels - 1)

    def read(self, frames: Tensor) -> Tensor:
        """Positions ``[..., time]`` of frames ``[..., time, row, column]``, by the centroid of brightness
        squared; NaN for a black frame."""
        light = frames.double().square()
        along = self.grid()
        total = light.sum((-1, -2))
        right = (light.sum(-2) * along).sum(-1) / total
        up = -(light.sum(-1) * along).sum(-1) / total
        return self.position(torch.stack([right, up], -1))

    def energy_of_frames(self, frames: Tensor, times: Tensor) -> Tensor:
        """Energy in J, ``[..., time - 4]``, of all frames ``[..., time, row, column]`` but two at either end.

        The momentum is the central difference of order 4 of the positions in time; ``times`` ``[time]`` must
        be uniform. Raises ValueError when they are not, or are fewer than 5.
        """
        gaps = times.diff()
        if len(times) < 5 or not torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6, atol=0):
            raise ValueError("the energy of a film needs at least 5 frames on a uniform time grid")
        q = self.read(frames)
        change = 8 * (q[..., 3:-1] - q[..., 1:-3]) - (q[..., 4:] - q[..., :-4])
        p = self.mechanism.inertia * change / (12 * float(gaps[0]))
        return self.mechanism.energy(torch.stack([q[..., 2:-2], p], -1))


class PendulumFrames(Film):
    """A film of a pendulum of length 1 m and mass 1 kg; see ``pendulum`` for its law."""

    def __init__(
        self,
        *,
        pixels: Pixels = 16,
        gravity: Annotated[float, Field(gt=0, description="gravitational acceleration, m s-2")] = 1.0,
        energy: Annotated[
            tuple[float, float],
            Field(description="lowest and highest starting energy, J, above rest; it turns over at 2 g"),
        ] = (0.2, 1.0),
    ) -> None:
        super().__init__(Pendulum(gravity=gravity, energy=energy), pixels, Pendulum.units)

    def place(self, q: Tensor) -> Tensor:
        return torch.stack([torch.sin(q), -torch.cos(q)], -1)

    def position(self, place: Tensor) -> Tensor:
        angle = torch.atan2(place[..., 0], -place[..., 1])
        turns = (angle.diff(dim=-1) / (2 * math.pi)).round().cumsum(-1)
        return angle - 2 * math.pi * torch.cat([torch.zeros_like(angle[..., :1]), turns], -1)


class Spring:
    """H = (p^2 + q^2) / 2, a mass of 1 kg on a spring of 1 N/m; exact. States ``[trajectory, (q, p)]``."""

    inertia = 1.0
    units: Mapping[str, str] = {"q": "m", "p": "kg m s-1"}

    def __init__(self, energy: tuple[float, float]) -> None:
        self.energies = integrated.ordered("energy", energy, 0.0)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        radius = (2 * integrated.between(self.energies, n, generator)).sqrt()
        angle = 2 * math.pi * torch.rand(n, dtype=torch.float64, generator=generator)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        if actions is not None:
            raise ValueError("a spring is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        cos, sin = (times - times[0]).cos(), (times - times[0]).sin()
        q, p = start[:, :1], start[:, 1:]
        states = torch.stack([q * cos + p * sin, p * cos - q * sin], -1)
        return Trajectory(states.unsqueeze(1), times)

    def energy(self, states: Tensor) -> Tensor:
        return states.square().sum(-1) / 2


class SpringFrames(Film):
    """A film of a mass of 1 kg that a spring of 1 N/m pulls to the middle; it moves sideways."""

    def __init__(
        self,
        *,
        pixels: Pixels = 16,
        energy: Annotated[tuple[float, float], Field(description="lowest and highest starting energy, J")] = (
            0.1,
            0.5,
        ),
    ) -> None:
        if energy[1] == 0:
            raise ValueError("energy must reach above 0: the film is as wide as the largest swing")
        super().__init__(Spring(energy), pixels, Spring.units)
        self.reach = math.sqrt(2 * energy[1])

    def place(self, q: Tensor) -> Tensor:
        return torch.stack([q / self.reach, torch.zeros_like(q)], -1)

    def position(self, place: Tensor) -> Tensor:
        return place[..., 0] * self.reach


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"pendulum_frames": PendulumFrames, "spring_frames": SpringFrames}
