"""Tokens of a frame: the frame itself, or patches of it (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

Patch: TypeAlias = Annotated[
    tuple[int, ...],
    Field(
        description="with a backbone, sizes of the patches that the first axes of a frame are cut into, such "
        "as [4, 4] for a frame [row, column]; one token for each frame when left out"
    ),
]


class Patches:
    """Frames of ``state_shape`` cut into ``count`` tokens of ``numbers`` numbers, ``cut`` of them along each
    of the first axes, in raster order. Raises ValueError for patches that do not tile a frame."""

    def __init__(self, state_shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
        self.state_shape, self.patch = state_shape, patch
        self.cut = tiles_of(state_shape, patch)
        self.count = math.prod(self.cut)
        self.numbers = math.prod(state_shape) // self.count

    def tokens(self, x: Tensor) -> Tensor:
        """``[sample, frame, token, number]`` of ``[sample, frame, *state]``."""
        for axis, size in enumerate(self.patch):
            x = x.unflatten(2 + 2 * axis, (-1, size))
        lead = [2 + 2 * axis for axis in range(len(self.patch))]
        rest = [axis for axis in range(2, x.ndim) if axis not in lead]
        n, frames = x.shape[:2]
        return x.permute(0, 1, *lead, *rest).reshape(n, frames, self.count, -1)

    def frames(self, tokens: Tensor) -> Tensor:
        """The inverse of ``tokens``."""
        n, frames = tokens.shape[:2]
        cut, rest = len(self.patch), self.state_shape[len(self.patch) :]
        x = tokens.reshape(n, frames, *self.cut, *self.patch, *rest)
        order = [axis for pair in zip(range(2, 2 + cut), range(2 + cut, 2 + 2 * cut)) for axis in pair]
        x = x.permute(0, 1, *order, *range(2 + 2 * cut, x.ndim))
        return x.reshape(n, frames, *self.state_shape)


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
