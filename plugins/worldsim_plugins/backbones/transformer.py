"""The transformer: softmax attention (Vaswani et al. 2017), with rotary positions (Su et al. 2021)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim_kernels import attend, rotary
from worldsim_plugins.backbones.blocks import Carrying, Residual, Stack, heads_of
from worldsim_plugins.backbones.mlps import SwiGLU


class Transformer:
    """Every token looks at all before it, o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt K) v_s, or at all.

    ``layers`` raises ValueError where ``heads`` does not divide the width into even numbers of channels.
    """

    def __init__(
        self,
        *,
        depth: Annotated[int, Field(ge=1, le=64, description="layers")] = 2,
        heads: Annotated[int, Field(ge=1, le=64, description="heads of attention")] = 4,
    ) -> None:
        self.depth, self.heads = depth, heads

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        heads_of(width, self.heads, even=True)
        parts = [
            part
            for _ in range(self.depth)
            for part in (SelfAttention(width, self.heads, causal), SwiGLU(width))
        ]
        return Stack(width, [Residual(width, part, given) for part in parts], given=given, causal=causal)


class SelfAttention(Carrying):
    """Attention of features ``[batch, token, width]`` over themselves. It carries all keys and values."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        at = torch.arange(x.shape[1], device=x.device) + (0 if state is None else state[0].shape[1])
        q, k = rotary(q, at), rotary(k, at)
        if state is not None:
            k, v = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        return self.out(attend(q, k, v, causal=self.causal).output.flatten(2)), (k, v)


@hookimpl
def worldsim_backbones():
    return {"transformer": Transformer}
