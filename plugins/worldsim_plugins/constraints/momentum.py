"""Conservation of the total momentum, or of the total angular momentum, of a system.

    residual[t] = (P(x_t) - P(x_anchor)) / scale,   P = sum_i p_i,   or L = sum_i q_i x p_i

P is linear in the state, so projection is one step in closed form, and a model can obey by construction:
every frame is given the momentum of the anchor, each body in proportion to its mass, so that all velocities
change alike. L is not, and is projected by Gauss-Newton.

Conserving momentum says nothing about what bodies do to one another, or about energy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Constraint, HasBodies, HasUnseenStart, System
from worldsim_plugins.constraints import anchored
from worldsim_plugins.constraints.linear import LinearFunctional, observed


class AngularMomentum:
    """Residual ``[trajectory, draw, time]``, in space ``[..., 3]``. Raises ValueError where all starts share
    one value when ``scale`` is left out."""

    equality = True

    def __init__(
        self, system: System, scale: float | None, reference: Literal["first", "second"] | None
    ) -> None:
        anchored.check_conserved(system, "angular_momentum", "momentum with angular")
        starts = anchored.starts_of(system)
        self.value = observed(system, "angular_momentum", starts.ndim - 1)
        self.anchor = anchored.anchor_of(system, reference, "momentum")
        self.local_in_time = self.anchor == 0
        self.met_by = anchored.met_by(self.anchor)
        if scale is None:
            scale = anchored.spread(self.value(starts))
        if scale == 0:
            raise ValueError(
                f"the starts of {type(system).__name__} share one angular momentum: give momentum.scale, the "
                "error that should count as 1"
            )
        self.scale = scale

    def residual(self, trajectory: Trajectory) -> Tensor:
        """The angular momentum of each frame less that of the anchor, over ``scale``."""
        return anchored.compared(self.value, trajectory, self.anchor, self.scale)


def momentum(
    system: System,
    *,
    angular: Annotated[
        bool, Field(description="the angular momentum about the origin instead of the linear one")
    ] = False,
    scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="error that counts as 1, in the units of the momentum; left out: the deviation of "
            "the total between starts, or where they share one total, of a sum of independent momenta",
        ),
    ] = None,
    reference: anchored.Reference = None,
) -> Constraint:
    """The total momentum of the system's ``observe``, ``[trajectory, draw, time, dim]`` over ``scale``.

    Raises ValueError for a system that does not conserve it, and with ``angular`` for one whose starts all
    share one angular momentum when ``scale`` is left out.
    """
    if angular:
        return AngularMomentum(system, scale, reference)
    anchored.check_conserved(system, "momentum", "momentum")
    starts = anchored.starts_of(system)
    value, weights = observed(system, "momentum", starts.ndim - 1), mass_weights(system, starts)
    return LinearFunctional(system, starts, value, "momentum", scale, reference, weights)


def mass_weights(system: System, starts: Tensor) -> Tensor | None:
    """m_i for the momenta of body i, 0 for places, ``[*state]``, of states like ``starts`` ``[n, *state]``;
    None where masses are not known."""
    world = system.inner if isinstance(system, HasUnseenStart) else system
    if not isinstance(world, HasBodies):
        return None
    places, momenta = world.places_and_momenta(starts[0])
    masses = world.masses[:, None].expand_as(momenta)
    return world.of_places_and_momenta(torch.zeros_like(places), masses)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Constraint]]:
    return {"momentum": momentum}
