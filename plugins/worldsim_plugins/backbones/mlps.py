"""What stands between the mixers of a backbone: networks of each token."""

from __future__ import annotations

from torch import Tensor, nn

from worldsim_kernels import swiglu


def inner_of(width: int) -> int:
    """Hidden channels of a gated network: 8/3 widths, the size of a plain one of four."""
    return 4 * round(2 * width / 3)


class SwiGLU(nn.Module):
    """Position-wise W_3 (silu(W_1 x) * W_2 x) (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * inner_of(width), bias=False)
        self.down = nn.Linear(inner_of(width), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.up(x).chunk(2, -1)
        return self.down(swiglu(one, two))
