"""Flow of an incompressible fluid on a periodic square, seen as a field of velocities.

    du/dt = -(u . grad) u - grad p + viscosity lap u - drag u + forcing,   div u = 0

The pressure p is whatever keeps the flow without sources, so it is left out by working with the vorticity
w = dv/dx - du/dy; see ``vorticity`` for its law. The fluid as a whole is at rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems.patterns import Length, Points, Step, Vorticity
from worldsim_plugins.systems.spectral import PeriodicField


class IncompressibleFlow(PeriodicField):
    """States ``[trajectory, y, x, (u, v)]``, u along x; starts are those of ``vorticity``, two wavenumbers
    along each axis. A restart is from the nearest flow at rest as a whole and without sources."""

    components = ("u", "v")
    observables = ("momentum", "energy", "enstrophy")
    conserved = ("momentum",)

    def __init__(
        self,
        *,
        points: Points = 16,
        length: Length = 6.283185307179586,
        viscosity: Annotated[float, Field(ge=0, description="length^2 / time")] = 0.05,
        drag: Annotated[float, Field(ge=0, description="linear friction, 1 / time")] = 0.0,
        forcing: Annotated[
            float, Field(ge=0, description="strength of Kolmogorov's forcing of the vorticity, 1 / time^2")
        ] = 0.0,
        forced_mode: Annotated[int, Field(ge=1, description="its wavenumber along y")] = 4,
        step: Step = 0.01,
    ) -> None:
        self.turning = Vorticity(
            points=points, length=length, viscosity=viscosity, drag=drag, forcing=forcing,
            forced_mode=forced_mode, step=step,
        )  # fmt: skip
        super().__init__(2, points, length, step)
        self.history_kinds = self.turning.history_kinds

    def linear(self) -> Tensor:
        """-viscosity k^2 - drag."""
        return self.turning.linear()

    def nonlinear(self, v: Tensor) -> Tensor:
        """-(u . grad) u - grad p and the forcing."""
        return self.velocity(self.turning.nonlinear(self.vorticity(v)))

    def vorticity(self, v: Tensor) -> Tensor:
        """``[..., 1, *k]`` of velocities ``[..., 2, *k]``."""
        by_y, by_x = self.gradient
        return by_x * v[..., 1:, :, :] - by_y * v[..., :1, :, :]

    def velocity(self, w: Tensor) -> Tensor:
        """The inverse of ``vorticity``."""
        return torch.cat(self.turning.velocity(w), -3)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, y, x, (u, v)]``."""
        w = self.turning.sample(n, generator)
        return self.to_grid(self.velocity(self.turning.to_fourier(w)))

    def restart(self, states: Tensor) -> Tensor:
        """The start nearest to ``states`` ``[trajectory, y, x, 2]``."""
        v = self.to_fourier(super().restart(states))
        return self.to_grid(self.velocity(self.vorticity(v)))

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """momentum, the mean velocity ``[..., 2]``, which is 0; energy and enstrophy per area ``[...]``."""
        w = self.values(self.vorticity(self.to_fourier(states)))
        return {
            "momentum": states.mean((-3, -2)),
            "energy": 0.5 * states.square().sum(-1).mean((-2, -1)),
            "enstrophy": 0.5 * w.square().mean((-3, -2, -1)),
        }


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"incompressible_flow": IncompressibleFlow}
