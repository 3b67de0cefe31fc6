"""Neural diffusion models: the forward process is learned too (Bartosh, Vetrov and Naesseth 2023).

Not the data x but F(x, t) is diffused, in T steps from t = 0 to t = 1 (c is the context):

    q(z_t | x) = N(alpha_t F(x, t), sigma_t^2 I),    F(x, t) = x + t f(x, t, c),    alpha_t^2 + sigma_t^2 = 1

For a step from t to s = t - 1 / T and r = SNR_t / SNR_s, SNR_t = alpha_t^2 / sigma_t^2, the posterior is

    q(z_s | z_t, x) = N(alpha_s (F(x, s) - r F(x, t)) + r (alpha_s / alpha_t) z_t, sigma_s^2 (1 - r) I)

This variance is one choice of many that give q(z_s | x); it is that of Ho, Jain and Abbeel (2020), for which
the process is a Markov chain when F(x, t) = x. Backwards, a network's estimate of x takes the place of x:

    p(z_s | z_t) = q(z_s | z_t, x^(z_t, t)),    p(z_1) = N(0, I),    p(x | z_0) = N(z_0 / alpha_0, I / SNR_0)

    -log p(x) <= KL(q(z_1 | x), p(z_1)) + sum_steps E KL(q(z_s | z_t, x), p(z_s | z_t)) + E[-log p(x | z_0)]
    KL(q(z_s | z_t, x), p(z_s | z_t)) = SNR_s |F(x, s) - F(x^, s) - r (F(x, t) - F(x^, t))|^2 / 2 (1 - r)

With F(x, t) = x that is (SNR_s - SNR_t) |x - x^|^2 / 2 (Kingma, Salimans, Poole and Ho 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import Trajectory, hookimpl
from worldsim_plugins.generators.networks import OCTAVES, TIME_FEATURES, fourier, octaves, perceptron
from worldsim_plugins.generators.windows import Windows, normal

Forward: TypeAlias = Literal["learned", "fixed"]

LOG_SNR = 10.0
"""ln SNR falls linearly from this at t = 0 to its negative at t = 1."""


def amplitudes(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, ``[sample, 1]`` of ``[sample]``."""
    log_snr = LOG_SNR * (1 - 2 * t[:, None])
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


