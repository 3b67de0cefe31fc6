"""Conservation of a system's known energy along each trajectory.

    residual[t] = (H(x_t) - H(x_0)) / scale

Each trajectory is compared with its own first frame, never with the others: a batch that conserves many
different energies has residual 0. Spreads and maxima over time are left to scores: they have no derivative
where the constraint holds.

H is the system's, never a learned one. A learned H that is constant satisfies every penalty of this form
("constant-H attack"); to hold a model to the energy it has learned needs a normalisation by that energy's
spread between trajectories, and even then says nothing about the truth.

Holding the energy fixes neither the phase nor the dynamics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasEnergy, System

STARTS = 256


class Energy:
    """Residual ``[trajectory, draw, time]`` float64, exactly 0 at frame 0.

    ``scale`` is in the units of H. By default it is the standard deviation of H over starts of the system,
    so 1 means "as wrong as another trajectory". It is not |H(x_0)|, which depends on where H was called
    zero and can vanish on an ordinary trajectory (a pendulum with H = p^2/2 - cos q, released from the
    horizontal).

    Raises ValueError for a system that has no energy or does not conserve it (friction, driving), and for
    one whose starts all share one energy when ``scale`` is left out: 0/0 would not tell a conserved energy
    from a constant one.
    """

    local_in_time = True
    needs = ("HasEnergy",)

    met_by: Mapping[str, str] = {
        "violation_*": "persistence, which keeps all that it was given because it never changes",
    }

    def __init__(
        self,
        system: System,
        *,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="energy error that counts as 1, in the units of the system's energy; "
                "left out: the standard deviation of the energy between starts",
            ),
        ] = None,
    ) -> None:
        if not isinstance(system, HasEnergy):
            raise ValueError(f"energy needs a system with a known energy; {type(system).__name__} has none")
        conserved = getattr(system, "conserved", ("energy",))
        if "energy" not in conserved:
            raise ValueError(
                f"{type(system).__name__} does not conserve its energy as configured "
                f"(it conserves {', '.join(conserved) or 'nothing'}); take out friction and driving, "
                "or the constraint"
            )
        self.energy = system.energy
        self.scale = spread(system, system.energy) if scale is None else scale

    def residual(self, trajectory: Trajectory) -> Tensor:
        """The energy of each frame less that of the first, which is a constant, over ``scale``."""
        states = trajectory.states.to(torch.float64)
        first = states[:, :, :1].detach()
        if trajectory.length is not None:
            valid = torch.arange(states.shape[2], device=states.device) < trajectory.length[..., None]
            # Frames after a ragged end hold anything, even NaN, and must not reach the gradient.
            states = torch.where(valid.reshape(*valid.shape, *[1] * (states.ndim - 3)), states, first)
        return (self.energy(states) - self.energy(first)) / self.scale


def spread(system: System, energy: Callable[[Tensor], Tensor]) -> float:
    """Standard deviation of the energy over a fixed sample of starts."""
    generator = torch.Generator().manual_seed(0)
    start = system.sample(STARTS, generator)
    truth = system.simulate(start, torch.zeros(1, dtype=torch.float64), None, generator)
    energies = energy(truth.states[:, 0, 0].to(torch.float64))
    deviation = float(energies.std(correction=0))
    if not deviation > 1e-9 * float(energies.abs().max()):
        raise ValueError(
            f"the starts of {type(system).__name__} all have the energy {float(energies[0]):.6g}: "
            "give energy.scale, the energy error that should count as 1"
        )
    return deviation


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Energy]]:
    return {"energy": Energy}
