"""Latent stochastic differential equations (Li, Wong, Chen, Duvenaud 2020).

    prior       dZ = f(Z) dt + sigma(Z) dW,            Z_0 ~ N(m, s^2)
    posterior   dZ = h(Z, c(t)) dt + sigma(Z) dW,      Z_0 ~ q(. | c_0)
    frames      x_k ~ N(decode(Z_k), e^2)

c is what a recurrent network makes of the frames read backwards, so that c_k knows frame k and all later
ones; between two frames the posterior's drift is given that of the later one. The shared diffusion makes the
divergence of the two paths finite, and the loss is the negative evidence lower bound

    -sum_k ln N(x_k; decode(Z_k), e^2) + KL(q || N(m, s^2)) + E 1/2 int |u|^2 dt,   u = (h - f) / sigma

by one path of the posterior for each window, in Euler-Maruyama steps (Ito), per frame and component. A
rollout lets the posterior pass through the context, and the prior go on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.vector_field import Activation, Depth, Width

FRAMES = 10
"""Frames in a unit of the latent time: what drifts and diffusions of size 1 mean."""


class LatentSDE(nn.Module):
    """Prior, posterior, recurrent encoder and decoder, for states of any shape; not driven.

    Rollouts give ``decode(Z)``, the state without the measurement noise e; but their first frame is the
    context's last one as it was given.
    """

    scaling = "component"
    driven = False
    calculus = "ito"
    noise = "diagonal"

    def __init__(
        self,
        truth: Trajectory,
        *,
        latent: Annotated[int, Field(ge=1, description="dimension of the hidden state")] = 4,
        features: Annotated[
            int, Field(ge=1, description="numbers that the encoder makes of the frames to come")
        ] = 32,
        width: Width = 64,
        depth: Depth = 1,
        activation: Activation = "softplus",
        substeps: Annotated[int, Field(ge=1, description="Euler-Maruyama steps between frames")] = 1,
    ) -> None:
        super().__init__()
        if truth.actions is not None:
            raise ValueError("latent_sde is not driven, and this system is: use neural_sde")
        if len(truth.times) < 2:
            raise ValueError("latent_sde needs windows of at least two frames: set fit.window")
        self.axes = vector_field.state_axes(truth, each_body=False)
        self.latent, self.substeps = latent, substeps
        size = math.prod(truth.state_shape)
        self.unit = FRAMES * float(truth.times.diff().mean())
        perceptron = vector_field.Perceptron
        self.prior = perceptron(latent, latent, width, depth, activation)
        self.posterior = perceptron(latent + features, latent, width, depth, activation)
        self.spread = perceptron(latent, latent, width, depth, activation)
        self.encoder = nn.GRU(size, features, batch_first=True)
        self.first = nn.Linear(features, 2 * latent)
        self.decoder = perceptron(latent, size, width, depth, activation)
        self.first_prior = nn.Parameter(torch.zeros(2, latent))
        self.log_error = nn.Parameter(torch.full((size,), -1.0))

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """The prior's drift ``[..., latent]`` of the hidden state ``x`` ``[..., latent]``, over time."""
        return self.prior(x) / self.unit

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """The shared diffusion ``[..., latent]``, between 0.05 and 2 over the square root of the unit."""
        return (0.05 + 1.95 * torch.sigmoid(self.spread(x))) / math.sqrt(self.unit)

    def loss(self, truth: Trajectory) -> Tensor:
        """The negative evidence lower bound per frame and component. Raises ValueError for ragged windows."""
        if truth.length is not None and bool((truth.length < len(truth.times)).any()):
            raise ValueError("latent_sde needs windows of one length: set fit.window to what all have")
        frames = truth.states.flatten(0, 1).flatten(2).to(self.log_error.dtype)
        codes = self.encoded(frames)
        mean, log_scale = self.first(codes[:, 0]).chunk(2, -1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        path, energy = self.followed(z, codes, truth.times.to(frames.device), None)
        error = (frames - self.decoder(path)) / self.log_error.exp()
        likelihood = -(0.5 * error.square() + self.log_error).sum((1, 2))
        centre, log_width = self.first_prior
        apart = (mean - centre).square() + (2 * log_scale).exp()
        start = (log_width - log_scale + 0.5 * apart / (2 * log_width).exp() - 0.5).sum(-1)
        return (start + energy - likelihood).mean() / frames[0].numel()

    def encoded(self, frames: Tensor) -> Tensor:
        """``[row, time, feature]`` of ``[row, time, size]``: what frame k and the later ones say."""
        return self.encoder(frames.flip(1))[0].flip(1)

    def followed(
        self, z: Tensor, codes: Tensor, times: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """A path of the posterior ``[row, time, latent]`` and its 1/2 int |u|^2 dt ``[row]``."""
        path, energy = [z], z.new_zeros(len(z))
        for k, gap in enumerate(times.diff().tolist()):
            h = gap / self.substeps
            for _ in range(self.substeps):
                toward = self.posterior(torch.cat([z, codes[:, k + 1]], -1)) / self.unit
                sigma = self.diffusion(times[k], z, None)
                away = (toward - self.drift(times[k], z, None)) / sigma
                energy = energy + 0.5 * h * away.square().sum(-1)
                z = z + h * toward + math.sqrt(h) * sigma * normals(z, generator)
            path.append(z)
        return torch.stack(path, 1), energy

    def latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """A draw of the hidden state at the end of ``context``, ``[trajectory, latent]``."""
        context = context.to(dtype=self.log_error.dtype)
        return self.inferred(context.states[:, 0].flatten(2), context.times, generator)

    def inferred(self, frames: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """The posterior's hidden state at the last of ``frames`` ``[row, time, size]``, ``[row, latent]``."""
        codes = self.encoded(frames)
        mean, log_scale = self.first(codes[:, 0]).chunk(2, -1)
        z = mean + log_scale.exp() * normals(mean, generator)
        return self.followed(z, codes, times, generator)[0][:, -1]

    def imagined(self, z: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """A path of the prior from ``z`` ``[row, latent]``, ``[row, time, latent]``."""
        path = [z]
        for k, gap in enumerate(times.diff().tolist()):
            h = gap / self.substeps
            for _ in range(self.substeps):
                move = math.sqrt(h) * self.diffusion(times[k], z, None) * normals(z, generator)
                z = z + h * self.drift(times[k], z, None) + move
            path.append(z)
        return torch.stack(path, 1)

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` independent futures ``[trajectory, draw, time, *state]`` of ``context``; ValueError for
        actions, or times that do not rise."""
        if actions is not None:
            raise ValueError("latent_sde is not driven: leave the actions out, or use neural_sde")
        if bool((times.diff() <= 0).any()):
            raise ValueError("latent_sde: times must rise, a stochastic equation has a direction")
        context = context.to(dtype=self.log_error.dtype)
        frames = context.states[:, 0].flatten(2).repeat_interleave(draws, 0)
        z = self.inferred(frames, context.times, generator)
        states = self.decoder(self.imagined(z, times, generator))
        states = torch.cat([frames[:, -1:], states[:, 1:]], 1)
        return context.replace(
            states=states.reshape(-1, draws, len(times), *context.state_shape),
            times=times,
            actions=None,
            observables={},
            length=None,
        )


def normals(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape of ``like``, drawn on the CPU."""
    return torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"latent_sde": LatentSDE}
