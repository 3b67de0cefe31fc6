"""What each operation of torch is in scalars.

``LOWERED[name](machine, *args, **kwargs)`` takes the arguments of the operation, tensors as ``Symbolic`` or,
of whole numbers that are known, as they are, and gives node numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.elementwise import ELEMENTWISE
from worldsim_kernels.solve.products import REDUCTIONS
from worldsim_kernels.solve.scalars import COPIES, MOVES, Machine, Symbolic
from worldsim_kernels.solve.trace import Refused


def _moved(name: str) -> Callable[..., Tensor]:
    """By torch itself, on node numbers."""

    def lower(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if name == "constant_pad_nd":
            args = (*args[:2], machine.literal(args[2] if len(args) > 2 else 0.0))
        if kwargs.pop("accumulate", False) or (name == "index_put" and len(args) > 3 and args[3]):
            raise Refused("it adds into places that an index names")
        indices = name in ("index_select", "gather", "index", "index_put", "scatter", "index_copy")
        return getattr(torch.ops.aten, name)(*_numbers(machine, args, indices), **kwargs)

    return lower


def _numbers(machine: Machine, args: Sequence[Any], indices: bool) -> list[Any]:
    found: list[Any] = []
    for each in args:
        if isinstance(each, Symbolic):
            found.append(each.ids)
        elif isinstance(each, list):
            found.append(_numbers(machine, each, indices))
        elif isinstance(each, Tensor) and not indices:
            found.append(machine.ids(each))
        else:
            found.append(each)
    return found


LOWERED: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {**ELEMENTWISE, **REDUCTIONS, **{name: _moved(name) for name in MOVES}}
)
"""By the name of the operation, of any overload."""


def can_lower(name: str) -> bool:
    """Whether an operation of this name can be a program."""
    return name in LOWERED or name in COPIES
