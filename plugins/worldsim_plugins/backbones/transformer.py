"""The transformer: softmax attention (Vaswani et al. 2017), with rotary positions (Su et al. 2021).

Conditioned by adaLN-Zero and looking both ways it is the diffusion transformer (DiT, Peebles and Xie 2022).
With ``conditioning: tmsa`` what is given enters the attention instead of the norms (DiffiT, Hatamizadeh et
al. 2023): of features x and a vector c,

    q = x W_q + c U_q,  k = x W_k + c U_k,  v = x W_v + c U_v,  o = softmax(q k^T / sqrt K + B) v

with a learned bias B for each head and each offset on the grid, in the place of rotary positions.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim_kernels import attend, rotary
from worldsim_plugins.backbones.blocks import (
    MLP,
    Carrying,
    Depth,
    Experts,
    Form,
    Heads,
    Norm,
    Stack,
    heads_of,
    normalisation,
)

REACH = 64
"""Offsets with a bias of their own in a sequence of any length; those beyond share the last one."""


class Transformer:
    """Every token looks at all before it, o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt K) v_s, or at all.

    ``layers`` raises ValueError where ``heads`` does not divide the width, or leaves odd numbers of channels
    to be turned by positions, and for ``tmsa`` with nothing given.
    """

    def __init__(
        self,
        *,
        depth: Depth = 2,
        heads: Heads = 4,
        norm: Norm = "rms",
        mlp: MLP = "swiglu",
        experts: Experts = 0,
        conditioning: Annotated[
            Literal["adaln_zero", "tmsa"],
            Field(
                description="where what is given enters: the norms and gates of each part, or the attention"
            ),
        ] = "adaln_zero",
    ) -> None:
        self.depth, self.heads, self.form = depth, heads, Form(norm, mlp, experts)
        self.conditioning = conditioning

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        if self.conditioning == "adaln_zero":
            mixers = [SelfAttention(width, self.heads, causal) for _ in range(self.depth)]
            layers = self.form.blocks(width, mixers, given=given, causal=causal, grid=grid)
            return Stack(width, layers, given=given, causal=causal, norm=self.form.norm)
        if not given:
            raise ValueError("conditioning 'tmsa': nothing is given here; leave it out")
        mixers = [TimedAttention(width, self.heads, causal, given, grid) for _ in range(self.depth)]
        layers = self.form.blocks(width, mixers, causal=causal, grid=grid)
        layers[::2] = [Told(width, mixer, self.form.norm) for mixer in mixers]
        return Stack(width, layers, causal=causal, norm=self.form.norm)


class SelfAttention(Carrying):
    """Attention of features ``[batch, token, width]`` over themselves, with rotary positions or none. It
    carries all keys and values."""

    def __init__(self, width: int, heads: int, causal: bool, positions: bool = True) -> None:
        super().__init__()
        heads_of(width, heads, even=positions)
        self.heads, self.causal, self.positions = heads, causal, positions
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if self.positions:
            at = torch.arange(x.shape[1], device=x.device) + (0 if state is None else state[0].shape[1])
            q, k = rotary(q, at), rotary(k, at)
        k, v = after(state, k, v)
        return self.out(attend(q, k, v, causal=self.causal).output.flatten(2)), (k, v)


class TimedAttention(SelfAttention):
    """Time-dependent self-attention (TMSA) of features and what is given, c ``[batch, (token,) given]``."""

    def __init__(self, width: int, heads: int, causal: bool, given: int, grid: tuple[int, ...]) -> None:
        super().__init__(width, heads, causal, positions=False)
        self.time = nn.Linear(given, 3 * width, bias=False)
        self.bias = RelativeBias(heads, grid)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.advance(x, None, c)[0]

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        read = self.qkv(x) + self.time(c if c.ndim == 3 else c[:, None])
        q, k, v = read.unflatten(-1, (3, self.heads, -1)).unbind(2)
        k, v = after(state, k, v)
        bias = self.bias(q.shape[1], k.shape[1])
        return self.out(attend(q, k, v, bias, causal=self.causal).output.flatten(2)), (k, v)


class RelativeBias(nn.Module):
    """A number for each head and each offset of two places of the grid; ``[head, query, key]``."""

    def __init__(self, heads: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid, self.sizes = grid, grid or (REACH,)
        offsets = math.prod(2 * size - 1 for size in self.sizes)
        self.table = nn.Parameter(0.02 * torch.randn(heads, offsets))

    def forward(self, queries: int, keys: int) -> Tensor:
        """Of the last ``queries`` of ``keys`` tokens."""
        token = torch.arange(keys, device=self.table.device)
        axes = torch.unravel_index(token, self.grid) if self.grid else (token,)
        index = torch.zeros((), dtype=torch.int64, device=token.device)
        for at, size in zip(axes, self.sizes):
            offset = (at[keys - queries :, None] - at).clamp(1 - size, size - 1)
            index = index * (2 * size - 1) + offset + size - 1
        return self.table[:, index]


class Told(nn.Module):
    """x + part(norm x, c): what is given goes to the part itself."""

    def __init__(self, width: int, part: nn.Module, norm: str) -> None:
        super().__init__()
        self.norm, self.part = normalisation(norm, width), part

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.part(self.norm(x), c)

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        y, state = self.part.advance(self.norm(x), state, c)
        return x + y, state


def after(state: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of all tokens so far."""
    return (k, v) if state is None else (torch.cat([state[0], k], 1), torch.cat([state[1], v], 1))


@hookimpl
def worldsim_backbones():
    return {"transformer": Transformer}
