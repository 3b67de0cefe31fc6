"""What stands between the mixers of a backbone: networks of each token, or of a token and its neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim_kernels import route, swiglu
from worldsim_kernels.experts import SwiGLUExperts, load, mixture

TAPS = 3
BALANCE = 0.01
"""What a step of training adds to, or takes from, the bias of an expert."""


def mlp_of(
    kind: str, width: int, *, experts: int = 0, chosen: int = 2, causal: bool, grid: tuple[int, ...]
) -> nn.Module:
    """The MLP of a block. Raises ValueError for experts of another kind than "swiglu", for fewer of them than
    are chosen, and as ``MixFFN``."""
    if experts:
        if kind != "swiglu" or experts < chosen:
            raise ValueError(
                f"experts: {experts} of mlp {kind!r}; they are of mlp 'swiglu', and at least {chosen}, which "
                "each token goes to"
            )
        return Experts(width, experts, chosen)
    if kind == "mix":
        return MixFFN(width, causal, grid)
    return SwiGLU(width) if kind == "swiglu" else GELU(width)


def inner_of(width: int) -> int:
    """Hidden channels of a gated network: 8/3 widths, the size of a plain one of four."""
    return 4 * round(2 * width / 3)


class SwiGLU(nn.Module):
    """Position-wise W_3 (silu(W_1 x) * W_2 x) (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * inner_of(width), bias=False)
        self.down = nn.Linear(inner_of(width), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.up(x).chunk(2, -1)
        return self.down(swiglu(one, two))


class GELU(nn.Sequential):
    """Position-wise W_2 gelu(W_1 x), of four widths inside (Hendrycks and Gimpel 2016; Radford et al.
    2018)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class MixFFN(nn.Module):
    """W_3 (silu(b) * a), [a, b] = D silu(W_1 x), D a convolution of each channel over 3 neighbours on each
    axis: how linear attention, which is blind to distance, sees what is near (SANA, Xie et al. 2024).

    The neighbours are those on the ``grid``: along a sequence; in a picture (row, column); in each frame by
    itself of (frame, row, column). ``causal``: the two tokens before. Raises ValueError for a picture that is
    to be causal, and for more than three axes.
    """

    def __init__(self, width: int, causal: bool, grid: tuple[int, ...] = ()) -> None:
        super().__init__()
        if len(grid) > 3 or (causal and len(grid) > 1):
            raise ValueError(
                f"mlp 'mix' convolves a causal sequence, or both ways a sequence, a picture (row, column) or "
                f"frames (frame, row, column); the tokens are {'causal, ' if causal else ''}of {list(grid)}"
            )
        inner = inner_of(width)
        self.causal, self.picture = causal, grid[-2:] if len(grid) > 1 else ()
        self.up = nn.Linear(width, 2 * inner)
        kind = nn.Conv2d if self.picture else nn.Conv1d
        self.near = kind(2 * inner, 2 * inner, TAPS, padding=0 if causal else TAPS // 2, groups=2 * inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            return self.advance(x)[0]
        h = F.silu(self.up(x))
        if self.picture:
            seen = h.unflatten(1, (-1, *self.picture)).flatten(0, 1).movedim(-1, 1)
            h = self.near(seen).movedim(1, -1).reshape(h.shape)
        else:
            h = self.near(h.mT).mT
        return self._narrow(h)

    def advance(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where it is causal. ``state`` ``[batch, 2, channel]``: of the two tokens before."""
        h = F.silu(self.up(x))
        before = h.new_zeros(len(h), TAPS - 1, h.shape[2]) if state is None else state
        h = torch.cat([before, h], 1)
        return self._narrow(self.near(h.mT).mT), h[:, 1 - TAPS :]

    def _narrow(self, h: Tensor) -> Tensor:
        value, gate = h.chunk(2, -1)
        return self.down(swiglu(gate, value))


class Experts(nn.Module):
    """A sparse mixture: each token goes to ``chosen`` of ``count`` networks ``SwiGLU``, weighted by a softmax
    of their logits (Jiang et al. 2024).

    What keeps all of them at work needs no term in anybody's loss: in training, each pass raises the bias of
    experts with less than their share of the tokens and lowers that of the others; the bias has a part in the
    choice alone, not in the weights (Wang et al. 2024, who add to sigmoids what is added to logits here).
    """

    bias: Tensor

    def __init__(self, width: int, count: int, chosen: int = 2) -> None:
        super().__init__()
        self.chosen, inner = chosen, inner_of(width)
        self.router = nn.Linear(width, count, bias=False)
        self.gate, self.value, self.out = (
            nn.Parameter(torch.empty(count, a, b).uniform_(-1, 1) / math.sqrt(a))
            for a, b in ((width, inner), (width, inner), (inner, width))
        )
        self.register_buffer("bias", torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        routing = route(self.router(x), self.chosen, bias=self.bias)
        if self.training:
            with torch.no_grad():
                self.bias += BALANCE * (1 / len(self.bias) - load(routing)).sign()
        return mixture(x, routing, SwiGLUExperts(self.gate, self.value, self.out))
