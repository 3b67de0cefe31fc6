"""What backbones are stacked from: pre-norm residual layers (Xiong et al. 2020), conditioned by adaLN-Zero
(Peebles and Xie 2022) where there is something to be conditioned on.

A layer that is causal carries a state, and reads a sequence piece by piece: ``advance(x, state)`` gives the
features of the tokens that follow those which made ``state``, None before the first. A layer without it sees
each token by itself. States are nested tuples of tensors whose first axis is the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim_plugins.backbones.mlps import mlp_of

Depth: TypeAlias = Annotated[int, Field(ge=1, le=64, description="layers")]
Heads: TypeAlias = Annotated[int, Field(ge=1, le=64, description="heads")]
Norm: TypeAlias = Annotated[Literal["rms", "layer"], Field(description="normalisation before each part")]
MLP: TypeAlias = Annotated[
    Literal["swiglu", "gelu", "mix"],
    Field(description="network after each mixer: of each token, or (mix) of a token and its neighbours too"),
]
Experts: TypeAlias = Annotated[
    int, Field(ge=0, le=64, description="networks that each token is routed to two of; 0 for a single one")
]


@dataclass(frozen=True)
class Form:
    """What the blocks of a backbone have beside their mixers."""

    norm: str = "rms"
    mlp: str = "swiglu"
    experts: int = 0

    def blocks(
        self,
        width: int,
        mixers: Iterable[nn.Module],
        *,
        given: int = 0,
        causal: bool = True,
        grid: tuple[int, ...] = (),
    ) -> list[nn.Module]:
        """Two residual layers for each mixer: itself, and an MLP."""
        found: list[nn.Module] = []
        for mixer in mixers:
            mlp = mlp_of(self.mlp, width, experts=self.experts, causal=causal, grid=grid)
            found += [Residual(width, part, given, self.norm) for part in (mixer, mlp)]
        return found


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


class Residual(nn.Module):
    """x + part(norm x) of features x ``[batch, token, width]``. Conditioned (``given`` > 0), with scale,
    shift and gate of c,

        x + gate * part(norm(x) (1 + scale) + shift)

    all zero to begin with, so that the layer is the identity then (adaLN-Zero, Peebles and Xie 2022).
    """

    def __init__(self, width: int, part: nn.Module, given: int = 0, norm: str = "rms") -> None:
        super().__init__()
        self.norm, self.part = normalisation(norm, width), part
        self.modulation = Modulation(given, width, 3) if given else None

    def read(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """What the part reads, and the gate of what it writes."""
        if self.modulation is None:
            return self.norm(x), 1.0
        scale, shift, gate = self.modulation(c)
        return self.norm(x) * (1 + scale) + shift, gate

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        read, gate = self.read(x, c)
        return x + gate * self.part(read)

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        read, gate = self.read(x, c)
        written, state = advanced(self.part, read, state)
        return x + gate * written, state


class Stack(nn.Module):
    """Layers ``(x, c)``, one after the other, and a last normalisation, which c scales and shifts where it is
    given. Where they are ``causal`` they can be advanced."""

    def __init__(
        self,
        width: int,
        layers: Iterable[nn.Module],
        *,
        given: int = 0,
        causal: bool = True,
        norm: str = "rms",
    ) -> None:
        super().__init__()
        self.layers, self.causal = nn.ModuleList(layers), causal
        self.norm = normalisation(norm, width)
        self.modulation = Modulation(given, width, 2) if given else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, c)
        return self.last(x, c)

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        """As ``worldsim.protocols.Streams``. Raises ValueError for layers that look both ways."""
        self.expect_causal()
        states = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers)):
            x, after = layer.advance(x, before, c)
            states.append(after)
        return self.last(x, c), tuple(states)

    def expect_causal(self) -> None:
        if not self.causal:
            raise ValueError("layers that look both ways have no state to go on from: build them causal")

    def last(self, x: Tensor, c: Tensor | None) -> Tensor:
        if self.modulation is None:
            return self.norm(x)
        scale, shift = self.modulation(c)
        return self.norm(x) * (1 + scale) + shift


def normalisation(kind: str, width: int) -> nn.Module:
    """ "rms" (Zhang and Sennrich 2019) or "layer" (Ba, Kiros and Hinton 2016)."""
    return {"rms": nn.RMSNorm, "layer": nn.LayerNorm}[kind](width, eps=1e-6)


class Carrying(nn.Module):
    """A part that ``advance`` says all about."""

    def forward(self, x: Tensor) -> Tensor:
        return self.advance(x)[0]

    def advance(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        raise NotImplementedError


def advanced(part: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The same of any part of a causal layer: one that carries nothing has the state ()."""
    return part.advance(x, state) if hasattr(part, "advance") else (part(x), ())


class BothWays(nn.Module):
    """The sum of one causal mixer over the tokens and another one over them from the end."""

    def __init__(self, mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.ahead, self.back = mixer(), mixer()

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """``given``: c, where the mixers take it; one of each token is read from the end too."""
        back = [c.flip(1) if c.ndim == 3 else c for c in given]
        return self.ahead(x, *given) + self.back(x.flip(1), *back).flip(1)


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

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.advance(x)[0]

    def advance(self, x: Tensor, state: Any = None, c: Tensor | None = None) -> tuple[Tensor, Any]:
        """``state`` ``[batch]`` int64: how many tokens there were before."""
        at, state = places(x, state)
        width = x.shape[2]
        rate = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2, device=x.device) / width)
        angle = at[..., None] * rate
        return x + torch.cat([angle.sin(), angle.cos()], -1)[..., :width].to(x), state


def places(x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions ``[batch, token]`` int64 of the tokens after ``state`` others ``[batch]``, and how many there
    are with them."""
    first = torch.zeros(len(x), dtype=torch.int64, device=x.device) if state is None else state
    return first[:, None] + torch.arange(x.shape[1], device=x.device), first + x.shape[1]
