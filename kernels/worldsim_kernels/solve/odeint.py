"""torchdiffeq's surface over ``solve``: the same calls, the same meaning, the same answers to the tolerance.

Source of the interface: Chen, Rubanova, Bettencourt, Duvenaud 2018, *Neural ordinary differential equations*,
and their package torchdiffeq. What differs:

- a failure is ``SolveFailed`` with what to do, not an AssertionError, and so are fixed steps to what is not
  finite, which are no failure there;
- gradients are those of the steps that were taken (see ``gradients``), also by ``t`` and of an event's time;
- an event that is zero at the start does not fire there: it fires where its sign changes;
- ``max_num_steps`` bounds a solve and not one interval of ``t``, and is 100,000 unless it is given;
- ``adaptive_heun`` and ``fehlberg2`` evaluate the slope at each state, not at the last stage before it: one
  evaluation a step more, and a smaller error;
- a complex number counts as two real ones where errors are measured;
- any adaptive stepper of ``solve`` may be named, and ``rows=True`` gives every row its own steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from worldsim_kernels.solve.adjoint import ContinuousAdjoint
from worldsim_kernels.solve.api import Problem, Save
from worldsim_kernels.solve.augmented import Call as AdjointCall
from worldsim_kernels.solve.augmented import adjoint_norm
from worldsim_kernels.solve.call import ADAPTIVE, Call, of_fixed_steps
from worldsim_kernels.solve.events import Event
from worldsim_kernels.solve.layout import State
from worldsim_kernels.solve.solution import Solution, SolveFailed, Status


def odeint(
    func: Callable[..., State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    rows: bool = False,
    args: tuple[Tensor, ...] = (),
    gradient: Any = None,
    backend: str = "torch",
) -> Any:
    """The solution of dy/dt = func(t, y), y(t[0]) = y0 at the times ``t``, ``[time, *state]``.

    func      ``t, y -> dy/dt``, ``t`` a tensor without axes and ``y`` as ``y0`` is; its attributes
              ``callback_step``, ``callback_accept_step`` and ``callback_reject_step`` are called with
              (t, y, |h|) before, and after, each attempt
    y0        a tensor of any shape, of floating-point or complex numbers, or a tuple of such: one system,
              with one step size
    t         ``[time]``, strictly rising or falling
    rtol, atol  numbers, tensors that broadcast to ``y0``, or tuples as ``y0``
    method    dopri5 (None), dopri8, bosh3, fehlberg2, adaptive_heun, tsit5 or any other adaptive stepper;
              euler, midpoint, heun2, heun3, rk4 (the rule of three eighths), implicit_euler,
              implicit_midpoint, trapezoid, sdirk2, trbdf2, radauIIA3, radauIIA5, gl4, gl6, which step from
              one of ``t`` to the next
    options   adaptive: first_step, min_step (shorter ones are not tried, so the tolerance may be missed),
              max_step, safety, ifactor, dfactor, max_num_steps, norm, step_t (steps end there), jump_t (the
              field jumps there). Fixed: step_size, grid_constructor, interp ("linear" or "cubic"), perturb
              (the field is seen at the ends of a step from within)
    event_fn  ``t, y -> tensor``; the solve goes from t[0] in the direction of t[1] until an entry changes its
              sign, and gives (time, ``[2, *state]``: start and end), both differentiable
    rows      the first axis of ``y0`` is of independent rows, each with its own steps. ``func`` and
              ``event_fn`` get ``t`` as ``[row, 1, ...]``, are called with any subset of the rows, and find
              per-row data in ``args`` ``[row, ...]``; an event function gives ``[row]`` or ``[row, event]``,
              its time is ``[row]``; ``t`` may be ``[row, time]``, and a tolerance of one tensor ``[row]``
    gradient, backend  see ``solve``

    Raises SolveFailed when a row fails, ValueError or TypeError for arguments that do not fit. Warns of
    options that it does not know.
    """
    call = Call(func, y0, t, rtol, atol, method, options, rows, args, gradient, backend)
    if event_fn is not None:
        return until(call, event_fn)
    states = call.grid() if call.fixed else call.adaptive()
    return call.layout.unpack(states.movedim(1, 0), 2) if rows else call.layout.unpack(states[0])


def until(call: Call, event_fn: Callable[..., Tensor]) -> tuple[Tensor, State]:
    """(time, states at the start and there) of the first change of sign of ``event_fn``."""
    horizon = call.horizon()
    layout, term = call.layout, call.term()

    def values(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        found = event_fn(layout.time(t), layout.given(y), *args)
        return found.reshape(len(y), -1)

    def one(number: int) -> Callable[..., Tensor]:
        return lambda t, y, *args: values(t, y, *args)[:, number]

    with torch.no_grad():
        first = values(horizon.start.to(call.y0.dtype), call.y0, *term.args)
    events = [Event(one(number)) for number in range(first.shape[1])]
    step = call.options.get("step_size")
    solution = call.solve(term, call.y0, horizon.start, horizon.end, Save(), events, step)
    if bool((solution.status != Status.EVENT).any()):
        raise SolveFailed(f"event_fn changed no sign up to t = {float(horizon.end[0]):g}")
    both, time = torch.stack([call.y0, solution.y], 1), solution.t.to(call.t_dtype)
    if layout.rows:
        return time, layout.unpack(both.movedim(1, 0), 2)
    return time[0], layout.unpack(both[0])


def odeint_event(
    func: Callable[..., State],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """(time of the event, ``[2, *state]``), see ``odeint``; the derivatives are those of the crossing."""
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


def odeint_dense(
    func: Callable[..., State],
    y0: State,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Tensor], State]:
    """The solution from ``t0`` to ``t1`` as a function ``[time] -> [time, *state]``, or of one time without
    axes; NaN outside of t0 to t1. Raises ValueError for a method of fixed steps."""
    t = torch.stack([torch.as_tensor(each, dtype=torch.float64).reshape(()) for each in (t0, t1)])
    call = Call(func, y0, t, rtol, atol, method, options, False, (), None, "torch")
    if call.fixed:
        raise ValueError(f"odeint_dense takes adaptive methods, and {call.name} is one of fixed steps")
    dense = call.solve(call.term(), call.y0, t[:1], t[1:], Save(dense=True)).dense
    assert dense is not None

    def at(times: Tensor) -> State:
        found = dense(times.reshape(-1))[0]
        return call.layout.unpack(found) if times.dim() else call.layout.unpack(found[0], 0)

    return at


def odeint_adjoint(
    func: Callable[..., State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
    rows: bool = False,
    args: tuple[Tensor, ...] = (),
) -> Any:
    """``odeint`` with gradients by the continuous adjoint equation, solved backwards: no steps are kept, and
    the gradients are as exact as the tolerances (see ``augmented``; with ``rows``, ``ContinuousAdjoint``).

    adjoint_rtol, adjoint_atol, adjoint_method  as rtol (its least), atol (its least) and method where None
    adjoint_options  of the way back; None for ``options`` without their norm. "norm" is "seminorm", or a
              function of (dL/dt, y, dL/dy, dL/dparameter ...), tuples spread out. With ``rows`` there are
              none: parameters are left out of the error, and a method of fixed steps becomes dopri5
    adjoint_params  the tensors that get gradients beside y0, t and args; None for what ``func`` has, which
              must be a module then

    ``func.callback_step_adjoint``, ``callback_accept_step_adjoint`` and ``callback_reject_step_adjoint`` hear
    of the way back. With ``event_fn`` the steps that were taken are replayed instead.
    Raises as ``odeint`` does, and ValueError for neither a module nor adjoint_params, and for options whose
    counterpart of another adjoint_method is not given.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError("func must be a module, or its tensors be named in adjoint_params (() for none)")
    own = func.parameters() if isinstance(func, nn.Module) and adjoint_params is None else adjoint_params
    named = tuple(own)
    chosen: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    back: dict[str, Any] = {
        "rtol": _least(rtol if adjoint_rtol is None else adjoint_rtol),
        "atol": _least(atol if adjoint_atol is None else adjoint_atol),
        "method": method if adjoint_method is None else adjoint_method,
    }
    if event_fn is not None:
        return odeint(func, y0, t, event_fn=event_fn, rows=rows, args=args, **chosen)
    if rows or args:
        way = _by_rows(back, adjoint_options)
        return odeint(func, y0, t, rows=rows, args=args, gradient=Chosen(way, named), **chosen)
    if back["method"] != method and options is not None and adjoint_options is None:
        raise ValueError(
            "adjoint_method is another than method, so adjoint_options cannot be options: give them too"
        )
    plain = {key: value for key, value in (options or {}).items() if key != "norm"}
    settings = dict(plain if adjoint_options is None else adjoint_options)
    tupled = isinstance(y0, tuple)
    norm = adjoint_norm(
        settings.pop("norm", None), (options or {}).get("norm"), len(y0) if tupled else 1, tupled
    )
    if norm is not None and not of_fixed_steps(back["method"]):
        settings["norm"] = norm
    call = AdjointCall(
        func,
        partial(odeint, **chosen),
        partial(odeint, **back, options=settings),
        tupled,
        tuple(each for each in named if each.requires_grad),
    )
    return call.solved(y0, t)


