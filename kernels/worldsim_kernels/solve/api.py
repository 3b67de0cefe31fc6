"""``solve``: where a term, a stepper, a controller, what to save, events and a gradient meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldsim_kernels.solve.control import PID, Constant
from worldsim_kernels.solve.events import checked_events
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.stepper import Stepper
from worldsim_kernels.solve.steppers import stepper_of
from worldsim_kernels.solve.terms import SDE

if TYPE_CHECKING:
    from worldsim_kernels.solve.brownian import Brownian

BACKENDS: Mapping[str, str] = MappingProxyType(
    {"torch": "eager", "compiled": "compiled", "native": "native_solve", "triton": "triton_solve"}
)
"""Name -> the module that has ``run(problem)`` and, except for torch, ``refuses(problem)``."""


@dataclass(frozen=True)
class Save:
    """What a solution keeps beside the end of each row.

    times  ``[time]`` or ``[row, time]`` (ragged: NaN where a row wants fewer, at its end), between t0 and
           t1, in the direction of the solve
    exact  an adaptive solve ends a step on each of ``times`` rather than interpolate
    steps  the accepted steps
    dense  a function of time
    """

    times: Tensor | None = None
    exact: bool = False
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
    exact: bool
    compact: bool
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
    noise: Brownian | None = None,
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
    gradient    ``Replay()`` (the default), ``ThroughSteps()``, ``Reversible()`` or ``ContinuousAdjoint()``;
                it matters only where something requires a gradient
    noise       the Brownian motions of an SDE, see ``Brownian``; its steppers are those of ``solve_sde``
    backend     "torch": one operation after another; "compiled": the whole loop as one graph; "native": the
                field traced and printed as C; "triton": the same on a GPU. Where the field is made of + - * /
                all give the same bits.
    compact     leave finished rows out of later evaluations (a field must then take any subset of rows)
    max_steps   attempts after which a row is given up (status MAX_STEPS)

    No row ever harms another: one that fails gets a status and NaN, see ``Solution``.
    Raises ValueError or TypeError for arguments that do not fit, naming the argument.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r}; there are {', '.join(BACKENDS)}")
    if isinstance(term, SDE):
        return _stochastic(
            term, y0, t0, t1, stepper, controller, noise, save, events, gradient, backend, max_steps
        )
    if noise is not None:
        raise ValueError(f"noise is for an SDE, and the term is an {type(term).__name__}")
    problem = checked(term, y0, t0, t1, stepper, controller, save, events, compact, max_steps)
    from worldsim_kernels.solve import gradients  # which knows what a problem is

    way = gradients.wanted(problem, gradient)
    if way is None:
        return _run(problem, backend)
    solution = gradients.attach(problem, _run(gradients.without_graph(problem, way), backend), way)
    return solution if problem.keep_steps else replace(solution, steps=None)


def _stochastic(
    term: SDE,
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    stepper: Any,
    controller: PID | Constant | None,
    noise: Brownian | None,
    save: Save | None,
    events: Sequence[Any],
    gradient: Any | None,
    backend: str,
    max_steps: int,
) -> Solution:
    if events:
        raise ValueError("events are not located on the path of an SDE: leave them out")
    from worldsim_kernels.solve.sde_solve import solve_sde

    return solve_sde(
        term, y0, t0, t1, stepper=stepper, controller=controller, noise=noise, save=save,
        gradient=gradient, backend=backend, max_steps=max_steps,
    )  # fmt: skip


def _run(problem: Problem, backend: str) -> Solution:
    module = import_module(f"worldsim_kernels.solve.{BACKENDS[backend]}")
    if backend != "torch":
        reason = module.refuses(problem)
        if reason is not None:
            raise ValueError(f"backend {backend!r} cannot run this solve: {reason}")
    solution: Solution = module.run(problem)
    return solution


def checked(
    term: Any,
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    stepper: str | Stepper,
    controller: PID | Constant | None,
    save: Save | None,
    events: Sequence[Any],
    compact: bool,
    max_steps: int,
) -> Problem:
    """The problem of a call of ``solve``; raises as it does."""
    check_state(y0)
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    method = stepper_of(stepper) if isinstance(stepper, str) else stepper
    kinds: tuple[type, ...] = tuple(method.terms)
    if not isinstance(term, kinds):
        wanted = " or ".join(each.__name__ for each in method.terms)
        raise TypeError(f"{method.name} solves {wanted}, not {type(term).__name__}")
    for number, each in enumerate(getattr(term, "args", ())):
        if not isinstance(each, Tensor) or each.dim() == 0 or len(each) != len(y0):
            shape = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ValueError(f"args[{number}] must be a tensor [row={len(y0)}, ...], not {shape}")
    keep = save or Save()
    start, end = checked_rows("t0", t0, y0), checked_rows("t1", t1, y0)
    return Problem(
        term=term,
        y0=y0,
        t0=start,
        t1=end,
        stepper=method,
        controller=_controller(controller, method, y0),
        times=None if keep.times is None else checked_times(keep.times, start, end),
        exact=keep.exact,
        compact=compact,
        keep_steps=keep.steps,
        keep_dense=keep.dense,
        events=checked_events(events),
        max_steps=max_steps,
    )


def check_state(y0: Any) -> None:
    """Raises ValueError unless ``y0`` is a tensor of float32 or float64 with rows and components: a shorter
    dtype would lose the steps in its rounding, without a word."""
    found = f"{list(y0.shape)} {y0.dtype}" if isinstance(y0, Tensor) else type(y0).__name__
    if not isinstance(y0, Tensor) or y0.dim() < 2 or not y0.shape[1:].numel():
        raise ValueError(f"y0 must be a floating-point tensor [row, *state] with components, not {found}")
    if y0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"y0 must be a floating-point tensor of float32 or float64, not {found}")


def _controller(controller: PID | Constant | None, stepper: Stepper, y0: Tensor) -> PID | Constant:
    adaptive = stepper.properties.error_order is not None
    if controller is None:
        if not adaptive:
            raise ValueError(f"{stepper.name} has no error estimate: give controller=Constant(step)")
        return PID()
    if isinstance(controller, PID):
        if not adaptive:
            raise ValueError(f"{stepper.name} has no error estimate for PID: use Constant(step)")
        _check_each(("rtol", "atol", "first"), controller, y0)
    else:
        _check_each(("step",), controller, y0)
        steps = torch.as_tensor(controller.step, dtype=torch.float64)
        if not bool(((steps > 0) & steps.isfinite()).all()):
            raise ValueError(f"step must be positive and finite, it is {steps.min().item()}")
    return controller


def _check_each(names: Sequence[str], controller: PID | Constant, y0: Tensor) -> None:
    for name in names:
        value = getattr(controller, name)
        if isinstance(value, Tensor):
            checked_rows(name, value, y0)


def checked_times(times: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """``times`` as ``[row, time]`` float64.

    Raises ValueError unless each row's are monotone from t0 to t1, any NaN at the end.
    """
    times = torch.as_tensor(times, dtype=torch.float64, device=t0.device)
    if times.dim() not in (1, 2) or (times.dim() == 2 and len(times) != len(t0)):
        raise ValueError(f"save.times must be [time] or [row={len(t0)}, time], it is {list(times.shape)}")
    times = times.expand(len(t0), times.shape[-1]).contiguous()
    sign = torch.where(t1 >= t0, 1.0, -1.0).to(times)[:, None]
    absent = times.isnan()
    if bool((absent[:, :-1] & ~absent[:, 1:]).any()):
        raise ValueError("save.times must have its NaN at the end of a row")
    along = torch.where(absent, float("inf"), sign * times)
    falls = along[:, 1:] < along[:, :-1]
    outside = ~absent & ((along < sign * t0[:, None]) | (along > sign * t1[:, None]))
    for wrong, what in ((falls, "must be monotone from t0 to t1"), (outside, "must lie between t0 and t1")):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"save.times {what}: row {row} has {times[row].tolist()[:6]}, from t0 = {t0[row].item()} "
                f"to t1 = {t1[row].item()}"
            )
    return times


def checked_rows(name: str, value: float | Tensor, y0: Tensor) -> Tensor:
    """``value`` as ``[row]`` float64. Raises ValueError for another shape or values that are not finite."""
    rows = torch.as_tensor(value, dtype=torch.float64, device=y0.device)
    if rows.dim() > 1 or (rows.dim() == 1 and len(rows) not in (1, len(y0))):
        raise ValueError(f"{name} must be a number or [row={len(y0)}], its shape is {list(rows.shape)}")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} must be finite")
    return rows.expand(len(y0)).contiguous()
