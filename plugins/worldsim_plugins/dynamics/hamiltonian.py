"""Hamiltonian neural networks (Greydanus, Dzamba, Yosinski 2019).

dq/dt = dH/dp, dp/dt = -dH/dq, with a learned scalar H_theta(q, p), or T_theta(p) + V_theta(q) when separable.
Energy is then conserved up to the solver's error, which the symplectic default keeps bounded for all times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, EachBody, Loss, Width
from worldsim_plugins.solvers import symplectic

Separate = Annotated[
    bool, Field(description="learn H = T(p) + V(q), which the explicit solvers leapfrog and yoshida need")
]


class ScalarField(nn.Module):
    """A learned function of ``[..., *shape]``; with ``each_body``, one function summed over the first axis
    of ``shape``."""

    def __init__(
        self, shape: tuple[int, ...], each_body: bool, width: int, depth: int, activation: str
    ) -> None:
        super().__init__()
        seen = shape[1:] if each_body else shape
        self.axes = len(seen)
        self.each_body = each_body
        self.network = vector_field.Perceptron(math.prod(seen), 1, width, depth, activation)

    def forward(self, x: Tensor) -> Tensor:
        value = self.network(x.flatten(-self.axes)).squeeze(-1)
        return value.sum(-1) if self.each_body else value

    def gradient(self, x: Tensor) -> Tensor:
        """As ``x``."""
        return self.network.gradient(x.flatten(-self.axes)).view_as(x)


class Hamiltonian(vector_field.LearnedField):
    """A learned Hamiltonian; the last state axis is (q, p), half and half, and no action drives it.

    The states come scaled by one number for all q and one for all p, which keeps Hamilton's equations: the
    energy is that of the scaled coordinates. The default solver is ``leapfrog`` when separable, else
    ``implicit_midpoint``.
    """

    scaling = "canonical"
    driven = False

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        separable: Separate = False,
        each_body: EachBody = False,
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None,
            Field(description="integrator; null for leapfrog when separable, else implicit_midpoint"),
        ] = None,
    ) -> None:
        super().__init__()
        check_canonical(truth)
        vector_field.state_axes(truth, each_body)
        self.objective = loss
        self.separable = separable
        self.register_buffer("rate", vector_field.typical_rates(truth).square().mean().sqrt())
        network = (each_body, width, depth, activation)
        shape = truth.state_shape
        if separable:
            half = (*shape[:-1], shape[-1] // 2)
            self.kinetic, self.potential = ScalarField(half, *network), ScalarField(half, *network)
            # Attributes of separable models alone: having them is the capability that leapfrog asks for.
            self.velocity_of, self.force_of = self._velocity_of, self._force_of
        else:
            self.whole = ScalarField(shape, *network)
        default = symplectic.leapfrog if separable else symplectic.implicit_midpoint
        self.solver = default() if solver is None else solver

    def energy(self, states: Tensor) -> Tensor:
        """The learned H, ``[...]`` for ``[..., *state]``; differentiable, and defined up to a constant."""
        if not self.separable:
            return self.rate * self.whole(states)
        q, p = states.chunk(2, -1)
        return self.rate * (self.kinetic(p) + self.potential(q))

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """(dH/dp, -dH/dq) ``[..., *state]`` at ``x`` ``[..., *state]``; ValueError for an action."""
        if u is not None:
            raise ValueError("a Hamiltonian network is not driven: leave the actions out, or use neural_ode")
        if self.separable:
            q, p = x.chunk(2, -1)
            return torch.cat([self._velocity_of(p), self._force_of(q)], -1)
        by_q, by_p = (self.rate * self.whole.gradient(x)).chunk(2, -1)
        return torch.cat([by_p, -by_q], -1)

    def _velocity_of(self, p: Tensor) -> Tensor:
        return self.rate * self.kinetic.gradient(p)

    def _force_of(self, q: Tensor) -> Tensor:
        return -self.rate * self.potential.gradient(q)


def check_canonical(truth: Trajectory) -> None:
    """Raises ValueError unless states are numbers that end in (q, p) halves and nothing drives them."""
    vector_field.check_real(truth)
    if not truth.state_shape or truth.state_shape[-1] % 2:
        raise ValueError(
            "a Hamiltonian network needs a last state axis (q, p), half and half; the state is "
            f"{list(truth.state_shape)}: use neural_ode"
        )
    if truth.actions is not None:
        raise ValueError("a Hamiltonian network is not driven, and this system is: use neural_ode")


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"hamiltonian": Hamiltonian}
