"""Hamiltonian generative networks (Toth, Rezende, Jaegle, Racaniere, Botev and Higgins 2020).

Films without their state: an encoder reads frames and gives the law of a latent state, (q, p) moves by
leapfrog under a learned H(q, p) = T(p) + V(q), and a decoder draws each frame from its q alone.

    z ~ q(z | x_0 .. x_k),   (q_k, p_k) = z + f(z),   (q, p) by leapfrog,   x_i ~ N(d(q_i), sigma^2)

    loss = -sum_i E log p(x_i | q_i) + beta KL(q(z | x) | N(0, 1))

the sum over the frame k and those after it, with sigma learned. The state is inferred at the last frame that
the encoder reads, where a forecast begins (so the paper's authors explain it in Balsells Rodas, Canal Anton
and Taschin 2021, which reproduces it; the paper's text shows the encoder the whole film).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Model
from worldsim_kernels.solve import Separable
from worldsim_kernels.solve.splitting import Splitting
from worldsim_plugins.dynamics.vector_field import Perceptron


class GenerativeHamiltonian(nn.Module):
    """A film forecast through a latent Hamiltonian system; states of any shape, as brightness in [0, 1].

    Fitted on windows of more than ``context`` frames, and rolled out from at least so many (set
    data.context), of which it reads the last. Each draw of a rollout is one latent state. Rollouts carry the
    observable ``latent_energy`` ``[trajectory, draw, time]``, the learned H along each of them. It has no
    drift: its state is not the frame.
    """

    scaling = "none"
    driven = False
    reads = "context"
    rate: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        context: Annotated[int, Field(ge=1, description="frames that the encoder reads")] = 5,
        freedoms: Annotated[int, Field(ge=1, description="degrees of freedom of the latent system")] = 1,
        width: Annotated[int, Field(ge=1, description="units in the layers of every network")] = 64,
        substeps: Annotated[int, Field(ge=1, description="leapfrog steps between frames")] = 2,
        beta: Annotated[
            float, Field(ge=0, description="weight of the divergence of z from N(0, 1); 1 for the ELBO")
        ] = 1.0,
    ) -> None:
        super().__init__()
        if not truth.states.is_floating_point() or not truth.state_shape:
            raise ValueError("generative_hamiltonian needs frames of real numbers, with an axis")
        if truth.actions is not None:
            raise ValueError("generative_hamiltonian is not driven, and this system is: use flow")
        self.context, self.substeps, self.beta = context, substeps, beta
        self.state_shape = truth.state_shape
        pixels = math.prod(truth.state_shape)
        # Latent time is measured in frames: the networks need not find the scale of physical time.
        span = float(truth.times[-1] - truth.times[0]) / max(len(truth.times) - 1, 1)
        self.register_buffer("rate", torch.tensor(1 / span if span > 0 else 1.0, dtype=torch.float64))
        self.latent = 2 * freedoms
        self.encoder = Perceptron(context * pixels, 2 * self.latent, 2 * width, 2, "silu")
        self.start = Perceptron(self.latent, self.latent, width, 1, "silu")
        self.kinetic = Perceptron(freedoms, 1, width, 2, "softplus")
        self.potential = Perceptron(freedoms, 1, width, 2, "softplus")
        self.decoder = Perceptron(freedoms, pixels, 2 * width, 2, "silu")
        self.log_deviation = nn.Parameter(torch.tensor(-1.0))

    def energy(self, latent: Tensor) -> Tensor:
        """The learned H, ``[...]`` for latent states ``[..., (q, p)]``, per frame of time."""
        q, p = latent.chunk(2, -1)
        return (self.kinetic(p) + self.potential(q)).squeeze(-1)

    def infer(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The latent state ``[sample, (q, p)]`` at the last of ``frames`` ``[sample, time, *state]``, by
        standard normal ``noise`` ``[sample, latent]``; and the divergence of its law, ``[sample]``."""
        if frames.shape[1] < self.context:
            raise ValueError(
                f"generative_hamiltonian reads {self.context} frames, it was given {frames.shape[1]}: raise "
                "data.context, or lower the model's context"
            )
        mean, log_deviation = self.encoder(frames[:, -self.context :].flatten(1)).chunk(2, 1)
        log_deviation = log_deviation.clamp(-7, 3)
        z = mean + log_deviation.exp() * noise
        divergence = (mean.square() + (2 * log_deviation).exp() - 1) / 2 - log_deviation
        return z + self.start(z), divergence.sum(1)

    def latent_of(self, context: Trajectory, generator: torch.Generator) -> Tensor:
        """A draw of the latent state (q, p) at the end of ``context``, ``[trajectory, latent]``."""
        frames = context.states[:, 0].to(self.log_deviation.dtype)
        noise = torch.randn(len(frames), self.latent, dtype=torch.float64, generator=generator).to(frames)
        return self.infer(frames, noise)[0]

    def follow(self, latent: Tensor, times: Tensor) -> Tensor:
        """``[sample, time, (q, p)]`` from ``latent`` at ``times[0]``, by leapfrog."""
        term, stepper = Separable(self.kinetic.gradient, self._force), Splitting("leapfrog")
        t = latent.new_zeros(len(latent), dtype=torch.float64)
        carry, frames = stepper.start(term, t, latent), [latent]
        for gap in (times.diff().double() * self.rate).tolist():
            y, h = frames[-1], torch.full_like(t, gap / self.substeps)
            for _ in range(self.substeps):
                step = stepper.step(term, t, h, y, carry)
                y, carry = step.y, step.carry
            frames.append(y)
        return torch.stack(frames, 1)

    def _force(self, q: Tensor) -> Tensor:
        return -self.potential.gradient(q)

    def decode(self, latent: Tensor) -> Tensor:
        """Frames ``[..., *state]`` of latent states ``[..., (q, p)]``; their momenta are not seen."""
        q = latent.chunk(2, -1)[0]
        return self.decoder(q).unflatten(-1, self.state_shape)

    def loss(self, truth: Trajectory) -> Tensor:
        """Minus the evidence lower bound, in nats for each number of a frame, over the frames of the window
        from the last one that the encoder reads on."""
        if len(truth.times) <= self.context:
            raise ValueError(
                f"a window of {len(truth.times)} frames leaves none to forecast after {self.context} of "
                "context: raise fit.window"
            )
        if truth.length is not None and bool((truth.length < len(truth.times)).any()):
            raise ValueError("a window ends early (ragged data): choose a shorter fit.window")
        states = truth.states.flatten(0, 1).to(self.log_deviation.dtype)
        noise = torch.randn(len(states), self.latent, dtype=states.dtype).to(states)
        latent, divergence = self.infer(states[:, : self.context], noise)
        drawn = self.decode(self.follow(latent, truth.times[self.context - 1 :]))
        error = functional.mse_loss(drawn, states[:, self.context - 1 :])
        seen = error / (2 * (2 * self.log_deviation).exp()) + self.log_deviation + math.log(2 * math.pi) / 2
        return seen + self.beta * divergence.mean() / drawn[0].numel()

    @torch.no_grad()
    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` forecasts of each context; the first frame is the last one given, as it was."""
        if actions is not None:
            raise ValueError("generative_hamiltonian is not driven: leave the actions out")
        given = context.states[:, 0].to(self.log_deviation.dtype).repeat_interleave(draws, 0)
        repeated = context.replace(states=given[:, None])
        latent = self.follow(self.latent_of(repeated, generator), times)
        frames = torch.cat([given[:, -1:], self.decode(latent[:, 1:])], 1)
        shape = (len(context), draws)
        return context.replace(
            states=frames.unflatten(0, shape), times=times, actions=None, length=None,
            observables={"latent_energy": self.energy(latent).double().unflatten(0, shape)},
        )  # fmt: skip


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Model]]:
    return {"generative_hamiltonian": GenerativeHamiltonian}
