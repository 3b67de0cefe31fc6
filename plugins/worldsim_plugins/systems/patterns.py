"""Fields that make patterns or turbulence on a periodic line or square.

kuramoto_sivashinsky  du/dt = -u du/dx - d2u/dx2 - d4u/dx4
                          (Kuramoto 1978; Sivashinsky 1977)
gray_scott            du/dt = D_u lap u - u v^2 + F (1 - u),
                      dv/dt = D_v lap v + u v^2 - (F + k) v                       (Pearson 1993)
vorticity             dw/dt = -(u . grad) w + viscosity lap w - drag w + forcing,
                      u = (d psi/dy, -d psi/dx), lap psi = -w
                          (two-dimensional Navier-Stokes)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems.spectral import PeriodicField

Points = Annotated[int, Field(ge=8, multiple_of=2, description="grid points along each axis")]
Length = Annotated[float, Field(gt=0, description="length of the periodic line, or side of the square")]
Step = Annotated[float, Field(gt=0, description="longest internal step of the truth")]


class KuramotoSivashinsky(PeriodicField):
    """States ``[trajectory, x, (u)]`` on the attractor, chaotic for lengths of 22 and more."""

    history_kinds = ("window_shift", "translation")
    amplitude = 0.5

    def __init__(
        self,
        *,
        points: Points = 64,
        length: Length = 22.0,
        step: Step = 0.015,
        warm_up: Annotated[
            float, Field(ge=0, description="time from a random start to the first frame")
        ] = 100.0,
    ) -> None:
        super().__init__(1, points, length, step)
        self.warm_up = warm_up

    def linear(self) -> Tensor:
        """k^2 - k^4."""
        return -self.laplacian - self.laplacian.square()

    def nonlinear(self, v: Tensor) -> Tensor:
        """-d(u^2 / 2)/dx."""
        return -0.5 * self.gradient[0] * self.coefficients(self.values(v).square())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, x, 1]``."""
        start = self.smooth(n, generator)
        return self.to_grid(self.advance(self.to_fourier(start), self.warm_up)) if self.warm_up else start


class GrayScott(PeriodicField):
    """States ``[trajectory, y, x, (u, v)]`` (or ``[trajectory, x, (u, v)]``): spots that grow and divide.

    Starts are u = 1, v = 0 with a smooth random seed of v.
    """

    components = ("u", "v")
    conserved = ()
    modes, amplitude = 4, 0.15

    def __init__(
        self,
        *,
        dims: Annotated[Literal[1, 2], Field(description="dimension of space")] = 2,
        points: Points = 64,
        length: Length = 0.4,
        diffusivities: Annotated[tuple[float, float], Field(description="D_u and D_v, length^2 / time")] = (
            2e-5,
            1e-5,
        ),
        feed: Annotated[float, Field(ge=0, description="F, 1 / time")] = 0.04,
        kill: Annotated[float, Field(ge=0, description="k, 1 / time")] = 0.06,
        step: Step = 0.5,
    ) -> None:
        if min(diffusivities) < 0:
            raise ValueError(f"diffusivities must not be negative, they are {tuple(diffusivities)}")
        super().__init__(dims, points, length, step)
        self.diffusivities, self.feed, self.kill = diffusivities, feed, kill

    def linear(self) -> Tensor:
        """D lap minus the linear rates, of u and of v."""
        du, dv = self.diffusivities
        return torch.stack([du * self.laplacian - self.feed, dv * self.laplacian - self.feed - self.kill])

    def nonlinear(self, v: Tensor) -> Tensor:
        """(F - u v^2, u v^2)."""
        fields = self.values(v)
        reaction = fields.select(-1 - self.dims, 0) * fields.select(-1 - self.dims, 1).square()
        return self.coefficients(torch.stack([self.feed - reaction, reaction], -1 - self.dims))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, *grid, 2]``."""
        seed = self.smooth(n, generator)[..., :1].square() * 12
        v = seed / (1 + 2 * seed)
        return torch.cat([1 - v, v / 2], -1)


class Vorticity(PeriodicField):
    """States ``[trajectory, y, x, (w)]``: flow of an incompressible fluid on a square.

    Without drag and forcing, energy and enstrophy decay through viscosity alone.
    """

    components = ("w",)
    observables = ("mass", "energy", "enstrophy")
    modes, amplitude = 2, 1.0

    def __init__(
        self,
        *,
        points: Points = 32,
        length: Length = 6.283185307179586,
        viscosity: Annotated[float, Field(ge=0, description="length^2 / time")] = 0.05,
        drag: Annotated[float, Field(ge=0, description="linear friction, 1 / time")] = 0.0,
        forcing: Annotated[
            float, Field(ge=0, description="strength of Kolmogorov's forcing along x, 1 / time^2")
        ] = 0.0,
        forced_mode: Annotated[int, Field(ge=1, description="its wavenumber along y")] = 4,
        step: Step = 0.01,
    ) -> None:
        if forcing and not 3 * forced_mode < points:
            raise ValueError(
                f"a forced_mode of {forced_mode} is not resolved by {points} points: take more than "
                f"{3 * forced_mode}"
            )
        super().__init__(2, points, length, step)
        self.viscosity, self.drag = viscosity, drag
        self.forcing, self.forced_mode = forcing, forced_mode
        # A forcing that depends on y is not the same a quarter of the box further on.
        self.history_kinds = ("window_shift",) if forcing else ("window_shift", "translation")

    def linear(self) -> Tensor:
        """-viscosity k^2 - drag."""
        return self.viscosity * self.laplacian - self.drag

    @cached_property
    def push(self) -> Tensor:
        """-forcing cos(2 pi mode y / length) in Fourier space, ``[1, *k]``."""
        y = torch.arange(self.points, dtype=torch.float64) / self.points
        wave = -self.forcing * torch.cos(2 * math.pi * self.forced_mode * y)
        return torch.fft.rfftn(wave[:, None].expand(1, self.points, self.points), dim=(-2, -1))

    def velocity(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(u_x, u_y) in Fourier space, from the vorticity there."""
        psi = torch.where(self.laplacian < 0, -v / torch.where(self.laplacian < 0, self.laplacian, 1.0), 0.0)
        by_y, by_x = self.gradient
        return by_y * psi, -by_x * psi

    def nonlinear(self, v: Tensor) -> Tensor:
        """-(u . grad) w and the forcing."""
        by_y, by_x = self.gradient
        along_x, along_y = self.velocity(v)
        carried = self.values(along_x) * self.values(by_x * v) + self.values(along_y) * self.values(by_y * v)
        return self.push - self.coefficients(carried)

    def energy(self, states: Tensor) -> Tensor:
        """Kinetic energy per area, ``[...]`` for ``[..., y, x, 1]``."""
        x, y = self.velocity(self.to_fourier(states))
        return 0.5 * (self.values(x).square() + self.values(y).square()).mean((-3, -2, -1))

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """mass, the mean vorticity, which is 0; energy and enstrophy per area, ``[...]``."""
        return {
            "mass": states.mean((-3, -2, -1)),
            "energy": self.energy(states),
            "enstrophy": 0.5 * states.square().mean((-3, -2, -1)),
        }


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {
        "kuramoto_sivashinsky": KuramotoSivashinsky,
        "gray_scott": GrayScott,
        "vorticity": Vorticity,
    }
