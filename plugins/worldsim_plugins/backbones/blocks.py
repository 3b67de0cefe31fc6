"""What backbones are stacked from: pre-norm residual blocks (Xiong et al. 2020), conditioned by adaLN-Zero
(Peebles and Xie 2022) where there is something to be conditioned on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldsim_kernels import swiglu


class Modulation(nn.Module):
    """``parts`` tensors ``[batch, token or 1, width]`` of a conditioning vector c ``[batch, (token,)
    given]``: a linear map of silu(c), zero to begin with."""

    def __init__(self, given: int, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(given, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        c = c if c.ndim == 3 else c[:, None]
        return self.linear(nn.functional.silu(c)).chunk(self.parts, -1)


class Block(nn.Module):
    """x + mixer(norm x), then x + MLP(norm x) where there is one; features ``[batch, token, width]``.

    Conditioned (``given`` > 0), with (scale, shift, gate) of c for each of the two:

        x + gate * mixer(norm(x) (1 + scale) + shift)

    all zero to begin with, so that the block is the identity then (adaLN-Zero, Peebles and Xie 2022).
    """

    def __init__(self, width: int, mixer: nn.Module, mlp: nn.Module | None = None, given: int = 0) -> None:
        super().__init__()
        parts = [mixer] if mlp is None else [mixer, mlp]
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in parts)
        self.modulations = nn.ModuleList(Modulation(given, width, 3) for _ in parts) if given else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        for i, (part, norm) in enumerate(zip(self.parts, self.norms)):
            if self.modulations is None:
                x = x + part(norm(x))
            else:
                scale, shift, gate = self.modulations[i](c)
                x = x + gate * part(norm(x) * (1 + scale) + shift)
        return x


class Stack(nn.Module):
    """Blocks, one after the other, and a last normalisation, which c scales and shifts where it is given."""

    def __init__(self, width: int, blocks: list[nn.Module], given: int = 0, positions: bool = False) -> None:
        super().__init__()
        self.positions = Positions() if positions else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.modulation = Modulation(given, width, 2) if given else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        if self.positions is not None:
            x = self.positions(x)
        for block in self.blocks:
            x = block(x, c)
        if self.modulation is None:
            return self.norm(x)
        scale, shift = self.modulation(c)
        return self.norm(x) * (1 + scale) + shift


class BothWays(nn.Module):
    """The sum of one causal mixer over the tokens and another one over them from the end (Zhu et
    al. 2024)."""

    def __init__(self, mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.ahead, self.back = mixer(), mixer()

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """``given``: c, where the mixers take it; one of each token is read from the end too."""
        back = [c.flip(1) if c.ndim == 3 else c for c in given]
        return self.ahead(x, *given) + self.back(x.flip(1), *back).flip(1)


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
