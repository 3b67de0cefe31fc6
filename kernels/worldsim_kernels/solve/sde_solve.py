"""``solve_sde``: a stochastic differential equation over constant steps, every row with its own path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldsim_kernels.solve import sde_grid
from worldsim_kernels.solve.api import Save, check_state, checked_rows, checked_times
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.control import PID, Constant
from worldsim_kernels.solve.gradients import Gradient, Reversible, ThroughSteps
from worldsim_kernels.solve.sde import SCHEMES, Scheme, diffusion
from worldsim_kernels.solve.sde_grid import Grid
from worldsim_kernels.solve.sde_increments import Increments
from worldsim_kernels.solve.sde_moving import Eager, Moving
from worldsim_kernels.solve.solution import Solution, Stats, Status, Steps
from worldsim_kernels.solve.terms import SDE, wide

if TYPE_CHECKING:
    from worldsim_kernels.solve.sde_native import Native

BACKENDS = ("torch", "native")


def solve_sde(
    term: SDE,
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    stepper: str | Scheme = "euler_maruyama",
    controller: PID | Constant | None = None,
    noise: Brownian | None = None,
    save: Save | None = None,
    gradient: Gradient | None = None,
    backend: str = "torch",
    max_steps: int = 100_000,
) -> Solution:
    """Solve ``term`` for every row of ``y0`` ``[row, *state]`` from t0 to t1, numbers or ``[row]``, t0 <= t1.

    stepper     a name of ``SCHEMES``
    controller  ``Constant(step)``: every saved time and t1 is the end of a step
    noise       the Brownian motions, with the rows of y0 and as many components as the noise has: those of
                the state (diagonal, additive), 1 (scalar) or m (general)
    save        times and steps as for any solve; there is nothing dense about a path that is not smooth
    gradient    None for autograd through the steps, with the noise held fixed; ``Reversible()`` for
                reversible_heun on one grid for all rows: memory for the end alone
    backend     "torch", or "native": the step printed as C, for solves without a gradient on a CPU; the same
                bits where drift and diffusion are made of + - * /
    max_steps   a row that would need more ends with MAX_STEPS

    A row that is not finite fails from there on (NOT_FINITE), and no other row, value or gradient, notices.
    Raises ValueError or TypeError for arguments that do not fit, and for a method whose calculus or kind of
    noise is not the term's.
    """
    if backend not in BACKENDS:
        raise ValueError(f"an SDE runs on the backends {' and '.join(BACKENDS)}, not on {backend!r}")
    scheme = checked_scheme(stepper, term)
    save = save or Save()
    motions = checked_noise(noise, term, y0)
    grid = checked_grid(term, y0, t0, t1, controller, save, max_steps)
    if gradient is not None and not isinstance(gradient, ThroughSteps | Reversible):
        raise ValueError(
            f"gradient must be None, ThroughSteps() or Reversible() for an SDE, not {gradient!r}"
        )
    if isinstance(gradient, Reversible):
        from worldsim_kernels.solve import sde_adjoint

        if backend != "torch":
            raise ValueError(f"gradient=Reversible() goes back on torch alone, not on {backend!r}")
        return sde_adjoint.solve_reversibly(term, scheme, y0, grid, motions, save)
    return walked(term, scheme, y0, grid, motions, save, backend)[0]


def checked_scheme(stepper: str | Scheme, term: SDE) -> Scheme:
    """The scheme of a name. Raises ValueError for an unknown one, and for a term it must not solve."""
    if not isinstance(term, SDE):
        raise TypeError(f"term must be an SDE, not {type(term).__name__}")
    if isinstance(stepper, str) and stepper not in SCHEMES:
        raise ValueError(f"no stepper {stepper!r} solves an SDE; there are {', '.join(SCHEMES)}")
    scheme = SCHEMES[stepper] if isinstance(stepper, str) else stepper
    if not isinstance(scheme, Scheme):
        raise TypeError(f"stepper must be a name or a Scheme for an SDE, not {type(scheme).__name__}")
    refusal = scheme.refusal(term)
    if refusal is not None:
        raise ValueError(refusal)
    return scheme


def checked_noise(noise: Brownian | None, term: SDE, y0: Tensor) -> Brownian:
    """Raises ValueError for motions that are missing or not those of the rows."""
    check_state(y0)
    size = 1 if term.noise == "scalar" else math.prod(y0.shape[1:])
    if noise is None:
        example = f"Brownian(seed=0, rows=torch.arange({len(y0)}), components={size})"
        raise ValueError(f"an SDE needs its Brownian motions: give noise={example}")
    if len(noise.rows) != len(y0):
        raise ValueError(f"noise has {len(noise.rows)} rows, y0 has {len(y0)}")
    if term.noise != "general" and noise.components != size:
        raise ValueError(f"noise has {noise.components} components, {term.noise} noise needs {size} here")
    if noise.rows.device != y0.device:
        raise ValueError(f"noise.rows are on {noise.rows.device}, y0 is on {y0.device}")
    return noise


def checked_grid(
    term: SDE,
    y0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    controller: PID | Constant | None,
    save: Save,
    max_steps: int,
) -> Grid:
    """Raises ValueError for times, steps or arguments that cannot be."""
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    if not isinstance(controller, Constant):
        raise ValueError("an SDE is solved in steps of constant length: give controller=Constant(step)")
    if save.dense:
        raise ValueError("save.dense: the path of an SDE is not smooth between steps; save times instead")
    for number, each in enumerate(term.args):
        if not isinstance(each, Tensor) or each.dim() == 0 or len(each) != len(y0):
            raise ValueError(f"args[{number}] must be a tensor [row={len(y0)}, ...]")
    for name, value in (("t0", t0), ("t1", t1)):
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name} requires a gradient: a path is not differentiable by time; detach it")
    start, end = checked_rows("t0", t0, y0), checked_rows("t1", t1, y0)
    if bool((end < start).any()):
        raise ValueError("t1 must not be before t0: an SDE has a direction of time")
    step = checked_rows("step", controller.step, y0)
    if not bool((step > 0).all()):
        raise ValueError(f"step must be positive, it is {step.min().item()}")
    times = None if save.times is None else checked_times(save.times, start, end)
    return sde_grid.constant(start, end, step, times, max_steps)


@dataclass
class Record:
    """Gathers the states after wanted numbers of steps ``[row or 1, wanted]``, -1 for none."""

    wanted: Tensor
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def within(self, first: int, stop: int) -> set[int]:
        """Which numbers of steps after ``first``, up to ``stop``, are wanted by some row."""
        return set(self.wanted[(self.wanted > first) & (self.wanted <= stop)].tolist())

    def take(self, states: Mapping[int, Tensor], index: Tensor, reached: Tensor | None = None) -> None:
        """``states[n]`` ``[k, *state]`` are those of the rows ``index`` after n steps; of a row with
        ``reached`` ``[k]``, so many steps count."""
        for n, state in states.items():
            wants = (self.wanted if len(self.wanted) == 1 else self.wanted[index]) == n
            if reached is not None:
                wants = wants & (reached >= n)[:, None]
            if len(wants) == 1 < len(index) and bool(wants.any()):
                for column in wants[0].nonzero()[:, 0].tolist():
                    self._put(index, torch.full_like(index, column), state)
                continue
            row, column = wants.expand(len(index), -1).nonzero(as_tuple=True)
            if len(row):
                self._put(index[row], column, state[row])

    def _put(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        self.rows.append(rows)
        self.columns.append(columns)
        self.values.append(values)

    def filled(self, y0: Tensor) -> Tensor:
        """``[row, wanted, *state]``, NaN where nothing was taken."""
        count = self.wanted.shape[1]
        whole = len(self.values) == count and all(len(each) == len(y0) for each in self.values)
        if whole and count:
            ordered = sorted(
                zip((int(column[0]) for column in self.columns), self.values), key=lambda p: p[0]
            )
            return torch.stack([value for _, value in ordered], 1)
        blank = y0.new_full((len(y0), count, *y0.shape[1:]), math.nan)
        if not self.values:
            return blank
        place = (torch.cat(self.rows), torch.cat(self.columns))
        return blank.index_put(place, torch.cat(self.values))


def walked(
    term: SDE,
    scheme: Scheme,
    y0: Tensor,
    grid: Grid,
    noise: Brownian,
    save: Save,
    backend: str = "torch",
) -> tuple[Solution, Moving]:
    """The solution, and the rows that reached t1 with what the last step handed on."""
    rows = len(y0)
    count, cut = grid.count.expand(rows), grid.cut.expand(rows)
    record = Record(grid.saved)
    number = torch.arange(grid.t.shape[1], device=y0.device)
    trail = Record(torch.minimum(number, grid.count[:, None])) if save.steps else None
    status = torch.where(cut, int(Status.MAX_STEPS), int(Status.DONE)).to(torch.int8)
    t = grid.t.gather(1, grid.count[:, None])[:, 0].expand(rows).clone()
    ends: list[tuple[Tensor, Tensor]] = []
    draws = Increments(noise, grid, scheme.area, y0.dtype)
    every = torch.arange(rows, device=y0.device)
    now = began(term, scheme, Moving(every, y0, ()), grid, noise)
    last, take = now, taker(backend, term, scheme, now, grid, draws)
    records = [each for each in (record, trail) if each is not None]
    for each in records:
        each.take({0: y0}, every)
    for first, stop in blocks(grid.count, rows * noise.components, take.block):
        leaving = count[now.index] <= first
        if bool(leaving.any()):
            ends.append((now.index[leaving], now.y[leaving]))
            now = now.rows(~leaving)
        if not len(now.index):
            break
        keep = set().union(*(each.within(first, stop) for each in records))
        states, after = take(now, first, stop, keep)
        failed = ~after.y.detach().isfinite().flatten(1).all(1)
        if bool(failed.any()):
            lost, now = now.rows(failed), now.rows(~failed)
            with torch.no_grad():
                states, _ = take(lost, first, stop, range(first + 1, stop + 1))
            good = torch.stack([each.isfinite().flatten(1).all(1) for each in states.values()], 1)
            reached = first + good.long().cumprod(1).sum(1)
            status[lost.index] = int(Status.NOT_FINITE)
            t[lost.index] = grid.t.expand(rows, -1)[lost.index, reached]
            for each in records:
                each.take(states, lost.index, reached)
            # Again without them, so that no gradient meets a number that is not finite.
            states, after = take(now, first, stop, keep)
        for each in records:
            each.take(states, now.index)
        now = last = after
    ends.append((now.index, now.y))
    y = y0.new_full(y0.shape, math.nan).index_put(
        (torch.cat([index for index, _ in ends]),), torch.cat([value for _, value in ends])
    )
    y = torch.where(wide(cut, y).bool(), math.nan, y)
    status[(status == int(Status.DONE)) & ~y.detach().isfinite().flatten(1).all(1)] = int(Status.NOT_FINITE)
    steps = None
    if trail is not None:
        steps = Steps(grid.t.expand(rows, -1), trail.filled(y0), count)
    taken, ended = count.clone(), status == int(Status.NOT_FINITE)
    taken[ended] = (grid.t.expand(rows, -1)[ended] < t[ended, None]).sum(1)
    stats = Stats(taken, torch.zeros_like(taken), taken * scheme.cost)
    kept = record.filled(y0) if save.times is not None else None
    return Solution(t, y, status, stats, saved=kept, steps=steps, backend=backend), last


def taker(
    backend: str, term: SDE, scheme: Scheme, now: Moving, grid: Grid, draws: Increments
) -> Eager | Native:
    """What takes steps. Raises ValueError where the backend cannot, with the reason."""
    if backend == "torch":
        return Eager(term, scheme, grid, draws)
    from worldsim_kernels.native import Unavailable
    from worldsim_kernels.solve import sde_native
    from worldsim_kernels.solve.trace import Refused

    try:
        return sde_native.Native(term, scheme, now, grid, draws)
    except (Refused, Unavailable, OSError) as reason:
        raise ValueError(f"backend {backend!r} cannot run this solve: {reason}") from None


def began(term: SDE, scheme: Scheme, now: Moving, grid: Grid, noise: Brownian) -> Moving:
    """With what the first step is given. Raises ValueError for general noise of another number of motions."""
    t = grid.t[:, 0].to(now.y.dtype).expand(len(now.y))
    if term.noise == "general" and len(now.y):
        motions = diffusion(term, t, now.y).shape[-1]
        if motions != noise.components:
            raise ValueError(f"noise has {noise.components} components, the diffusion has {motions} columns")
    carry = () if scheme.begin is None else scheme.begin(term, t, now.y)
    return Moving(now.index, now.y, carry)


def blocks(count: Tensor, width: int, most: int = Eager.block) -> Iterator[tuple[int, int]]:
    """(first, stop) of stretches in which no row ends, of at most so many increments."""
    size = max(2, most // max(width, 1) // 2 * 2)
    first = 0
    for end in sorted(set(count.tolist())):
        while first < end:
            stop = min(first + size, end)
            yield first, stop
            first = stop
