"""Conservation of the total mass: of a field the mean over the grid, of a reaction the sum of concentrations.

    residual[t] = (M(x_t) - M(x_anchor)) / scale

M is linear in the state, so projection is one step in closed form (of a field: a constant is added), and a
model can obey by construction: each frame of what it generates is given the mass of the anchor.

A field of the right mass can be wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import Field

from worldsim import hookimpl
from worldsim.protocols import Constraint, System
from worldsim_plugins.constraints import anchored
from worldsim_plugins.constraints.linear import LinearFunctional, observed


def mass(
    system: System,
    *,
    scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="error that counts as 1, in the units of the mass; left out: the deviation of the "
            "mass between starts, or where they share one mass, of a sum of independent parts",
        ),
    ] = None,
    reference: anchored.Reference = None,
) -> Constraint:
    """The mass of the system's ``observe``, ``[trajectory, draw, time]`` over ``scale``.

    Raises ValueError for a system that does not conserve it, or whose mass is not linear in the state.
    """
    anchored.check_conserved(system, "mass", "mass")
    starts = anchored.starts_of(system)
    value = observed(system, "mass", starts.ndim - 1)
    return LinearFunctional(system, starts, value, "mass", scale, reference)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Constraint]]:
    return {"mass": mass}
