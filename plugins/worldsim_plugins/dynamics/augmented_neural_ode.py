"""Augmented neural ordinary differential equations (Dupont, Doucet, Teh 2019).

    d/dt (x, a) = r * f_theta(x, a, u),   a(0) = 0 with ``augment`` components

The flow of an ordinary differential equation never lets two trajectories cross: on a line it keeps the order
of all points, and no field takes x to -x. With one axis more they can pass each other.
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
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Width
from worldsim_plugins.solvers import symplectic

Augment = Annotated[
    int, Field(ge=0, description="components appended to the state, 0 at the start; 0 for a plain neural ODE")
]


class AugmentedNeuralODE(vector_field.LearnedField):
    """A perceptron as vector field of the state and ``augment`` components more, for states of any shape,
    driven or not.

    The loss is the mean squared error of all later frames, from the first frame of each window on: no
    derivative of what was appended is known. A forecast depends on the time since its first frame: begun
    again in its midst, where a is 0 once more, it need not go on as it did. The default solver is ``rk4``,
    one step between saved times.
    """

    scaling = "component"

    def __init__(
        self,
        truth: Trajectory,
        *,
        augment: Augment = 1,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "tanh",
        solver: Annotated[
            Solver | None, Field(description="integrator; null for rk4, one step between saved times")
        ] = None,
    ) -> None:
        super().__init__()
        self.axes = vector_field.state_axes(truth, each_body=False)
        self.objective = "rollout"
        self.solver = symplectic.rk4() if solver is None else solver
        self.augment = augment
        self.register_buffer("rate", vector_field.typical_rates(truth).flatten())
        self.lifted = LiftedField(self.rate, augment, truth.actions, width, depth, activation)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt ``[..., *state]`` where a forecast begins, i.e. for a = 0; see ``LiftedField.drift``."""
        return self.lifted.drift(t, self.lift(x), u)[..., : self.rate.numel()].reshape(x.shape)

    def lift(self, x: Tensor) -> Tensor:
        """``[..., *state]`` with its zeros, ``[..., size + augment]``."""
        return torch.nn.functional.pad(x.flatten(-self.axes), (0, self.augment))

    def path(self, state: Tensor, times: Tensor, actions: Tensor | None) -> Tensor:
        """``[trajectory, time, *state]``, without what was appended."""
        lifted = self.solver.solve(self.lifted, self.lift(state), times, actions, None)
        return lifted[..., : self.rate.numel()].unflatten(-1, state.shape[1:])


class LiftedField(torch.nn.Module):
    """The field of ``[..., size + augment]``; what is appended moves at the mean rate of the state."""

    rate: Tensor

    def __init__(
        self, rate: Tensor, augment: int, actions: Tensor | None, width: int, depth: int, activation: str
    ) -> None:
        super().__init__()
        mean = rate.square().mean().sqrt().expand(augment)
        self.register_buffer("rate", torch.cat([rate, mean]))
        self.action_axes = 0 if actions is None else actions.dim() - 2
        size = self.rate.numel()
        inputs = size + (0 if actions is None else math.prod(actions.shape[2:]))
        self.network = vector_field.Perceptron(inputs, size, width, depth, activation)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """d(x, a)/dt, as ``x`` ``[..., size + augment]``, under the action ``u`` ``[..., *action]``.

        The same at all times ``t``. Raises ValueError when actions are missing, or there but unknown.
        """
        if (u is None) != (self.action_axes == 0):
            raise ValueError(f"this model was built {'with' if u is None else 'without'} actions")
        inputs = x if u is None else torch.cat([x, u.flatten(-self.action_axes).to(x.dtype)], -1)
        return self.rate * self.network(inputs)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"augmented_neural_ode": AugmentedNeuralODE}
