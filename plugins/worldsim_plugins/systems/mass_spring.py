"""A chain of unit masses joined by equal springs, with fixed or free ends, free or driven. Exact.

    H = sum_i p_i^2 / 2 + (stiffness / 2) sum_i (q_{i+1} - q_i)^2

In normal modes (Lagrange 1759; Goldstein, *Classical Mechanics*, chapter 6) every frequency and shape is
known in closed form: fixed ends w_k = 2 sqrt(stiffness) sin(k pi / (2 n + 2)), free ends 2 sqrt(stiffness)
sin(k pi / 2 n), so the truth is exact to rounding at any time.
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

Bodies = Annotated[int, Field(ge=1, description="number of unit masses")]
Stiffness = Annotated[float, Field(gt=0, description="stiffness of each spring, N m-1")]
Ends = Annotated[
    Literal["fixed", "free"], Field(description="fixed: springs to a wall at both ends; free: no walls")
]
Energy = Annotated[tuple[float, float], Field(description="lowest and highest starting energy, J")]


class MassSpring:
    """States ``[trajectory, (q1 .. qn, p1 .. pn)]``, displacements and momenta. Energy uniform, direction in
    the space of normal modes uniform, the centre of a free chain at 0."""

    axes = ("component",)
    history_kinds: tuple[str, ...] = ("window_shift", "mirror")
    alike_kinds: tuple[str, ...] = ("same_position",)

    def __init__(
        self,
        *,
        bodies: Bodies = 2,
        stiffness: Stiffness = 1.0,
        ends: Ends = "fixed",
        energy: Energy = (0.2, 1.5),
    ) -> None:
        self.bodies, self.stiffness, self.ends = bodies, stiffness, ends
        self.energies = integrated.ordered("energy", energy, 0.0)
        self.frequencies, self.shapes = normal_modes(bodies, stiffness, ends)
        self.conserved: tuple[str, ...] = ("energy", "momentum") if ends == "free" else ("energy",)
        q, p = ([f"{letter}{i + 1}" for i in range(bodies)] for letter in "qp")
        self.labels: Mapping[str, tuple[str, ...]] = {"component": (*q, *p)}
        units = {"energy": "J", "momentum": "kg m s-1", "force": "N", "time": "s"}
        self.units: Mapping[str, str] = {**dict.fromkeys(q, "m"), **dict.fromkeys(p, "kg m s-1"), **units}
        if ends == "free" and not hasattr(self, "sample_actions"):  # walls and a driver push from outside
            self.masses = torch.ones(bodies, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 2 * bodies]``."""
        energy = integrated.between(self.energies, n, generator)
        direction = torch.randn(n, 2 * self.bodies, dtype=torch.float64, generator=generator)
        still = self.frequencies == 0
        direction[:, : self.bodies] = direction[:, : self.bodies].masked_fill(still, 0.0)
        amplitudes = direction * (2 * energy[:, None]).sqrt() / direction.norm(dim=1, keepdim=True)
        q, p = amplitudes.chunk(2, dim=1)
        return self.from_modes(q / self.frequencies.masked_fill(still, 1.0), p)

    def from_modes(self, q: Tensor, p: Tensor) -> Tensor:
        return torch.cat([turned(q, self.shapes), turned(p, self.shapes)], dim=-1)

    def to_modes(self, states: Tensor) -> tuple[Tensor, Tensor]:
        q, p = states.chunk(2, dim=-1)
        return turned(q, self.shapes.T), turned(p, self.shapes.T)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 2 * bodies]``."""
        return integrated.checked(states, (2 * self.bodies,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 2 * bodies]``, with observables energy, momentum and derivative."""
        if actions is not None:
            raise ValueError("this chain is not driven: leave the actions out, or use driven_mass_spring")
        times = integrated.ascending(times)
        q, p = self.to_modes(start[:, None])
        states = self.from_modes(*self.swung(q, p, (times - times[0])[:, None]))
        return integrated.recorded(self, states.unsqueeze(1), times, None)

    def swung(self, q: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The modes ``q, p`` ``[..., mode]`` a time ``t`` later."""
        angle = self.frequencies * t
        cos, sin_by_frequency = torch.cos(angle), t * torch.sinc(angle / math.pi)
        return q * cos + p * sin_by_frequency, p * cos - q * self.frequencies * torch.sin(angle)

    def tensions(self, q: Tensor) -> Tensor:
        walled = torch.nn.functional.pad(q, (1, 1)) if self.ends == "fixed" else q
        return self.stiffness * walled.diff(dim=-1)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 2 * bodies]``."""
        q, p = x.chunk(2, dim=-1)
        tensions = self.tensions(q)
        ended = tensions if self.ends == "fixed" else torch.nn.functional.pad(tensions, (1, 1))
        return torch.cat([p, ended.diff(dim=-1)], dim=-1)

    def energy(self, states: Tensor) -> Tensor:
        """H in J, ``[...]`` for ``[..., 2 * bodies]``."""
        q, p = states.chunk(2, dim=-1)
        return p.square().sum(-1) / 2 + self.tensions(q).square().sum(-1) / (2 * self.stiffness)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states), "momentum": states[..., self.bodies :].sum(-1)}

    def places_and_momenta(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Displacements and momenta ``[..., body, 1]``."""
        q, p = states.chunk(2, dim=-1)
        return q[..., None], p[..., None]

    def of_places_and_momenta(self, places: Tensor, momenta: Tensor) -> Tensor:
        """The inverse of ``places_and_momenta``."""
        return torch.cat([places, momenta], dim=-2).squeeze(-1)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``mirror``: (q, p) and (-q, -p)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        return integrated.image(self, history, torch.neg, torch.neg)

    def alike_histories(self, kind: str, n: int, times: Tensor, generator: torch.Generator) -> HistoryPairs:
        """``same_position``: two pasts that end at the same displacements with different momenta."""
        if kind not in self.alike_kinds:
            raise integrated.unknown_kind(kind, self.alike_kinds)
        return integrated.same_position(self, n, times, generator, self.driving(n, times, generator))

    def driving(self, n: int, times: Tensor, generator: torch.Generator) -> list[Tensor | None]:
        """The actions of two histories."""
        return [None, None]


class DrivenMassSpring(MassSpring):
    """The chain with a force on its first mass, constant over each frame, uniform in [-force, force]."""

    history_kinds: tuple[str, ...] = ("window_shift", "forcing_null")

    def __init__(
        self,
        *,
        bodies: Bodies = 2,
        stiffness: Stiffness = 1.0,
        ends: Ends = "fixed",
        energy: Energy = (0.2, 1.5),
        force: Annotated[float, Field(gt=0, description="largest force on the first mass, N")] = 0.5,
    ) -> None:
        super().__init__(bodies=bodies, stiffness=stiffness, ends=ends, energy=energy)
        self.force = force
        self.conserved = ()

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """Forces ``[n, time, 1]``, N."""
        return self.force * (2 * torch.rand(n, len(times), 1, dtype=torch.float64, generator=generator) - 1)

    def driving(self, n: int, times: Tensor, generator: torch.Generator) -> list[Tensor | None]:
        return [self.sample_actions(n, times, generator) for _ in range(2)]

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """As the free chain's, under ``actions`` ``[trajectory, time, 1]``."""
        if actions is None:
            return super().simulate(start, times, None, generator)
        times = integrated.ascending(times)
        modes = [self.to_modes(start)]
        for i, length in enumerate(times.diff()):
            modes.append(self.pushed(*modes[-1], length, actions[:, i].to(torch.float64)))
        states = torch.stack([self.from_modes(*mode) for mode in modes], dim=1)
        return integrated.recorded(self, states.unsqueeze(1), times, actions)

    def pushed(self, q: Tensor, p: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The modes ``[trajectory, mode]`` after a time ``t`` under the constant force ``u``."""
        push, angle = u * self.shapes.T[0], self.frequencies * t
        q, p = self.swung(q, p, t)
        q = q + push * t.square() / 2 * torch.sinc(angle / (2 * math.pi)).square()
        return q, p + push * t * torch.sinc(angle / math.pi)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 2 * bodies]`` under the force ``u`` ``[..., 1]``."""
        free = super().drift(t, x, None)
        if u is None:
            return free
        return free + torch.nn.functional.pad(u, (self.bodies, self.bodies - 1))

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``; ``forcing_null``: from one start under two different forcings, the second the
        first plus an element of the null space of the map from forcing to end state (Kalman 1960)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        start, actions = self.sample(n, generator), self.sample_actions(n, times, generator)
        first = self.simulate(start, times, actions, generator)
        if kind == "window_shift":
            return integrated.window_shift(first)
        silent = self.without_effect(self.sample_actions(n, times, generator), times, generator)
        second = self.simulate(start, times, actions + silent, generator)
        return HistoryPairs(first, second, align=lambda states: states)

    def without_effect(self, actions: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """``actions`` less their part that changes the last state; 0 in the last frame, which is future."""
        count = len(times) - 1
        if count <= 2 * self.bodies:
            raise ValueError(
                f"forcing_null needs more than {2 * self.bodies + 1} history times for {self.bodies} bodies, "
                f"not {len(times)}: fewer forces cannot cancel in every component"
            )
        unit = torch.nn.functional.pad(torch.eye(count, dtype=torch.float64), (0, 1))[..., None]
        rest = torch.zeros(count, 2 * self.bodies, dtype=torch.float64)
        response = self.simulate(rest, times, unit, generator).states[:, 0, -1]
        basis = torch.linalg.qr(response)[0]
        forces = actions[:, :-1, 0]
        silent = forces - (forces @ basis) @ basis.T
        return torch.nn.functional.pad(silent, (0, 1))[..., None]


def normal_modes(bodies: int, stiffness: float, ends: str) -> tuple[Tensor, Tensor]:
    """Frequencies ``[mode]`` and orthonormal shapes ``[mode, body]``."""
    body = torch.arange(bodies, dtype=torch.float64)
    if ends == "fixed":
        quarter = math.pi * (body + 1) / (2 * (bodies + 1))
        shapes = torch.sin(2 * quarter[:, None] * (body + 1))
    else:
        quarter = math.pi * body / (2 * bodies)
        shapes = torch.cos(2 * quarter[:, None] * (body + 0.5))
    return 2 * math.sqrt(stiffness) * torch.sin(quarter), shapes / shapes.norm(dim=1, keepdim=True)


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` added in a fixed order, so that the bits of a row do not depend on the other rows."""
    result = x[..., :1] * matrix[0]
    for i in range(1, len(matrix)):
        result = result + x[..., i, None] * matrix[i]
    return result


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"mass_spring": MassSpring, "driven_mass_spring": DrivenMassSpring}
