"""DiffuSSM (Yan, Gu and Rush 2023): a diffusion backbone without attention, at full length.

A gated diagonal state-space model that looks both ways (S4D, Gu et al. 2022) is followed by an hourglass: an
MLP over M neighbouring tokens at once, for which the length is M times shorter. One channel of the model is

    y_t = sum_{l >= 0} K_l u_{t-l} + sum_{l >= 1} K'_{l-1} u_{t+l} + D u_t
    K_l = 2 Re sum_n C_n (e^{delta A_n} - 1) / A_n e^{l delta A_n}

a convolution with K and K' of the whole length, by one Fourier transform.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import hookimpl
from worldsim_plugins.backbones.blocks import Depth, Norm, Residual, Stack


class DiffuSSM:
    """Blocks of a gated state-space model and an hourglass; no attention, no positions.

    ``layers`` raises ValueError where it is to be causal: it looks both ways.
    """

    def __init__(
        self,
        *,
        depth: Depth = 2,
        states: Annotated[int, Field(ge=1, le=256, description="pairs of states of each channel")] = 8,
        ratio: Annotated[int, Field(ge=1, le=64, description="neighbours M that an MLP reads at once")] = 2,
        norm: Norm = "rms",
    ) -> None:
        self.depth, self.states, self.ratio, self.norm = depth, states, ratio, norm

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        if causal:
            raise ValueError("diffussm looks both ways and cannot be causal: take ssm")
        parts = [
            part
            for _ in range(self.depth)
            for part in (GatedSSM(width, self.states), Hourglass(width, self.ratio))
        ]
        layers = [Residual(width, part, given, self.norm) for part in parts]
        return Stack(width, layers, given=given, causal=False, norm=self.norm)


class GatedSSM(nn.Module):
    """W_3 (gelu(W_2 S4D(gelu(W_0 x))) * gelu(W_1 x)), ``[batch, token, width]`` to the same."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 2 * width)
        self.core = S4D(width, states)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = F.gelu(self.into(x)).chunk(2, -1)
        return self.out(F.gelu(self.mix(self.core(u))) * gate)


class S4D(nn.Module):
    """The convolution with kernels of both ways, rates A_n = -1/2 + i pi n to begin with (S4D-Lin)."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        both = (2, channels, states)
        steps = torch.empty(2, channels, 1).uniform_(math.log(1e-3), math.log(1e-1))
        self.step_log = nn.Parameter(steps)
        self.decay_log = nn.Parameter(torch.full(both, math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(states).expand(both).clone().float())
        self.C = nn.Parameter(torch.randn(*both, 2) / math.sqrt(2))
        self.D = nn.Parameter(torch.randn(channels))

    def kernels(self, length: int) -> Tensor:
        """K and K', ``[2, channel, length]``."""
        A = torch.complex(-self.decay_log.exp(), self.frequency)
        turned = A * self.step_log.exp()
        weight = torch.view_as_complex(self.C) * torch.expm1(turned) / A
        powers = torch.exp(turned[..., None] * torch.arange(length, device=turned.device))
        return 2 * torch.einsum("wdn,wdnl->wdl", weight, powers).real

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[1]
        ahead, back = self.kernels(length)
        kernel = torch.cat([ahead, back.flip(-1)], -1)  # of period 2 length: nothing goes round
        spectrum = torch.fft.rfft(u.mT, 2 * length) * torch.fft.rfft(kernel)
        return torch.fft.irfft(spectrum, 2 * length)[..., :length].mT + self.D * u


class Hourglass(nn.Module):
    """M tokens side by side through W_2 gelu(W_1 .) and apart again; zeros stand beyond the last one."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.mlp = nn.Sequential(
            nn.Linear(ratio * width, 4 * width), nn.GELU(), nn.Linear(4 * width, ratio * width)
        )

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.ratio))
        short = x.unflatten(1, (-1, self.ratio)).flatten(2)
        return self.mlp(short).unflatten(2, (self.ratio, -1)).flatten(1, 2)[:, :length]


@hookimpl
def worldsim_backbones():
    return {"diffussm": DiffuSSM}
