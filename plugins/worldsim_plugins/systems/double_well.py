"""A particle in a double well under thermal noise: overdamped Langevin dynamics.

    dX = -V'(X) dt + sqrt(2 temperature) dW,   V(x) = barrier ((x / width)^2 - 1)^2

The stationary law has the density exp(-V / temperature) / Z, and the process is reversible in it. Between the
wells at +-width it passes at Kramers' rate, for temperature << barrier about
sqrt(V''(width) |V''(0)|) exp(-barrier / temperature) / 2 pi = 2 sqrt(2) barrier exp(...) / (pi width^2)
(Kramers 1940).

Paths are those of SRA1 (Roessler 2010) in steps that check their error, see ``diffused``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_kernels.solve import SDE
from worldsim_plugins.systems import diffused, integrated

TOLERANCE = 1e-3
"""Of a position after a stretch of four times of relaxation in a well, in widths."""
CELLS = 20_000


class DoubleWell:
    """States ``[trajectory, dim]``, independent components; starts from the stationary law."""

    history_kinds: tuple[str, ...] = ("window_shift", "common_end")

    def __init__(
        self,
        *,
        dim: Annotated[int, Field(ge=1, description="number of independent components")] = 1,
        barrier: Annotated[float, Field(gt=0, description="height of the barrier between the wells")] = 1.0,
        width: Annotated[float, Field(gt=0, description="distance of a well from the barrier")] = 1.0,
        temperature: Annotated[float, Field(gt=0, description="temperature, in the units of V")] = 0.4,
    ) -> None:
        self.dim, self.barrier, self.width, self.temperature = dim, barrier, width, temperature
        names = tuple(f"x{i + 1}" for i in range(dim))
        self.labels = {"component": names}
        self.units = dict.fromkeys((*names, "time"), "1")
        # Beyond, V is 40 temperatures: the law has 1e-17 of itself there.
        self.edge = width * math.sqrt(1 + math.sqrt(40 * temperature / barrier))
        self.nodes = torch.linspace(-self.edge, self.edge, CELLS + 1, dtype=torch.float64)
        weight = torch.exp(-self.potential(self.nodes) / temperature)
        mass = torch.cat([weight.new_zeros(1), ((weight[1:] + weight[:-1]) / 2).cumsum(0)])
        self.normaliser = float(mass[-1]) * 2 * self.edge / CELLS
        self.cumulative = mass / mass[-1]

    def potential(self, x: Tensor) -> Tensor:
        """V, shaped as ``x``."""
        return self.barrier * ((x / self.width).square() - 1).square()

    def force(self, x: Tensor) -> Tensor:
        """-V', shaped as ``x``."""
        return -4 * self.barrier / self.width**2 * x * ((x / self.width).square() - 1)

    def density(self, x: Tensor) -> Tensor:
        """Stationary density of one component, shaped as ``x``."""
        return torch.exp(-self.potential(x) / self.temperature) / self.normaliser

    def quantile(self, p: Tensor) -> Tensor:
        """The stationary x with the probability ``p`` below it, shaped as ``p``, linear between nodes 2e-4
        edges apart."""
        at = torch.searchsorted(self.cumulative, p.contiguous(), right=True).clamp(1, CELLS)
        low, high = self.cumulative[at - 1], self.cumulative[at]
        part = torch.where(high > low, (p - low) / (high - low).clamp(min=1e-300), 0.0)
        return self.nodes[at - 1] + part * (self.nodes[at] - self.nodes[at - 1])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, dim]``."""
        return self.quantile(torch.rand(n, self.dim, dtype=torch.float64, generator=generator))

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, dim]``."""
        return integrated.checked(states, (self.dim,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, dim]``: one draw of the process from each start."""
        times = diffused.undriven("double_well", actions, times)
        return self.recorded(self.walked(start, times, generator), times)

    def walked(self, start: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """``[trajectory, time, dim]``."""
        spread = math.sqrt(2 * self.temperature)
        term = SDE(lambda t, x: self.force(x), lambda t, x: torch.full_like(x, spread), noise="additive")
        curvature = 8 * self.barrier / self.width**2  # V'' in a well
        return diffused.path(
            term,
            "sra1",
            start,
            times,
            generator,
            stretch=4 / curvature,
            longest=0.2 / curvature,
            tolerance=TOLERANCE * self.width,
        )

    def recorded(self, states: Tensor, times: Tensor) -> Trajectory:
        return diffused.recorded(states, times, self.labels, self.units)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``; ``common_end``: two independent pasts of one state. The stationary process is
        reversible, so a past is drawn as a future is, and read backwards."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        times, end = integrated.ascending(times), self.sample(n, generator)
        back = times[-1] - times.flip(0)
        pasts = [self.recorded(self.walked(end, back, generator).flip(1), times) for _ in range(2)]
        if kind == "window_shift":
            return integrated.window_shift(pasts[0])
        return HistoryPairs(*pasts, align=lambda states: states)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"double_well": DoubleWell}
