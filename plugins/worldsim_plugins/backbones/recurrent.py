"""Recurrent networks: the gated recurrent unit (Cho et al. 2014), and long short-term memory (Hochreiter and
Schmidhuber 1997)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl
from worldsim_plugins.backbones.blocks import BothWays, Modulation


class Recurrent:
    """A state of ``width`` numbers per layer is carried from token to token; no attention, no positions."""

    def __init__(
        self,
        *,
        cell: Annotated[Literal["gru", "lstm"], Field(description="what carries the past forward")] = "gru",
        depth: Annotated[int, Field(ge=1, le=64, description="layers")] = 1,
    ) -> None:
        self.cell, self.depth = cell, depth

    def layers(
        self, width: int, *, causal: bool = True, given: int = 0, grid: tuple[int, ...] = ()
    ) -> nn.Module:
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[self.cell]

        def one_way() -> nn.Module:
            return Cells(cell(width, width, self.depth, batch_first=True), given)

        return one_way() if causal else BothWays(one_way)


class Cells(nn.Module):
    """The outputs of recurrent layers; c is added to what they read."""

    def __init__(self, cell: nn.GRU | nn.LSTM, given: int = 0) -> None:
        super().__init__()
        self.cell = cell
        self.modulation = Modulation(given, cell.input_size, 1) if given else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.advance(x, None, c)[0]

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        """``state``: of each layer the tensors that its cell carries, ``[batch, layer, width]``."""
        if self.modulation is not None:
            x = x + self.modulation(c)[0]
        before = None if state is None else tuple(each.transpose(0, 1).contiguous() for each in state)
        if before is not None and isinstance(self.cell, nn.GRU):
            (before,) = before
        y, after = self.cell(x, before)
        after = after if isinstance(after, tuple) else (after,)
        return y, tuple(each.transpose(0, 1) for each in after)


@hookimpl
def worldsim_backbones():
    return {"recurrent": Recurrent}
