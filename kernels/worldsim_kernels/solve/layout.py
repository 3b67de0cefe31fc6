"""States as a caller has them (a tensor of any shape, a tuple, complex numbers) as rows of real numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Any
"""A tensor, or a tuple of tensors."""


@dataclass(frozen=True)
class Layout:
    """How a state is laid out in rows.

    rows     the first axis of every tensor is that of rows; else the whole state is one row
    tupled   the state is a tuple
    shapes   of one row of each tensor
    dtypes   of each tensor
    dtype    of the rows, a real one
    """

    rows: bool
    tupled: bool
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype

    def pack(self, state: State, what: str) -> Tensor:
        """``[row, *state]`` of ``state``; ``what`` names it in the message.

        Raises TypeError or ValueError unless it has this layout.
        """
        parts = self._parts(state, what)
        flat = []
        for part, shape, dtype in zip(parts, self.shapes, self.dtypes):
            expected = [len(part), *shape] if self.rows and part.dim() else list(shape)
            if self.tupled and not self.rows and part.numel() == shape.numel():
                part = part.reshape(shape)  # as [1] for a number, in torchdiffeq too
            if list(part.shape) != expected:
                raise ValueError(f"{what} must have the shape of y0: {expected}, not {list(part.shape)}")
            value = torch.view_as_real(part.to(dtype)) if dtype.is_complex else part.to(self.dtype)
            flat.append(value if self.rows else value.unsqueeze(0))
        if self.tupled:
            return torch.cat([each.flatten(1) if each.dim() > 1 else each[:, None] for each in flat], 1)
        return flat[0] if flat[0].dim() > 1 else flat[0][:, None]

    def unpack(self, value: Tensor, lead: int = 1) -> State:
        """The state of ``value``, whose first ``lead`` axes are kept and whose others are those of a row."""
        kept = value.shape[:lead]
        flat, parts, first = value.reshape((*kept, -1)), [], 0
        for shape, dtype, size in zip(self.shapes, self.dtypes, self.sizes()):
            part = flat[..., first : first + size]
            first += size
            if dtype.is_complex:
                part = torch.complex(
                    *part.reshape((*kept, *shape, 2)).unbind(-1)
                )  # at any offset, as no view is
            parts.append(part.reshape((*kept, *shape)))
        return tuple(parts) if self.tupled else parts[0]

    def sizes(self) -> list[int]:
        """Of each tensor in a row."""
        return [
            shape.numel() * (2 if dtype.is_complex else 1) for shape, dtype in zip(self.shapes, self.dtypes)
        ]

    def given(self, y: Tensor) -> State:
        """The state of the rows ``y`` as the caller's functions expect it."""
        return self.unpack(y) if self.rows else self.unpack(y[0], 0)

    def time(self, t: Tensor) -> Tensor:
        """``t`` ``[row]`` as they expect it: a number, or ``[row, 1, ...]`` that broadcasts over a state."""
        if not self.rows:
            return t[0]
        axes = 1 if self.tupled else len(self.shapes[0])
        return t.reshape(-1, *[1] * axes)

    def _parts(self, state: State, what: str) -> tuple[Tensor, ...]:
        parts = tuple(state) if self.tupled and isinstance(state, tuple | list) else (state,)
        if len(parts) != len(self.shapes) or not all(isinstance(part, Tensor) for part in parts):
            wanted = f"a tuple of {len(self.shapes)} tensors" if self.tupled else "a tensor"
            raise TypeError(f"{what} must be {wanted}, as y0 is")
        return parts


def layout_of(y0: State, rows: bool) -> Layout:
    """Raises TypeError unless ``y0`` is a tensor or a tuple of tensors, ValueError for tensors of integers,
    without rows, or with unlike numbers of rows."""
    tupled = isinstance(y0, tuple)
    parts = y0 if tupled else (y0,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"y0 must be a tensor or a tuple of tensors, not {type(y0).__name__}")
    if not all(part.is_floating_point() or part.is_complex() for part in parts):
        raise ValueError("y0 must be of floating-point or complex numbers")
    if rows and len({part.shape[:1] for part in parts} | {torch.Size([0])}) > 2:
        raise ValueError("rows=True: the tensors of y0 must have one number of rows, their first axis")
    if rows and any(part.dim() == 0 for part in parts):
        raise ValueError("rows=True: y0 must be [row, ...]")
    shapes = tuple(part.shape[1:] if rows else part.shape for part in parts)
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    real = torch.empty(0, dtype=dtype).abs().dtype
    return Layout(rows, tupled, shapes, tuple(part.dtype for part in parts), real)


def field_of(layout: Layout, function: Callable[..., State]) -> Callable[..., Tensor]:
    """``function(t, state, *args) -> state`` as a field of rows."""

    def field(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        if not layout.rows and len(y) != 1:  # one state at several times, for an interpolant
            return torch.cat([field(t[i : i + 1], y[i : i + 1], *args) for i in range(len(y))])
        slope = function(layout.time(t), layout.given(y), *args)
        return layout.pack(slope, "what func gives")

    return field


def tolerance(layout: Layout, value: Any, like: Tensor, name: str) -> Tensor:
    """A number, a tensor that broadcasts to a state, or a tuple of such, as ``[1, *state]`` in float64, where
    ``like`` is a state in rows. Raises ValueError for one that is negative, not finite, or fits no state."""
    parts = value if isinstance(value, tuple | list) else (value,) * len(layout.shapes)
    if len(parts) != len(layout.shapes):
        raise ValueError(f"{name} must be a number or a tuple of {len(layout.shapes)}, as y0 is")
    flat = []
    for part, shape, dtype in zip(parts, layout.shapes, layout.dtypes):
        each = torch.as_tensor(part, dtype=torch.float64, device=like.device)
        try:
            each = each.broadcast_to(shape).reshape(1, -1)
        except RuntimeError as error:
            raise ValueError(
                f"{name} {list(each.shape)} does not broadcast to a state {list(shape)}"
            ) from error
        flat.append(each.repeat_interleave(2, 1) if dtype.is_complex else each)
    joined = torch.cat(flat, 1)
    if not bool(((joined >= 0) & joined.isfinite()).all()):
        raise ValueError(f"{name} must be finite and not negative, it is {joined.min().item()}")
    return joined.reshape(1, *like.shape[1:])
