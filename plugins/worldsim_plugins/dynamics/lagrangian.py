"""Lagrangian neural networks (Cranmer, Greydanus, Hoyer, Battaglia, Spergel, Ho 2020).

With a learned L(q, v), v = dq/dt, the Euler-Lagrange equations give the accelerations

    d2q/dt2 = A^-1 (dL/dq - B v),   A = d2L/dv2,   B = d2L/dv dq

A is inverted in the sense of Tikhonov, (A^2 + ridge^2)^-1 A: that is A^-1 where A is well conditioned, finite
where it is singular, and smooth in between, unlike the pseudo-inverse of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Loss, Perceptron, Width
from worldsim_plugins.solvers import symplectic


class Lagrangian(vector_field.LearnedField):
    """A learned Lagrangian; states of one axis, positions and as many velocities, that nothing drives.

    The second half of a state is the velocity dq/dt times ``mass``: a momentum will do where it is one mass
    times the velocity, and not where the mass depends on the position (a double pendulum: use its angles and
    angular velocities). Where the observable "derivative" is there, this is checked.

    The model sees states in physical units (scaling "none"), because the velocity must remain the derivative
    of the position, and makes its own units of length, one for each position, and of time.
    """

    scaling = "none"
    driven = False
    length: Tensor
    origin: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        mass: Annotated[
            float, Field(gt=0, description="second half of the state over dq/dt; 1 where it is the velocity")
        ] = 1.0,
        kinetic: Annotated[
            bool, Field(description="add v^2 / 2 to the network: it starts as free bodies of unit mass")
        ] = True,
        init: Annotated[
            Literal["default", "paper"],
            Field(description="initial weights: torch's, or the normal ones fitted by Cranmer et al. 2020"),
        ] = "default",
        ridge: Annotated[
            float, Field(gt=0, description="size of the masses, in the model's units, that count as none")
        ] = 1e-3,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "softplus",
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for rk4, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        check_velocities(truth, mass)
        self.objective = loss
        self.solver = symplectic.rk4() if solver is None else solver
        self.mass, self.kinetic, self.ridge = mass, kinetic, ridge
        seen = vector_field.frames(truth.states, truth).double()
        q, p = seen.chunk(2, -1)
        deviation = q.std(0, correction=0)
        length = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self.register_buffer("origin", q.mean(0).float())
        self.register_buffer("length", length.float())
        rate = (p / mass / length).square().mean().sqrt()
        self.register_buffer("rate", torch.where(rate > 0, rate, torch.ones_like(rate)).float())
        self.network = Perceptron(seen.shape[-1], 1, width, depth, activation)
        if init == "paper":
            cranmer_weights(self.network)

    @property
    def unit(self) -> Tensor:
        """What an error of 1 is, ``[size]``."""
        return torch.cat([self.length, self.length * self.rate * self.mass])

    def scaled(self, x: Tensor) -> Tensor:
        """(q, v) in the model's units, as ``x`` ``[..., size]``."""
        q, p = x.chunk(2, -1)
        return torch.cat([(q - self.origin) / self.length, p / (self.mass * self.length * self.rate)], -1)

    def slope(self, x: Tensor) -> Tensor:
        """(dL/dq, dL/dv) at scaled ``x`` ``[..., size]``."""
        slope = self.network.gradient(x)
        if not self.kinetic:
            return slope
        by_q, by_v = slope.chunk(2, -1)
        return torch.cat([by_q, by_v + x.chunk(2, -1)[1]], -1)

    def energy(self, states: Tensor) -> Tensor:
        """v . dL/dv - L, ``[...]`` for ``[..., size]``, which the flow of L conserves; its unit is free."""
        x = self.scaled(states)
        v = x.chunk(2, -1)[1]
        value = self.network(x).squeeze(-1)
        if self.kinetic:
            value = value + v.square().sum(-1) / 2
        return (v * self.slope(x).chunk(2, -1)[1]).sum(-1) - value

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """(v, mass d2q/dt2), as ``x`` ``[..., size]``; ValueError for an action."""
        if u is not None:
            raise ValueError("a Lagrangian network is not driven: leave the actions out, or use neural_ode")
        scaled = self.scaled(x)
        v = scaled.chunk(2, -1)[1]
        force, masses = self.equations(scaled, v)
        # solve_ex: a row that is not finite stays one, where solve would raise for all.
        ridge = self.ridge**2 * torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        right = (masses @ force.unsqueeze(-1)).squeeze(-1)
        acceleration = torch.linalg.solve_ex(masses @ masses + ridge, right).result
        moved = torch.cat([v, acceleration * self.rate * self.mass], -1)
        return moved * self.rate * torch.cat([self.length, self.length])

    def equations(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dq - B v ``[..., d]`` and A ``[..., d, d]``, from one directional derivative for each velocity
        and one along v."""
        zeros = torch.zeros_like(v)
        axes = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        ways = [torch.cat([zeros, axis.expand_as(v)], -1) for axis in axes]
        ways.append(torch.cat([v, zeros], -1))
        turned = torch.func.vmap(lambda way: torch.func.jvp(self.slope, (x,), (way,))[1])(torch.stack(ways))
        by_v = turned.chunk(2, -1)[1]
        return self.slope(x).chunk(2, -1)[0] - by_v[-1], by_v[:-1].movedim(0, -1)


def cranmer_weights(network: Perceptron) -> None:
    """Normal weights of deviation 2.2 / sqrt(n), 0.58 i / sqrt(n) in the i-th hidden layer after the first,
    and sqrt(n) in the last, n the width; biases 0 (Cranmer et al. 2020)."""
    n = network.last.in_features
    factors = [2.2, *(0.58 * i for i in range(1, len(network.hidden))), float(n)]
    for layer, factor in zip([*network.hidden, network.last], factors):
        nn.init.normal_(layer.weight, std=factor / math.sqrt(n))
        nn.init.zeros_(layer.bias)


def check_velocities(truth: Trajectory, mass: float) -> None:
    """Raises ValueError unless states are positions and velocities times ``mass`` and nothing drives them."""
    vector_field.check_real(truth)
    if truth.actions is not None:
        raise ValueError("a Lagrangian network is not driven, and this system is: use neural_ode")
    if len(truth.state_shape) != 1 or truth.state_shape[0] % 2:
        raise ValueError(
            "a Lagrangian network needs states of one axis, positions and velocities, half and half; they "
            f"are {list(truth.state_shape)}: use neural_ode"
        )
    if "derivative" not in truth.observables:
        return
    rates = vector_field.frames(truth.observables["derivative"], truth).double().chunk(2, -1)[0]
    vector_field.check_moving(rates)
    said = vector_field.frames(truth.states, truth).double().chunk(2, -1)[1] / mass
    slope = (rates * said).sum() / said.square().sum()
    left = (rates - slope * said).square().sum() / rates.square().sum()
    if not (0.8 < slope < 1.25 and left < 0.25):
        raise ValueError(
            f"the second half of the states, over the mass {mass:g}, is not the rate of the first (fitted "
            f"factor {float(slope):.3g}, unexplained {float(left):.0%}): set mass, use a system whose states "
            "are positions and velocities, or use hamiltonian"
        )


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"lagrangian": Lagrangian}
