"""Neural ordinary differential equations (Chen, Rubanova, Bettencourt, Duvenaud 2018).

dx/dt = r * f_theta(x, u), with f_theta a multilayer perceptron and r the typical rate of each component.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics, Solver
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, EachBody, Loss, Width
from worldsim_plugins.solvers.torchdiffeq import TorchDiffEq


class NeuralODE(vector_field.LearnedField):
    """A perceptron as vector field, for states of any shape, driven or not.

    The default solver is torchdiffeq's ``rk4`` with one step between saved times: unlike an adaptive method
    it costs the same at every training step, and no row depends on which others are in the batch.
    """

    scaling = "component"

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        each_body: EachBody = False,
        loss: Loss = "rollout",
        solver: Annotated[
            Solver | None,
            Field(description="integrator; null for torchdiffeq's rk4, one step between saved times"),
        ] = None,
    ) -> None:
        super().__init__()
        self.axes = vector_field.state_axes(truth, each_body)
        self.each_body = each_body
        self.objective = loss
        self.solver = TorchDiffEq(method="rk4") if solver is None else solver
        rate = vector_field.typical_rates(truth)
        # One field for all bodies has one unit for all bodies.
        self.register_buffer("rate", rate.square().mean(0).sqrt() if each_body else rate)
        size = self.rate.numel()
        self.action_axes = 0 if truth.actions is None else truth.actions.dim() - 2
        inputs = size + (0 if truth.actions is None else math.prod(truth.actions.shape[2:]))
        self.network = vector_field.Perceptron(inputs, size, width, depth, activation)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt ``[..., *state]`` at ``x`` ``[..., *state]`` under the action ``u`` ``[..., *action]``.

        The same at all times ``t``. Raises ValueError when actions are missing, or there but unknown.
        """
        if (u is None) != (self.action_axes == 0):
            raise ValueError(f"this model was built {'with' if u is None else 'without'} actions")
        inputs = x.flatten(-self.axes)
        if u is not None:
            action = u.flatten(-self.action_axes)
            if self.each_body:
                action = action.unsqueeze(-2).expand(*inputs.shape[:-1], -1)
            inputs = torch.cat([inputs, action.to(x.dtype)], -1)
        return self.rate * self.network(inputs).view_as(x)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"neural_ode": NeuralODE}
