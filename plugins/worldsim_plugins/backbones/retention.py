"""Retention (Sun et al. 2023): attention whose weights fall with distance at a rate of each head.

    S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = K^-1/2 S_t^T q_t,   gamma_h = 1 - 2^(-5 - h)
    out = W_o (silu(W_g x) * norm(o))

q and k are turned by their positions (xPos), each head of o is normalised by itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import hookimpl
from worldsim_kernels import retention, xpos
from worldsim_plugins.backbones.blocks import (
    MLP,
    BothWays,
    Carrying,
    Depth,
    Experts,
    Form,
    Heads,
    Norm,
    Stack,
    heads_of,
    places,
)


class Retention:
    """Blocks of multi-scale retention and an MLP; both ways, one from each end, summed.

    ``layers`` raises ValueError where ``heads`` does not divide the width into even numbers of channels.
    """

    def __init__(
        self,
        *,
        depth: Depth = 2,
        heads: Heads = 4,
        norm: Norm = "rms",
        mlp: MLP = "swiglu",
        experts: Experts = 0,
    ) -> None:
        self.depth, self.heads, self.form = depth, heads, Form(norm, mlp, experts)

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        def one_way() -> nn.Module:
            return MultiScaleRetention(width, self.heads)

        mixers = [one_way() if causal else BothWays(one_way) for _ in range(self.depth)]
        layers = self.form.blocks(width, mixers, given=given, causal=causal, grid=grid)
        return Stack(width, layers, given=given, causal=causal, norm=self.form.norm)


class MultiScaleRetention(Carrying):
    """Retention of features ``[batch, token, width]``, with values of twice the width, as published."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        heads_of(width, heads, even=True)
        self.heads, self.sizes = heads, (width, width, 2 * width, 2 * width)
        self.into = nn.Linear(width, sum(self.sizes), bias=False)
        self.norm = nn.LayerNorm(2 * width // heads, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(2 * width, width, bias=False)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """``state``: S ``[batch, head, K, V]``, and how many tokens there were ``[batch]``."""
        memory, count = (None, None) if state is None else state
        at, count = places(x, count)
        *read, gate = self.into(x).split(self.sizes, -1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in read)
        mixed, memory = retention(xpos(q, at), xpos(k, at), v, initial_state=memory)
        return self.out(F.silu(gate) * self.norm(mixed).flatten(2)), (memory, count)


@hookimpl
def worldsim_backbones():
    return {"retention": Retention}
