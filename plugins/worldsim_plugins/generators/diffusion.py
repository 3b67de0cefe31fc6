"""Diffusion over whole windows, given the first frame.

    x_sigma = x_0 + sigma z,  z ~ N(0, I);    minimise E (1 + 1 / sigma^2) |D(x_sigma, sigma, c) - x_0|^2

and follow dx/dsigma = (x - D) / sigma, or a stochastic process of the same laws, from the highest level down
(Karras, Aittala, Aila and Laine 2022). x_0 is the scaled change of frames 1.. of a window from frame 0; c is
frame 0 and the actions. Longer rollouts are chained windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, TypeAlias, get_args

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone
from worldsim_kernels.sampling import (
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    heun,
    karras_grid,
    log_snr_grid,
    stochastic_heun,
    velocity_of,
)
from worldsim_plugins.generators.denoiser import (
    Denoiser,
    Dropout,
    Guidance,
    GuideFrom,
    NoiseDeviation,
    NoiseMean,
    Octaves,
    Prediction,
    SigmaMax,
    SigmaMin,
    noise_levels,
    noise_like,
    weighted_error,
)
from worldsim_plugins.generators.frame_generator import Asked, FrameGenerator
from worldsim_plugins.generators.patches import Patch
from worldsim_plugins.generators.window_network import Causal, Depth, Width
from worldsim_plugins.generators.windows import Mend, Windows

Sampler: TypeAlias = Literal["dpm_solver_pp_2m", "heun", "ddim", "ancestral", "stochastic_heun"]
SAMPLERS = get_args(Sampler)

LATE = 1.0
"""Noise level below which the estimate of the data is near enough to one trajectory to be penalised."""


class Diffusion(FrameGenerator):
    """A conditional diffusion; its denoiser is a perceptron over the flattened window, or a backbone over
    its frames or their patches.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; see ``Windows``.

    Guidance takes correct(D) in place of D from s = 1 / (1 + sigma) = ``guide_from`` on, and so the flow
    towards the corrected estimate; a last step ends in it.
    """

    whole_window = True

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 256,
        depth: Depth = 3,
        backbone: Annotated[
            Backbone | None,
            Field(description="what the denoiser is made of; a perceptron over the window when left out"),
        ] = None,
        patch: Patch = (),
        causal: Causal = False,
        octaves: Octaves = False,
        prediction: Prediction = "normal",
        sampler: Annotated[
            Sampler,
            Field(
                description="how it is sampled: of order 2 with one evaluation a step or two, of order 1, or "
                "with fresh noise in every step (ancestral of order 1, stochastic_heun raised by churn)"
            ),
        ] = "dpm_solver_pp_2m",
        steps: Annotated[int, Field(ge=1, description="sampling steps from noise to data")] = 25,
        grid: Annotated[
            Literal["karras", "log_snr"],
            Field(description="noise levels of the steps: sigma^(1/7) even, or ln sigma"),
        ] = "karras",
        churn: Annotated[
            float, Field(ge=0, description="stochastic_heun: noise put back over all steps, S_churn")
        ] = 10.0,
        sigma_min: SigmaMin = 0.002,
        sigma_max: SigmaMax = 80.0,
        noise_mean: NoiseMean = -0.5,
        noise_deviation: NoiseDeviation = 1.4,
        context_dropout: Dropout = 0.0,
        context_guidance: Guidance = 1.0,
        guide_from: GuideFrom = 0.5,
        unroll: Annotated[
            int,
            Field(
                ge=1,
                description="steps of DDIM by which the estimate that a penalty acts on is sampled; 1 is the "
                "posterior mean, whose residual is not the mean residual where a constraint is curved",
            ),
        ] = 1,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}; allowed are {', '.join(SAMPLERS)}")
        self.sampler, self.steps, self.grid, self.churn = sampler, steps, grid, churn
        self.noise_mean, self.noise_deviation = noise_mean, noise_deviation
        self.guide_from, self.unroll = guide_from, unroll
        self.denoiser = Denoiser(
            self.windows,
            truth,
            width=width,
            depth=depth,
            backbone=backbone,
            patch=patch,
            causal=causal,
            octaves=octaves,
            prediction=prediction,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            dropout=context_dropout,
            guidance=context_guidance,
        )

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds on the straight path x_s = s x_0 + (1 - s) z, which is s times x at sigma = (1 - s) / s; for
        scaled changes ``x`` ``[sample, frame, *state]``, ``s`` in [0, 1] a number or ``[sample]``, and
        ``context`` ``[sample, feature]`` as ``condition`` makes it. Levels beyond those it was trained on are
        taken for the nearest one."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        s = s.clamp(1 / (1 + self.denoiser.sigma_max), 1 / (1 + self.denoiser.sigma_min))
        return velocity_of(self.denoiser.given(context))(x, s.expand(len(x), *s.shape[1:]))

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Weighted mean squared error of the denoiser over ``truth`` ``[trajectory, 1, window, *state]``."""
        return self._match(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and an estimate of the data for the rows with sigma < 1 (at least the lowest one).

        With ``unroll`` = 1 it is D, a posterior mean: for a residual h with curvature, h(E[x | x_sigma]) is
        not E[h(x) | x_sigma], the difference being half the trace of h'' times the posterior covariance, and
        a penalty on it biases the law (the Jensen gap). The covariance shrinks with sigma, hence the late
        rows only. More steps end in a sample, where there is no gap (Bastek, Sun and Kochmann 2024).
        """
        loss, x, sigma, clean, first, context = self._match(truth)
        late = sigma.flatten() <= sigma.min().clamp(min=LATE)
        x, sigma, clean = x[late], sigma[late], clean[late]
        if self.unroll > 1:
            descent = torch.linspace(1, 0, self.unroll + 1, dtype=x.dtype, device=x.device) ** 7
            levels = descent.view(-1, *[1] * x.ndim) * sigma
            clean = ddim(lambda x, sigma: self.denoiser(x, sigma, context[late]), x, levels)
        frames = self.denoiser.frames(first[late], clean)
        states = torch.cat([truth.states[late, 0, :1].to(frames), frames], 1)[:, None]
        return loss, truth.rows(late).replace(states=states, observables={})

    def _match(self, truth: Trajectory) -> tuple[Tensor, ...]:
        """Loss, x_sigma ``[trajectory, frame, *state]``, sigma ``[trajectory, 1, ..]``, D, frame 0 and what
        is given, of a training batch."""
        first, rest, context = self.windows.split(truth)
        denoiser, data = self.denoiser, self.denoiser.scaled(first, rest)
        low, high = denoiser.sigma_min, denoiser.sigma_max
        sigma = noise_levels(data, self.noise_mean, self.noise_deviation, low, high)
        x = data + sigma * noise_like(data)
        dropped = None
        if denoiser.dropout:
            dropped = (torch.rand(len(data)) < denoiser.dropout).to(data)
        clean = denoiser(x, sigma, context, dropped=dropped)
        return weighted_error(clean, data, sigma), x, sigma, clean, first, context

    def roll(self, asked: Asked) -> Trajectory:
        """Window after window from the last frame of each context."""
        return self.windows.futures(asked, self.drawn, self.denoiser.spread)

    def drawn(
        self,
        noise: Tensor,
        first: Tensor,
        context: Tensor,
        generator: torch.Generator,
        mend: Mend | None,
    ) -> Tensor:
        """Standard normal ``noise`` ``[sample, frame, *state]`` to the frames after ``first``
        ``[sample, *state]``; ``mend`` corrects the estimate of them from s = ``guide_from`` on."""
        denoise = self.denoiser.given(context)
        if mend is not None:
            denoise = self.denoiser.mended(denoise, mend, first, self.guide_from)
        levels = karras_grid if self.grid == "karras" else log_snr_grid
        sigmas = levels(self.steps, self.denoiser.sigma_min, self.denoiser.sigma_max)
        # The data are not wholly hidden at the highest level, where they add a deviation of 1.
        x = noise * math.hypot(1, self.denoiser.sigma_max)
        match self.sampler:
            case "heun":
                x = heun(denoise, x, sigmas)
            case "ddim":
                x = ddim(denoise, x, sigmas)
            case "dpm_solver_pp_2m":
                x = dpm_solver_pp_2m(denoise, x, sigmas)
            case "ancestral":
                x = ancestral(denoise, x, sigmas, generator)
            case "stochastic_heun":
                x = stochastic_heun(denoise, x, sigmas, generator, churn=self.churn)
        return self.denoiser.frames(first, x)


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., Diffusion]]:
    return {"diffusion": Diffusion}
