"""Which precision each part of a computation needs, whatever autocast or a model's own dtype says.

Half precision holds what is used once: activations, and the weights of matrix products. What is used again
and again holds float32: a bfloat16 decay of 1 - 2^-9 or more is exactly 1, so that the state forgets nothing,
and a bfloat16 state stops growing once an increment is less than 2^-9 of it. The kernels keep to this inside;
``protected`` holds code around them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Role = Literal["activation", "decay", "state", "statistics", "loss", "truth"]

LEAST: Mapping[str, torch.dtype] = {
    "activation": torch.bfloat16,
    "decay": torch.float32,
    "state": torch.float32,
    "statistics": torch.float32,
    "loss": torch.float32,
    "truth": torch.float64,
}
"""Role -> its least precise dtype. decay: gates and step sizes; state: of a recurrence or an integrator;
statistics: of a softmax or a norm; truth: reference solutions, energies and optimal transport."""

P = ParamSpec("P")
R = TypeVar("R")


def dtype_of(role: Role, wanted: torch.dtype) -> torch.dtype:
    """``wanted``, or the least precise dtype of this role where that is wider.

    Raises ValueError for an unknown role.
    """
    if role not in LEAST:
        raise ValueError(f"there is no role {role!r}; there are {', '.join(LEAST)}")
    return wanted if wanted.itemsize >= LEAST[role].itemsize else LEAST[role]


def protected(role: Role) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function runs outside autocast, on tensors no less precise than ``role``.

    >>> loss = protected("loss")(torch.nn.functional.mse_loss)

    Floating-point tensors that are arguments themselves are converted. Raises ValueError for an unknown role.
    """
    dtype_of(role, torch.float64)

    def converted(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype_of(role, value.dtype)) if is_float else value

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*arguments: P.args, **options: P.kwargs) -> R:
            values = [*arguments, *options.values()]
            kind = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
            with torch.autocast(kind, enabled=False):
                return function(*map(converted, arguments), **{n: converted(v) for n, v in options.items()})

        return run

    return decorate


def full(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: the function runs outside autocast, which would lower its matrix products."""

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        values = [*arguments, *options.values()]
        kind = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
        if not torch.is_autocast_enabled(kind):
            return function(*arguments, **options)
        with torch.autocast(kind, enabled=False):
            return function(*arguments, **options)

    return run


def collapsed(decays: Tensor, dtype: torch.dtype) -> Tensor:
    """Which decays below 1 become exactly 1 in ``dtype``: their states would never forget."""
    return (decays < 1) & (decays.to(dtype) == 1)