def _by_rows(back: Mapping[str, Any], adjoint_options: Mapping[str, Any] | None) -> ContinuousAdjoint:
    unused = sorted(set(adjoint_options or {}) - {"norm"})
    if unused:
        warnings.warn(
            f"odeint_adjoint: with rows the adjoint equation takes no options {', '.join(unused)}",
            stacklevel=3,
        )
    name = back["method"] or "dopri5"
    stepper = "dopri5" if of_fixed_steps(name) else ADAPTIVE.get(name, name)
    return ContinuousAdjoint(rtol=back["rtol"], atol=back["atol"], stepper=stepper)


@dataclass(frozen=True)
class Chosen:
    """``way`` for the parameters that a caller has named, and no others."""

    needs_steps: ClassVar[bool] = False
    way: ContinuousAdjoint
    parameters: tuple[Tensor, ...]

    def check(self, problem: Problem) -> None:
        """See ``Gradient.check``."""
        self.way.check(problem)

    def attach(self, problem: Problem, solution: Solution, parameters: list[Tensor]) -> Solution:
        """See ``Gradient.attach``."""
        named = [each for each in self.parameters if each.requires_grad]
        return self.way.attach(problem, solution, named)


def _least(value: Any) -> float:
    parts = value if isinstance(value, tuple | list) else (value,)
    return min(float(torch.as_tensor(part).min()) for part in parts)
