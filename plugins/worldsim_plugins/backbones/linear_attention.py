"""Linear attention: a fixed state instead of all tokens, so that a token costs the same at any length.

    o_t = phi(q_t)^T sum_{s <= t} phi(k_s) v_s^T / (phi(q_t)^T sum_{s <= t} phi(k_s)),   phi = elu + 1

(Katharopoulos et al. 2020). With gates (Yang et al. 2024) the state forgets, each key at a rate of its own
that the token decides: S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T, o_t = K^-1/2 S_t^T q_t.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim import hookimpl
from worldsim_kernels import gla, linear_attention
from worldsim_plugins.backbones.blocks import (
    MLP,
    BothWays,
    Carrying,
    Depth,
    Experts,
    Form,
    Heads,
    Norm,
    Positions,
    Stack,
    heads_of,
)


class LinearAttention:
    """Pre-norm blocks of linear attention and an MLP over features with sinusoidal positions.

    ``layers`` raises ValueError where ``heads`` does not divide the width.
    """

    def __init__(
        self,
        *,
        depth: Depth = 2,
        heads: Heads = 4,
        gated: Annotated[bool, Field(description="whether the state forgets")] = False,
        norm: Norm = "rms",
        mlp: MLP = "swiglu",
        experts: Experts = 0,
    ) -> None:
        self.depth, self.heads, self.gated = depth, heads, gated
        self.form = Form(norm, mlp, experts)

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        def mixer() -> nn.Module:
            if not self.gated:
                return Ungated(width, self.heads, causal)
            return Gated(width, self.heads) if causal else BothWays(lambda: Gated(width, self.heads))

        mixers = [mixer() for _ in range(self.depth)]
        layers = [Positions(), *self.form.blocks(width, mixers, given=given, causal=causal, grid=grid)]
        return Stack(width, layers, given=given, causal=causal, norm=self.form.norm)


class Ungated(Carrying):
    """Linear attention of features ``[batch, token, width]`` over those up to each, or over all."""

    def __init__(self, width: int, heads: int, causal: bool = True, feature_map: str = "elu") -> None:
        super().__init__()
        heads_of(width, heads)
        self.heads, self.causal, self.feature_map = heads, causal, feature_map
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def advance(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        options = {"feature_map": self.feature_map, "causal": self.causal}
        mixed, state = linear_attention(q, k, v, **options, initial_state=state)
        return self.out(mixed.flatten(2)), state


class Gated(Ungated):
    """The same with a state that forgets. log sigma(.) / 16 keeps it for tens of tokens to begin with, and
    each head's output is normalised, both as published."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.gate = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width // heads, eps=1e-6)

    def advance(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        forgets = F.logsigmoid(self.gate(x)).unflatten(-1, (self.heads, -1)) / 16
        mixed, state = gla(q, k, v, forgets, initial_state=state)
        return self.out(self.norm(mixed).flatten(2)), state


@hookimpl
def worldsim_backbones():
    return {"linear_attention": LinearAttention}
