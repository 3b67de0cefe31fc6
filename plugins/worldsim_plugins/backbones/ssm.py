"""The selective state-space model of Gu and Dao (2023): Mamba blocks, one after the other.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t,   out = W_o (y * silu(z))

The step delta, B and C come from the input, u after a short causal convolution.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import hookimpl
from worldsim_kernels import selective_scan
from worldsim_plugins.backbones.blocks import Block, BothWays, Stack

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
        def one_way() -> nn.Module:
            return Mamba(width, self.states)

        return Stack(width, [
            Block(width, one_way() if causal else BothWays(one_way), given=given) for _ in range(self.depth)
        ], given)  # fmt: skip


class Mamba(nn.Module):
    """One block, ``[batch, time, width]`` to the same."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner, self.rank, self.states = EXPAND * width, math.ceil(width / 16), states
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, TAPS, groups=inner)
        self.read = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, inner, bias=False)
        # Steps from 1e-3 to 1e-1 to begin with, through the inverse of the softplus, as published.
        first = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)))
        self.step_bias = nn.Parameter(first + torch.log(-torch.expm1(-first)))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.into(x).chunk(2, -1)
        u = F.silu(self.convolution(F.pad(u.mT, (TAPS - 1, 0))).mT)
        raw, B, C = self.read(u).split([self.rank, self.states, self.states], -1)
        y = selective_scan(u, self.step(raw), -self.A_log.exp(), B, C, self.D, z, self.step_bias).output
        return self.out(y)


@hookimpl
def worldsim_backbones():
    return {"ssm": SSM}
