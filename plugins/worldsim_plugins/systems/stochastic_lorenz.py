"""The Lorenz system with noise (Lorenz 1963; as a test of latent SDEs: Li, Wong, Chen, Duvenaud 2020).

    dX = sigma (Y - X) dt + a_1 dW_1
    dY = (X (rho - Z) - Y) dt + a_2 dW_2
    dZ = (X Y - beta Z) dt + a_3 dW_3

with a_i constant, or proportional to the component itself (Ito). Paths are those of SRA1 (additive) or of
the stochastic Heun method (multiplicative), in steps that check their error, see ``diffused``: both are of
order 2 where the noise is small. Milstein's method is of order 1 there, and within the same tolerance moved
the mean of y by 0.08 in 0.3 units of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_kernels.solve import SDE, Constant
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.sde_solve import solve_sde
from worldsim_plugins.systems import diffused, integrated

STRETCH, LONGEST, TOLERANCE = 0.02, 0.01, 1e-2
"""Between comparisons components may move by this much from one step length to its half; the attractor is 40
wide."""
WARM_STEP = 0.002


class StochasticLorenz:
    """States ``[trajectory, (x, y, z)]``; starts near the attractor, each by a random start and a warm-up."""

    labels: Mapping[str, tuple[str, ...]] = {"component": ("x", "y", "z")}
    units: Mapping[str, str] = dict.fromkeys(("x", "y", "z", "time"), "1")
    history_kinds: tuple[str, ...] = ("window_shift",)

    def __init__(
        self,
        *,
        sigma: Annotated[float, Field(gt=0, description="Prandtl number")] = 10.0,
        rho: Annotated[float, Field(gt=0, description="Rayleigh number over its critical value")] = 28.0,
        beta: Annotated[float, Field(gt=0, description="aspect ratio of the cell")] = 8 / 3,
        noise: Annotated[
            Literal["additive", "multiplicative"],
            Field(description="whether the noise is constant, or proportional to each component"),
        ] = "multiplicative",
        size: Annotated[
            tuple[float, float, float],
            Field(description="size of the noise in x, y, z, over sqrt(time), or over the state as well"),
        ] = (0.1, 0.28, 0.3),
        warm_up: Annotated[
            float, Field(ge=0, description="time from a random start to the first frame")
        ] = 5.0,
    ) -> None:
        if min(size) < 0:
            raise ValueError(f"size must be three numbers of 0 or more, not {size}")
        self.sigma, self.rho, self.beta, self.warm_up = sigma, rho, beta, warm_up
        self.additive, self.size = noise == "additive", torch.tensor(size, dtype=torch.float64)
        self.scheme = "sra1" if self.additive else "stochastic_heun"

    def force(self, x: Tensor) -> Tensor:
        """The deterministic part of dX / dt at ``x`` ``[..., 3]``."""
        a, b, c = x.unbind(-1)
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], -1)

    def spread(self, x: Tensor) -> Tensor:
        """The size of the noise at ``x`` ``[..., 3]``."""
        return self.size.expand_as(x) if self.additive else self.size * x

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 3]``."""
        centre = torch.tensor([0.0, 0.0, max(self.rho - 1, 0.0)], dtype=torch.float64)
        start = centre + 10 * torch.randn(n, 3, dtype=torch.float64, generator=generator)
        if not self.warm_up:
            return start
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        noise, step = Brownian(seed, torch.arange(n), 3), Constant(WARM_STEP)
        return (
            solve_sde(
                self.term(), start, 0.0, self.warm_up, stepper=self.scheme, controller=step, noise=noise
            )
            .check()
            .y
        )

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 3]``."""
        return integrated.checked(states, (3,))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 3]``: one draw of the process from each start."""
        times = diffused.undriven("stochastic_lorenz", actions, times)
        return diffused.recorded(self.walked(start, times, generator), times, self.labels, self.units)

    def walked(self, start: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """``[trajectory, time, 3]``."""
        return diffused.path(
            self.term(),
            self.scheme,
            start,
            times,
            generator,
            stretch=STRETCH,
            longest=LONGEST,
            tolerance=TOLERANCE,
        )

    def term(self) -> SDE:
        if self.additive:
            return SDE(lambda t, x: self.force(x), lambda t, x: self.spread(x), noise="additive")
        # Ito's drift less half of g dg/dx is Stratonovich's.
        less = self.size.square() / 2
        return SDE(
            lambda t, x: self.force(x) - less * x, lambda t, x: self.spread(x), calculus="stratonovich"
        )

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        return integrated.window_shift(self.simulate(self.sample(n, generator), times, None, generator))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"stochastic_lorenz": StochasticLorenz}
