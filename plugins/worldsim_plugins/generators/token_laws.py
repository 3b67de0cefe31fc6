"""Laws of one token of real numbers, given features of what came before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim_plugins.generators.flow_sampling import transported
from worldsim_plugins.generators.networks import TIME_FEATURES, fourier, perceptron
from worldsim_plugins.generators.windows import normal

NARROWEST = 1e-3
"""Least standard deviation of a component, in units of the training data's: a density has a maximum then."""
FLOW_STEPS = 10


class MixtureLaw(nn.Module):
    """p(x | h) = sum_k pi_k(h) N(x; m_k(h), diag d_k(h)^2), a mixture density network (Bishop 1994).

    x is ``[..., number]`` and h ``[..., width]``. The numbers of a token are independent within a component.
    """

    def __init__(self, width: int, numbers: int, components: int) -> None:
        super().__init__()
        self.numbers, self.components = numbers, components
        self.out = nn.Linear(width, components * (1 + 2 * numbers))

    def parameters_of(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log pi ``[..., component]``, m and d ``[..., component, number]``."""
        k, n = self.components, self.numbers
        logits, mean, raw = self.out(h).split([k, k * n, k * n], -1)
        shape = (*h.shape[:-1], k, n)
        return logits.log_softmax(-1), mean.reshape(shape), F.softplus(raw).reshape(shape) + NARROWEST

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """log p(x | h) ``[...]``, nats."""
        log_weight, mean, deviation = self.parameters_of(h)
        z = (x[..., None, :] - mean) / deviation
        each = -0.5 * z.square() - deviation.log() - 0.5 * math.log(2 * math.pi)
        return (log_weight + each.sum(-1)).logsumexp(-1)

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """-log p(x | h) per number, ``[...]``."""
        return -self.log_prob(h, x) / self.numbers

    def sample(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """A draw for each row of h ``[sample, width]``; None draws from torch's default generator. It is
        differentiable in m and d, not in which component was taken."""
        log_weight, mean, deviation = self.parameters_of(h)
        taken = torch.multinomial(log_weight.detach().double().exp().cpu(), 1, generator=generator)
        at = taken.to(h.device)[..., None].expand(-1, 1, self.numbers)
        noise = normal((len(h), self.numbers), generator, h)
        return mean.gather(1, at)[:, 0] + deviation.gather(1, at)[:, 0] * noise

    def variance(self, h: Tensor) -> Tensor:
        """Of each number, ``[sample, number]``."""
        log_weight, mean, deviation = self.parameters_of(h)
        weight = log_weight.exp()[..., None]
        centre = (weight * mean).sum(-2, keepdim=True)
        return (weight * (deviation.square() + (mean - centre).square())).sum(-2)


class FlowLaw(nn.Module):
    """x | h is where a rectified flow of its own takes noise (as the diffusion loss of Li et al. 2024, with a
    velocity): any law of the numbers together, sampled in ten midpoint steps; its density is not given."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.field = perceptron(numbers + width + TIME_FEATURES, 2 * width, 2, numbers)

    def velocity(self, x: Tensor, s: Tensor, h: Tensor) -> Tensor:
        """At ``x`` ``[sample, number]``, s ``[sample]`` and h ``[sample, width]``."""
        return self.field(torch.cat([x, h, fourier(s)], -1))

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """Squared error of the velocity per number, ``[...]``, at one time drawn for each token."""
        rows, data = h.flatten(0, -2), x.flatten(0, -2)
        noise = torch.randn(data.shape, dtype=data.dtype).to(data)
        s = torch.rand(len(data), dtype=data.dtype).to(data)
        velocity = self.velocity(noise + s[:, None] * (data - noise), s, rows)
        return (velocity - (data - noise)).square().mean(-1).reshape(x.shape[:-1])

    def sample(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """As ``MixtureLaw.sample``, differentiable in all."""
        noise = normal((len(h), self.numbers), generator, h)
        return transported(
            lambda x, s: self.velocity(x, x.new_full((len(x),), s), h), noise, FLOW_STEPS, "midpoint"
        )