class NeuralDiffusionModel(nn.Module):
    """The law of x ``[sample, dim]`` given ``context`` ``[sample, feature]``.

    ``forward`` "fixed" makes F(x, t) = x, the plain diffusion; "learned" begins there. Steps are numbered as
    they are generated, from ``steps`` (t = 1) down to 1; step i goes from t = i / T to s = (i - 1) / T.
    """

    def __init__(
        self, dim: int, features: int, *, steps: int, width: int, depth: int, forward: Forward
    ) -> None:
        super().__init__()
        self.dim, self.steps = dim, steps
        self.ratio = math.exp(-2 * LOG_SNR / steps)
        inputs = (1 + 2 * OCTAVES) * dim + features + TIME_FEATURES
        self.denoiser = perceptron(inputs, width, depth, 2 * dim)
        self.change: nn.Module | None = None
        if forward == "learned":
            self.change = perceptron(inputs, width, depth, dim)
            nn.init.zeros_(self.change[-1].weight)
            nn.init.zeros_(self.change[-1].bias)

    def transformed(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """F(x, t) ``[sample, dim]`` at ``t`` ``[sample]``."""
        if self.change is None:
            return x
        return x + t[:, None] * self.change(torch.cat([octaves(x), context, fourier(t)], 1))

    def transformed_twice(self, x: Tensor, t: Tensor, s: Tensor, context: Tensor) -> Tensor:
        """F(x, t) and F(x, s), ``[2, sample, dim]``."""
        both = self.transformed(x.repeat(2, 1), torch.cat([t, s]), context.repeat(2, 1))
        return both.unflatten(0, (2, -1))

    def denoised(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x^(z_t, t) = alpha_t z - sigma_t v + t w ``[sample, dim]``.

        v is the velocity of Salimans and Ho (2022); w can take back what F adds, which near t = 0 is not as
        small as sigma_t.
        """
        alpha, sigma = amplitudes(t)
        v, w = self.denoiser(torch.cat([octaves(z), context, fourier(t)], 1)).chunk(2, 1)
        return alpha * z - sigma * v + t[:, None] * w

    def velocity(self, z: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dz/ds ``[sample, dim]`` at generator time ``s`` = 1 - t, a number or ``[sample]``, for many steps
        without noise: alpha_t F(x^, t) + sigma_t e with x^ and e held fixed, at the e that gives z."""
        t = 1 - torch.as_tensor(s, dtype=z.dtype, device=z.device).expand(len(z))
        x = self.denoised(z, t, context)
        value, rate = torch.func.jvp(lambda t: self.transformed(x, t, context), (t,), (torch.ones_like(t),))
        alpha, _ = amplitudes(t)
        return alpha * (LOG_SNR * (value - alpha * z) - rate)

    def bound(self, x: Tensor, context: Tensor, noise: Tensor) -> Tensor:
        """The evidence lower bound of log p(x | c) ``[sample]`` in nats, in the mean over ``noise``
        ``[step, sample, dim]``."""
        cost = self.cost_of_ends(x, context)
        for step in range(1, self.steps + 1):
            cost = cost + self.cost_of_steps(x, context, torch.full((len(x),), step), noise[step - 1])
        return -cost

    def bound_by_one_step(self, x: Tensor, context: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """As ``bound`` in the mean over ``step`` ``[sample]`` from 1 to T and ``noise`` ``[sample, dim]``."""
        return -self.cost_of_ends(x, context) - self.steps * self.cost_of_steps(x, context, step, noise)

    def cost_of_ends(self, x: Tensor, context: Tensor) -> Tensor:
        """KL(q(z_1 | x), p(z_1)) + E[-log p(x | z_0)] ``[sample]``."""
        one = x.new_ones(len(x))
        alpha, sigma = amplitudes(one)
        mean, variance = alpha * self.transformed(x, one, context), sigma.square()
        prior = (mean.square() + variance - 1 - variance.log()).sum(1) / 2
        return prior + self.dim * (1 + math.log(2 * math.pi) - LOG_SNR) / 2

    def cost_of_steps(self, x: Tensor, context: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """KL(q(z_s | z_t, x), p(z_s | z_t)) ``[sample]`` at the z_t of ``noise`` ``[sample, dim]``."""
        t, s = self.times(step, x)
        alpha, sigma = amplitudes(t)
        of_x = self.transformed_twice(x, t, s, context)
        guess = self.denoised(alpha * of_x[0] + sigma * noise, t, context)
        at_t, at_s = of_x - self.transformed_twice(guess, t, s, context)
        error = at_s - self.ratio * at_t
        snr = torch.exp(LOG_SNR * (1 - 2 * s))
        return snr * error.square().sum(1) / (2 * (1 - self.ratio))

    def times(self, step: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """t and s ``[sample]``, in the type of ``x``."""
        step = step.to(x)
        return step / self.steps, (step - 1) / self.steps

    def posterior(self, x: Tensor, z: Tensor, context: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[sample, dim]`` and deviation ``[sample, 1]`` of q(z_s | z_t, x)."""
        t, s = self.times(step, x)
        (alpha, _), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
        at_t, at_s = self.transformed_twice(x, t, s, context)
        mean = alpha_s * (at_s - self.ratio * at_t) + self.ratio * alpha_s / alpha * z
        return mean, sigma_s * math.sqrt(1 - self.ratio)

    def sample(self, noise: Tensor, context: Tensor) -> Tensor:
        """x ``[sample, dim]`` from standard normal ``noise`` ``[T + 2, sample, dim]``: z_1, the steps, x."""
        z = noise[-1]
        for step in range(self.steps, 0, -1):
            steps = torch.full((len(z),), step, device=z.device)
            guess = self.denoised(z, self.times(steps, z)[0], context)
            mean, deviation = self.posterior(guess, z, context, steps)
            z = mean + deviation * noise[step]
        alpha, sigma = amplitudes(z.new_zeros(1))
        return (z + sigma * noise[0]) / alpha


def even_steps(count: int, steps: int, start: Tensor) -> Tensor:
    """``[sample]`` steps from 1 to ``steps``, each uniform when ``start`` is so in [0, 1), and together as
    evenly spread as they can be (Kingma, Salimans, Poole and Ho 2021)."""
    u = (start + torch.arange(count, device=start.device) / count) % 1
    return 1 + (u * steps).long().clamp(max=steps - 1)


class NeuralDiffusion(nn.Module):
    """The law of the frames that follow a frame, as a diffusion whose forward process is learned.

    Built from ``truth``, whose number of frames is the window's (2 or more) and whose uniform time step is
    the only one it can roll out; frames 1.. of a window are generated at once given frame 0 and its actions,
    and longer rollouts are chained windows. What is diffused is the change from frame 0, each number of it
    divided by its deviation in ``truth``. States must be floating, standardised by component.
    """

    scaling = "component"
    whole_window = True

    def __init__(
        self,
        truth: Trajectory,
        *,
        width: Annotated[int, Field(ge=1, description="units in each hidden layer of both networks")] = 128,
        depth: Annotated[int, Field(ge=1, description="number of hidden layers of both networks")] = 2,
        steps: Annotated[
            int, Field(ge=1, description="steps of the diffusion, in training as in sampling")
        ] = 8,
        forward: Annotated[
            Forward, Field(description="the forward process: learned, or the fixed one of plain diffusion")
        ] = "learned",
    ) -> None:
        super().__init__()
        self.windows = Windows(truth)
        self.diffusion = NeuralDiffusionModel(
            self.windows.size, self.windows.features, steps=steps, width=width, depth=depth, forward=forward
        )
        states = truth.states[:, 0]
        spread = (states[:, 1:] - states[:, :1]).flatten(1).std(0, correction=0)
        self.register_buffer("spread", torch.where(spread > 0, spread, 1.0))

    def velocity(self, x: Tensor, s: Tensor | float, context: Tensor) -> Tensor:
        """dx/ds of the scaled changes ``[sample, number]`` at generator time ``s``; ``context``
        ``[sample, feature]`` as ``condition`` makes it."""
        return self.diffusion.velocity(x, s, context)

    def condition(self, frame: Tensor, actions: Tensor | None) -> Tensor:
        """``[sample, feature]`` from frame 0 ``[sample, *state]`` and actions ``[sample, time, *action]``."""
        return self.windows.condition(frame, actions)

    def loss(self, truth: Trajectory) -> Tensor:
        """Minus the evidence lower bound, in nats for each generated number, over windows ``truth``
        ``[trajectory, 1, window, *state]``; of each window one step is looked at."""
        first, rest, context = self.windows.split(truth)
        x = (rest - first[:, None]).flatten(1) / self.spread
        step = even_steps(len(x), self.diffusion.steps, torch.rand(1)).to(x.device)
        noise = torch.randn(x.shape, dtype=x.dtype).to(x)
        bound = self.diffusion.bound_by_one_step(x, context, step, noise).mean() / x.shape[1]
        return self.spread.log().mean() - bound

    @torch.no_grad()
    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``draws`` futures of the last frame of each context, window by window.

        ``times`` must have the step of the fit (ValueError otherwise); any number of frames. Where a window
        reaches past ``times`` its last action is held, and its surplus frames are dropped. The noise is
        drawn on the CPU in float64.
        """

        def window_after(known: Tensor, given: Tensor) -> Tensor:
            shape = (self.diffusion.steps + 2, len(given), self.diffusion.dim)
            change = self.spread * self.diffusion.sample(normal(shape, generator, given), given)
            frame = known[:, :, -1].flatten(0, 1)
            return frame[:, None] + change.view(len(frame), -1, *self.windows.state_shape)

        return self.windows.chained(window_after, context, times, actions, draws, self.spread)


@hookimpl
def worldsim_generators() -> Mapping[str, Callable[..., NeuralDiffusion]]:
    return {"neural_diffusion": NeuralDiffusion}
