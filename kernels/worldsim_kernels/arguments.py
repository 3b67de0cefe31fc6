"""Errors that name the argument, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def expect(
    kernel: str,
    name: str,
    tensor: Tensor,
    axes: Sequence[tuple[str, int | None]],
    *,
    like: Tensor | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """Check one argument of ``kernel``.

    axes    (letter, size) of each axis; a size of None takes any
    like    a tensor (the first argument) that gives the device
    Raises TypeError unless it is a tensor of one of ``dtypes``, ValueError for its shape or device.
    """
    some_tensor(kernel, name, tensor)
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in dtypes)
        raise TypeError(f"{kernel}: {name} has dtype {tensor.dtype}; allowed are {allowed}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{kernel}: {name} is on {tensor.device}, the first argument on {like.device}")
    fits = tensor.dim() == len(axes) and all(
        size is None or found == size for (_, size), found in zip(axes, tensor.shape)
    )
    if not fits:
        wanted = ", ".join(letter if size is None else f"{letter}={size}" for letter, size in axes)
        raise ValueError(f"{kernel}: {name} has shape {list(tensor.shape)}; expected [{wanted}]")


def same_dtype(kernel: str, name: str, tensor: Tensor, like: Tensor, first: str) -> None:
    """Raises TypeError unless ``tensor`` has the dtype of ``like``, the argument ``first``."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{kernel}: {name} has dtype {tensor.dtype}, {first} has {like.dtype}; make them equal"
        )


def number(kernel: str, name: str, value: float) -> float:
    """``value`` as a float. Raises TypeError for others, even tensors, whose gradient would be lost."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{kernel}: {name} must be a number, not {type(value).__name__}")
    return float(value)


def some_tensor(kernel: str, name: str, value: Tensor) -> None:
    """Raises TypeError unless ``value`` is a tensor, whatever its shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{kernel}: {name} must be a tensor, not {type(value).__name__}")


def finite(kernel: str, name: str, tensor: Tensor) -> None:
    """For ``check=True``. Raises ValueError with the first place that is not a finite number."""
    bad = ~tensor.isfinite()
    if bad.any():
        place = bad.nonzero()[0].tolist()
        raise ValueError(f"{kernel}: {name} is {tensor[tuple(place)].item()} at {place}")


def decays(kernel: str, name: str, gates: Tensor) -> None:
    """For ``check=True``: gates are logarithms of decays in [0, 1].

    Raises ValueError with the first that is not.
    """
    bad = ~(gates <= 0)
    if bad.any():
        place = bad.nonzero()[0].tolist()
        value = gates[tuple(place)].item()
        raise ValueError(f"{kernel}: {name} is {value} at {place}; a gate is a natural logarithm, at most 0")
