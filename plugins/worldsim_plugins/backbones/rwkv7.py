"""RWKV-7 (Peng et al. 2025): a state that is decayed, removed along one direction and written, all by the
token.

    S_t = (diag(w_t) - (eta_t * kappa_t) kappa_t^T) S_{t-1} + k_t v_t^T,   o_t = S_t^T r_t

The whole block, with its token shifts and low-rank maps, is ``worldsim_kernels.rwkv7_block``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim_kernels.rwkv7_block import RWKV7ChannelMix, RWKV7TimeMix
from worldsim_plugins.backbones.blocks import Carrying, Depth, Heads, Norm, Residual, Stack, heads_of


class RWKV7:
    """Layers of time mixing and channel mixing. Both ways, a time mixing from each end, summed; the channel
    mixing shifts from the first token on in either case.

    ``layers`` raises ValueError where ``heads`` does not divide the width.
    """

    def __init__(
        self,
        *,
        depth: Depth = 2,
        heads: Heads = 4,
        negative: Annotated[
            bool,
            Field(
                description="whether rates eta go up to 2, for transitions with negative eigenvalues, which "
                "track parity and permutations (Grazzi et al. 2024)"
            ),
        ] = False,
        norm: Norm = "layer",
    ) -> None:
        self.depth, self.heads, self.norm = depth, heads, norm
        self.a_max = 2.0 if negative else 1.0

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        parts = [
            part
            for layer in range(self.depth)
            for part in (
                TimeMix(width, self.heads, layer, self.depth, self.a_max, causal),
                ChannelMix(width, layer, self.depth),
            )
        ]
        layers = [Residual(width, part, given, self.norm) for part in parts]
        return Layers(width, layers, given=given, causal=causal, norm=self.norm)


class Layers(Stack):
    """A stack in which the values of the first time mixing go to all later ones."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self._through(x, None, c)[0]

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        self.expect_causal()
        return self._through(x, state, c)

    def _through(self, x: Tensor, state: Any, c: Tensor | None) -> tuple[Tensor, Any]:
        first, states = None, []
        for i in range(0, len(self.layers), 2):
            time, channel = self.layers[i : i + 2]
            mixed, last = (None, None) if state is None else state[i // 2]
            read, gate = time.read(x, c)
            written, first, mixed = time.part.advance(read, first, mixed)
            x, last = channel.advance(x + gate * written, last, c)
            states.append((mixed, last))
        return self.last(x, c), tuple(states)


class TimeMix(nn.Module):
    """Time mixing of features ``[batch, token, width]`` from the first token on, or from both ends."""

    def __init__(
        self, width: int, heads: int, layer: int = 0, layers: int = 1, a_max: float = 1.0, causal: bool = True
    ) -> None:
        super().__init__()
        heads_of(width, heads)
        self.ways = nn.ModuleList(
            RWKV7TimeMix(width, heads, layer=layer, layers=layers, a_max=a_max)
            for _ in range(1 if causal else 2)
        )

    def advance(self, x: Tensor, first: Any = None, state: Any = None) -> tuple[Tensor, Any, Any]:
        """``first``: of each way the values of the first layer, None in it."""
        first = first or [None] * len(self.ways)
        output, values, state = self.ways[0](x, first[0], state)
        found = [values]
        for way, value in zip(self.ways[1:], first[1:]):
            back, values, _ = way(x.flip(1), value)
            output = output + back.flip(1)
            found.append(values)
        return output, found, state


class ChannelMix(Carrying):
    """relu(W_k x')^2 W_v of tokens shifted towards the one before."""

    def __init__(self, width: int, layer: int, layers: int) -> None:
        super().__init__()
        self.mix = RWKV7ChannelMix(width, layer=layer, layers=layers)

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.mix(x, state)


@hookimpl
def worldsim_backbones():
    return {"rwkv7": RWKV7}
