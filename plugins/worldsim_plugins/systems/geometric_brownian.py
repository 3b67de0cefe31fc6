"""Geometric Brownian motion, a stochastic truth with multiplicative noise whose law is known.

    dX = growth X dt + volatility X dW   (Ito)

ln X(t + s) given X(t) is Gaussian with mean ``ln X(t) + (growth - volatility^2 / 2) s`` and variance
``volatility^2 s`` (Samuelson 1965), so sampling is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import diffused, integrated


class GeometricBrownian:
    """States ``[trajectory, dim]``, independent positive components; starts uniform in ``start``."""

    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        dim: Annotated[int, Field(ge=1, description="number of independent components")] = 1,
        growth: Annotated[float, Field(description="rate of growth of the mean, 1 / time")] = 0.5,
        volatility: Annotated[
            float, Field(gt=0, description="size of the noise over the state, 1 / sqrt(time)")
        ] = 0.8,
        start: Annotated[
            tuple[float, float], Field(description="lowest and highest first value, positive")
        ] = (0.5, 2.0),
    ) -> None:
        self.dim, self.growth, self.volatility = dim, growth, volatility
        self.start = integrated.ordered("start", start, 1e-300)
        names = tuple(f"x{i + 1}" for i in range(dim))
        self.labels = {"component": names}
        self.units = dict.fromkeys((*names, "time"), "1")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, dim]``."""
        return integrated.between(self.start, n * self.dim, generator).reshape(n, self.dim)

    def law(self, states: Tensor, dt: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, shaped as ``states`` ``[..., dim]``, of the Gaussian law of ln X a time ``dt``
        >= 0 on (a float, or a tensor that broadcasts against ``states``)."""
        dt = torch.as_tensor(dt, dtype=torch.float64)
        if (dt < 0).any():
            raise ValueError("dt must be 0 or more: this is the law of the future")
        mean = states.log() + (self.growth - self.volatility**2 / 2) * dt
        return mean, (self.volatility**2 * dt).expand_as(mean)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, dim]``. Raises ValueError unless they are positive."""
        states = integrated.checked(states, (self.dim,))
        if (states <= 0).any():
            raise ValueError("geometric Brownian motion is positive: it cannot start at 0 or below")
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, dim]``: one draw of the process from each start."""
        times = diffused.undriven("geometric_brownian", actions, times)
        steps = times.diff()
        noise = torch.randn(len(steps), *start.shape, dtype=torch.float64, generator=generator)
        states = [start]
        for dt, draw in zip(steps, noise):
            rise = (self.growth - self.volatility**2 / 2) * dt + self.volatility * dt.sqrt() * draw
            states.append(states[-1] * rise.exp())
        return diffused.recorded(torch.stack(states, 1), times, self.labels, self.units)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        return integrated.window_shift(self.simulate(self.sample(n, generator), times, None, generator))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"geometric_brownian": GeometricBrownian}
