"""The equations of implicit steps, k = g(k), row by row, and their gradient.

Sources: Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*, VIII.6; for when to stop, Hairer,
McLachlan, Razakarivony 2008, *Achieving Brouwer's law with implicit Runge-Kutta methods*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.first_only import first_only
from worldsim_kernels.solve.terms import wide

Equation = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
PATIENCE = 3
"""Iterations without a smaller change after which what is left is rounding."""


@dataclass(frozen=True)
class Iteration:
    """When a row has settled.

    tolerance       largest change of the end of the step in one iteration, of each component relative to its
                    size; None for 4 rounding units of the dtype
    rounding        where changes have stopped falling, the row has settled if they are below this power of
                    the rounding unit, relative to the row's largest component: the field's own rounding
    max_iterations  after which a row is given up
    Raises ValueError unless all are positive.
    """

    tolerance: float | None = None
    rounding: float = 0.8
    max_iterations: int = 50

    def __post_init__(self) -> None:
        for name in ("tolerance", "rounding", "max_iterations"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")

    def relative(self, dtype: torch.dtype) -> float:
        """The tolerance for this dtype."""
        return 4 * torch.finfo(dtype).eps if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Solved:
    """``k``, the guess in rows that did not settle; whether they did ``[row]``; evaluations ``[row]``."""

    k: Tensor
    settled: Tensor
    evaluations: Tensor


def fixed_point(equation: Equation, y: Tensor, h: Tensor, guess: Tensor, rule: Iteration) -> Solved:
    """The slopes k = g(k) with ``g = equation(y, h)``, from ``guess`` ``[row, *slopes]`` on.

    y  ``[row, *state]``; the slopes have its shape, or one more axis of stages after the row
    h  ``[row]``

    A row is frozen as soon as it has settled, or is not finite: none depends on its companions. Gradients
    with respect to y, h and whatever ``equation`` closes over are those of the solution (the implicit
    function theorem), by iterating with the transposed Jacobian, whatever the iterations did; a row that did
    not settle has none.
    """
    with torch.no_grad():
        solved = _iterated(equation(y, h), y, h, guess, rule)
    if not torch.is_grad_enabled():
        return solved
    mask = solved.settled.reshape(-1, *[1] * (guess.dim() - 1))
    value = equation(y, h)(torch.where(mask, solved.k, 0.0))
    if not value.requires_grad:
        return solved
    frozen = equation(y.detach(), h.detach())
    k: Tensor = _Implicit.apply(value, solved.k, mask, frozen, rule)  # type: ignore[no-untyped-call]
    return Solved(k, solved.settled, solved.evaluations + 1)


def _iterated(g: Callable[[Tensor], Tensor], y: Tensor, h: Tensor, guess: Tensor, rule: Iteration) -> Solved:
    if guess.dim() > y.dim():
        y = y.unsqueeze(1)
    step, tolerance = wide(h, guess), rule.relative(guess.dtype)
    floor = torch.finfo(guess.dtype).eps ** rule.rounding
    size = y.abs() + (step * guess).abs()
    whole = size.flatten(1).amax(1)
    k, settled = guess, torch.zeros(len(guess), dtype=torch.bool, device=guess.device)
    moving, least, stale = ~settled, torch.full_like(whole, float("inf")), torch.zeros_like(settled).long()
    evaluations = torch.zeros_like(stale)
    for _ in range(rule.max_iterations):
        better = g(k)
        change = (step * (better - k)).abs()
        largest = change.flatten(1).amax(1)
        k = torch.where(moving.reshape(-1, *[1] * (k.dim() - 1)), better, k)
        evaluations = evaluations + moving
        stale = torch.where(largest < least, 0, stale + 1)
        least = torch.minimum(least, largest)
        small = (change <= tolerance * size).flatten(1).all(1)
        small |= (stale >= PATIENCE) & (largest <= floor * whole)
        settled |= moving & small
        moving &= ~small & largest.isfinite()
        # One flag from the device per iteration costs less than the evaluations it saves.
        if not bool(moving.any()):
            break
    # What did not settle may be anything: the guess is finite if the field is.
    k = torch.where(settled.reshape(-1, *[1] * (k.dim() - 1)), k, guess)
    return Solved(k, settled, evaluations)


class _Implicit(torch.autograd.Function):
    """The solution k of k = g(k; w), given g(k; w) with its graph over w: dk = (1 - dg/dk)^-1 dg/dw."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, k: Tensor, mask: Tensor, g: Any, rule: Iteration) -> Tensor:
        ctx.save_for_backward(k, mask)
        ctx.g, ctx.rule = g, rule
        return k.clone()

    @staticmethod
    @first_only("the equations of this stepper are solved by iteration; use another stepper")
    def backward(ctx: Any, *grads: Tensor) -> Any:
        k, mask = ctx.saved_tensors
        given = torch.where(mask, grads[0], 0.0)
        return _adjoint(ctx.g, torch.where(mask, k, 0.0), given, ctx.rule), None, None, None, None


def _adjoint(g: Callable[[Tensor], Tensor], k: Tensor, given: Tensor, rule: Iteration) -> Tensor:
    """a = given + (dg/dk)^T a; NaN in a row that does not settle, which the iteration for k rules out unless
    it was at the edge of contraction."""
    with torch.enable_grad():
        leaf = k.detach().requires_grad_()
        value = g(leaf)
    if not value.requires_grad:
        return given
    tolerance, a = rule.relative(given.dtype), given
    moving = torch.ones(len(given), dtype=torch.bool, device=given.device)
    for _ in range(2 * rule.max_iterations):
        (pulled,) = torch.autograd.grad(value, leaf, a, retain_graph=True)
        better = given + pulled
        change, size = ((x.abs().flatten(1).amax(1)) for x in (better - a, better))
        mask = moving.reshape(-1, *[1] * (a.dim() - 1))
        a = torch.where(mask, better, a)
        moving &= ~(change <= tolerance * size)
        if not bool(moving.any()):
            return a
    return torch.where(moving.reshape(-1, *[1] * (a.dim() - 1)), float("nan"), a)
