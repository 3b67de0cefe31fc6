"""The denoiser of generators that are written in noise levels sigma: D(x, sigma | c) of a window.

What is noisy is the change from frame 0, each component of it divided by its root mean square over all
frames, so that the data have mean square 1 and sigma means the same everywhere. Frame by frame the changes
keep their sizes: divided each by its own, the first frames, which hardly change, would weigh as much as the
last ones. With states in place of changes, a next frame that is nearly the given one has to be learned.

How much of the noisy input a denoiser should keep depends on how much of the data the context leaves open. Of
a normal law N(F, tau^2) it is

    D = (tau^2 x + sigma^2 F) / (tau^2 + sigma^2)

With tau = 1 and F to match that is the preconditioning of Karras et al. (2022), which knows the deviation of
the data alone; with tau = 0 it predicts the data themselves, which is right in a deterministic world. Here
tau is learned (``prediction`` "normal"), and settles at the deviation that the context leaves open or at the
error of F. On trajectories of pendulums (32 frames, 3,000 steps of 128, one seed), W2 to the truth from the
same starts is 0.29 so, 0.90 with "x0" and 1.91 with "edm"; of a normal law of deviation 0.6 the samples have
0.61 to 0.64 so and with "edm", and 0.96 to 1.15 with "x0".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory
from worldsim.protocols import Backbone
from worldsim_kernels.sampling import Denoise, of_noise, of_v
from worldsim_plugins.generators.networks import TIME_FEATURES, fourier, perceptron
from worldsim_plugins.generators.window_network import WindowNetwork
from worldsim_plugins.generators.windows import Mend, Windows

Prediction: TypeAlias = Annotated[
    Literal["normal", "edm", "v", "x0", "epsilon"],
    Field(
        description="what the network's output is: normal, the data, of which it also learns how exactly the "
        "context tells them; x0, the data; edm or v (which differ in sign alone where data have mean square "
        "1, as here), a mixture of data and noise; epsilon, the noise"
    ),
]
SigmaMin: TypeAlias = Annotated[
    float, Field(gt=0, description="lowest noise level; 1 is the root mean square change from frame 0")
]
SigmaMax: TypeAlias = Annotated[
    float, Field(gt=0, description="highest noise level, where sampling starts; hides the data")
]
NoiseMean: TypeAlias = Annotated[float, Field(description="mean of ln sigma in training")]
NoiseDeviation: TypeAlias = Annotated[
    float, Field(gt=0, description="standard deviation of ln sigma in training")
]
Dropout: TypeAlias = Annotated[
    float,
    Field(ge=0, lt=1, description="how often training hides the context, which guidance by it needs"),
]
Guidance: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        description="w of D_u + w (D_c - D_u) with D_u denoised without the context (classifier-free "
        "guidance); 1 samples the conditional law, more exaggerates the context",
    ),
]
GuideFrom: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="generator time s = 1 / (1 + sigma) (0 noise, 1 data) from which guidance corrects; "
        "earlier, the clean estimate is an average of trajectories, which obeys no nonlinear constraint",
    ),
]


Octaves: TypeAlias = Annotated[
    bool,
    Field(
        description="whether the network also sees sines and cosines of its noisy input at octaves of its "
        "frequency; for laws of a few numbers with small parts that lie far apart"
    ),
]


class Denoiser(nn.Module):
    """E[x | x + sigma z, c] for the scaled changes x ``[sample, frame, *state]`` of a window.

    The network sees x / sqrt(1 + sigma^2) and ln sigma; its output F gives (Karras et al. 2022, with data of
    deviation 1; Salimans and Ho 2022; Ho, Jain and Abbeel 2020)

        normal  D = (tau^2 x + sigma^2 F) / (tau^2 + sigma^2), tau ``[frame, component]`` of c and sigma
        edm  D = x / (1 + sigma^2) + sigma / sqrt(1 + sigma^2) F      v  the same with -F
        x0   D = F                                                    epsilon  D = x - sigma F

    With ``each`` the levels differ between frames, and tau is also told that of the frame before. Raises
    ValueError for levels that do not ascend, and for guidance by the context without ``dropout``.
    """

    spread: Tensor

    def __init__(
        self,
        windows: Windows,
        truth: Trajectory,
        *,
        width: int,
        depth: int,
        backbone: Backbone | None,
        patch: tuple[int, ...],
        causal: bool,
        prediction: str,
        sigma_min: float,
        sigma_max: float,
        dropout: float = 0.0,
        guidance: float = 1.0,
        octaves: bool = False,
        beside: int = 0,
        each: bool = False,
    ) -> None:
        super().__init__()
        if not sigma_min < sigma_max:
            raise ValueError(
                f"sigma_min is {sigma_min:g} and sigma_max {sigma_max:g}: the first must be the smaller one"
            )
        if guidance != 1 and not dropout:
            raise ValueError(
                f"context_guidance is {guidance:g} and context_dropout 0: a network that always saw the "
                "context has no estimate without it; set context_dropout, to 0.1 say"
            )
        self.windows, self.prediction = windows, prediction
        self.sigma_min, self.sigma_max, self.each = sigma_min, sigma_max, each
        self.dropout, self.guidance = dropout, guidance
        told = beside + (dropout > 0)
        self.network = WindowNetwork(
            windows,
            width=width,
            depth=depth,
            backbone=backbone,
            patch=patch,
            causal=causal,
            beside=told,
            octaves=octaves,
        )
        self.register_buffer("spread", spread_of(truth))
        if prediction == "normal":
            kinds = windows.state_shape[-1] if windows.state_shape else 1
            # Of a causal window tau may know frame 0 alone: the actions are of all its frames.
            self.read = math.prod(windows.state_shape) if causal else windows.features
            inputs = self.read + TIME_FEATURES + told + each
            self.deviation = perceptron(inputs, 64, 2, (windows.frames - 1) * kinds)
            nn.init.zeros_(self.deviation[-1].weight)
            nn.init.zeros_(self.deviation[-1].bias)

    def scaled(self, first: Tensor, rest: Tensor) -> Tensor:
        """What is noised, from frame 0 ``[sample, *state]`` and frames 1.. ``[sample, frame, *state]``."""
        return (rest - first[:, None]) / self.spread

    def frames(self, first: Tensor, x: Tensor) -> Tensor:
        """The inverse of ``scaled``."""
        return first[:, None] + self.spread * x

    def level(self, sigma: Tensor, x: Tensor) -> Tensor:
        """``[sample]``, or with ``each`` ``[sample, frame]``: where ln sigma lies between the lowest level,
        0, and the highest, 1; ``sigma`` broadcasts over ``x``."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        level = (sigma.clamp(min=self.sigma_min).log().to(x) - low) / (high - low)
        if self.each:
            return (level if level.ndim == 0 else level.flatten(1)).expand(*x.shape[:2])
        return level.expand(len(x)) if level.ndim == 0 else level.flatten(1).squeeze(1)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        beside: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """D; ``sigma`` has no axes or broadcasts over ``x``; ``dropped`` ``[sample]``: 1 where it is not to
        know the context, 0 where it is."""
        told = [] if beside is None else [beside]
        if self.dropout:
            dropped = x.new_zeros(len(x)) if dropped is None else dropped
            context = context * (1 - dropped[:, None])
            told.append(dropped[:, None])

        known = torch.cat(told, 1) if told else x.new_empty(len(x), 0)

        def field(z: Tensor, sigma: Tensor) -> Tensor:
            return self.network(z, self.level(sigma, z), context, known)

        sigma = sigma.to(x)
        clean = denoiser_of(field, self.prediction)(x, sigma)
        if self.prediction != "normal":
            return clean
        kept = self.kept(self.level(sigma, x), context[:, : self.read], known, x)
        return (kept * x + sigma**2 * clean) / (kept + sigma**2)

    def kept(self, level: Tensor, context: Tensor, known: Tensor, x: Tensor) -> Tensor:
        """tau^2, to broadcast over ``x``."""
        if level.ndim == 1:
            logs = self.deviation(torch.cat([context, fourier(level), known], 1)).view(*x.shape[:2], -1)
        else:  # each frame has its own level, and its own row of those that a level gives all frames
            each = [part[:, None].expand(*level.shape, -1) for part in (context, known)]
            noisy = fourier(level.flatten()).view(*level.shape, -1)
            before = nn.functional.pad(level, (1, -1))[..., None]
            logs = self.deviation(torch.cat([each[0], noisy, each[1], before], -1))
            logs = logs.unflatten(-1, (x.shape[1], -1)).diagonal(dim1=1, dim2=2).mT
        return logs.exp().view(*x.shape[:2], *[1] * (x.ndim - 3), *[-1] * (x.ndim > 2))

    def given(self, context: Tensor) -> Denoise:
        """The denoiser that is sampled from: guided by the context where that was asked for."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean = self(x, sigma, context)
            if self.guidance == 1:
                return clean
            without = self(x, sigma, context, dropped=x.new_ones(len(x)))
            return without + self.guidance * (clean - without)

        return denoise

    def mended(self, denoise: Denoise, mend: Mend, first: Tensor, guide_from: float) -> Denoise:
        """``denoise`` with what ``mend`` makes of its estimate in place of it, from s = ``guide_from`` on.

        The covariance of the estimate's error is sigma^2 dD/dx (Tweedie's formula, of second order).
        """

        def better(x: Tensor, sigma: Tensor) -> Tensor:
            clean = denoise(x, sigma)
            if float(1 / (1 + sigma)) < guide_from:
                return clean

            def covariance(w: Tensor) -> Tensor:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    (product,) = torch.autograd.grad(denoise(leaf, sigma), leaf, self.spread * w.to(leaf))
                return self.spread * float(sigma) ** 2 * product

            frames = self.frames(first, clean)
            return clean + (mend(frames, covariance) - frames) / self.spread

        return better


def denoiser_of(field: Callable[[Tensor, Tensor], Tensor], prediction: str) -> Denoise:
    """The denoiser of a network ``field`` (x / sqrt(1 + sigma^2), sigma)."""
    if prediction == "epsilon":
        return of_noise(field)
    if prediction == "v":
        return of_v(field)
    if prediction == "edm":
        return of_v(lambda z, sigma: -field(z, sigma))
    return lambda x, sigma: field(x / (1 + sigma**2) ** 0.5, sigma)


def spread_of(truth: Trajectory) -> Tensor:
    """Root mean square of the change from frame 0, ``[component]``; 1 where nothing changes."""
    states = truth.states[:, 0]
    squares = (states[:, 1:] - states[:, :1]).square()
    spread = squares.flatten(0, -2).mean(0).sqrt() if truth.state_shape else squares.mean().sqrt()
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def weighted_error(clean: Tensor, data: Tensor, sigma: Tensor) -> Tensor:
    """(1 + sigma^2) / sigma^2 |D - x|^2, in the mean (Karras et al. 2022): where D = 0 at high levels and
    D = x + sigma z at low ones it is 1 at every level."""
    return ((1 + sigma**-2) * (clean - data).square()).mean()


def noise_levels(data: Tensor, mean: float, deviation: float, lowest: float, highest: float) -> Tensor:
    """A level for each sample, log-normal and clamped, to broadcast over ``data``."""
    draws = torch.randn(len(data), *[1] * (data.ndim - 1), dtype=data.dtype).to(data)
    return torch.exp(mean + deviation * draws).clamp(lowest, highest)


def noise_like(data: Tensor) -> Tensor:
    """Standard normal, from torch's default generator."""
    return torch.randn(data.shape, dtype=data.dtype).to(data)
