"""``solve``: where a term, a stepper, a controller, what to save, events and a gradient meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.control import PID, Constant
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.stepper import Stepper


@dataclass(frozen=True)
class Save:
    """What a solution keeps beside the end of each row.

    times  ``[time]`` or ``[row, time]`` (ragged: NaN where a row wants fewer, at its end), between t0 and
           t1, in the direction of the solve
    steps  the accepted steps
    dense  a function of time
    """

    times: Tensor | None = None
    steps: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Problem:
    """A call of ``solve`` after checking: what every backend receives.

    t0, t1   ``[row]`` float64
    times    ``[row, time]`` float64 or None
    """

    term: Any
    y0: Tensor
    t0: Tensor
    t1: Tensor
    stepper: Stepper
    controller: PID | Constant
    times: Tensor | None
    keep_steps: bool
    keep_dense: bool
    events: tuple[Any, ...]
    max_steps: int


def solve(
    term: Any,
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    stepper: str | Stepper = "tsit5",
    controller: PID | Constant | None = None,
    save: Save | None = None,
    events: Sequence[Any] = (),
    gradient: Any | None = None,
    backend: str = "torch",
    compact: bool = True,
    max_steps: int = 100_000,
) -> Solution:
    """Solve a differential equation for every row of ``y0`` ``[row, *state]``, each with its own steps.

    term        ``ODE``, ``Separable``, ``Hamiltonian`` or ``SDE``
    t0, t1      numbers or ``[row]``; t1 < t0 solves backwards, row by row
    stepper     a name of ``STEPPERS`` or an object (see ``Stepper``)
    controller  ``PID`` (adaptive, the default where the method has an error estimate) or ``Constant``
    save        see ``Save``; None for the ends alone
    events      see ``Event``
    gradient    None for gradients by whatever is cheapest to get right, or one of ``gradients``
    backend     "torch": one operation after another; "compiled": the whole loop as one graph; "native": the
                field traced and printed as C; "triton": the same on a GPU. Where the field is made of + - * /
                all give the same bits.
    compact     leave finished rows out of later evaluations (a field must then take any subset of rows)
    max_steps   attempts after which a row is given up (status MAX_STEPS)

    No row ever harms another: one that fails gets a status and NaN, see ``Solution``.
    Raises ValueError or TypeError for arguments that do not fit, naming the argument.
    """
    raise NotImplementedError


def checked_rows(name: str, value: float | Tensor, y0: Tensor) -> Tensor:
    """``value`` as ``[row]`` float64. Raises ValueError for another shape or values that are not finite."""
    rows = torch.as_tensor(value, dtype=torch.float64, device=y0.device)
    if rows.dim() > 1 or (rows.dim() == 1 and len(rows) not in (1, len(y0))):
        raise ValueError(f"{name} must be a number or [row={len(y0)}], its shape is {list(rows.shape)}")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} must be finite")
    return rows.expand(len(y0)).contiguous()
