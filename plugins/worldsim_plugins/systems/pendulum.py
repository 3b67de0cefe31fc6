"""The pendulum, free, damped or driven by a torque.

    H = p^2 / (2 m l^2) + m g l (1 - cos q),   dq/dt = p / (m l^2),   dp/dt = -m g l sin q - c p + u

q is the angle from the bottom (rad), p its momentum, c the damping rate, u the torque. The starts use the
closed form in Jacobi's elliptic functions (Whittaker 1904, *Analytical Dynamics*, section 44).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from scipy import special
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

Mass = Annotated[float, Field(gt=0, description="mass of the bob, kg")]
Length = Annotated[float, Field(gt=0, description="length of the massless rod, m")]
Gravity = Annotated[float, Field(gt=0, description="gravitational acceleration, m s-2")]
Damping = Annotated[float, Field(ge=0, description="rate at which friction takes momentum away, s-1")]
Energy = Annotated[
    tuple[float, float],
    Field(description="lowest and highest starting energy, J, above rest; the separatrix is at 2 m g l"),
]


class Pendulum:
    """States ``[trajectory, (q, p)]``; starts uniform in energy, at a random time of their orbit."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q", "p")}
    units: Mapping[str, str] = {"q": "rad", "p": "kg m2 s-1", "energy": "J", "time": "s"}
    history_kinds: tuple[str, ...] = ("window_shift", "winding", "mirror")
    alike_kinds: tuple[str, ...] = ("same_position",)

    def __init__(
        self,
        *,
        mass: Mass = 1.0,
        length: Length = 1.0,
        gravity: Gravity = 1.0,
        energy: Energy = (0.2, 1.5),
        damping: Damping = 0.0,
    ) -> None:
        self.inertia = mass * length**2
        self.weight = mass * gravity * length
        self.energies = integrated.ordered("energy", energy, 0.0)
        self.damping = damping
        self.conserved: tuple[str, ...] = () if damping else ("energy",)
        if energy[0] == energy[1] == 2 * self.weight:
            raise ValueError("energy is the separatrix 2 m g l alone, where the period is infinite: move it")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q, p)]``."""
        energy = integrated.between(self.energies, n, generator)
        phase, sign = torch.rand(2, n, dtype=torch.float64, generator=generator)
        states = self.on_orbit(energy, phase)
        return torch.where(sign[:, None] < 0.5, states, -states)

    def on_orbit(self, energy: Tensor, phase: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """The undamped state of the given energy ``[...]`` at time ``t`` after ``phase`` ``[...]`` periods
        from the bottom, where it passes with p >= 0."""
        rate = math.sqrt(self.weight / self.inertia)
        square = energy / (2 * self.weight)
        swinging = square < 1
        k = square.sqrt()
        modulus = torch.where(swinging, square, 1 / square).numpy()
        speed = torch.where(swinging, rate, rate * k)
        quarter = torch.from_numpy(special.ellipk(modulus))
        argument = (phase * torch.where(swinging, 4, 2) * quarter + speed * t).numpy()
        sn, cn, dn, amplitude = (torch.from_numpy(value) for value in special.ellipj(argument, modulus))
        q = torch.where(swinging, 2 * torch.asin((k * sn).clamp(-1, 1)), 2 * amplitude)
        p = 2 * self.inertia * rate * k * torch.where(swinging, cn, dn)
        return torch.stack([q, p], dim=-1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, (q, p)]``."""
        return integrated.checked(states, (2,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (q, p)]``, with observables energy and derivative."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (q, p)]`` under the torque ``u`` ``[..., 1]``."""
        q, p = x.unbind(-1)
        force = -self.weight * torch.sin(q) - self.damping * p
        return torch.stack([p / self.inertia, force if u is None else force + u[..., 0]], dim=-1)

    def energy(self, states: Tensor) -> Tensor:
        """H in J, zero at rest, ``[...]`` for ``[..., (q, p)]``."""
        q, p = states.unbind(-1)
        return p.square() / (2 * self.inertia) + self.weight * (1 - torch.cos(q))

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``winding``: q and q + 2 pi k, one k of
        -2, -1, 1, 2; ``mirror``: (q, p) and (-q, -p)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.history(n, times, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        if kind == "mirror":
            return integrated.image(self, history, torch.neg, torch.neg)
        turns = [-2, -1, 1, 2][int(torch.randint(4, (1,), generator=generator))]
        winding = torch.tensor([2 * math.pi * turns, 0.0], dtype=torch.float64)
        return integrated.image(self, history, lambda x: x + winding, lambda x: x - winding.to(x))

    def alike_histories(self, kind: str, n: int, times: Tensor, generator: torch.Generator) -> HistoryPairs:
        """``same_position``: two pasts that end at one angle with different momenta."""
        if kind not in self.alike_kinds:
            raise integrated.unknown_kind(kind, self.alike_kinds)
        return integrated.same_position(self, n, times, generator, self.driving(n, times, generator))

    def driving(self, n: int, times: Tensor, generator: torch.Generator) -> list[Tensor | None]:
        """The actions of two histories."""
        return [None, None]

    def history(self, n: int, times: Tensor, generator: torch.Generator) -> Trajectory:
        return self.simulate(self.sample(n, generator), times, None, generator)


class DrivenPendulum(Pendulum):
    """The pendulum under a torque constant over each ``hold`` frames, uniform in [-torque, torque]."""

    units: Mapping[str, str] = {**Pendulum.units, "torque": "N m"}
    # The mirror image needs the mirrored torque in the future too, so it is no equivalence here.
    history_kinds: tuple[str, ...] = ("window_shift", "winding", "forced")

    def __init__(
        self,
        *,
        mass: Mass = 1.0,
        length: Length = 1.0,
        gravity: Gravity = 1.0,
        energy: Energy = (0.2, 1.5),
        damping: Damping = 0.0,
        torque: Annotated[float, Field(gt=0, description="largest torque, N m")] = 0.5,
        hold: Annotated[int, Field(ge=1, description="frames over which a torque is held")] = 1,
    ) -> None:
        super().__init__(mass=mass, length=length, gravity=gravity, energy=energy, damping=damping)
        self.torque = torque
        self.hold = hold
        self.conserved = ()

    def sample_actions(self, n: int, times: Tensor, generator: torch.Generator) -> Tensor:
        """Torques ``[n, time, 1]``, N m."""
        draws = torch.rand(n, -(-len(times) // self.hold), 1, dtype=torch.float64, generator=generator)
        return (self.torque * (2 * draws - 1)).repeat_interleave(self.hold, dim=1)[:, : len(times)]

    def driving(self, n: int, times: Tensor, generator: torch.Generator) -> list[Tensor | None]:
        return [self.sample_actions(n, times, generator) for _ in range(2)]

    def history(self, n: int, times: Tensor, generator: torch.Generator) -> Trajectory:
        start = self.sample(n, generator)
        return self.simulate(start, times, self.sample_actions(n, times, generator), generator)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """As the pendulum's, and ``forced``: two pasts under different torques that end in the same state,
        found by integrating the equation backwards from it; the torque from the end on is the same."""
        if kind != "forced":
            return super().equivalent_histories(kind, n, times, generator)
        end = self.sample(n, generator)
        first, second = (self.sample_actions(n, times, generator) for _ in range(2))
        second = torch.cat([second[:, :-1], first[:, -1:]], dim=1)
        past = [integrated.ending_in(self, end, times, actions) for actions in (first, second)]
        return HistoryPairs(*past, align=lambda states: states)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"pendulum": Pendulum, "driven_pendulum": DrivenPendulum}
