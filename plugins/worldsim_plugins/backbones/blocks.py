"""What causal backbones are stacked from: pre-norm residual blocks (Xiong et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldsim_kernels import swiglu


class Block(nn.Module):
    """x + mixer(norm x), then x + MLP(norm x) where there is one; features ``[batch, time, width]``."""

    def __init__(self, width: int, mixer: nn.Module, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.mixer, self.mixer_norm = mixer, nn.RMSNorm(width, eps=1e-6)
        self.mlp = mlp
        self.mlp_norm = None if mlp is None else nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))  # type: ignore[misc]


class SwiGLU(nn.Module):
    """Position-wise W_3 (silu(W_1 x) * W_2 x) (Shazeer 2020), 8/3 as wide inside: the size of a plain MLP of
    four widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * round(2 * width / 3)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.up(x).chunk(2, -1)
        return self.down(swiglu(one, two))


def stacked(width: int, depth: int, block: Callable[[], Block]) -> nn.Sequential:
    """``depth`` blocks and a last normalisation."""
    return nn.Sequential(*(block() for _ in range(depth)), nn.RMSNorm(width, eps=1e-6))


def heads_of(width: int, heads: int, even: bool = False) -> int:
    """Channels of a head. Raises ValueError where ``heads`` does not divide ``width``, or leaves an odd
    number where the channels are turned in pairs."""
    if width % heads or (even and width // heads % 2):
        raise ValueError(
            f"heads: {heads} heads of a width of {width}; each must have the same "
            f"{'even ' if even else ''}number of channels"
        )
    return width // heads


class Positions(nn.Module):
    """Adds sines and cosines of wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        length, width = x.shape[1:]
        rate = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2, device=x.device) / width)
        angle = torch.arange(length, device=x.device)[:, None] * rate
        return x + torch.cat([angle.sin(), angle.cos()], 1)[:, :width].to(x)
