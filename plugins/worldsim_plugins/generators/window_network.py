"""The network of generators over windows: noisy frames in, an estimate of as many numbers out.

It is a perceptron over the flattened window, or a backbone over tokens: one for each frame, or one for each
patch of each frame (Dosovitskiy et al. 2021; Peebles and Xie 2022).
"""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from worldsim.protocols import Backbone
from worldsim_plugins.generators.networks import OCTAVES, TIME_FEATURES, fourier, perceptron
from worldsim_plugins.generators.networks import octaves as octaves_of
from worldsim_plugins.generators.patches import Patches, Places
from worldsim_plugins.generators.windows import Windows

Width: TypeAlias = Annotated[
    int, Field(ge=4, le=4096, description="units of each hidden layer, or features of each token")
]
Depth: TypeAlias = Annotated[
    int, Field(ge=1, le=64, description="hidden layers of the perceptron; a backbone has a depth of its own")
]
Causal: TypeAlias = Annotated[
    bool,
    Field(
        description="whether a frame is made from frames, noise and actions up to it alone; needs a backbone"
    ),
]


class WindowNetwork(nn.Module):
    """``[sample, frame, *state]`` to the same shape, given a generator's own time and the context.

    Built for ``windows``. Raises ValueError for ``causal`` or ``patch`` without a backbone, for patches that
    do not tile a frame, and for causal ones: the patches of a frame would have an order.

    beside   how many numbers of a sample it is told beside the context, such as whether that was dropped
    octaves  whether it sees sines and cosines of the noisy numbers too; for the perceptron alone
    """

    def __init__(
        self,
        windows: Windows,
        *,
        width: int,
        depth: int,
        backbone: Backbone | None = None,
        patch: tuple[int, ...] = (),
        causal: bool = False,
        beside: int = 0,
        octaves: bool = False,
    ) -> None:
        super().__init__()
        if octaves and backbone is not None:
            raise ValueError("octaves are for the perceptron: leave them or the backbone out")
        if backbone is None and (causal or patch):
            raise ValueError(
                f"{'causal' if causal else 'patch'} needs a backbone: a perceptron sees the window whole"
            )
        if causal and patch:
            raise ValueError("patch: the patches of one frame have no order in time; leave it or causal out")
        self.windows, self.octaves = windows, octaves
        seen = windows.size * (1 + 2 * OCTAVES) if octaves else windows.size
        body = perceptron if backbone is None else None
        if body is not None:
            self.body: nn.Module = body(
                seen + windows.features + TIME_FEATURES + beside, width, depth, windows.size
            )
        else:
            self.body = Tokens(windows, width, backbone, patch, causal, beside)  # type: ignore[arg-type]

    def forward(self, x: Tensor, s: Tensor, context: Tensor, beside: Tensor | None = None) -> Tensor:
        """``x`` ``[sample, frame, *state]`` (frames 1..), ``s`` ``[sample]``, or ``[sample, frame]`` where
        there is a backbone, any number that says how noisy x is and changes by about 1 over its range;
        ``context`` ``[sample, feature]`` as ``Windows.condition`` makes it; ``beside`` ``[sample,
        beside]``."""
        beside = x.new_empty(len(x), 0) if beside is None else beside
        if isinstance(self.body, Tokens):
            return self.body(x, s, context, beside)
        seen = octaves_of(x.flatten(1)) if self.octaves else x.flatten(1)
        return self.body(torch.cat([seen, context, fourier(s), beside], 1)).view_as(x)


class Tokens(nn.Module):
    """A backbone over the tokens of a window. Each token is read beside the same place of frame 0 and the
    action that led to its frame; how noisy it is, and what is said beside, conditions the layers."""

    def __init__(
        self,
        windows: Windows,
        width: int,
        backbone: Backbone,
        patch: tuple[int, ...],
        causal: bool,
        beside: int = 0,
    ) -> None:
        super().__init__()
        self.windows, self.patches = windows, Patches(windows.state_shape, patch)
        self.grid = (windows.frames - 1, *self.patches.cut)
        numbers = self.patches.numbers
        self.actions = (windows.features - math.prod(windows.state_shape)) // (windows.frames - 1)
        self.into = nn.Linear(2 * numbers + self.actions, width)
        self.place = Places(self.grid, width)
        told = TIME_FEATURES + beside
        self.noise = nn.Sequential(nn.Linear(told, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = backbone.layers(width, causal=causal, given=width, grid=self.grid)
        self.out = nn.Linear(width, numbers)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, s: Tensor, context: Tensor, beside: Tensor) -> Tensor:
        n, frames = x.shape[:2]
        per_frame = self.patches.count
        size = math.prod(self.windows.state_shape)
        first = self.patches.tokens(context[:, :size].view(n, 1, *self.windows.state_shape))
        parts = [self.patches.tokens(x), first.expand(n, frames, -1, -1)]
        if self.actions:
            acts = context[:, size:].view(n, frames, 1, self.actions)
            parts.append(acts.expand(n, frames, per_frame, self.actions))
        read = self.into(torch.cat(parts, -1)).flatten(1, 2)
        told = beside.view(n, *[1] * (s.ndim - 1), -1).expand(*s.shape, -1)
        given = self.noise(torch.cat([fourier(s.flatten()).unflatten(0, s.shape), told], -1))
        if given.ndim == 3:
            given = given.repeat_interleave(per_frame, 1)
        written = self.out(self.layers(self.place(read), given))
        return self.patches.frames(written.unflatten(1, (frames, per_frame)))
