"""Consistency models: from noise to data in one to four steps.

f(x, t) is where the probability flow takes x, noisy at level t, at level 0 (Song, Dhariwal, Chen and
Sutskever 2023). Training begins as that of a diffusion and goes on with pairs of levels r < t of the same
data and noise, whose gap shrinks by stages (easy consistency tuning, Geng et al. 2024):

    minimise E w(t) |f(x_t, t) - sg f(x_r, r)|,    r = t max(0, 1 - 2^-(stage + 1) (1 + 8 sigmoid(-t)))

f(x, 0) = x by construction, sg stops the gradient, and the norm is pseudo-Huber (Song and Dhariwal 2023). The
noise must be the same on both sides: with two, or with gradients of both, a constant has no loss at all.

Of trajectories (Kim et al. 2023), the network jumps to any level r:

    G(x, t, r) = (r / t) x + (1 - r / t) g(x, t, r),    G(x, t, t) = x,    g(x, t, t) = D(x, t)

and learns to arrive where it does from a level u between, to which a solver of the flow has gone first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Backbone
from worldsim_kernels.sampling import gamma_sampling, heun
from worldsim_plugins.generators.denoiser import (
    Denoiser,
    NoiseDeviation,
    NoiseMean,
    Octaves,
    SigmaMax,
    SigmaMin,
    noise_levels,
    noise_like,
    weighted_error,
)
from worldsim_plugins.generators.frame_generator import Asked, FrameGenerator
from worldsim_plugins.generators.networks import TIME_FEATURES, fourier
from worldsim_plugins.generators.patches import Patch
from worldsim_plugins.generators.window_network import Causal, Depth, Width
from worldsim_plugins.generators.windows import Mend, Windows

LATE = 1.0
"""Noise level below which a diffusion's estimate is near enough to one trajectory to be penalised."""
LONGEST = 0.5
"""Largest step of the solver, in ln sigma."""
HUBER = 0.00054
"""c of sqrt(|d|^2 + c^2) - c for each root of a number (Song and Dhariwal 2023)."""


