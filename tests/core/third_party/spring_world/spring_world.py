"""A true world in a package of its own, as a stranger would write it: H = p^2 / 2 + k q^2 / 2."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import System


class Spring:
    """States ``[trajectory, (q, p)]`` of a unit mass; starts are normal."""

    axes = ("component",)
    labels: Mapping[str, tuple[str, ...]] = {"component": ("q", "p")}
    units: Mapping[str, str] = {"q": "m", "p": "kg m s-1", "time": "s"}

    def __init__(
        self, *, stiffness: Annotated[float, Field(gt=0, description="of the spring, N m-1")] = 1.0
    ) -> None:
        self.rate = stiffness**0.5

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def restart(self, states: Tensor) -> Tensor:
        return states.double()

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """The closed form."""
        q, p = start[:, :1], start[:, 1:]
        angle = self.rate * (times - times[0])
        cos, sin = angle.cos(), angle.sin()
        states = torch.stack([q * cos + p * sin / self.rate, p * cos - self.rate * q * sin], -1)[:, None]
        return Trajectory(states, times, axes=self.axes, labels=self.labels, units=self.units)

    def energy(self, states: Tensor) -> Tensor:
        q, p = states.unbind(-1)
        return (p.square() + self.rate**2 * q.square()) / 2


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"spring": Spring}
