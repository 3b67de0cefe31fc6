"""Conservation of a system's known energy along each trajectory.

    residual[t] = (H(x_t) - H(x_anchor)) / scale

H is the system's, never a learned one. A learned H that is constant satisfies every penalty of this form
("constant-H attack"); to hold a model to the energy it has learned needs a normalisation by that energy's
spread between trajectories, and even then says nothing about the truth.

Holding the energy fixes neither the phase nor the dynamics. Where the start itself is generated and the
equation of motion is known, both are had by structure: generate the start alone, and integrate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasDrift, HasEnergy, HasUnseenStart, System
from worldsim_kernels.solve import ODE, PID, Save, solve
from worldsim_plugins.constraints import anchored

ACCURATE = PID(rtol=1e-13, atol=1e-13)
"""Of the integration of a generated start, in units of the starts' spread."""


class Energy:
    """Residual ``[trajectory, draw, time]`` float64, exactly 0 up to the anchor.

    ``scale`` is in the units of H. By default it is the standard deviation of H over starts of the system,
    so 1 means "as wrong as another trajectory". It is not |H(x_0)|, which depends on where H was called
    zero and can vanish on an ordinary trajectory (a pendulum with H = p^2/2 - cos q, released from the
    horizontal).

    With the second frame for reference, in a system whose equation of motion is known, a model can generate
    that frame alone: the rest is integrated (Dormand and Prince's method of order 8; measured on pendulum,
    chain and Henon-Heiles over 100 frames: the energy to 1e-11 of the scale). A start that cannot be followed
    gives NaN.

    Raises ValueError for a system that has no energy or does not conserve it (friction, driving), and for
    one whose starts all share one energy when ``scale`` is left out: 0/0 would not tell a conserved energy
    from a constant one.
    """

    needs = ("HasEnergy",)
    equality = True

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
        reference: anchored.Reference = None,
    ) -> None:
        name = type(system).__name__
        if not isinstance(system, HasEnergy):
            raise ValueError(f"energy needs a system with a known energy; {name} has none")
        world = system.inner if isinstance(system, HasUnseenStart) else system
        conserved = getattr(world, "conserved", ("energy",))
        if "energy" not in conserved:
            raise ValueError(
                f"{type(world).__name__} does not conserve its energy as configured "
                f"(it conserves {', '.join(conserved) or 'nothing'}); take out friction and driving, "
                "or the constraint"
            )
        self.energy = system.energy
        self.anchor = anchored.anchor_of(system, reference, "energy")
        self.local_in_time = self.anchor == 0
        self.met_by: Mapping[str, str] = anchored.met_by(self.anchor)
        if scale is None:
            energies = self.value(anchored.starts_of(system))
            scale = anchored.spread(energies)
            if scale == 0:
                raise ValueError(
                    f"the starts of {name} all have the energy {float(energies[0]):.6g}: "
                    "give energy.scale, the energy error that should count as 1"
                )
        self.scale = scale
        # On the instance: a class that has the method is taken for one that offers it.
        if self.anchor == 1 and isinstance(world, HasDrift):
            self.drift = world.drift
            self.free, self.obeying = self._free, self._obeying

    def value(self, states: Tensor) -> Tensor:
        """H ``[..., 1]``."""
        return self.energy(states.to(torch.float64)).unsqueeze(-1)

    def residual(self, trajectory: Trajectory) -> Tensor:
        """The energy of each frame less that of the anchor, over ``scale``."""
        return anchored.compared(self.value, trajectory, self.anchor, self.scale)

    def _free(self, trajectory: Trajectory) -> Trajectory:
        """Frames 0 and 1."""
        return trajectory.span(0, 2)

    def _obeying(self, free: Trajectory, times: Tensor) -> Trajectory:
        """Frames 0 and 1, and what follows from frame 1 by the equation of motion."""
        states = free.states.to(torch.float64)
        if len(times) > 2:
            start = states[:, :, 1].flatten(0, 1)
            later = self._followed(start, (times - times[1]).to(torch.float64)[1:])
            states = torch.cat([states[:, :, :1], later.unflatten(0, states.shape[:2])], 2)
        return free.replace(states=states[:, :, : len(times)], times=times, observables={}, length=None)

    def _followed(self, start: Tensor, times: Tensor) -> Tensor:
        """``[row, time, *state]`` from ``start`` ``[row, *state]`` at ``times[0]`` = 0."""
        finite = start.flatten(1).isfinite().all(1)
        begun = torch.where(finite.reshape(-1, *[1] * (start.ndim - 1)), start, 0.0)
        solved = solve(
            ODE(lambda t, x: self.drift(t, x, None)),
            begun,
            0.0,
            float(times[-1]),
            stepper="dopri8",
            controller=ACCURATE,
            save=Save(times=times, exact=True),
        )
        states = solved.saved.masked_fill(~finite.reshape(-1, *[1] * start.ndim), torch.nan)
        return torch.cat([start[:, None], states[:, 1:]], 1)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., Energy]]:
    return {"energy": Energy}