class Consistency(FrameGenerator):
    """The law of the frames that follow a frame, sampled in few steps.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; see ``Windows``.

    The stage of training follows from the share of the fit that is done. Guidance takes
    correct(jump(x, t, 0)) in place of jump(x, t, 0) in every step; a correction that wants the covariance of
    the estimate raises ValueError, for a jump is a sample and no mean.

    ``teacher`` is an optional denoiser (x, sigma, context) that trajectories are learned from; without one
    they are learned from the model's own.
    """

    whole_window = True
    done: Tensor

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Width = 256,
        depth: Depth = 3,
        backbone: Annotated[
            Backbone | None,
            Field(description="what the network is made of; a perceptron over the window when left out"),
        ] = None,
        patch: Patch = (),
        causal: Causal = False,
        octaves: Octaves = False,
        prediction: Annotated[
            Literal["normal", "edm"],
            Field(
                description="what the network's output is: data of which it knows how exact they are, or "
                "a mixture of data and noise"
            ),
        ] = "normal",
        target: Annotated[
            Literal["end", "any"],
            Field(description="levels that are jumped to: 0 alone, or any (a trajectory model)"),
        ] = "end",
        diffuse: Annotated[
            float,
            Field(ge=0, le=1, description="share of the fit as a diffusion, before the jumps are learned"),
        ] = 0.4,
        stages: Annotated[
            int,
            Field(ge=1, le=30, description="stages of the rest, each with half the gap between two levels"),
        ] = 8,
        levels: Annotated[
            tuple[float, ...],
            Field(
                description="noise levels, descending, that sampling stops at on the way; none for one step"
            ),
        ] = (1.5,),
        gamma: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="share of fresh noise at those levels: 1 jumps to the data and noises "
                "them, 0 draws once and needs target any",
            ),
        ] = 1.0,
        sigma_min: SigmaMin = 0.002,
        sigma_max: SigmaMax = 20.0,
        noise_mean: NoiseMean = 0.0,
        noise_deviation: NoiseDeviation = 2.0,
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.window, self.time_step = self.windows.frames, self.windows.time_step
        if gamma < 1 and target == "end":
            raise ValueError(
                f"gamma is {gamma:g}, and target 'end' only jumps to the data: set target: any, or gamma: 1"
            )
        path = [sigma_max, *levels, 0.0]
        if any(a <= b for a, b in pairwise(path)):
            raise ValueError(
                f"levels are {list(levels)}; they must descend between sigma_max, {sigma_max:g}, and 0"
            )
        self.target, self.diffuse, self.stages = target, diffuse, stages
        self.levels, self.gamma = levels, gamma
        self.noise_mean, self.noise_deviation = noise_mean, noise_deviation
        self.teacher: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
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
            beside=TIME_FEATURES if target == "any" else 0,
        )
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))

    def pace(self, done: float) -> None:
        """The share of the fit that is done; the stage of training follows from it."""
        self.done.fill_(done)

    def jump(self, x: Tensor, t: Tensor, r: Tensor | float, context: Tensor) -> Tensor:
        """Where the flow takes ``x`` ``[sample, frame, *state]`` from level ``t`` at level ``r`` <= t, each a
        number or broadcast over x; ``context`` ``[sample, feature]``. Raises ValueError for r > 0 when the
        target is the end."""
        r = torch.as_tensor(r, dtype=t.dtype, device=t.device)
        if self.target == "any":
            return (r / t) * x + (1 - r / t) * self._toward(x, t, r, context)
        if bool((r > 0).any()):
            raise ValueError("this model jumps to level 0 alone: build it with target: any")
        return self.denoiser(x, t, context)

    def _toward(self, x: Tensor, t: Tensor, r: Tensor, context: Tensor) -> Tensor:
        """g(x, t, r)."""
        return self.denoiser(x, t, context, beside=fourier(self.denoiser.level(r, x)))

    def denoise(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """D(x, sigma); of target "end" only until its jumps are learned."""
        if self.target == "end":
            return self.denoiser(x, sigma, context)
        return self._toward(x, sigma, sigma, context)

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """The mean dx/ds on the way to the data: straight to where it jumps from x_s = s x_0 + (1 - s) z."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        s = s.clamp(1 / (1 + self.denoiser.sigma_max), 1 / (1 + self.denoiser.sigma_min))
        s = s.expand(len(x), *s.shape[1:])
        return (self.jump(x / s, (1 - s) / s, 0.0, context) - x) / (1 - s)

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Of ``truth`` ``[trajectory, 1, window, *state]`` at the stage of training that has been reached."""
        return self._match(truth)[0]

    def loss_and_estimate(self, truth: Trajectory) -> tuple[Tensor, Trajectory]:
        """The loss, and where the noisy rows of it jump to.

        A jump ends in a sample, so that a penalty on it has no Jensen gap; while the model is still a
        diffusion, whose estimate is a mean, only the rows with sigma < 1 are given (at least the lowest).
        """
        loss, clean, sigma, first = self._match(truth)
        level = sigma.flatten()
        shown = level <= (level.min().clamp(min=LATE) if self._stage() < 0 else level.max())
        frames = self.denoiser.frames(first, clean)
        states = torch.cat([truth.states[:, 0, :1].to(frames), frames], 1)[:, None]
        return loss, truth.rows(shown).replace(states=states[shown], observables={})

    def _stage(self) -> int:
        """Negative while the model is a diffusion."""
        done = float(self.done)
        if done < self.diffuse or self.diffuse == 1:
            return -1
        return int((done - self.diffuse) / (1 - self.diffuse) * self.stages)

    def _match(self, truth: Trajectory) -> tuple[Tensor, ...]:
        """Loss, f(x_t, t), t and frame 0 of a training batch."""
        first, rest, context = self.windows.split(truth)
        data = self.denoiser.scaled(first, rest)
        low, high = self.denoiser.sigma_min, self.denoiser.sigma_max
        t = noise_levels(data, self.noise_mean, self.noise_deviation, low, high)
        x = data + t * noise_like(data)
        stage = self._stage()
        if stage < 0:
            clean = self.denoise(x, t, context)
            loss = weighted_error(clean, data, t)
        elif self.target == "end":
            clean = self.jump(x, t, 0.0, context)
            loss = self._tuned(clean, x, data, t, context, stage)
        else:
            loss = weighted_error(self.denoise(x, t, context), data, t)
            loss = loss + self._consistent(x, t, context)
            clean = self.jump(x, t, 0.0, context)
        return loss, clean, t, first

    def _tuned(
        self, clean: Tensor, x: Tensor, data: Tensor, t: Tensor, context: Tensor, stage: int
    ) -> Tensor:
        """f(x_t, t) against f(x_r, r); at r = 0 that is the data."""
        gap = 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-t))
        r = t * (1 - gap).clamp(min=0)
        with torch.no_grad():
            nearer = self.jump(
                data + (r / t) * (x - data), r.clamp(min=self.denoiser.sigma_min), 0.0, context
            )
            nearer = torch.where(r > self.denoiser.sigma_min, nearer, data)
        return (pseudo_huber(clean - nearer) * (1 + t**-2).sqrt().flatten()).mean()

    def _consistent(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """G(x_t, t, r) against G(x_u, u, r) with x_u from the solver; r = 0 for a quarter of the rows, and
        even in ln r below t for the others."""
        share, part = torch.rand(2, *t.shape, dtype=t.dtype).to(t)
        r = t * (self.denoiser.sigma_min / t) ** ((4 * share - 1) / 3).clamp(min=0)
        r = torch.where(share < 0.25, torch.zeros_like(t), r.minimum(0.95 * t))
        u = torch.maximum(r, t * torch.exp(-LONGEST * part))
        teacher = self.teacher or self.denoise
        with torch.no_grad():
            ahead = heun(lambda y, level: teacher(y, level, context), x, torch.stack([t, u]))
            aim = self.jump(ahead, u, r, context)
        here = self.jump(x, t, r, context)
        # Both start with their share of x: in terms of g the difference is this many times larger.
        return (pseudo_huber((here - aim) / (1 - r / t)) * (1 + t**-2).sqrt().flatten()).mean()

    def roll(self, asked: Asked) -> Trajectory:
        """Window after window from the last frame of each context."""
        if asked.wants_covariance:
            raise ValueError(
                "this guidance weighs by the covariance of a posterior mean, and a consistency model jumps "
                "to a sample: guide without it, or take a flow or a diffusion"
            )
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
        ``[sample, *state]``; ``mend`` corrects where each jump to the data ends."""

        def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            there = self.jump(x, t, r, context)
            if mend is None:
                return there
            clean = self.denoiser.frames(first, self.jump(x, t, 0.0, context) if r > 0 else there)
            return there + (1 - r / t) * (mend(clean, torch.zeros_like) - clean) / self.denoiser.spread

        top = self.denoiser.sigma_max
        path = torch.tensor([top, *self.levels, 0.0], dtype=torch.float64)
        x = gamma_sampling(jump, noise * math.hypot(1, top), path, generator, gamma=self.gamma)
        return self.denoiser.frames(first, x)


def pseudo_huber(difference: Tensor) -> Tensor:
    """sqrt(|d|^2 + c^2) - c ``[sample]`` in the mean over numbers."""
    flat = difference.flatten(1)
    c = HUBER * math.sqrt(flat.shape[1])
    return ((flat.square().sum(1) + c**2).sqrt() - c) / math.sqrt(flat.shape[1])


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., Consistency]]:
    return {"consistency": Consistency}
