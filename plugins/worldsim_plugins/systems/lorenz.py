"""The Lorenz system, dissipative and chaotic (Lorenz 1963, *Deterministic nonperiodic flow*).

dx/dt = sigma (y - x),   dy/dt = x (rho - z) - y,   dz/dt = x y - beta z
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


class Lorenz:
    """States ``[trajectory, (x, y, z)]``; starts near the attractor, each by a random start and a warm-up.

    Two trajectories that differ by rounding separate as exp(0.9 t) with the classical parameters: beyond
    t = 35 or so only the statistics of the truth are right.
    """

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "y", "z")}
    units: Mapping[str, str] = dict.fromkeys(("x", "y", "z", "time"), "1")
    history_kinds: tuple[str, ...] = ("window_shift", "half_turn")

    def __init__(
        self,
        *,
        sigma: Annotated[float, Field(gt=0, description="Prandtl number")] = 10.0,
        rho: Annotated[float, Field(gt=0, description="Rayleigh number over its critical value")] = 28.0,
        beta: Annotated[float, Field(gt=0, description="aspect ratio of the cell")] = 8 / 3,
        warm_up: Annotated[
            float, Field(ge=0, description="time from a random start to the first frame")
        ] = 20.0,
    ) -> None:
        self.sigma, self.rho, self.beta, self.warm_up = sigma, rho, beta, warm_up

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 3]``."""
        centre = torch.tensor([0.0, 0.0, max(self.rho - 1, 0.0)], dtype=torch.float64)
        start = centre + 10 * torch.randn(n, 3, dtype=torch.float64, generator=generator)
        times = torch.tensor([0.0, self.warm_up], dtype=torch.float64)
        return self.flow(start, times)[:, -1] if self.warm_up else start

    def flow(self, state: Tensor, times: Tensor) -> Tensor:
        return integrated.flow(lambda x, u: self.drift(times[0], x, u), state, times)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 3]``."""
        return integrated.checked(states, (3,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 3]``, with the observable derivative."""
        return integrated.simulated(self, start, times, actions)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 3]``."""
        a, b, c = x.unbind(-1)
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], -1)

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """Nothing: the system conserves nothing."""
        return {}

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``half_turn``: (x, y, z) and (-x, -y, z)."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        return integrated.image(self, history, _half_turn, _half_turn)


def _half_turn(states: Tensor) -> Tensor:
    return states * torch.tensor([-1.0, -1.0, 1.0]).to(states)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"lorenz": Lorenz}
