"""The double pendulum, canonical or in velocities: two point masses on massless rods, chaotic at high energy.

With d = q1 - q2 and D = m1 + m2 sin^2 d,

    H = (m2 l2^2 p1^2 + (m1 + m2) l1^2 p2^2 - 2 m2 l1 l2 p1 p2 cos d) / (2 m2 l1^2 l2^2 D)
        + (m1 + m2) g l1 (1 - cos q1) + m2 g l2 (1 - cos q2)

q1, q2 are the angles of the rods from the vertical (Landau and Lifshitz, *Mechanics*, section 5, problem 1).
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

Masses = Annotated[tuple[float, float], Field(description="masses of the inner and outer bob, kg")]
Lengths = Annotated[tuple[float, float], Field(description="lengths of the two rods, m")]
Gravity = Annotated[float, Field(gt=0, description="gravitational acceleration, m s-2")]
Energy = Annotated[
    tuple[float, float], Field(description="lowest and highest starting energy, J, above rest")
]


class DoublePendulum:
    """States ``[trajectory, (q1, q2, p1, p2)]``. Starts lie where random rays from rest meet the energy."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q1", "q2", "p1", "p2")}
    units: Mapping[str, str] = {
        **dict.fromkeys(("q1", "q2"), "rad"),
        **dict.fromkeys(("p1", "p2"), "kg m2 s-1"),
        "energy": "J",
        "time": "s",
    }
    conserved: tuple[str, ...] = ("energy",)
    history_kinds: tuple[str, ...] = ("window_shift", "winding", "mirror")

    def __init__(
        self,
        *,
        masses: Masses = (1.0, 1.0),
        lengths: Lengths = (1.0, 1.0),
        gravity: Gravity = 1.0,
        energy: Energy = (0.2, 1.0),
    ) -> None:
        if min(*masses, *lengths) <= 0:
            raise ValueError(f"masses and lengths must be positive, not {tuple(masses)} and {tuple(lengths)}")
        self.masses, self.lengths, self.gravity = masses, lengths, gravity
        self.energies = integrated.ordered("energy", energy, 0.0)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q1, q2, p1, p2)]``, energies uniform."""
        energy = integrated.between(self.energies, n, generator)
        inertia = self.masses[1] * self.lengths[1] ** 2
        unit = torch.tensor([1.0, 1.0, *[inertia * math.sqrt(self.gravity / self.lengths[1])] * 2])
        ray = unit.double() * torch.randn(n, 4, dtype=torch.float64, generator=generator)
        states = self.scaled_to(energy, ray)
        angles = torch.remainder(states[:, :2] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([angles, states[:, 2:]], dim=1)

    def scaled_to(self, energy: Tensor, ray: Tensor) -> Tensor:
        """A multiple of ``ray`` ``[n, 4]`` that has the given energy ``[n]``, by bisection."""
        low, high = torch.zeros_like(energy), torch.ones_like(energy)
        while (short := self.energy(high[:, None] * ray) < energy).any():
            high = torch.where(short, 2 * high, high)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.energy(middle[:, None] * ray) < energy
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high[:, None] * ray

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 4]``."""
        return integrated.checked(states, (4,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 4]``, with observables energy and derivative. Two trajectories that differ
        by rounding separate as exp(t / Lyapunov time): accurate to 1e-9 over about 15 such times."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 4]``."""
        (m1, m2), (l1, l2) = self.masses, self.lengths
        q1, q2, p1, p2 = x.unbind(-1)
        sin, cos = torch.sin(q1 - q2), torch.cos(q1 - q2)
        d = m1 + m2 * sin.square()
        v1 = (l2 * p1 - l1 * p2 * cos) / (l1**2 * l2 * d)
        v2 = ((m1 + m2) * l1 * p2 - m2 * l2 * p1 * cos) / (m2 * l1 * l2**2 * d)
        coupling = p1 * p2 * sin / (l1 * l2 * d) - 2 * m2 * sin * cos / d * self.kinetic(x)
        f1 = -(m1 + m2) * self.gravity * l1 * torch.sin(q1) - coupling
        f2 = -m2 * self.gravity * l2 * torch.sin(q2) + coupling
        return torch.stack([v1, v2, f1, f2], dim=-1)

    def kinetic(self, states: Tensor) -> Tensor:
        (m1, m2), (l1, l2) = self.masses, self.lengths
        q1, q2, p1, p2 = states.unbind(-1)
        d = m1 + m2 * torch.sin(q1 - q2).square()
        cross = 2 * m2 * l1 * l2 * p1 * p2 * torch.cos(q1 - q2)
        squares = m2 * l2**2 * p1.square() + (m1 + m2) * l1**2 * p2.square()
        return (squares - cross) / (2 * m2 * l1**2 * l2**2 * d)

    def energy(self, states: Tensor) -> Tensor:
        """H in J, zero at rest, ``[...]`` for ``[..., 4]``."""
        (m1, m2), (l1, l2) = self.masses, self.lengths
        lift1, lift2 = 1 - torch.cos(states[..., 0]), 1 - torch.cos(states[..., 1])
        return self.kinetic(states) + self.gravity * ((m1 + m2) * l1 * lift1 + m2 * l2 * lift2)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``winding``: both angles a whole turn on;
        ``mirror``: (q, p) and (-q, -p)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        if kind == "mirror":
            return integrated.image(self, history, torch.neg, torch.neg)
        turn = torch.tensor([2 * math.pi, 2 * math.pi, 0.0, 0.0], dtype=torch.float64)
        return integrated.image(self, history, lambda x: x + turn, lambda x: x - turn.to(x))


class DoublePendulumVelocities:
    """The same pendulum in angles and angular velocities: states ``[trajectory, (q1, q2, v1, v2)]``.

    Lagrangian models need velocities, which are not multiples of these momenta:

        p1 = (m1 + m2) l1^2 v1 + m2 l1 l2 v2 cos d,   p2 = m2 l2^2 v2 + m2 l1 l2 v1 cos d
    """

    axes = DoublePendulum.axes
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q1", "q2", "v1", "v2")}
    units: Mapping[str, str] = {
        **dict.fromkeys(("q1", "q2"), "rad"),
        **dict.fromkeys(("v1", "v2"), "rad s-1"),
        "energy": "J",
        "time": "s",
    }
    conserved = DoublePendulum.conserved
    history_kinds = DoublePendulum.history_kinds

    def __init__(
        self,
        *,
        masses: Masses = (1.0, 1.0),
        lengths: Lengths = (1.0, 1.0),
        gravity: Gravity = 1.0,
        energy: Energy = (0.2, 1.0),
    ) -> None:
        self.canonical = DoublePendulum(masses=masses, lengths=lengths, gravity=gravity, energy=energy)

    def to_velocities(self, states: Tensor) -> Tensor:
        """``[..., (q1, q2, v1, v2)]`` of ``[..., (q1, q2, p1, p2)]``."""
        rates = self.canonical.drift(torch.zeros(()), states, None)
        return torch.cat([states[..., :2], rates[..., :2]], dim=-1)

    def to_momenta(self, states: Tensor) -> Tensor:
        """The inverse of ``to_velocities``."""
        (m1, m2), (l1, l2) = self.canonical.masses, self.canonical.lengths
        q1, q2, v1, v2 = states.unbind(-1)
        mixed = m2 * l1 * l2 * torch.cos(q1 - q2)
        p1 = (m1 + m2) * l1**2 * v1 + mixed * v2
        return torch.stack([q1, q2, p1, m2 * l2**2 * v2 + mixed * v1], dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q1, q2, v1, v2)]``, energies uniform."""
        return self.to_velocities(self.canonical.sample(n, generator))

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 4]``."""
        return integrated.checked(states, (4,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 4]``, with observables energy and derivative."""
        canonical = self.canonical.simulate(self.to_momenta(start), times, actions, generator)
        return self.in_velocities(canonical)

    def in_velocities(self, canonical: Trajectory) -> Trajectory:
        states = self.to_velocities(canonical.states)
        return integrated.recorded(self, states, canonical.times, canonical.actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (q1, q2, v1, v2)]``: the canonical rate, carried over by the chain rule."""
        canonical = self.to_momenta(x)
        rate = self.canonical.drift(t, canonical, u)
        return torch.func.jvp(self.to_velocities, (canonical,), (rate,))[1]

    def energy(self, states: Tensor) -> Tensor:
        """T + V in J, zero at rest, ``[...]`` for ``[..., 4]``."""
        return self.canonical.energy(self.to_momenta(states))

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """As the canonical ones: turns and mirror images are the same in both coordinates."""
        pairs = self.canonical.equivalent_histories(kind, n, times, generator)
        first, second = (self.in_velocities(part) for part in (pairs.first, pairs.second))
        return HistoryPairs(first, second, align=pairs.align)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"double_pendulum": DoublePendulum, "double_pendulum_velocities": DoublePendulumVelocities}
