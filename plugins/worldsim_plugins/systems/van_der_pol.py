"""Van der Pol's oscillator, from nearly harmonic to stiff (van der Pol 1926, *On relaxation-oscillations*).

    dx/dt = v,   dv/dt = mu (1 - x^2) v - x

All starts but the origin end on one limit cycle, whose period is 2 pi for small mu and near
(3 - 2 ln 2) mu for large: slow stretches, stiff with rates of about 3 mu, and jumps that last about 1 / mu.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated
from worldsim_plugins.systems.stiff_flow import flow

ATOL = 1e-10
STIFF_FROM = 50.0
"""The mu from which an implicit method is the cheaper way to the truth; below, collocation is exact to about
1e-12."""


@dataclass(frozen=True)
class Start:
    """``states`` ``[trajectory, (x, v)]``, and each trajectory's own ``mu`` ``[trajectory]``."""

    states: Tensor
    mu: Tensor


class VanDerPol:
    """States ``[trajectory, (x, v)]``; starts uniform in a square.

    Where ``mu`` is a range, each trajectory has its own, drawn uniformly in ln mu; models do not see it (it
    is an observable), so the system has no one drift and cannot be started again from a state alone.
    """

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "v")}
    units: Mapping[str, str] = dict.fromkeys(("x", "v", "mu", "time"), "1")
    history_kinds: tuple[str, ...] = ("window_shift", "half_turn")

    def __init__(
        self,
        *,
        mu: Annotated[
            tuple[float, float],
            Field(description="lowest and highest strength of the damping, positive"),
        ] = (5.0, 5.0),
        extent: Annotated[
            float, Field(gt=0, description="starts have x and v uniform in [-extent, extent]")
        ] = 2.0,
    ) -> None:
        low, high = integrated.ordered("mu", mu, 0.0)
        if low == 0:
            raise ValueError("mu must be positive: with mu = 0 nothing damps")
        self.mu, self.extent = (low, high), extent
        if low == high:
            self.restart, self.drift = self._restart, self._drift

    def sample(self, n: int, generator: torch.Generator) -> Start:
        """``n`` starts."""
        square = 2 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 1
        low, high = self.mu
        share = torch.rand(n, dtype=torch.float64, generator=generator)
        # Not exp of a vector: its last bit depends on the place in it.
        mu = [low if low == high else low * (high / low) ** each for each in share.tolist()]
        return Start(self.extent * square, torch.tensor(mu, dtype=torch.float64))

    def _restart(self, states: Tensor) -> Start:
        """The start at ``states`` ``[trajectory, (x, v)]``."""
        states = integrated.checked(states, (2,))
        return Start(states, torch.full((len(states),), self.mu[0], dtype=torch.float64))

    def _drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., (x, v)]``."""
        return field(t, x, self.mu[0])

    def simulate(
        self, start: Start, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, (x, v)]``, with observables mu and derivative."""
        if actions is not None:
            raise ValueError(
                "van der Pol's oscillator is not driven here: it takes no actions; leave them out"
            )
        times = integrated.ascending(times)
        states = self._flow(start, times).unsqueeze(1)
        mu = start.mu[:, None, None].expand(states.shape[:-1])
        return Trajectory(
            states=states,
            times=times,
            observables={"mu": mu, "derivative": field(times[0], states, mu)},
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def _flow(self, start: Start, times: Tensor) -> Tensor:
        """``[trajectory, time, (x, v)]``."""
        states = start.states.new_empty(len(start.mu), len(times), 2)
        stiff = start.mu >= STIFF_FROM
        if bool(stiff.any()):
            states[stiff] = flow(field, start.states[stiff], times, (start.mu[stiff],), ATOL)
        if bool((~stiff).any()):
            held = start.mu[~stiff, None, None].expand(-1, len(times), 1)
            states[~stiff] = integrated.flow(_held, start.states[~stiff], times, held)
        return states

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``half_turn``: (x, v) and (-x, -v)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        start = self.sample(n, generator)
        history = self.simulate(start, times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        turned = self.simulate(Start(-start.states, start.mu), times, None, generator)
        return HistoryPairs(history, turned, align=torch.neg)


def _held(x: Tensor, u: Tensor | None) -> Tensor:
    """The field with mu ``u`` ``[trajectory, 1]`` in the place of an action."""
    assert u is not None
    return field(x, x, u[:, 0])


def field(t: Tensor, x: Tensor, mu: Any) -> Tensor:
    """dx/dt ``[..., (x, v)]``."""
    position, speed = x.unbind(-1)
    return torch.stack([speed, mu * ((1 - position * position) * speed) - position], -1)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"van_der_pol": VanDerPol}
