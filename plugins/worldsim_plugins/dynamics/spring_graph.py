"""Bodies that act on each other in pairs, along the lines between them, with a learned law.

    H = sum_i a_i |p_i|^2 / 2 + sum_{i<j} c_i c_j v_theta(|q_i - q_j|)

The force of body j on body i is the opposite of that of i on j (Newton's third law), so total momentum stays;
it lies along q_i - q_j, and the momentum along the velocity, so angular momentum stays; it is the gradient of
a potential, so energy stays too, up to the solver's error. What is learned is v, the inertias 1 / a_i and the
charges c_i. Interaction networks (Battaglia et al. 2016) leave the third law to be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.hamiltonian import check_canonical
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Loss, Width
from worldsim_plugins.solvers import symplectic

NEAR = 1e-6
"""Added to squared distances, in the model's units, so that a body's distance to itself has a gradient."""


class SpringGraph(vector_field.LearnedField):
    """States ``[body, (q, p)]``, not driven and without walls. One law for all pairs of bodies, which
    have one inertia and one charge when they are ``alike``. The default solver is ``leapfrog``.

    The model sees states in physical units (scaling "none"), because a body whose momentum is 0 must rest,
    and makes its own units of length and of momentum from the states it is built from.
    """

    scaling = "none"
    driven = False
    length: Tensor
    momentum: Tensor
    rate: Tensor
    speed: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        alike: Annotated[
            bool, Field(description="one inertia and one charge for all bodies, rather than one for each")
        ] = True,
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for leapfrog, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        check_canonical(truth)
        if len(truth.state_shape) != 2:
            raise ValueError(
                f"spring_graph needs states [body, (q, p)], and they are {list(truth.state_shape)}: use "
                "hamiltonian"
            )
        bodies = truth.state_shape[0]
        self.objective = loss
        self.solver = symplectic.leapfrog() if solver is None else solver
        q, p = vector_field.frames(truth.states, truth).double().flatten(0, 1).chunk(2, -1)
        length, momentum = q.var(0, correction=0).mean().sqrt(), p.square().mean().sqrt()
        self.register_buffer("length", torch.where(length > 0, length, 1.0).float())
        self.register_buffer("momentum", torch.where(momentum > 0, momentum, 1.0).float())
        rate = vector_field.typical_rates(truth)
        of_q, of_p = (half.square().mean().sqrt() for half in rate.chunk(2, -1))
        self.register_buffer("rate", of_p / self.momentum)
        self.register_buffer("speed", of_q / self.length)
        count = 1 if alike else bodies
        self.inertia = nn.Parameter(torch.zeros(count, 1))
        self.charge = nn.Parameter(torch.ones(count, 1))
        self.law = vector_field.Perceptron(2, 1, width, depth, activation)
        self.components = truth.state_shape[1]

    @property
    def unit(self) -> Tensor:
        """What an error of 1 is, ``[component]``."""
        return torch.stack([self.length, self.momentum]).repeat_interleave(self.components // 2)

    def velocity_of(self, p: Tensor) -> Tensor:
        """dT/dp, ``[..., body, dim]``."""
        return self.length / self.momentum * self._inverse_mass() * p

    def force_of(self, q: Tensor) -> Tensor:
        """-dV/dq, ``[..., body, dim]``."""
        apart = (q.unsqueeze(-2) - q.unsqueeze(-3)) / self.length
        seen, distance = self._seen(apart)
        by_distance, by_log = self.law.gradient(seen).unbind(-1)
        pull = self._pairs(q) * (by_distance + by_log / distance) / distance
        return -self.momentum * self.rate * (pull.unsqueeze(-1) * apart).sum(-2)

    def energy(self, states: Tensor) -> Tensor:
        """The learned H, ``[...]`` for ``[..., body, (q, p)]``; differentiable, defined up to a constant."""
        q, p = states.chunk(2, -1)
        kinetic = (self._inverse_mass() * (p / self.momentum).square()).sum((-2, -1)) / 2
        seen, _ = self._seen((q.unsqueeze(-2) - q.unsqueeze(-3)) / self.length)
        # Each pair comes twice in the sum; a body with itself is left out by the weights.
        potential = self.rate * (self._pairs(q) * self.law(seen).squeeze(-1)).sum((-2, -1)) / 2
        return self.length * self.momentum * (kinetic + potential)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """(dH/dp, -dH/dq) ``[..., body, (q, p)]``; ValueError for an action."""
        if u is not None:
            raise ValueError("spring_graph is not driven: leave the actions out, or use neural_ode")
        q, p = x.chunk(2, -1)
        return torch.cat([self.velocity_of(p), self.force_of(q)], -1)

    def _inverse_mass(self) -> Tensor:
        return self.speed * functional.softplus(self.inertia + 0.5413)  # softplus(0.5413) = 1

    def _pairs(self, q: Tensor) -> Tensor:
        """c_i c_j, 0 for i = j: ``[body, body]``."""
        charge = self.charge.expand(q.shape[-2], 1)
        return charge * charge.T * (1 - torch.eye(q.shape[-2], dtype=q.dtype, device=q.device))

    @staticmethod
    def _seen(apart: Tensor) -> tuple[Tensor, Tensor]:
        """What the law is given of ``apart`` ``[..., body, body, dim]``: the distance and its logarithm."""
        distance = (apart.square().sum(-1) + NEAR).sqrt()
        return torch.stack([distance, distance.log()], -1), distance


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"spring_graph": SpringGraph}
