"""Quantities that are never negative: concentrations, prices, densities.

    residual[t, i] = max(-x_i(t), 0) / scale_i

An inequality: its residual is 0 on a whole region. The nearest trajectory that obeys is max(x, 0), which
puts part of the law on the edge itself; a model that generates y with x = s softplus(y / s) never reaches the
edge, and is not stretched where x is large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasUnseenStart, System
from worldsim_plugins.constraints import anchored

LEAST = 1e-12
"""What softplus gives in the place of 0, in units of its bend."""
BEND = 0.1
"""Part of a component's size below which softplus bends: the law is hardly stretched, and 0 not far off."""
SLIGHT = 1e-6
"""Size of what stays 0, of the largest component."""


class Positivity:
    """Residual ``[trajectory, draw, time, *grid, component]`` float64 of the chosen components.

    Raises ValueError for a component that the system does not have, or that is negative at one of its starts.
    """

    local_in_time = True
    equality = False
    met_by: Mapping[str, str] = {
        "violation_*": "every baseline: true states and their mean are all positive",
    }

    def __init__(
        self,
        system: System,
        *,
        components: Annotated[
            tuple[str, ...] | None,
            Field(description="labels of the components that are never negative; left out: all"),
        ] = None,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="negative value that counts as 1, in the units of the state; left out: for each "
                "component the root mean square over starts",
            ),
        ] = None,
    ) -> None:
        name = type(system).__name__
        labels = tuple(getattr(system, "labels", {}).get("component", ()))
        for component in components or ():
            if component not in labels:
                raise ValueError(
                    f"positivity.components: {name} has no component {component!r}; it has "
                    f"{', '.join(labels) or 'no labels'}"
                )
        starts = anchored.starts_of(system)
        starts = starts.reshape(-1, starts.shape[-1])
        index = range(starts.shape[-1]) if components is None else [labels.index(c) for c in components]
        self.chosen = torch.zeros(starts.shape[-1], dtype=torch.bool)
        self.chosen[list(index)] = True
        negative = [i for i in index if bool((starts[:, i] < 0).any())]
        if negative:
            said = ", ".join(labels[i] if labels else str(i) for i in negative)
            raise ValueError(
                f"positivity: {said} of {name} can be negative at the start: choose other components"
            )
        found = starts.square().mean(0).sqrt()
        typical = torch.where(found > 0, found, found.max())
        self.blank = isinstance(system, HasUnseenStart)
        self.scale = typical if scale is None else torch.full_like(typical, scale)
        self.bend = BEND * self.scale
        if scale is None and bool((found == 0).any()):
            # What is not there at the start may stay a trifle: bent at the size of the others, all of it
            # would be an exponential function, and errors would be factors.
            later = anchored.starts_of(system, later=True).flatten(0, -2).square().mean(0).sqrt()
            later = torch.where(later > 0, later, SLIGHT * found.max())
            self.bend = BEND * torch.where(found > 0, found, later)

    def residual(self, trajectory: Trajectory) -> Tensor:
        """How far below 0, over ``scale``."""
        states = trajectory.states.to(torch.float64)
        states = torch.where(anchored.wide(anchored.reached(trajectory), states), states, 0.0)
        below = (-states / self.scale.to(states.device)).clamp(min=0)
        return below[..., self.chosen.to(states.device)]

    def retract(self, trajectory: Trajectory) -> Trajectory:
        """max(x, 0) but in frame 0."""
        states = trajectory.states.to(torch.float64)
        lifted = torch.where(self.chosen.to(states.device), states.clamp(min=0), states)
        return trajectory.replace(states=torch.cat([states[:, :, :1], lifted[:, :, 1:]], 2))

    def free(self, trajectory: Trajectory) -> Trajectory:
        """y = s log(exp(x / s) - 1) of the chosen components, s being ``bend``; of 0 that of 1e-12 s."""
        states = trajectory.states.to(torch.float64)
        scaled = (states / self.bend.to(states)).clamp(min=LEAST)
        y = scaled + torch.log(-torch.expm1(-scaled))
        return self._chosen(trajectory, states, y)

    def obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """x = s log(1 + exp(y / s)) of the chosen components."""
        states = free.states.to(torch.float64)
        scaled = states / self.bend.to(states)
        x = torch.nn.functional.softplus(scaled, threshold=40.0)
        return self._chosen(free, states, x).replace(observables={})

    def _chosen(self, like: Trajectory, states: Tensor, mapped: Tensor) -> Trajectory:
        """``mapped``, in units of ``bend``, in the place of the chosen components; a blank frame stays as it
        is, since what it would be mapped to is far from all else that a model sees."""
        chosen, bend = self.chosen.to(states.device), self.bend.to(states)
        mapped = torch.where(chosen, bend * mapped, states)
        if self.blank:
            mapped = torch.cat([states[:, :, :1], mapped[:, :, 1:]], 2)
        return like.replace(states=mapped)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Positivity]]:
    return {"positivity": Positivity}
