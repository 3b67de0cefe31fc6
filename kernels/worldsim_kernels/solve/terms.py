"""What is solved: the right-hand side of a differential equation, and the data of its rows.

A row is one independent trajectory. ``t`` is ``[row]``, one time for each row, in the dtype of ``y``
``[row, *state]``. Whatever differs from row to row (a parameter, an action that is held) goes into ``args``,
tensors ``[row, ...]`` that the field receives after ``y``: a solver may call the field with any subset of
rows, in any order, so a field must never mix rows nor close over a tensor of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class ODE:
    """dy/dt = field(t, y, *args).

    field     ``t [row], y [row, *state], *args -> [row, *state]``
    args      tensors ``[row, ...]``
    jacobian  ``t, y, *args -> [row, d, d]``, d the size of a flattened state, for implicit steppers; None for
              automatic differentiation
    """

    field: Function
    args: tuple[Tensor, ...] = ()
    jacobian: Function | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt ``[row, *state]`` at ``t`` ``[row]`` and ``y``, in the dtype of ``y``.

        Raises ValueError when the field gives another shape, or complex numbers.
        """
        slope = self.field(t.to(y.dtype), y, *self.args)
        if slope.shape != y.shape:
            raise ValueError(
                f"the field gives {list(slope.shape)} for a state {list(y.shape)}: it must give that shape"
            )
        return like_state("field", slope, y)


@dataclass(frozen=True)
class Separable:
    """H(q, p) = T(p) + V(q); the last axis of the state is (q, p), half and half.

    velocity  ``p, *args -> [row, *half]``, dT/dp
    force     ``q, *args -> [row, *half]``, -dV/dq
    potential, kinetic   ``[row]``, where an energy is asked for (time-transformed steps); else None
    """

    velocity: Function
    force: Function
    args: tuple[Tensor, ...] = ()
    potential: Function | None = None
    kinetic: Function | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        q, p = y.chunk(2, -1)
        return torch.cat([self.velocity(p, *self.args), self.force(q, *self.args)], -1)


@dataclass(frozen=True)
class Hamiltonian:
    """dy/dt = Omega dH/dy for any H; the last axis of the state is (q, p), half and half.

    energy    ``y, *args -> [row]``
    gradient  ``y, *args -> [row, *state]``, dH/dy; None for automatic differentiation
    """

    energy: Function
    args: tuple[Tensor, ...] = ()
    gradient: Function | None = None

    def slope(self, y: Tensor) -> Tensor:
        """dH/dy ``[row, *state]``, differentiable when the caller records a graph."""
        if self.gradient is not None:
            return self.gradient(y, *self.args)
        check_recordable("an energy without gradient")
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(leaf, *self.args).sum(), leaf, create_graph=recording)
        return slope

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        by_q, by_p = self.slope(y).chunk(2, -1)
        return torch.cat([by_p, -by_q], -1)


@dataclass(frozen=True)
class SDE:
    """dY = drift(t, Y, *args) dt + diffusion(t, Y, *args) dW.

    noise      "diagonal": ``diffusion`` has the shape of the state, one Brownian motion per component;
               "additive": the same, and it does not depend on the state; "scalar": the same shape, one
               Brownian motion per row; "general": ``[row, d, m]`` for m Brownian motions
    calculus   how the integral is meant
    """

    drift: Function
    diffusion: Function
    args: tuple[Tensor, ...] = ()
    noise: Literal["diagonal", "additive", "scalar", "general"] = "diagonal"
    calculus: Literal["ito", "stratonovich"] = "ito"


def of_rows(term: Any, index: Tensor) -> Any:
    """The term of the rows ``index`` (a LongTensor or a mask)."""
    return replace(term, args=tuple(each[index] for each in term.args)) if term.args else term


def like_state(what: str, value: Tensor, y: Tensor) -> Tensor:
    """``value``, which ``what`` gave, in the dtype of the state ``y``. Raises ValueError for complex numbers,
    whose imaginary parts would be lost."""
    if value.is_complex():
        raise ValueError(f"the {what} gives complex numbers for a state of {y.dtype}: let it give real ones")
    return value.to(y.dtype)


def check_recordable(what: str) -> None:
    """Raises RuntimeError in ``torch.inference_mode``, where ``what`` cannot be differentiated."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{what} is differentiated, which torch.inference_mode forbids: use torch.no_grad")


def wide(value: Tensor, like: Tensor) -> Tensor:
    """``value`` ``[row]`` in the dtype of ``like`` ``[row, *state]`` and with its axes, to be multiplied."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
