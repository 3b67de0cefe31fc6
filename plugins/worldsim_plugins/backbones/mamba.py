"""Mixers around a selective state-space recurrence.

Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024), both ways as in Vision Mamba (Zhu et al. 2024): the
convolution and the scan from the end have parameters of their own, are gated by the same z and added. And the
mixer of MambaVision (Hatamizadeh and Kautz 2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim_kernels import selective_scan, ssd
from worldsim_plugins.backbones.blocks import Carrying, heads_of

EXPAND = 2
TAPS = 4
"""Tokens that the convolution sees."""


class Mamba(Carrying):
    """out = W_o (y * silu(z)), y the selective scan of u, [u, z] = W_i x; ``[batch, token, width]``."""

    def __init__(self, width: int, states: int, causal: bool = True) -> None:
        super().__init__()
        inner = EXPAND * width
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.ways = nn.ModuleList(MambaWay(inner, states, width) for _ in range(1 if causal else 2))
        self.out = nn.Linear(inner, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        u, z = self.into(x).chunk(2, -1)
        y, state = self.ways[0].advance(u, z, state)
        for back in self.ways[1:]:
            y = y + back.advance(u.flip(1), z.flip(1))[0].flip(1)
        return self.out(y), state


class MambaWay(nn.Module):
    """The convolution and the gated scan in one direction."""

    def __init__(self, inner: int, states: int, width: int) -> None:
        super().__init__()
        self.convolution = CausalConvolution(inner)
        self.scan = Selective(inner, states, width)

    def advance(self, u: Tensor, z: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        taps, memory = (None, None) if state is None else state
        u, taps = self.convolution.advance(u, taps)
        y, memory = self.scan.advance(u, z, memory)
        return y, (taps, memory)


class Selective(nn.Module):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t h_t + D u_t, times silu(z_t) where z is
    given: the step delta (through a map of rank ``width`` / 16), B and C come from u."""

    def __init__(self, inner: int, states: int, width: int) -> None:
        super().__init__()
        self.rank, self.states = math.ceil(width / 16), states
        self.read = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, inner, bias=False)
        self.step_bias = nn.Parameter(first_steps(inner))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def advance(
        self, u: Tensor, z: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        raw, B, C = self.read(u).split([self.rank, self.states, self.states], -1)
        rates = (-self.A_log.exp(), B, C, self.D)
        return selective_scan(u, self.step(raw), *rates, z, self.step_bias, initial_state=state)


class CausalConvolution(nn.Module):
    """silu of a convolution of each channel over a token and the ``TAPS`` - 1 before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taps = nn.Conv1d(channels, channels, TAPS, groups=channels)

    def advance(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``state`` ``[batch, TAPS - 1, channel]``: the tokens before."""
        before = x.new_zeros(len(x), TAPS - 1, x.shape[2]) if state is None else state
        x = torch.cat([before, x], 1)
        return F.silu(self.taps(x.mT).mT), x[:, 1 - TAPS :]


class Mamba2(Carrying):
    """out = W_o norm(y * silu(z)), [z, u, B, C, dt] = W_i x, and for each head, after a convolution of u, B
    and C,

        S_t = e^{delta_t A} S_{t-1} + delta_t B_t u_t^T,   y_t = S_t^T C_t + D u_t,   delta = softplus(dt + b)

    with one rate A. Raises ValueError where ``heads`` does not divide twice the width.
    """

    def __init__(self, width: int, states: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        inner = EXPAND * width
        heads_of(inner, heads)
        self.sizes = (inner, inner + 2 * states, heads)
        self.into = nn.Linear(width, sum(self.sizes), bias=False)
        self.ways = nn.ModuleList(Mamba2Way(inner, states, heads) for _ in range(1 if causal else 2))
        self.norm = nn.RMSNorm(inner, eps=1e-6)
        self.out = nn.Linear(inner, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        z, read, dt = self.into(x).split(self.sizes, -1)
        y, state = self.ways[0].advance(read, dt, state)
        for back in self.ways[1:]:
            y = y + back.advance(read.flip(1), dt.flip(1))[0].flip(1)
        return self.out(self.norm(y * F.silu(z))), state


class Mamba2Way(nn.Module):
    """The convolution and the scan in one direction. A is from -1 to -16 to begin with, as published."""

    def __init__(self, inner: int, states: int, heads: int) -> None:
        super().__init__()
        self.heads, self.sizes = heads, (inner, states, states)
        self.convolution = CausalConvolution(sum(self.sizes))
        self.step_bias = nn.Parameter(first_steps(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))

    def advance(self, read: Tensor, dt: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        taps, memory = (None, None) if state is None else state
        read, taps = self.convolution.advance(read, taps)
        u, B, C = read.split(self.sizes, -1)
        delta = F.softplus(dt + self.step_bias)
        u = u.unflatten(-1, (self.heads, -1))
        y, memory = ssd(
            u, delta, -self.A_log.exp(), B[:, :, None], C[:, :, None], self.D, initial_state=memory
        )
        return y.flatten(2), (taps, memory)


class MambaVision(nn.Module):
    """out = W_o [scan(silu(conv(W_1 x))), silu(conv(W_2 x))] with half the width each.

    The convolutions see a token and its two neighbours, the scan goes one way: what it does not see, the half
    without a scan and attention in later layers do.
    """

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        heads_of(width, 2)
        self.into = nn.Linear(width, width, bias=False)
        self.near = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.scan = Selective(width // 2, states, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scanned, near = F.silu(self.near(self.into(x).mT).mT).chunk(2, -1)
        return self.out(torch.cat([self.scan.advance(scanned)[0], near], -1))


def first_steps(count: int) -> Tensor:
    """What gives steps from 1e-3 to 1e-1 through a softplus, to begin with, as published."""
    steps = torch.exp(torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)))
    return steps + torch.log(-torch.expm1(-steps))
