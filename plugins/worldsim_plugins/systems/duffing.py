"""Duffing's oscillator (Duffing 1918): free, damped, or driven by a periodic force.

    H = p^2 / 2 + stiffness q^2 / 2 + hardening q^4 / 4
    dq/dt = p,   dp/dt = -stiffness q - hardening q^3 - damping p + force cos(frequency t)

With the default stiffness of -1 there are two wells, at q = -1 and q = 1, and a saddle between them
(Guckenheimer and Holmes 1983, *Nonlinear Oscillations*, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

Stiffness = Annotated[float, Field(description="linear stiffness, N m-1; negative for two wells")]
Hardening = Annotated[float, Field(ge=0, description="cubic stiffness, N m-3")]
Damping = Annotated[float, Field(ge=0, description="rate at which friction takes momentum away, s-1")]
Positions = Annotated[tuple[float, float], Field(description="lowest and highest starting position, m")]
Momenta = Annotated[tuple[float, float], Field(description="lowest and highest starting momentum, kg m s-1")]


class Duffing:
    """States ``[trajectory, (q, p)]`` of a unit mass; starts uniform in a box of positions and momenta."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q", "p")}
    units: Mapping[str, str] = {"q": "m", "p": "kg m s-1", "energy": "J", "time": "s"}
    history_kinds: tuple[str, ...] = ("window_shift", "mirror")

    def __init__(
        self,
        *,
        stiffness: Stiffness = -1.0,
        hardening: Hardening = 1.0,
        damping: Damping = 0.0,
        position: Positions = (-1.5, 1.5),
        momentum: Momenta = (-1.0, 1.0),
    ) -> None:
        if hardening == 0 and stiffness <= 0:
            raise ValueError("without hardening the stiffness must be positive: nothing else holds the mass")
        self.stiffness, self.hardening, self.damping = stiffness, hardening, damping
        self.box = [
            integrated.ordered(name, bounds, float("-inf"))
            for name, bounds in (("position", position), ("momentum", momentum))
        ]
        self.conserved: tuple[str, ...] = () if damping else ("energy",)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q, p)]``."""
        return torch.stack([integrated.between(bounds, n, generator) for bounds in self.box], dim=-1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, (q, p)]``."""
        return integrated.checked(states, (2,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (q, p)]``, with observables energy and derivative."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (q, p)]``."""
        q, p = x.unbind(-1)
        force = -q * (self.stiffness + self.hardening * q * q) - self.damping * p
        return torch.stack([p, force], dim=-1)

    def energy(self, states: Tensor) -> Tensor:
        """H in J, ``[...]`` for ``[..., (q, p)]``; lowest in the wells, where it may be negative."""
        q, p = states.unbind(-1)
        square = q * q
        return p * p / 2 + square * (self.stiffness / 2 + self.hardening / 4 * square)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

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


class DrivenDuffing:
    """The oscillator under ``force`` cos(``frequency`` t), whose phase is no part of the state: it is the
    observable "phase", in rad. Its law changes with time, so it cannot be restarted from a state."""

    axes = Duffing.axes
    labels = Duffing.labels
    units: Mapping[str, str] = {**Duffing.units, "phase": "rad"}
    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        stiffness: Stiffness = -1.0,
        hardening: Hardening = 1.0,
        damping: Damping = 0.3,
        position: Positions = (-1.5, 1.5),
        momentum: Momenta = (-1.0, 1.0),
        force: Annotated[float, Field(gt=0, description="amplitude of the periodic force, N")] = 0.5,
        frequency: Annotated[float, Field(gt=0, description="its angular frequency, rad s-1")] = 1.2,
    ) -> None:
        self.free = Duffing(
            stiffness=stiffness, hardening=hardening, damping=damping, position=position, momentum=momentum
        )
        self.force, self.frequency = force, frequency

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, (q, p)]``."""
        return self.free.sample(n, generator)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (q, p)]``, with observables energy, phase and derivative."""
        if actions is not None:
            raise ValueError("the force is part of this system: leave the actions out")
        times = integrated.ascending(times)
        clock = times[:1].expand(len(start), 1)
        moving = integrated.flow(
            lambda x, u: self.with_clock(x), torch.cat([start.double(), clock], dim=-1), times
        )
        states = moving[..., :2].unsqueeze(1)
        phase = (self.frequency * times).expand(states.shape[:-1])
        return Trajectory(
            states=states,
            times=times,
            observables={
                "energy": self.energy(states),
                "phase": phase,
                "derivative": self.drift(times, states, None),
            },
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def with_clock(self, x: Tensor) -> Tensor:
        """The rate of ``(q, p, t)``, which is autonomous."""
        rate = self.drift(x[..., 2], x[..., :2], None)
        return torch.cat([rate, torch.ones_like(x[..., 2:])], dim=-1)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (q, p)]`` and ``t`` ``[...]``, or one time for all."""
        push = self.force * torch.cos(self.frequency * t)
        still = torch.zeros_like(push)
        return self.free.drift(t, x, None) + torch.stack([still, push], dim=-1).to(x.dtype)

    def energy(self, states: Tensor) -> Tensor:
        """H in J of the oscillator alone, ``[...]`` for ``[..., (q, p)]``; the force changes it."""
        return self.free.energy(states)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        return integrated.window_shift(self.simulate(self.sample(n, generator), times, None, generator))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"duffing": Duffing, "driven_duffing": DrivenDuffing}
