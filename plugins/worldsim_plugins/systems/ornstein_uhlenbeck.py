"""The Ornstein-Uhlenbeck process, a stochastic truth whose every law is known.

    dX = rate (mean - X) dt + volatility dW

X(t + s) given X(t) is Gaussian with mean ``mean + (X(t) - mean) exp(-rate s)`` and variance
``volatility^2 (1 - exp(-2 rate s)) / (2 rate)`` (Uhlenbeck and Ornstein 1930), so sampling is exact.
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


class OrnsteinUhlenbeck:
    """States ``[trajectory, dim]``, independent components; starts from the stationary law."""

    axes = ("component",)
    conserved: tuple[str, ...] = ()
    history_kinds: tuple[str, ...] = ("window_shift", "common_end")

    def __init__(
        self,
        *,
        dim: Annotated[int, Field(ge=1, description="number of independent components")] = 1,
        rate: Annotated[float, Field(gt=0, description="rate of return to the mean, 1 / time")] = 1.0,
        mean: Annotated[float, Field(description="mean of the stationary law")] = 0.0,
        volatility: Annotated[float, Field(gt=0, description="size of the noise, state / sqrt(time)")] = 1.0,
    ) -> None:
        self.dim, self.rate, self.mean, self.volatility = dim, rate, mean, volatility
        names = tuple(f"x{i + 1}" for i in range(dim))
        self.labels: Mapping[str, tuple[str, ...]] = {"component": names}
        self.units: Mapping[str, str] = dict.fromkeys((*names, "time"), "1")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, dim]``."""
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return self.mean + self.volatility / math.sqrt(2 * self.rate) * noise

    def law(self, states: Tensor, dt: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, shaped as ``states`` ``[..., dim]``, of the Gaussian law a time ``dt`` >= 0 on
        (a float, or a tensor that broadcasts against ``states``)."""
        dt = torch.as_tensor(dt, dtype=torch.float64)
        if (dt < 0).any():
            raise ValueError("dt must be 0 or more: this is the law of the future")
        mean = self.mean + (states - self.mean) * torch.exp(-self.rate * dt)
        variance = -torch.expm1(-2 * self.rate * dt) * self.volatility**2 / (2 * self.rate)
        return mean, variance.expand_as(mean)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, dim]``."""
        return integrated.checked(states, (self.dim,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, dim]``: one draw of the process from each start."""
        if actions is not None:
            raise ValueError("ornstein_uhlenbeck is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        states = self.walked(start, times.diff(), generator)
        return self.recorded(states, times)

    def walked(self, start: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
        """``[trajectory, 1 + step, dim]``."""
        noise = torch.randn(len(steps), *start.shape, dtype=torch.float64, generator=generator)
        states = [start]
        for dt, draw in zip(steps, noise):
            mean, variance = self.law(states[-1], dt)
            states.append(mean + variance.sqrt() * draw)
        return torch.stack(states, dim=1)

    def recorded(self, states: Tensor, times: Tensor) -> Trajectory:
        return Trajectory(states.unsqueeze(1), times, axes=self.axes, labels=self.labels, units=self.units)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``; ``common_end``: two independent pasts of one state. The stationary process is
        reversible, so a past is drawn as a future is, and read backwards."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        times, end = integrated.ascending(times), self.sample(n, generator)
        steps = times.diff().flip(0)
        pasts = [self.recorded(self.walked(end, steps, generator).flip(1), times) for _ in range(2)]
        if kind == "window_shift":
            return integrated.window_shift(pasts[0])
        return HistoryPairs(*pasts, align=lambda states: states)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"ornstein_uhlenbeck": OrnsteinUhlenbeck}
