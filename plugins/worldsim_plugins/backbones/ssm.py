"""State-space models: Mamba blocks (Gu and Dao 2023), one after the other.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t,   out = W_o (y * silu(z))

The step delta, B and C come from the input, u after a short causal convolution. Both ways, a convolution and
a scan from the end, each with parameters of its own, are gated by the same z and added (Vision Mamba, Zhu et
al. 2024).
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import hookimpl
from worldsim_kernels import selective_scan
from worldsim_plugins.backbones.blocks import Carrying, Residual, Stack

EXPAND = 2
TAPS = 4
"""Tokens that the convolution sees."""


class SSM:
    """Mamba blocks of twice the width inside, along the tokens or both ways; no attention, no positions, no
    MLP."""

    def __init__(
        self,
        *,
        depth: Annotated[int, Field(ge=1, le=64, description="layers")] = 2,
        states: Annotated[int, Field(ge=1, le=256, description="states of each channel")] = 16,
    ) -> None:
        self.depth, self.states = depth, states

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        mixers = [Mamba(width, self.states, causal) for _ in range(self.depth)]
        return Stack(width, [Residual(width, each, given) for each in mixers], given=given, causal=causal)


class Mamba(Carrying):
    """One block, ``[batch, token, width]`` to the same."""

    def __init__(self, width: int, states: int, causal: bool = True) -> None:
        super().__init__()
        inner = EXPAND * width
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.ways = nn.ModuleList(Selective(inner, states, width) for _ in range(1 if causal else 2))
        self.out = nn.Linear(inner, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        u, z = self.into(x).chunk(2, -1)
        y, state = self.ways[0].advance(u, z, state)
        for back in self.ways[1:]:
            y = y + back.advance(u.flip(1), z.flip(1))[0].flip(1)
        return self.out(y), state


class Selective(nn.Module):
    """The convolution and the gated scan, one way, of ``inner`` channels."""

    def __init__(self, inner: int, states: int, width: int) -> None:
        super().__init__()
        self.rank, self.states = math.ceil(width / 16), states
        self.convolution = CausalConvolution(inner)
        self.read = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, inner, bias=False)
        self.step_bias = nn.Parameter(first_steps(inner))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def advance(self, u: Tensor, z: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        taps, memory = (None, None) if state is None else state
        u, taps = self.convolution.advance(u, taps)
        raw, B, C = self.read(u).split([self.rank, self.states, self.states], -1)
        y, memory = selective_scan(
            u, self.step(raw), -self.A_log.exp(), B, C, self.D, z, self.step_bias, initial_state=memory
        )
        return y, (taps, memory)


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


def first_steps(count: int) -> Tensor:
    """What gives steps from 1e-3 to 1e-1 through a softplus, to begin with, as published."""
    steps = torch.exp(torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)))
    return steps + torch.log(-torch.expm1(-steps))


@hookimpl
def worldsim_backbones():
    return {"ssm": SSM}
