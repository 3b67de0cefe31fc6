"""Balls that bounce on a floor and lose speed at each bounce. Exact, the rest that ends it included.

    H = sum_i p_i^2 / (2 m) + m g q_i,   q_i >= 0,   p -> -e p at q = 0  (Newton's restitution e)

Between bounces the flight is a parabola. A ball that hits the floor with speed v flies for 2 v e^k / g after
its k-th bounce, a geometric series: with e < 1 it bounces infinitely often in a finite time, and rests from
then on (Brogliato 2016, *Nonsmooth Mechanics*, chapter 1).
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

SMALLEST = 1e-18
"""A bounce with a smaller part of the first speed than this is no longer told from rest."""


class BouncingBalls:
    """States ``[trajectory, (q1 .. qn, p1 .. pn)]``, heights and momenta of balls that do not meet; starts
    uniform in height and momentum. There is no ``drift``: a bounce is no differential equation."""

    axes = ("component",)
    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        balls: Annotated[int, Field(ge=1, description="number of balls")] = 1,
        mass: Annotated[float, Field(gt=0, description="mass of each ball, kg")] = 1.0,
        gravity: Annotated[float, Field(gt=0, description="gravitational acceleration, m s-2")] = 1.0,
        restitution: Annotated[
            float, Field(ge=0, le=1, description="speed after a bounce over the speed before it")
        ] = 0.9,
        height: Annotated[tuple[float, float], Field(description="lowest and highest starting height, m")] = (
            0.5,
            1.5,
        ),
        momentum: Annotated[
            tuple[float, float], Field(description="lowest and highest starting momentum, kg m s-1")
        ] = (-0.5, 0.5),
    ) -> None:
        if 0.9999 < restitution < 1:
            raise ValueError(f"restitution must be 1 or at most 0.9999, not {restitution}")
        self.balls, self.mass, self.gravity, self.restitution = balls, mass, gravity, restitution
        self.heights = integrated.ordered("height", height, 0.0)
        self.momenta = integrated.ordered("momentum", momentum, float("-inf"))
        self.conserved: tuple[str, ...] = ("energy",) if restitution == 1 else ()
        q, p = ([f"{letter}{i + 1}" for i in range(balls)] for letter in "qp")
        self.labels: Mapping[str, tuple[str, ...]] = {"component": (*q, *p)}
        units = {"energy": "J", "time": "s"}
        self.units: Mapping[str, str] = {**dict.fromkeys(q, "m"), **dict.fromkeys(p, "kg m s-1"), **units}
        powers = [1.0]
        while 0 < restitution < 1 and powers[-1] > SMALLEST:
            powers.append(powers[-1] * restitution)
        self.powers = torch.tensor(powers, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 2 * balls]``."""
        draws = [
            integrated.between(bounds, n * self.balls, generator).view(n, -1)
            for bounds in (self.heights, self.momenta)
        ]
        return torch.cat(draws, -1)

    def margin(self, states: Tensor) -> Tensor:
        """Heights above the floor, ``[..., ball]``."""
        return states[..., : self.balls]

    def within(self, states: Tensor) -> Tensor:
        """The nearest states above the floor."""
        q, p = states.chunk(2, -1)
        return torch.cat([q.clamp_min(0.0), p], -1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 2 * balls]``. Raises ValueError below the floor."""
        states = integrated.checked(states, (2 * self.balls,))
        if bool((states[:, : self.balls] < 0).any()):
            raise ValueError("a ball cannot start below the floor: heights q must not be negative")
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 2 * balls]``, with the observable energy. At the time of a bounce the state
        is the one after it."""
        if actions is not None:
            raise ValueError("bouncing balls are not driven: leave the actions out")
        times = integrated.ascending(times)
        q, p = start.unsqueeze(1).chunk(2, dim=-1)
        q, p = self.flown(q, p, (times - times[0])[:, None])
        states = torch.cat([q, p], -1).unsqueeze(1)
        states[:, :, 0] = start.unsqueeze(1)
        return Trajectory(
            states=states,
            times=times,
            observables=self.observe(states),
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def flown(self, q: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and momenta a time ``t`` >= 0 after ``q``, ``p``, all of shapes that broadcast."""
        g, velocity = self.gravity, p / self.mass
        speed = (velocity.square() + 2 * g * q).sqrt()  # at the first landing
        landing = (velocity + speed) / g
        since = t - landing
        # Flights after the first landing, in units of the first one without loss.
        unit = 2 * speed / g
        count, begun = self.flights(since / torch.where(unit > 0, unit, 1.0))
        rests = unit <= 0
        if self.restitution < 1:
            rests = rests | (count >= len(self.powers))
        kept = 1.0 if self.restitution == 1 else self.powers[count.clamp(max=len(self.powers) - 1)]
        launch, aloft = speed * kept, since - unit * begun
        flying = since < 0
        height = torch.where(
            flying, q + velocity * t - g / 2 * t.square(), launch * aloft - g / 2 * aloft.square()
        )
        velocity = torch.where(flying, velocity - g * t, launch - g * aloft)
        rests = rests & ~flying
        return height.masked_fill(rests, 0.0).clamp_min(0.0), (self.mass * velocity).masked_fill(rests, 0.0)

    def flights(self, since: Tensor) -> tuple[Tensor, Tensor]:
        """The number of bounces from the first landing to ``since`` after it, the first one counted, and when
        the last of them was; times in units of the flight that a bounce without loss would begin."""
        since = since.clamp_min(0.0)
        if self.restitution == 1:
            begun = since.floor()
            return begun.long() + 1, begun
        ends = self.powers[1:].cumsum(0)  # of the flights after the first landing
        done = torch.searchsorted(ends, since.contiguous(), right=True)
        begins = torch.cat([ends.new_zeros(1), ends])
        return done + 1, begins[done]

    def energy(self, states: Tensor) -> Tensor:
        """H in J, ``[...]`` for ``[..., 2 * balls]``."""
        q, p = states.chunk(2, dim=-1)
        return (p.square() / (2 * self.mass) + self.mass * self.gravity * q).sum(-1)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(states)}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        return integrated.window_shift(history)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"bouncing_balls": BouncingBalls}
