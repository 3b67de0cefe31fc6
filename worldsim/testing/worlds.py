"""Two worlds small enough to check a component in a moment, and any world that a scenario can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim.plugins import Registry
from worldsim.protocols import HasActions, HasAutomaton, HistoryPairs, System, Trajectory
from worldsim.testing.checks import seeded

TRAJECTORIES, FRAMES = 20, 9


@dataclass(frozen=True)
class World:
    """A system, and the time between its frames."""

    name: str
    system: System
    step: float

    def truth(self, seed: int = 0, frames: int = FRAMES) -> Trajectory:
        """``[TRAJECTORIES, 1, frames, *state]``."""
        return simulated(
            self.system, self.step * torch.arange(frames, dtype=torch.float64), seed, TRAJECTORIES
        )


def simulated(system: System, times: Tensor, seed: int, n: int) -> Trajectory:
    generator = seeded(seed)
    start = system.sample(n, generator)
    actions = system.sample_actions(n, times, generator) if isinstance(system, HasActions) else None
    return system.simulate(start, times, actions, generator)


def tiny_worlds() -> list[World]:
    return [World("oscillator", Oscillator(), 0.1), World("golden mean", GoldenMean(), 1.0)]


def world_of(written: str | Mapping[str, Any], plugins: Registry, step: float | None) -> World:
    """The world of a system as a scenario writes it."""
    from worldsim.params import component

    part = component("system", written, plugins)
    system = part.build(plugins)
    return World(part.name, system, step or step_of(system))


def step_of(system: System) -> float:
    """A time between frames that the system can be sampled at."""
    return float(getattr(system, "step", 1.0 if isinstance(system, HasAutomaton) else 0.1))


class Oscillator:
    """H = (p^2 + q^2) / 2, the harmonic oscillator of unit mass and stiffness; states ``[.., (q, p)]``."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q", "p")}
    units: Mapping[str, str] = {"q": "1", "p": "1", "energy": "1", "time": "1"}
    conserved: tuple[str, ...] = ("energy",)
    history_kinds: tuple[str, ...] = ("mirror",)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def restart(self, states: Tensor) -> Tensor:
        return states.double()

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """The closed form: a rotation of the plane."""
        angle = times - times[0]
        q, p = start[:, :1], start[:, 1:]
        cos, sin = angle.cos(), angle.sin()
        states = torch.stack([q * cos + p * sin, p * cos - q * sin], dim=-1)[:, None]
        observables = {**self.observe(states), "derivative": self.drift(times[0], states, None)}
        return Trajectory(states, times, None, observables, None, self.axes, self.labels, self.units)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        q, p = x.unbind(-1)
        return torch.stack([p, -q], dim=-1)

    def velocity_of(self, p: Tensor) -> Tensor:
        return p

    def force_of(self, q: Tensor) -> Tensor:
        return -q

    def energy(self, states: Tensor) -> Tensor:
        return states.square().sum(-1) / 2

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``mirror``: (q, p) and (-q, -p)."""
        first = self.simulate(self.sample(n, generator), times, None, generator)
        return HistoryPairs(first, first.replace(states=-first.states), align=torch.neg)


class GoldenMean:
    """Words over a and b without "bb", every legal token equally likely: two Nerode classes."""

    alphabet: tuple[str, ...] = ("a", "b")
    initial = 0

    def transitions(self) -> Tensor:
        return torch.tensor([[0, 1], [0, -1]])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2**31, (n,), generator=generator)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """One token a step; the observable is the state after it."""
        chances = torch.stack([torch.rand(len(times), generator=seeded(int(seed))) for seed in start])
        state, tokens, states = torch.zeros(len(start), dtype=torch.int64), [], []
        for chance in chances.T:
            state = torch.where(state == 1, 0, (chance < 0.5).long())
            tokens.append(state)
            states.append(state)
        hidden = {"automaton_state": torch.stack(states, 1)[:, None]}
        return Trajectory(torch.stack(tokens, 1)[:, None], times, observables=hidden, units={"time": "1"})

    def next_token(self, tokens: Tensor) -> Tensor:
        """``[n, 2]`` float64; nothing is legal after an illegal prefix."""
        ended = (tokens[:, -1:] == 1).any(1)
        illegal = ((tokens[:, 1:] == 1) & (tokens[:, :-1] == 1)).any(1)
        law = torch.where(ended[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])).double()
        return torch.where(illegal[:, None], torch.zeros_like(law), law)
