"""The linear diffusion transformer of SANA (Xie et al. 2024): attention at a cost linear in the tokens.

    o_i = ReLU(q_i)^T sum_j ReLU(k_j) v_j^T / (ReLU(q_i)^T sum_j ReLU(k_j)),   then a Mix-FFN

The convolutions of the Mix-FFN see which tokens are near, so that no positions are added.
"""

from __future__ import annotations

from torch import nn

from worldsim import hookimpl
from worldsim_plugins.backbones.blocks import Depth, Form, Heads, Norm, Stack
from worldsim_plugins.backbones.linear_attention import Ungated


class LinearDiT:
    """Blocks of ReLU attention and a Mix-FFN over the grid that the tokens are of.

    ``layers`` raises ValueError where ``heads`` does not divide the width, and for pictures that are to be
    causal.
    """

    def __init__(self, *, depth: Depth = 2, heads: Heads = 4, norm: Norm = "rms") -> None:
        self.depth, self.heads, self.form = depth, heads, Form(norm, "mix")

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        mixers = [Ungated(width, self.heads, causal, "relu") for _ in range(self.depth)]
        layers = self.form.blocks(width, mixers, given=given, causal=causal, grid=grid)
        return Stack(width, layers, given=given, causal=causal, norm=self.form.norm)


@hookimpl
def worldsim_backbones():
    return {"linear_dit": LinearDiT}
