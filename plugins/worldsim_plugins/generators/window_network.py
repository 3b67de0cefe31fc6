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
from worldsim_plugins.generators.networks import TIME_FEATURES, fourier, perceptron
from worldsim_plugins.generators.windows import Windows

Width: TypeAlias = Annotated[
    int, Field(ge=4, le=4096, description="units of each hidden layer, or features of each token")
]
Depth: TypeAlias = Annotated[
    int, Field(ge=1, le=64, description="hidden layers of the perceptron; a backbone has a depth of its own")
]
Patch: TypeAlias = Annotated[
    tuple[int, ...],
    Field(
        description="with a backbone, sizes of the patches that the first axes of a frame are cut into, such "
        "as [4, 4] for a frame [row, column]; one token for each frame when left out"
    ),
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
    ) -> None:
        super().__init__()
        if backbone is None and (causal or patch):
            raise ValueError(
                f"{'causal' if causal else 'patch'} needs a backbone: a perceptron sees the window whole"
            )
        if causal and patch:
            raise ValueError("patch: the patches of one frame have no order in time; leave it or causal out")
        self.windows = windows
        body = perceptron if backbone is None else None
        if body is not None:
            self.body: nn.Module = body(
                windows.size + windows.features + TIME_FEATURES, width, depth, windows.size
            )
        else:
            self.body = Tokens(windows, width, backbone, patch, causal)  # type: ignore[arg-type]

    def forward(self, x: Tensor, s: Tensor, context: Tensor) -> Tensor:
        """``x`` ``[sample, frame, *state]`` (frames 1..), ``s`` ``[sample]``, or ``[sample, frame]`` where
        there is a backbone, any number that says how noisy x is and changes by about 1 over its range;
        ``context`` ``[sample, feature]`` as ``Windows.condition`` makes it."""
        if isinstance(self.body, Tokens):
            return self.body(x, s, context)
        return self.body(torch.cat([x.flatten(1), context, fourier(s)], 1)).view_as(x)


class Tokens(nn.Module):
    """A backbone over the tokens of a window. Each token is read beside the same place of frame 0 and the
    action that led to its frame; how noisy it is conditions the layers."""

    def __init__(
        self, windows: Windows, width: int, backbone: Backbone, patch: tuple[int, ...], causal: bool
    ) -> None:
        super().__init__()
        self.windows, self.patch = windows, patch
        self.cut = tiles_of(windows.state_shape, patch)
        self.grid = (windows.frames - 1, *self.cut)
        numbers = math.prod(windows.state_shape) // math.prod(self.cut)
        self.actions = (windows.features - math.prod(windows.state_shape)) // (windows.frames - 1)
        self.into = nn.Linear(2 * numbers + self.actions, width)
        self.place = Places(self.grid, width)
        self.noise = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = backbone.layers(width, causal=causal, given=width, grid=self.grid)
        self.out = nn.Linear(width, numbers)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, s: Tensor, context: Tensor) -> Tensor:
        n, frames = x.shape[:2]
        per_frame = math.prod(self.cut)
        size = math.prod(self.windows.state_shape)
        frame = self.tokens(context[:, :size].view(n, 1, *self.windows.state_shape)).expand(n, frames, -1, -1)
        parts = [self.tokens(x), frame]
        if self.actions:
            acts = context[:, size:].view(n, frames, 1, self.actions)
            parts.append(acts.expand(n, frames, per_frame, self.actions))
        read = self.into(torch.cat(parts, -1)).flatten(1, 2)
        given = self.noise(fourier(s.flatten())).unflatten(0, s.shape)
        if given.ndim == 3:
            given = given.repeat_interleave(per_frame, 1)
        written = self.out(self.layers(self.place(read), given))
        return self.frames(written.unflatten(1, (frames, per_frame)))

    def tokens(self, x: Tensor) -> Tensor:
        """``[sample, frame, token, number]`` of ``[sample, frame, *state]``."""
        for axis, size in enumerate(self.patch):
            x = x.unflatten(2 + 2 * axis, (-1, size))
        lead = [2 + 2 * axis for axis in range(len(self.patch))]
        rest = [axis for axis in range(2, x.ndim) if axis not in lead]
        n, frames = x.shape[:2]
        return x.permute(0, 1, *lead, *rest).reshape(n, frames, math.prod(self.cut), -1)

    def frames(self, tokens: Tensor) -> Tensor:
        """The inverse of ``tokens``."""
        n, frames = tokens.shape[:2]
        cut, rest = len(self.patch), self.windows.state_shape[len(self.patch) :]
        x = tokens.reshape(n, frames, *self.cut, *self.patch, *rest)
        order = [axis for pair in zip(range(2, 2 + cut), range(2 + cut, 2 + 2 * cut)) for axis in pair]
        x = x.permute(0, 1, *order, *range(2 + 2 * cut, x.ndim))
        return x.reshape(n, frames, *self.windows.state_shape)


class Places(nn.Module):
    """Adds a learned vector for each index along each axis of the grid that tokens are flattened from."""

    def __init__(self, grid: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.along = nn.ParameterList(0.02 * torch.randn(size, width) for size in grid)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.zeros_like(self.along[0][:1])
        for vectors in self.along:
            place = (place[:, None] + vectors).flatten(0, 1)
        return x + place


def tiles_of(state_shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """How many patches there are along each axis that is cut."""
    fits = len(patch) <= len(state_shape) and all(
        size >= 1 and axis % size == 0 for axis, size in zip(state_shape, patch)
    )
    if not fits:
        raise ValueError(
            f"patch: patches of {list(patch)} do not tile a state of shape {list(state_shape)}; give a size "
            "that divides it for each of its first axes"
        )
    return tuple(axis // size for axis, size in zip(state_shape, patch))
