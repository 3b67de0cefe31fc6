"""One call of ``odeint`` in terms of ``solve``: times, tolerances, options, jumps and grids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.solve import eager, gradients
from worldsim_kernels.solve.api import Save, checked, solve
from worldsim_kernels.solve.control import PID, Constant, norm
from worldsim_kernels.solve.implicit import ImplicitRungeKutta
from worldsim_kernels.solve.judged import Judge, Judged
from worldsim_kernels.solve.layout import State, field_of, layout_of, tolerance
from worldsim_kernels.solve.perturbed import Perturbed, within
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.steppers import HOME, stepper_of
from worldsim_kernels.solve.terms import ODE

FIXED: Mapping[str, str] = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun",
    "heun3": "heun3",
    "rk4": "three_eighths",
}
"""torchdiffeq's methods of fixed steps, and what they are called here."""
IMPLICIT: Mapping[str, str] = {
    **{name: name for name in ("implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "trbdf2")},
    "radauIIA3": "radau3",
    "radauIIA5": "radau5",
    "gl4": "gauss4",
    "gl6": "gauss6",
}
"""Those of its methods of fixed steps that solve equations, here by Newton's method."""
INSTEAD: Mapping[str, str] = {
    "scipy_solver": "auto, which changes between tsit5 and a stiff method, or rodas5p or kvaerno5",
    **dict.fromkeys(
        ("explicit_adams", "implicit_adams", "fixed_adams"),
        "dopri5 or dopri8, or rk4 for the same fixed steps",
    ),
}
"""What to use for its methods that are not here."""
ADAPTIVE: Mapping[str, str] = {"adaptive_heun": "heun"}
FIXED_OPTIONS = ("step_size", "grid_constructor", "interp", "norm", "perturb", "max_num_steps", "dtype")
ADAPTIVE_OPTIONS = (
    *("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps"),
    *("norm", "step_t", "jump_t", "grid_points", "dtype"),
)
CALLBACKS = {"step": "callback_step", "accept": "callback_accept_step", "reject": "callback_reject_step"}
FOREVER = 2.0**60
"""How far an event is looked for."""


class Horizon(NamedTuple):
    """Between which times an event is looked for, ``[row]``."""

    start: Tensor
    end: Tensor


class Call:
    """The arguments of ``odeint``, checked; raises as it does.

    y0  ``[row, *state]``; t  ``[time]`` or ``[row, time]``, float64
    """

    def __init__(
        self,
        func: Callable[..., State],
        y0: State,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Mapping[str, Any] | None,
        rows: bool,
        args: tuple[Tensor, ...],
        gradient: Any,
        backend: str,
    ) -> None:
        self.func, self.args, self.gradient, self.backend = func, args, gradient, backend
        self.options = dict(options or {})
        self.layout = layout_of(y0, rows)
        self.y0 = self.layout.pack(y0, "y0")
        self.t, self.t_dtype = checked_t(t, self.y0, rows), t.dtype
        self.name = "dopri5" if method is None else method
        self.fixed = of_fixed_steps(self.name)
        self._check_options()
        self.max_steps = int(self.options.get("max_num_steps", 100_000))
        self.callbacks = self._callbacks()
        judge = None if self.fixed else self._judge(rtol, atol)
        self.controller = None if self.fixed else self._pid(rtol, atol, judge)
        self.stepper: Any = _stepper(self.name, self.fixed)
        if self.fixed and self.options.get("perturb"):
            self.stepper = Perturbed(self.stepper)
        if judge is not None or self.callbacks:
            self.stepper = Judged(self.stepper, judge, self.callbacks)

    def term(self, before: Tensor | None = None, after: Tensor | None = None) -> ODE:
        """The field as one of rows; it sees times after ``before`` and before ``after`` alone."""
        term = ODE(field_of(self.layout, self.func), self.args)
        return term if before is None and after is None else within(term, before, after)

    def solve(
        self,
        term: ODE,
        y0: Tensor,
        t0: Tensor,
        t1: Tensor,
        save: Save,
        events: Sequence[Any] = (),
        step: Any = None,
    ) -> Solution:
        """See ``solve``. Raises SolveFailed."""
        controller = Constant(step) if self.controller is None else self.controller
        if not self.callbacks:
            found = solve(
                term,
                y0,
                t0,
                t1,
                stepper=self.stepper,
                controller=controller,
                save=save,
                events=events,
                gradient=self.gradient,
                backend=self.backend,
                max_steps=self.max_steps,
            )
            return found.check()
        # A replay takes the same steps again: callbacks hear of the search alone.
        problem = checked(term, y0, t0, t1, self.stepper, controller, save, events, True, self.max_steps)
        way = gradients.wanted(problem, self.gradient)
        self.stepper.listening = True
        found = eager.run(replace(problem, keep_steps=True))
        self.stepper.settle(found)
        return (found if way is None else gradients.attach(problem, found, way)).check()

    def adaptive(self) -> Tensor:
        """``[row, time, *state]`` at ``t``."""
        edges = self._edges()
        if not edges:
            return saved(self.solve(self.term(), self.y0, self.t[..., 0], self._last(), Save(self.t)))
        y, pieces, times = self.y0, [self.y0.unsqueeze(1)], self.t
        sign = 1.0 if len(times) < 2 or bool(times[1] > times[0]) else -1.0
        stops = [(times[0], False), *edges, (times[-1], False)]
        for (start, jumps), (end, jumps_after) in pairwise(stops):
            inside = (sign * times > sign * start) & (sign * times <= sign * end)
            before, after = (start if jumps else None, end if jumps_after else None)
            term = self.term(before, after) if sign > 0 else self.term(after, before)
            solution = self.solve(term, y, start, end, Save(times[inside]))
            pieces.append(saved(solution))
            y = solution.y
        return torch.cat(pieces, 1)

    def grid(self) -> Tensor:
        """``[row, time, *state]`` at ``t``, by steps from one point of a grid to the next."""
        if self.t.dim() == 2:
            gaps = self.t.detach().diff(dim=1).abs().nan_to_num(0.0)
            step = self.options.get("step_size", gaps.amax(1).clamp(min=1e-300))
            return saved(self.solve(self.term(), self.y0, self.t[:, 0], self._last(), Save(self.t), (), step))
        grid = self._grid()
        longest = float(grid.detach().diff().abs().max()) if len(grid) > 1 else 1.0
        states = saved(
            self.solve(self.term(), self.y0, grid[0], grid[-1], Save(grid), (), longest * (1 + 1e-6))
        )
        return states if torch.equal(grid, self.t) else self._read(grid, states)

    def horizon(self) -> Horizon:
        """For an event. Raises ValueError for a call that does not go with one."""
        if self.t.shape[-1] != 2:
            raise ValueError(
                f"with event_fn, t must be (start, direction), it has {self.t.shape[-1]} entries"
            )
        for name in ("jump_t", "step_t", "grid_points", "grid_constructor"):
            if name in self.options:
                raise ValueError(f"options[{name!r}] does not go with event_fn")
        t = self.t.expand(len(self.y0), 2)
        length = FOREVER
        if self.fixed:
            if "step_size" not in self.options:
                raise ValueError("event_fn with steps of fixed length needs options['step_size']")
            length = float(self.options["step_size"]) * self.max_steps
        return Horizon(t[:, 0], (t[:, 0] + torch.where(t[:, 1] > t[:, 0], length, -length)).detach())

    def _last(self) -> Tensor:
        """The last time, of each row where they differ."""
        if self.t.dim() == 1:
            return self.t[-1]
        count = (~self.t.isnan()).sum(1, keepdim=True)
        return self.t.gather(1, count - 1)[:, 0]

    def _grid(self) -> Tensor:
        t, size = self.t, self.options.get("step_size")
        constructor = self.options.get("grid_constructor")
        if size is not None and constructor is not None:
            raise ValueError("options: step_size and grid_constructor exclude each other")
        if constructor is not None:
            grid: Tensor = constructor(self.func, self.layout.given(self.y0), t).to(t)
            if grid[0] != t[0] or grid[-1] != t[-1]:
                raise ValueError("grid_constructor must give a grid from t[0] to t[-1]")
            return grid
        if size is None:
            return t
        if not float(size) > 0:
            raise ValueError(f"options['step_size'] must be positive, it is {float(size)}")
        span = t[-1] - t[0]
        # As t was given: 0.3 in float32 is more than 0.3, and would cost a step of no length.
        count = int(torch.ceil(span.detach().to(self.t_dtype).abs() / float(size)))
        steps = torch.arange(count, dtype=t.dtype, device=t.device) * float(size)
        return torch.cat([t[0] + torch.sign(span.detach()) * steps, t[-1:]])

    def _read(self, grid: Tensor, states: Tensor) -> Tensor:
        """``states`` ``[row, grid, *state]`` between the points of the grid, at ``t``."""
        sign = 1.0 if bool(grid[-1] >= grid[0]) else -1.0
        after = torch.searchsorted((sign * grid).detach().contiguous(), (sign * self.t).detach())
        before = (after - 1).clamp(min=0)
        y, end = states[:, before], states[:, after]
        length = grid[after] - grid[before]
        theta = torch.where(length == 0, 0.0, (self.t - grid[before]) / torch.where(length == 0, 1.0, length))
        axes = (1, -1, *[1] * (states.dim() - 2))
        x, h = theta.to(y.dtype).reshape(axes), length.to(y.dtype).reshape(axes)
        if self.options.get("interp", "linear") == "linear":
            between = y + x * (end - y)
            return between + torch.where((theta == 1).reshape(axes), end - between, 0.0).detach()
        first, last = (h * self._slopes(grid, states, index) for index in (before, after))
        bend = (1 - x) * (first - (end - y)) + x * ((end - y) - last)
        return y + x * (end - y) + x * (1 - x) * bend

    def _slopes(self, grid: Tensor, states: Tensor, index: Tensor) -> Tensor:
        term, rows = self.term(), len(self.y0)
        return torch.stack([term(grid[i].expand(rows), states[:, i]) for i in index.tolist()], 1)

    # Options.

    def _check_options(self) -> None:
        known = FIXED_OPTIONS if self.fixed else ADAPTIVE_OPTIONS
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            warnings.warn(f"odeint: {self.name} knows no options {', '.join(unknown)}", stacklevel=4)
        if self.options.get("interp", "linear") not in ("linear", "cubic"):
            raise ValueError(f"options['interp'] must be linear or cubic, not {self.options['interp']!r}")
        if self.layout.rows and "norm" in self.options:
            raise ValueError("options['norm'] measures a whole state: it does not go with rows=True")

    def _callbacks(self) -> dict[str, Callable[[Tensor, Tensor, Tensor], Any]]:
        found = {}
        for name, attribute in CALLBACKS.items():
            call = getattr(self.func, attribute, None)
            if call is None:
                continue
            if self.fixed and name != "step":
                warnings.warn(f"odeint: {self.name} does not call {attribute}", stacklevel=4)
                continue
            found[name] = self._callback(call)
        if found and self.layout.rows:
            raise ValueError("callbacks follow one step size: they do not go with rows=True")
        return found

    def _callback(self, call: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor], Any]:
        return lambda t, y, h: call(t[0], self.layout.given(y), h[0].abs())

    def _judge(self, rtol: Any, atol: Any) -> Judge | None:
        """None where the loop's own measure of errors will do."""
        shortest = float(self.options.get("min_step", 0.0))
        own = self.options.get("norm")
        plain = all(self._plain(x) for x in (rtol, atol))
        if plain and own is None and not self.layout.tupled and not shortest:
            return None
        relative, absolute = (
            tolerance(self.layout, x, self.y0, name) for x, name in ((rtol, "rtol"), (atol, "atol"))
        )
        size = self.y0.detach().double().abs().mean().nan_to_num(1.0)
        unit = float(absolute.max() + relative.max() * size) or float(relative.max())
        if not unit > 0:
            raise ValueError("rtol and atol are both 0: no step could ever be accepted; make one positive")
        return Judge(relative, absolute, self._norm(own), unit, shortest)

    def _plain(self, value: Any) -> bool:
        """Whether the loop knows such tolerances: a number, or one for each row."""
        if isinstance(value, tuple | list):
            return False
        shape = torch.as_tensor(value).shape
        return shape.numel() == 1 or (self.layout.rows and shape == self.y0.shape[:1])

    def _norm(self, own: Callable[[State], Tensor] | None) -> Callable[[Tensor], Tensor]:
        if own is not None:
            chosen = own
            return lambda error: torch.as_tensor(chosen(self.layout.given(error))).double().reshape(1)
        if not self.layout.tupled:
            return norm
        sizes = self.layout.sizes()
        return lambda error: torch.stack([norm(part) for part in torch.split(error, sizes, 1)]).amax(0)

    def _pid(self, rtol: Any, atol: Any, judge: Judge | None) -> PID:
        read = self.options.get
        first = read("first_step")
        return PID(
            rtol=rtol if judge is None else 0.0,
            atol=atol if judge is None else judge.unit,
            safety=float(read("safety", 0.9)),
            shrink=float(read("dfactor", 0.2)),
            grow=float(read("ifactor", 10.0)),
            smallest=float(read("min_step", 0.0)),
            largest=float(read("max_step", float("inf"))),
            first=None if first is None else float(first),
        )

    def _edges(self) -> list[tuple[Tensor, bool]]:
        """Where steps must end, in the order of the solve, and whether the field jumps there."""
        edges: list[tuple[float, bool]] = []
        for name in ("step_t", "grid_points", "jump_t"):
            value = self.options.get(name)
            if value is not None:
                edges += [(float(x), name == "jump_t") for x in torch.as_tensor(value).reshape(-1).tolist()]
        if not edges:
            return []
        if self.t.dim() == 2:
            raise ValueError("options step_t and jump_t need one t for all rows: [time]")
        if len({x for x, _ in edges}) < len(edges):
            raise ValueError("options step_t and jump_t must not have any repeated elements between them")
        low, high = sorted((float(self.t[0]), float(self.t[-1])))
        edges = sorted((each for each in edges if low < each[0] < high), reverse=float(self.t[0]) == high)
        return [(self.t.new_tensor(x), jump) for x, jump in edges]


def saved(solution: Solution) -> Tensor:
    """``[row, time, *state]``"""
    assert solution.saved is not None
    return solution.saved


def checked_t(t: Tensor, y0: Tensor, rows: bool) -> Tensor:
    """``t`` in float64. Raises TypeError or ValueError unless it is a strictly monotone vector of floats, or
    one for each row."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError("t must be a floating-point tensor")
    if t.dim() != 1 and not (rows and t.dim() == 2 and len(t) == len(y0)):
        raise ValueError(f"t must be one dimensional, [time], it is {list(t.shape)}")
    if not t.shape[-1]:
        raise ValueError("t must have at least one time")
    if t.dim() == 1:
        gaps = t.detach().diff()
        if not bool(((gaps > 0).all() | (gaps < 0).all()) & t.detach().isfinite().all()):
            raise ValueError("t must be finite and strictly increasing or decreasing")
    return t.to(y0.device, torch.float64)


def of_fixed_steps(name: str | None) -> bool:
    """Whether steps of this method are of a length that the caller says."""
    return name in FIXED or name in IMPLICIT


def _stepper(name: str, fixed: bool) -> Any:
    if name in IMPLICIT:
        return ImplicitRungeKutta(IMPLICIT[name])
    if name in INSTEAD:
        raise ValueError(f"there is no method {name!r} here: use {INSTEAD[name]}")
    known = FIXED.get(name) or ADAPTIVE.get(name) or name
    if known in HOME:
        stepper = stepper_of(known)
        if ODE in stepper.terms and (fixed or stepper.properties.error_order is not None):
            return stepper
    offered = [
        *FIXED,
        *IMPLICIT,
        *ADAPTIVE,
        *(each for each in HOME if stepper_of(each).properties.error_order),
    ]
    raise ValueError(f"there is no method {name!r}; there are {', '.join(sorted(set(offered)))}")
