"""Three equal masses in the plane, near the orbit on which they chase each other along a figure of eight.

    H = sum_i p_i^2 / 2 - sum_{i<j} 1 / |q_i - q_j|

(Chenciner and Montgomery 2000; starting values after Simo 2002.) The orbit is stable: starts a little off it
stay near, starts far off end in encounters and escape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems.n_body import NBody

PERIOD = 6.32591398
FIRST = (0.97000436, -0.24308753)
LAST_MOMENTUM = (-0.93240737, -0.86473146)


class ThreeBody(NBody):
    """States ``[trajectory, body, (x, y, px, py)]`` in the frame of the centre of mass."""

    def __init__(
        self,
        *,
        spread: Annotated[
            float,
            Field(ge=0, description="standard deviation of the starts about the orbit"),
        ] = 0.01,
        softening: Annotated[
            float, Field(ge=0, description="length below which gravity is softened; 0 for Newton's law")
        ] = 0.0,
    ) -> None:
        super().__init__(masses=(1.0, 1.0, 1.0), softening=softening)
        self.spread = spread

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, body, 4]``: the figure of eight at its symmetric moment, moved by ``spread``."""
        q, p = torch.tensor(FIRST, dtype=torch.float64), torch.tensor(LAST_MOMENTUM, dtype=torch.float64)
        orbit = torch.stack([torch.cat([q, -p / 2]), torch.cat([-q, -p / 2]), torch.cat([0 * q, p])])
        noise = self.spread * torch.randn(n, 3, 4, dtype=torch.float64, generator=generator)
        return orbit + self.centred(noise)


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"three_body": ThreeBody}
