"""Fields of one component on a periodic line whose solutions are known in closed form.

    heat       du/dt = diffusivity d2u/dx2                  each Fourier mode decays by itself
    advection  du/dt = -speed du/dx                          the profile moves and keeps its shape
    burgers    du/dt = -u du/dx + viscosity d2u/dx2          (Hopf 1950; Cole 1951)

The solution of burgers is -2 viscosity d(log phi)/dx, where phi solves heat with that diffusivity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems.spectral import PeriodicField

Points = Annotated[int, Field(ge=8, multiple_of=2, description="grid points")]
Length = Annotated[float, Field(gt=0, description="length of the periodic line")]
Step = Annotated[float, Field(gt=0, description="longest internal step of the truth")]


class Heat(PeriodicField):
    """States ``[trajectory, x, (u)]``; exact at any time step. ``variance`` never grows."""

    is_linear = True
    observables = ("mass", "variance")

    def __init__(
        self,
        *,
        points: Points = 64,
        length: Length = 1.0,
        diffusivity: Annotated[float, Field(gt=0, description="length^2 / time")] = 0.01,
    ) -> None:
        super().__init__(1, points, length, float("inf"))
        self.diffusivity = diffusivity

    def linear(self) -> Tensor:
        """-diffusivity k^2."""
        return self.diffusivity * self.laplacian

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """mass, the mean; variance over the grid, ``[...]``."""
        mass = states.mean((-2, -1))
        return {"mass": mass, "variance": (states - mass[..., None, None]).square().mean((-2, -1))}


class Advection(PeriodicField):
    """States ``[trajectory, x, (u)]``; exact at any time step."""

    is_linear = True
    observables = ("mass", "variance")
    conserved = ("mass", "variance")

    def __init__(
        self,
        *,
        points: Points = 64,
        length: Length = 1.0,
        speed: Annotated[float, Field(description="length / time")] = 1.0,
    ) -> None:
        super().__init__(1, points, length, float("inf"))
        self.speed = speed

    def linear(self) -> Tensor:
        """-i speed k."""
        return -self.speed * self.gradient[0]

    observe = Heat.observe


class Burgers(PeriodicField):
    """States ``[trajectory, x, (u)]``: profiles that steepen until viscosity smooths them.

    A front is about 4 viscosity / (jump of u) wide and wants several points. With the defaults the truth
    agrees with the closed form to 1e-7 up to time 3.
    """

    def __init__(
        self,
        *,
        points: Points = 128,
        length: Length = 6.283185307179586,
        viscosity: Annotated[float, Field(gt=0, description="length^2 / time")] = 0.1,
        step: Step = 0.005,
    ) -> None:
        super().__init__(1, points, length, step)
        self.viscosity = viscosity

    def linear(self) -> Tensor:
        """-viscosity k^2."""
        return self.viscosity * self.laplacian

    def nonlinear(self, v: Tensor) -> Tensor:
        """-d(u^2 / 2)/dx."""
        return -0.5 * self.gradient[0] * self.coefficients(self.values(v).square())


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"heat": Heat, "advection": Advection, "burgers": Burgers}
