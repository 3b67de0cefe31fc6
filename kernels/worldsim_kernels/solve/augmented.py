"""The continuous adjoint of one system as torchdiffeq states it: one more call of ``odeint``, backwards.

From the last time to the first, between each two, (dL/dt, y, a, dL/dtheta) is solved together with

    da/dt = -a df/dy,   d(dL/dt)/dt = -a df/dt,   d(dL/dtheta)/dt = -a df/dtheta,   a = dL/dy

by any method with any options, grids, norms and callbacks (``callback_step_adjoint`` and its like). Source:
Chen, Rubanova, Bettencourt, Duvenaud 2018, *Neural ordinary differential equations*. What each row solves
for itself is ``ContinuousAdjoint``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.adjoint import gradients
from worldsim_kernels.solve.first_only import first_only
from worldsim_kernels.solve.layout import State

Norm = Callable[[Any], Tensor]
Solve = Callable[..., Any]
"""``odeint`` with all that is chosen for one direction: ``func, y0, t``."""
HEARD = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass(frozen=True)
class Call:
    """What the backward pass is to know.

    there, back  the solves forwards and backwards
    tupled       whether the state is a tuple
    parameters   that get gradients beside y0 and t
    """

    func: Callable[..., State]
    there: Solve
    back: Solve
    tupled: bool
    parameters: tuple[Tensor, ...]

    def solved(self, y0: State, t: Tensor) -> State:
        """``[time, *state]``, with a graph."""
        parts = y0 if self.tupled else (y0,)
        function: Callable[..., tuple[Tensor, ...]] = Whole.apply
        states = function(self, len(parts), t, *parts, *self.parameters)
        return states if self.tupled else states[0]

    def slope(self, t: Tensor, parts: list[Tensor]) -> tuple[Tensor, ...]:
        """dy/dt as a tuple."""
        found = self.func(t, tuple(parts) if self.tupled else parts[0])
        return tuple(found) if self.tupled else (found,)


class Whole(torch.autograd.Function):
    """One node of a graph for a whole solve."""

    @staticmethod
    def forward(ctx: Any, call: Call, count: int, t: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.count, ctx.timed = call, count, t.requires_grad
        parts = given[:count]
        with torch.no_grad():
            found = call.there(call.func, parts if call.tupled else parts[0], t)
        states = tuple(found) if call.tupled else (found,)
        ctx.save_for_backward(t, *states, *given[count:])
        return states

    @staticmethod
    @first_only("odeint_adjoint solves for them anew, odeint differentiates to any order")
    def backward(ctx: Any, *bars: Tensor) -> tuple[Tensor | None, ...]:
        call, count = ctx.call, ctx.count
        t, *saved = ctx.saved_tensors
        states, parameters = saved[:count], saved[count:]
        backwards = Backwards(call, count, ctx.timed, parameters)
        by_t = torch.zeros_like(t)
        real = states[0].abs().dtype
        at = [torch.zeros((), dtype=real, device=t.device)]
        y, a, sums = [each[-1] for each in states], [each[-1] for each in bars], parameters
        totals = [torch.zeros_like(each) for each in sums]
        for i in range(len(t) - 1, 0, -1):
            if ctx.timed:
                by_t[i] = along(call.slope(t[i], y), [each[i] for each in bars])
                at = [at[0] - by_t[i].to(real)]
            end = call.back(backwards, (*at, *y, *a, *totals), t[i - 1 : i + 1].flip(0))
            found = [each[1] for each in end]
            at, totals = found[:1], found[1 + 2 * count :]
            # The state as it was found on the way forward.
            y = [each[i - 1] for each in states]
            a = [b + each[i - 1] for b, each in zip(found[1 + count : 1 + 2 * count], bars)]
        if ctx.timed:
            by_t[0] = at[0]
        return None, None, by_t if ctx.timed else None, *a, *totals


class Backwards:
    """d/dt of (dL/dt, y, a, dL/dtheta), with the callbacks of the way back."""

    def __init__(self, call: Call, count: int, timed: bool, parameters: list[Tensor]) -> None:
        self.call, self.count, self.timed, self.parameters = call, count, timed, parameters
        for name in HEARD:
            if hasattr(call.func, f"{name}_adjoint"):
                setattr(self, name, getattr(call.func, f"{name}_adjoint"))

    def __call__(self, t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Implicit steps differentiate this in turn.
        graph = torch.is_grad_enabled() and (t.requires_grad or any(each.requires_grad for each in z))
        y = [_leaf(each, True, graph) for each in z[1 : 1 + self.count]]
        a = z[1 + self.count : 1 + 2 * self.count]
        t = _leaf(t, self.timed, graph)
        inputs = [*([t] if self.timed else []), *y, *self.parameters]
        with torch.enable_grad():
            slope = self.call.slope(t, y)
        pulled = [torch.zeros_like(each) for each in inputs]
        for part, bar in zip(slope, a):
            pulled = [one + more for one, more in zip(pulled, gradients(part, inputs, -bar, graph))]
        by_t = pulled.pop(0) if self.timed else torch.zeros_like(z[0])
        return by_t, *(each if graph else each.detach() for each in slope), *pulled


def _leaf(value: Tensor, wanted: bool, graph: bool) -> Tensor:
    return value if graph and value.requires_grad else value.detach().requires_grad_(wanted)


def along(slope: tuple[Tensor, ...], bars: list[Tensor]) -> Tensor:
    """The real part of a f, a number."""
    parts = [(each * bar.conj()).real if each.is_complex() else each * bar for each, bar in zip(slope, bars)]
    return torch.stack([each.sum().double() for each in parts]).sum()


def adjoint_norm(wanted: Any, of_state: Norm | None, count: int, tupled: bool) -> Norm | None:
    """The norm of (dL/dt, y, a, dL/dtheta) on the way back; None for the largest of the parts' own.

    wanted    None, "seminorm" (without dL/dtheta) or the caller's, which gets all parts in one tuple
    of_state  of y and of a; None for the root mean square, of each tensor of a tuple
    Raises ValueError for anything else.
    """
    if callable(wanted):
        own: Norm = wanted
        return own
    if wanted not in (None, "seminorm"):
        raise ValueError(f"adjoint_options['norm'] must be a function or 'seminorm', not {wanted!r}")
    if wanted is None and of_state is None:
        return None

    def norm(z: tuple[Tensor, ...]) -> Tensor:
        both = (z[1 : 1 + count], z[1 + count : 1 + 2 * count])
        sizes = [z[0].abs()]
        for parts in both:
            if of_state is None:
                sizes += [root_mean_square(each) for each in parts]
            else:
                sizes.append(of_state(tuple(parts) if tupled else parts[0]))
        if wanted is None:
            sizes += [root_mean_square(each) for each in z[1 + 2 * count :] if each.numel()]
        return torch.stack([each.double().reshape(()) for each in sizes]).amax()

    return norm


def root_mean_square(value: Tensor) -> Tensor:
    """A number."""
    return value.abs().square().mean().sqrt()
