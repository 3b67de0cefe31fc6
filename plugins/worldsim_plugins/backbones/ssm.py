"""State-space models: Mamba blocks (Gu and Dao 2023), or those of Mamba-2 (Dao and Gu 2024), one after the
other.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t

The step delta, B and C come from the input; A is a number for each channel and state, in Mamba-2 for each
head.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from worldsim import hookimpl
from worldsim_plugins.backbones.blocks import Depth, Norm, Residual, Stack
from worldsim_plugins.backbones.mamba import Mamba, Mamba2


class SSM:
    """Mamba blocks of twice the width inside, along the tokens or both ways (Vision Mamba, Zhu et al. 2024);
    no attention, no positions, no MLP.

    ``layers`` raises ValueError where the heads of ``mamba2`` do not divide twice the width.
    """

    def __init__(
        self,
        *,
        version: Annotated[
            Literal["mamba1", "mamba2"], Field(description="a rate for each channel and state, or each head")
        ] = "mamba1",
        depth: Depth = 2,
        states: Annotated[
            int, Field(ge=1, le=256, description="states of each channel, or rows of a head's state")
        ] = 16,
        heads: Annotated[int, Field(ge=1, le=256, description="heads of mamba2")] = 4,
        norm: Norm = "rms",
    ) -> None:
        self.version, self.depth, self.states, self.heads, self.norm = version, depth, states, heads, norm

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        def mixer() -> nn.Module:
            if self.version == "mamba1":
                return Mamba(width, self.states, causal)
            return Mamba2(width, self.states, self.heads, causal)

        layers = [Residual(width, mixer(), given, self.norm) for _ in range(self.depth)]
        return Stack(width, layers, given=given, causal=causal, norm=self.norm)


@hookimpl
def worldsim_backbones():
    return {"ssm": SSM}
