"""Newton's third law: what bodies do to one another adds up to nothing, from each frame to the next.

    residual[t] = (sum_i p_i(t) - p_i(t - 1)) / scale        the net impulse of internal forces
                  (sum_i q_i x p_i at t less at t - 1) / scale'    and their net torque, over the interval

For two bodies it is p_1's change = -p_2's change. The trajectories that obey are those that conserve
momentum; the residual blames the interval in which something was pushed from nowhere.

Forces in balance can still be wrong in size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HasBodies, HasUnseenStart, System
from worldsim_plugins.constraints import anchored
from worldsim_plugins.constraints.linear import LinearFunctional
from worldsim_plugins.constraints.momentum import mass_weights


class ActionReaction:
    """Residual ``[trajectory, draw, time, k]`` float64, 0 at the first frame: ``dim`` numbers of impulse, and
    with ``torque`` one of torque in the plane, three in space.

    Without torque the law is linear: projection is in closed form, and a model can obey by construction, each
    frame given the momentum of the first, all velocities changed alike. Raises ValueError for a system that
    is not of bodies alone (walls and driving push from outside), and for torques on a line.
    """

    local_in_time = False
    equality = True

    def __init__(
        self,
        system: System,
        *,
        torque: Annotated[bool, Field(description="ask for the balance of torques too")] = False,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="net impulse that counts as 1, in the units of momentum; left out: the root mean "
                "square momentum of a body at the start",
            ),
        ] = None,
    ) -> None:
        world = system.inner if isinstance(system, HasUnseenStart) else system
        if not isinstance(world, HasBodies):
            raise ValueError(
                f"action_reaction needs a system of bodies on which nothing acts from outside; "
                f"{type(world).__name__} as configured is none"
            )
        self.world, self.torque = world, torque
        self.first = anchored.anchor_of(system, None, "action_reaction")
        self.met_by = anchored.met_by(self.first)
        starts = anchored.starts_of(system)
        places, momenta = world.places_and_momenta(starts)
        if torque and places.shape[-1] == 1:
            raise ValueError("action_reaction.torque: bodies on a line exert no torque; leave it out")
        self.scale = float(momenta.square().mean().sqrt()) if scale is None else scale
        if self.scale == 0:
            raise ValueError("the bodies start at rest: give action_reaction.scale, an impulse")
        self.arm = float((places - places.mean(-2, keepdim=True)).square().sum(-1).mean().sqrt())
        if not torque:
            self.linear = LinearFunctional(
                system,
                starts,
                self._momentum,
                "action_reaction",
                self.scale,
                None,
                mass_weights(system, starts),
            )
            # On the instance: a class that has the method is taken for one that offers it.
            self.retract = self.linear.retract
            self.free, self.obeying = self.linear.free, self.linear.obeying

    def residual(self, trajectory: Trajectory) -> Tensor:
        """Net impulse, and net torque per mean arm, of the interval before each frame, over ``scale``."""
        states = trajectory.states.to(torch.float64)
        reached = anchored.reached(trajectory)
        states = torch.where(anchored.wide(reached, states), states, states[:, :, :1].detach())
        states = torch.cat([states[:, :, :1].detach(), states[:, :, 1:]], 2)  # the given frame is a constant
        total = self._total(states)
        change = torch.cat([torch.zeros_like(total[:, :, :1]), total.diff(dim=2)], 2)
        counted = reached.clone()
        counted[:, :, : self.first + 1] = False
        return torch.where(counted[..., None], change / self.scale, 0.0)

    def _momentum(self, states: Tensor) -> Tensor:
        return self.world.places_and_momenta(states)[1].sum(-2)

    def _total(self, states: Tensor) -> Tensor:
        """Momentum and, over the mean arm, angular momentum ``[..., k]``."""
        if not self.torque:
            return self._momentum(states)
        q, p = self.world.places_and_momenta(states)
        if q.shape[-1] == 2:
            turning = (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(-1, keepdim=True)
        else:
            turning = torch.linalg.cross(q, p).sum(-2)
        return torch.cat([p.sum(-2), turning / self.arm], -1)


@hookimpl
def worldsim_constraints() -> Mapping[str, Callable[..., ActionReaction]]:
    return {"action_reaction": ActionReaction}
