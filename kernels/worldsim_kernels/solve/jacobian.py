"""The derivatives of a field, row by row, that implicit steps need.

Rows are independent, so all derivatives of all rows come from one evaluation and one backward pass: the
rows are repeated once for each component, and copy i asks for the gradient of component i. That works for
every field that automatic differentiation can follow, and any subset of rows gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.terms import check_recordable, of_rows


@dataclass(frozen=True)
class Linearised:
    """A field at n points, to first order.

    slope        ``[row, *state]``
    by_state     ``[row, d, d]``, df_i/dy_j over flattened states
    by_time      ``[row, *state]``, df/dt
    evaluations  of the field, per row
    """

    slope: Tensor
    by_state: Tensor
    by_time: Tensor
    evaluations: int


def linearised(term: Any, t: Tensor, y: Tensor) -> Linearised:
    """The derivatives of ``term`` at ``t`` ``[row]`` and ``y`` ``[row, *state]``; differentiable themselves
    where a graph is recorded. ``term.jacobian`` is used where there is one.

    Raises ValueError when ``term.jacobian`` gives another shape than ``[row, d, d]``, or when there is none
    and the field hides its graph; RuntimeError in ``torch.inference_mode``.
    """
    check_recordable("the field of an implicit stepper")
    given = getattr(term, "jacobian", None)
    recording = torch.is_grad_enabled() and _has_graph(term, t, y)
    with torch.set_grad_enabled(recording):
        found = _differentiated(term, t, y) if given is None else _given(term, t, y)
    if recording:
        return found
    slope, by_state, by_time = (each.detach() for each in (found.slope, found.by_state, found.by_time))
    return Linearised(slope, by_state, by_time, found.evaluations)


def _has_graph(term: Any, t: Tensor, y: Tensor) -> bool:
    """Whether a gradient can be wanted: derivatives are taken by new leaves, which must not look like one."""
    return y.requires_grad or t.requires_grad or bool(_first(term, t, y).requires_grad)


def _first(term: Any, t: Tensor, y: Tensor) -> Tensor:
    row = torch.arange(min(len(y), 1), device=y.device)
    slope: Tensor = of_rows(term, row)(t[row], y[row])
    return slope


def _differentiated(term: Any, t: Tensor, y: Tensor) -> Linearised:
    n, size = len(y), y[0].numel() if len(y) else 0
    copies = torch.arange(n, device=y.device).repeat(size)
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        times, states = _tracked(t[copies]), _tracked(y[copies])
        slopes = of_rows(term, copies)(times, states)
        slope = slopes.detach()[:n] if not recording else slopes[:n]
        if not slopes.requires_grad:
            _check_constant(term, t, y, slope)
        component = slopes.reshape(size, n, size).diagonal(dim1=0, dim2=2)
        by_time, by_state = _gradients(component.sum(), times, states, recording)
    return Linearised(
        slope,
        by_state.reshape(size, n, size).transpose(0, 1),
        by_time.to(y.dtype).reshape(size, n).T.reshape(y.shape),
        size,
    )


def _check_constant(term: Any, t: Tensor, y: Tensor, slope: Tensor) -> None:
    with torch.no_grad():
        moved = term(t + 1e-3, y * (1 + 1e-3) + 1e-3)
    if not torch.equal(moved, slope) and bool((moved != slope)[moved.isfinite() & slope.isfinite()].any()):
        raise ValueError(
            "the field depends on its state or time but keeps no graph (no_grad, detach or numpy in it?): "
            "let it record one, or give ODE(jacobian=...)"
        )


def _given(term: Any, t: Tensor, y: Tensor) -> Linearised:
    n, size = len(y), y[0].numel() if len(y) else 0
    by_state = term.jacobian(t.to(y.dtype), y, *term.args)
    if by_state.shape != (n, size, size):
        raise ValueError(
            f"the jacobian gives {list(by_state.shape)} for a state {list(y.shape)}: it must give "
            f"{[n, size, size]}"
        )
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        # The gradient of <f, v> by t is linear in v; its gradient by v is df/dt.
        times = _tracked(t)
        slope = term(times, y)
        weight = torch.ones_like(slope).requires_grad_()
        (along,) = _gradient((slope * weight).sum(), times, True)
        (by_time,) = _gradient(along.sum(), weight, recording)
    return Linearised(slope, by_state.to(y.dtype), by_time.to(y.dtype), 1)


def _tracked(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_()


def _gradients(total: Tensor, times: Tensor, states: Tensor, recording: bool) -> tuple[Tensor, Tensor]:
    if not total.requires_grad:  # the field is constant
        return torch.zeros_like(times), torch.zeros_like(states)
    found = torch.autograd.grad(total, (times, states), create_graph=recording, materialize_grads=True)
    return found[0], found[1]


def _gradient(total: Tensor, by: Tensor, recording: bool) -> tuple[Tensor, ...]:
    if not total.requires_grad:
        return (torch.zeros_like(by),)
    return torch.autograd.grad(total, by, create_graph=recording, materialize_grads=True)
