"""Diffusion forcing: a noise level for every frame (Chen, Monso, Du, Simchowitz, Tedrake and Sitzmann 2024).

    x_i = x_0i + sigma_i z_i,    minimise E sum_i (1 + 1 / sigma_i^2) |D_i(x_1..i, sigma_1..i, c) - x_0i|^2

with levels drawn for each frame and a network that is causal in the frames. What is known is then a frame of
level 0, and what is to come one of a high level: frames are made one after the other, given as much of the
past as the window holds, for as long as one likes. x_0i is the scaled change of frame i from the oldest one
that is seen; c is that and the actions. The law is taken to be autonomous, with a memory of one window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone
from worldsim_kernels.sampling import karras_grid, velocity_of
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.denoiser import (
    Denoiser,
    GuideFrom,
    NoiseDeviation,
    NoiseMean,
    Prediction,
    SigmaMax,
    SigmaMin,
    noise_like,
)
from worldsim_plugins.generators.frame_generator import Asked, FrameGenerator
from worldsim_plugins.generators.window_network import Width
from worldsim_plugins.generators.windows import Mend, Windows, hold, mending, normal, rolled

LATE = 1.0
"""Noise level below which the estimate of a frame is near enough to one frame to be penalised."""


class DiffusionForcing(FrameGenerator):
    """The law of each frame given those before, sampled by a diffusion.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; see ``Windows``.

    A rollout is made chunk by chunk, each given what of the past its window holds: a context of more frames
    than one, which must have the step of the fit, is made use of. Guidance takes correct(D) in place of D for
    frames from s = 1 / (1 + sigma) = ``guide_from`` on; a correction that wants the covariance of the
    estimate raises ValueError, for each frame is estimated from those up to it, and their errors have no
    joint one here.
    """

    causal = True
    whole_window = True

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 64,
        backbone: Annotated[
            Backbone | None,
            Field(description="what the denoiser is made of; a small transformer when left out"),
        ] = None,
        prediction: Prediction = "normal",
        steps: Annotated[
            int, Field(ge=1, description="steps of DPM-Solver++(2M) from noise to a frame")
        ] = 16,
        chunk: Annotated[
            int, Field(ge=1, description="frames that are made together; the rest of the window is the past")
        ] = 1,
        lag: Annotated[
            int | None,
            Field(
                ge=0,
                description="steps that a frame of a chunk is behind the one before; 0 for all at once, and "
                "as many as steps, which it is when left out, for one after the other",
            ),
        ] = None,
        known: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="share of training windows whose first frames, up to a random one, are without "
                "noise as in a rollout",
            ),
        ] = 0.5,
        sigma_min: SigmaMin = 0.002,
        sigma_max: SigmaMax = 80.0,
        noise_mean: NoiseMean = -0.5,
        noise_deviation: NoiseDeviation = 1.4,
        guide_from: GuideFrom = 0.5,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        if chunk >= self.window:
            raise ValueError(
                f"chunk is {chunk} and the window has {self.window} frames: a chunk needs one before it"
            )
        self.steps, self.chunk, self.known = steps, chunk, known
        self.lag = steps if lag is None else lag
        self.noise_mean, self.noise_deviation = noise_mean, noise_deviation
        self.guide_from = guide_from
        self.denoiser = Denoiser(
            self.windows,
            truth,
            width=width,
            depth=1,
            backbone=backbone or Transformer(),
            patch=(),
            causal=True,
            prediction=prediction,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            each=True,
        )

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds on the straight path x_s = s x_0 + (1 - s) z, which is s times x at sigma = (1 - s) / s, with
        one level for all frames; for scaled changes ``x`` ``[sample, frame, *state]``, ``s`` in [0, 1] a
        number or ``[sample]``, and ``context`` ``[sample, feature]`` as ``condition`` makes it."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        s = s.clamp(1 / (1 + self.denoiser.sigma_max), 1 / (1 + self.denoiser.sigma_min))
        s = s.expand(*x.shape[:2], *[1] * (x.ndim - 2))
        return velocity_of(lambda x, sigma: self.denoiser(x, sigma, context))(x, s)

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Weighted mean squared error of the denoiser over ``truth`` ``[trajectory, 1, window, *state]``, of
        the frames that are noisy."""
        return self._match(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and the windows with D in place of the frames of level sigma < 1.

        D is a posterior mean: a penalty on a curved residual of it biases the law, the less the lower the
        level; hence the late frames only, among others that are true.
        """
        loss, clean, sigma, data, first = self._match(truth)
        frames = self.denoiser.frames(first, torch.where(sigma <= LATE, clean, data))
        states = torch.cat([truth.states[:, 0, :1].to(frames), frames], 1)[:, None]
        return loss, truth.replace(states=states, observables={})

    def _match(self, truth: Trajectory) -> tuple[Tensor, ...]:
        """Loss, D, levels ``[trajectory, frame, 1..]``, data and frame 0 of a training batch."""
        first, rest, context = self.windows.split(truth)
        data = self.denoiser.scaled(first, rest)
        n, frames = data.shape[:2]
        low, high = self.denoiser.sigma_min, self.denoiser.sigma_max
        draws = torch.randn(n, frames, dtype=data.dtype).to(data)
        sigma = torch.exp(self.noise_mean + self.noise_deviation * draws).clamp(low, high)
        until = torch.randint(frames, (n, 1)) * (torch.rand(n, 1) < self.known)
        noisy = (torch.arange(frames) >= until).to(data)
        sigma = (sigma * noisy).view(n, frames, *[1] * (data.ndim - 2))
        clean = self.denoiser(data + sigma * noise_like(data), sigma, context)
        weight = torch.where(sigma > 0, 1 + sigma.clamp(min=low) ** -2, torch.zeros_like(sigma))
        error = (weight * (clean - data).square()).flatten(2).mean(2)
        return error.sum() / noisy.sum(), clean, sigma, data, first

    def roll(self, asked: Asked) -> Trajectory:
        """Chunk after chunk from the last frame of each context."""
        if asked.wants_covariance:
            raise ValueError(
                "this guidance weighs by the covariance of a window's error, and this model estimates frame "
                "by frame: guide without it, or take a flow or a diffusion"
            )
        context, times, actions, draws = asked.context, asked.times, asked.actions, asked.draws
        self.windows.check_step(times)
        known, acts = self._past(context, actions)
        known = known.repeat_interleave(draws, 1).to(self.denoiser.spread)
        begin = known.shape[2] - 1
        while (past := known.shape[2]) - begin < len(times):
            oldest = max(0, past - (self.window - self.chunk))
            held = None if acts is None else hold(acts, oldest, self.window - 1)
            held = None if held is None else held.repeat_interleave(draws, 0)
            history = known[:, :, oldest:].flatten(0, 1)
            given = self.condition(history[:, 0], held)
            made = self._chunk(history, given, asked.generator, mending(asked, known[:, :, begin:]))
            known = torch.cat([known, made.unflatten(0, known.shape[:2])], 2)
        return rolled(context, known[:, :, begin : begin + len(times)], times, actions)

    def _past(self, context: Trajectory, actions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames ``[trajectory, 1, time, *state]`` that a window can hold beside a chunk, and the actions
        from the first of them on; of a ragged context, or one without the actions, the last frame."""
        frames = min(context.states.shape[2], self.window - self.chunk)
        if context.length is not None or (actions is not None and context.actions is None):
            frames = 1
        if frames > 1:
            self.windows.check_step(context.times[-frames:])
        if actions is not None and context.actions is not None:
            actions = torch.cat([context.actions[:, -frames:-1].to(actions), actions], 1)
        return context.states[:, :1, -frames:], actions

    def _chunk(
        self, history: Tensor, context: Tensor, generator: torch.Generator, mend: Mend | None
    ) -> Tensor:
        """The ``chunk`` frames after ``history`` ``[sample, time, *state]``, which begins the window.

        Each frame follows its own levels by DPM-Solver++(2M) (Lu et al. 2022).
        """
        first, start = history[:, 0], history.shape[1] - 1
        shape = (len(history), self.chunk, *self.windows.state_shape)
        noise = normal(shape, generator, history) * math.hypot(1, self.denoiser.sigma_max)
        after = history.new_zeros(len(history), self.window - 1 - start - self.chunk, *shape[2:])
        x = torch.cat([self.denoiser.scaled(first, history[:, 1:]), noise, after], 1)
        new = slice(start, start + self.chunk)
        grid = karras_grid(self.steps, self.denoiser.sigma_min, self.denoiser.sigma_max).to(x)
        behind = self.lag * torch.arange(self.chunk)
        last: tuple[Tensor, Tensor] | None = None
        for tick in range(self.steps + self.lag * (self.chunk - 1)):
            here, there = (grid[(k - behind).clamp(0, self.steps)] for k in (tick, tick + 1))
            sigma = x.new_zeros(self.window - 1)
            sigma[new], sigma[start + self.chunk :] = here, self.denoiser.sigma_max
            levels = sigma.view(1, -1, *[1] * (x.ndim - 2)).expand(len(x), *[-1] * (x.ndim - 1))
            clean = self.denoiser(x, levels, context)[:, new]
            here, there = (level.view(-1, *[1] * (x.ndim - 2)) for level in (here, there))
            if mend is not None and bool((late := 1 / (1 + here) >= self.guide_from).any()):
                frames = self.denoiser.frames(first, clean)
                better = clean + (mend(frames, torch.zeros_like) - frames) / self.denoiser.spread
                clean = torch.where(late, better, clean)
            ratio = torch.where(here > 0, there / here, 1.0)  # a settled frame stays
            h = torch.where(there > 0, -ratio.log(), 0.0)
            aim = clean
            if last is not None:
                before, h_before = last
                aim = clean + torch.where(h_before > 0, h / (2 * h_before), 0.0) * (clean - before)
            x = torch.cat([x[:, :start], ratio * x[:, new] + (1 - ratio) * aim, after], 1)
            last = clean, h
        return self.denoiser.frames(first, x[:, new])


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., DiffusionForcing]]:
    return {"diffusion_forcing": DiffusionForcing}
