"""Layers of several kinds, in an order that one line says.

    ssm ssm ssm ssm attention ssm ssm ssm          one attention to seven Mambas (Jamba, Lieber et al. 2024)
    ssm ssm+experts attention ssm+experts          with a mixture of experts in every second layer
    mambavision mambavision attention attention    the later half looks at everything (MambaVision,
                                                   Hatamizadeh and Kautz 2024)

Attention has no positions here, as in Jamba: recurrences and convolutions tell where a token is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim_plugins.backbones.blocks import MLP, BothWays, Carrying, Form, Heads, Norm, Stack
from worldsim_plugins.backbones.linear_attention import Gated, Ungated
from worldsim_plugins.backbones.mamba import Mamba, Mamba2, MambaVision
from worldsim_plugins.backbones.recurrent import Cells
from worldsim_plugins.backbones.retention import MultiScaleRetention
from worldsim_plugins.backbones.rwkv7 import TimeMix
from worldsim_plugins.backbones.transformer import SelfAttention


class TimeMixAlone(Carrying):
    """Time mixing of RWKV-7 by itself: as in its first layer, without the values of another."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.mix = TimeMix(width, heads, causal=causal)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, _, state = self.mix.advance(x, None, state)
        return output, state


def either_way(one_way: Callable[[], nn.Module], causal: bool) -> nn.Module:
    return one_way() if causal else BothWays(one_way)


def gru(width: int) -> nn.GRU:
    return nn.GRU(width, width, batch_first=True)


def mambavision(width: int, states: int, causal: bool) -> nn.Module:
    if causal:
        raise ValueError("layers: mambavision looks at the next token and cannot be causal: take ssm")
    return MambaVision(width, states)


MIXERS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "attention": lambda width, heads, _, causal: SelfAttention(width, heads, causal, positions=False),
    "linear": lambda width, heads, _, causal: Ungated(width, heads, causal),
    "gated": lambda width, heads, _, causal: either_way(lambda: Gated(width, heads), causal),
    "retention": lambda width, heads, _, causal: either_way(
        lambda: MultiScaleRetention(width, heads), causal
    ),
    "ssm": lambda width, _, states, causal: Mamba(width, states, causal),
    "mamba2": lambda width, heads, states, causal: Mamba2(width, states, heads, causal),
    "rwkv7": lambda width, heads, _, causal: TimeMixAlone(width, heads, causal),
    "gru": lambda width, _, __, causal: either_way(lambda: Cells(gru(width)), causal),
    "mambavision": lambda width, _, states, causal: mambavision(width, states, causal),
}
"""(width, heads, states, causal) -> the mixer of one layer."""


EXPERTS = "+experts"


def known(layers: str) -> str:
    """The line itself. Raises ValueError for one that is not made of names of mixers."""
    unknown = sorted({word.removesuffix(EXPERTS) for word in layers.split()} - set(MIXERS))
    if unknown or not layers.split():
        raise ValueError(
            f"{', '.join(unknown) or 'nothing'} in layers {layers!r}; allowed are {', '.join(MIXERS)}, each "
            f"also with {EXPERTS} behind it"
        )
    return layers


Layers: TypeAlias = Annotated[
    str,
    AfterValidator(known),
    Field(
        description=f"mixers from the first layer to the last: {', '.join(MIXERS)}; with {EXPERTS} behind "
        "it, the MLP after it is a mixture"
    ),
]


class Hybrid:
    """Blocks of the mixers that ``layers`` names, each with an MLP after it.

    Raises ValueError for a line that is not made of known names, and ``layers`` as the mixers do: for
    ``mambavision`` where it is to be causal, for heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        layers: Layers = "ssm ssm attention ssm",
        repeat: Annotated[int, Field(ge=1, le=64, description="times that the line is gone through")] = 1,
        heads: Heads = 4,
        states: Annotated[int, Field(ge=1, le=256, description="states of ssm, mamba2 and mambavision")] = 16,
        norm: Norm = "rms",
        mlp: MLP = "swiglu",
        experts: Annotated[int, Field(ge=2, le=64, description="experts where a layer has them")] = 4,
    ) -> None:
        words = known(layers).split() * repeat
        self.names = [word.removesuffix(EXPERTS) for word in words]
        self.heads, self.states, self.norm = heads, states, norm
        self.forms = [Form(norm, mlp, experts if word.endswith(EXPERTS) else 0) for word in words]

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        found: list[nn.Module] = []
        for name, form in zip(self.names, self.forms):
            mixer = MIXERS[name](width, self.heads, self.states, causal)
            found += form.blocks(width, [mixer], given=given, causal=causal, grid=grid)
        return Stack(width, found, given=given, causal=causal, norm=self.norm)


@hookimpl
def worldsim_backbones():
    return {"hybrid": Hybrid}
