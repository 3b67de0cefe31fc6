"""Recurrent networks: the gated recurrent unit (Cho et al. 2014), and long short-term memory (Hochreiter and
Schmidhuber 1997)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from worldsim import hookimpl


class Recurrent:
    """A state of ``width`` numbers per layer is carried from token to token; no attention, no positions."""

    causal = True

    def __init__(
        self,
        *,
        cell: Annotated[Literal["gru", "lstm"], Field(description="what carries the past forward")] = "gru",
        depth: Annotated[int, Field(ge=1, le=64, description="layers")] = 1,
    ) -> None:
        self.cell, self.depth = cell, depth

    def layers(self, width: int) -> nn.Module:
        return Cells({"gru": nn.GRU, "lstm": nn.LSTM}[self.cell](width, width, self.depth, batch_first=True))


class Cells(nn.Module):
    """The outputs of recurrent layers, without their last state."""

    def __init__(self, cell: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


@hookimpl
def worldsim_backbones():
    return {"recurrent": Recurrent}
