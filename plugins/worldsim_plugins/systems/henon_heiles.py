"""Henon and Heiles' galaxy: regular orbits at low energy, chaotic ones near escape.

    H = (p_x^2 + p_y^2 + x^2 + y^2) / 2 + x^2 y - y^3 / 3

(Henon and Heiles 1964, *The applicability of the third integral of motion*.) Orbits with H < 1/6 that start
inside of the triangle of that level stay there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

ESCAPE = 1 / 6


class HenonHeiles:
    """States ``[trajectory, (x, y, px, py)]``; starts in all directions, their energies uniform."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "y", "px", "py")}
    units: Mapping[str, str] = dict.fromkeys(("x", "y", "px", "py", "energy", "time"), "1")
    conserved: tuple[str, ...] = ("energy",)
    history_kinds: tuple[str, ...] = ("window_shift", "mirror", "third_turn")

    def __init__(
        self,
        *,
        energy: Annotated[
            tuple[float, float], Field(description="lowest and highest starting energy, below 1/6")
        ] = (0.05, 0.125),
    ) -> None:
        self.energies = integrated.ordered("energy", energy, 0.0, ESCAPE)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 4]``: the place on a ray from rest at which the energy of that draw is reached first."""
        energy = integrated.between(self.energies, n, generator)
        ray = torch.randn(n, 4, dtype=torch.float64, generator=generator)
        ray = ray / ray.norm(dim=1, keepdim=True)
        x, y = ray[:, 0], ray[:, 1]
        cubic = x.square() * y - y**3 / 3
        # Along a ray H = s^2 / 2 + c s^3 with |c| <= 1/3, which rises up to s = 1 at least, to 1/6 or more.
        low, high = torch.zeros_like(energy), torch.ones_like(energy)
        for _ in range(60):
            middle = (low + high) / 2
            below = middle.square() / 2 + cubic * middle**3 < energy
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high[:, None] * ray

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 4]``; ValueError for those that may escape to infinity."""
        states = integrated.checked(states, (4,))
        y, x = states[:, 1], states[:, 0]
        outside = (y > 1) | (y < -0.5) | (math.sqrt(3) * x.abs() > 1 - y)
        if ((self.energy(states) >= ESCAPE) | outside).any():
            raise ValueError("henon_heiles starts below the energy 1/6 and inside of its triangle alone")
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 4]``, with observables energy and derivative."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 4]``."""
        q, p = x.chunk(2, -1)
        return torch.cat([self.velocity_of(p), self.force_of(q)], -1)

    def velocity_of(self, p: Tensor) -> Tensor:
        """dT/dp, ``[..., 2]``."""
        return p

    def force_of(self, q: Tensor) -> Tensor:
        """-dV/dq, ``[..., 2]``."""
        x, y = q.unbind(-1)
        return torch.stack([-x - 2 * x * y, -y - x * x + y * y], -1)

    def energy(self, states: Tensor) -> Tensor:
        """H, ``[...]`` for ``[..., 4]``."""
        x, y = states[..., 0], states[..., 1]
        return states.square().sum(-1) / 2 + x.square() * y - y**3 / 3

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``mirror``: x and p_x with the other sign;
        ``third_turn``: everything a third of a turn further on."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        if kind == "mirror":
            return integrated.image(self, history, _mirrored, _mirrored)
        third = 2 * math.pi / 3
        return integrated.image(self, history, lambda x: _turned(x, third), lambda x: _turned(x, -third))


def _mirrored(states: Tensor) -> Tensor:
    return states * torch.tensor([-1.0, 1.0, -1.0, 1.0]).to(states)


def _turned(states: Tensor, angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, px, py = states.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, cos * px - sin * py, sin * px + cos * py], -1)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"henon_heiles": HenonHeiles}
