"""Neural stochastic differential equations, fitted by the likelihood of their own steps.

    dX = r mu_theta(X, u) dt + s sigma_theta(X, u) dW   (Ito),   0 < lowest <= sigma <= largest

with mu a perceptron, sigma a perceptron through a sigmoid, r the typical rate of each component and s the
root mean square of its increments over the square root of time.

The loss is the negative log likelihood of each frame given the one before it, for one Euler-Maruyama step:
x' ~ N(x + r mu h, (s sigma)^2 h), per frame and component, without the constant. It is the maximum-likelihood
fit of the chain that ``euler_maruyama`` with one step between frames simulates (Pedersen 1995; Florens-Zmirou
1989). As an estimate of the continuous process it is biased by O(h): of dX = -k X dt + s dW it finds
(1 - exp(-k h)) / h in the place of k. A rollout in other steps than the frames' has that bias. Measurement
noise on the frames is taken for noise of the process: see ``latent_sde``.
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
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Width
from worldsim_plugins.solvers import stochastic


class NeuralSDE(nn.Module):
    """Two perceptrons as drift and diffusion, diagonal noise, for states of any shape, driven or not."""

    scaling = "component"
    calculus = "ito"
    noise = "diagonal"
    rate: Tensor
    spread: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        depth: Depth = 2,
        activation: Activation = "silu",
        lowest: Annotated[
            float, Field(gt=0, description="least diffusion, over its typical size from the data")
        ] = 0.01,
        largest: Annotated[
            float, Field(gt=1, description="largest diffusion, over its typical size from the data")
        ] = 10.0,
        solver: Annotated[
            Solver | None,
            Field(description="integrator of rollouts; null for euler_maruyama, one step between frames"),
        ] = None,
    ) -> None:
        super().__init__()
        if not lowest < 1:
            raise ValueError(f"lowest must be below 1, the typical size; it is {lowest}")
        self.axes = vector_field.state_axes(truth, each_body=False)
        self.solver = stochastic.euler_maruyama() if solver is None else solver
        self.lowest, self.largest = lowest, largest
        rate = vector_field.typical_rates(truth)
        self.register_buffer("rate", rate)
        gap = float(truth.times.diff().mean()) if len(truth.times) > 1 else 1.0
        self.register_buffer("spread", (rate * math.sqrt(gap)).clamp(min=1e-6))
        self.action_axes = 0 if truth.actions is None else truth.actions.dim() - 2
        size = self.rate.numel()
        inputs = size + (0 if truth.actions is None else math.prod(truth.actions.shape[2:]))
        self.drift_network = vector_field.Perceptron(inputs, size, width, depth, activation)
        self.diffusion_network = vector_field.Perceptron(inputs, size, width, depth, activation)
        part = (1 - lowest) / (largest - lowest)
        for network, bias in (
            (self.drift_network, 0.0),
            (self.diffusion_network, math.log(part / (1 - part))),
        ):
            nn.init.normal_(network.last.weight, std=0.01)
            nn.init.constant_(network.last.bias, bias)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """``[..., *state]`` at ``x`` ``[..., *state]`` under ``u`` ``[..., *action]``, the same at all times.

        Raises ValueError when actions are missing, or there but unknown.
        """
        return self.rate * self.drift_network(self._inputs(x, u)).view_as(x)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """As ``drift``; positive and bounded."""
        part = torch.sigmoid(self.diffusion_network(self._inputs(x, u)).view_as(x))
        return self.spread * (self.lowest + (self.largest - self.lowest) * part)

    def _inputs(self, x: Tensor, u: Tensor | None) -> Tensor:
        if (u is None) != (self.action_axes == 0):
            raise ValueError(f"this model was built {'with' if u is None else 'without'} actions")
        inputs = x.flatten(-self.axes)
        return inputs if u is None else torch.cat([inputs, u.flatten(-self.action_axes).to(x.dtype)], -1)

    def loss(self, truth: Trajectory) -> Tensor:
        """Mean negative log likelihood of a step and component, less log(2 pi) / 2."""
        truth = truth.to(dtype=self.rate.dtype)
        if len(truth.times) < 2:
            raise ValueError("neural_sde learns from steps: it needs windows of at least two frames")
        x, y = truth.states[:, :, :-1], truth.states[:, :, 1:]
        h = truth.times.diff().to(x).reshape(-1, *[1] * len(truth.state_shape))
        u = None
        if truth.actions is not None:
            u = truth.actions[:, None, :-1].expand(*x.shape[:3], *truth.actions.shape[2:])
        t = truth.times[0]
        spread = self.diffusion(t, x, u) * h.sqrt()
        error = (y - x - self.drift(t, x, u) * h) / spread
        return vector_field.frames(0.5 * error.square() + spread.log(), truth.span(1)).mean()

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` independent futures ``[trajectory, draw, time, *state]`` of the context's last frame."""
        context = context.to(dtype=self.rate.dtype)
        start = context.states[:, 0, -1].repeat_interleave(draws, 0)
        driving = None if actions is None else actions.repeat_interleave(draws, 0)
        states = self.solver.solve(self, start, times, driving, generator)
        return context.replace(
            states=states.unflatten(0, (-1, draws)),
            times=times,
            actions=actions,
            observables={},
            length=None,
        )


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"neural_sde": NeuralSDE}
