"""Walls that nothing passes.

    residual[t, wall] = max(-margin(x_t), 0) / scale

An inequality: its residual is 0 on a whole region. The nearest trajectory that obeys, in closed form, puts
what was outside on the wall itself; a model that generates y with x = y reflected at the wall spreads it
within.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasBounds, System
from worldsim_plugins.constraints import anchored


class Boundary:
    """Residual ``[trajectory, draw, time, wall]`` float64. Raises ValueError for a system without walls."""

    local_in_time = True
    equality = False
    needs = ("HasBounds",)
    met_by: Mapping[str, str] = {
        "violation_*": "every baseline: true states and their mean are all within",
    }

    def __init__(
        self,
        system: System,
        *,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="distance beyond a wall that counts as 1, in its units; left out: the mean "
                "distance of a start from its nearest wall",
            ),
        ] = None,
    ) -> None:
        if not isinstance(system, HasBounds):
            raise ValueError(f"boundary needs a system with walls; {type(system).__name__} has none")
        self.margin, self.within = system.margin, system.within
        if scale is None:
            scale = float(self.margin(anchored.starts_of(system)).amin(-1).mean())
        if not scale > 0:
            raise ValueError("the starts are on the walls: give boundary.scale, a distance")
        self.scale = scale

    def residual(self, trajectory: Trajectory) -> Tensor:
        """How far beyond each wall, over ``scale``."""
        states = trajectory.states.to(torch.float64)
        # Frames after a ragged end hold anything, even NaN, and must not reach the gradient.
        states = torch.where(anchored.wide(anchored.reached(trajectory), states), states, states[:, :, :1])
        return (-self.margin(states) / self.scale).clamp(min=0)

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """The nearest states within the walls, but in frame 0."""
        states = trajectory.states.to(torch.float64)
        moved = self.within(states[:, :, 1:])
        return trajectory.replace(states=torch.cat([states[:, :, :1], moved], 2))

    def free(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory itself."""
        return trajectory.replace(states=trajectory.states.to(torch.float64))

    def obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """Each state reflected at the wall nearest to it, and where that leads beyond another wall, moved to
        the nearest within."""
        states = free.states.to(torch.float64)
        reflected = self.within(2 * self.within(states) - states)
        return free.replace(states=reflected, observables={})


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Boundary]]:
    return {"boundary": Boundary}
