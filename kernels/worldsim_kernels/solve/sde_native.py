"""``backend="native"`` of an SDE: a whole step traced, printed as C, and taken while its noise is drawn.

A scheme is a function of state, carry, increments and areas, so what is traced is the scheme with the term in
it, derivatives and all, and nothing here knows one from another. The numbers are those of the loop in torch,
with the same bits where drift and diffusion are made of + - * /.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from worldsim_kernels import native
from worldsim_kernels.solve.printed import field_source
from worldsim_kernels.solve.scalars import Program
from worldsim_kernels.solve.sde import Scheme, Stretch, fields
from worldsim_kernels.solve.sde_grid import Grid
from worldsim_kernels.solve.sde_increments import Increments
from worldsim_kernels.solve.sde_moving import Moving, shape_of_noise
from worldsim_kernels.solve.terms import SDE, of_rows, wide
from worldsim_kernels.solve.trace import Refused
from worldsim_kernels.solve.traced import compare, traced

_WHOLE = ("rows", "first", "count", "kept", "own_times", "threads")
_ARRAYS = ("ids", "t", "scale", "area_scale", "drawn", "areas", "keep", "arguments", "data", "y", "states")


class _Call(ctypes.Structure):
    """``call_t`` of ``csrc/sde.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _WHOLE),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )


@dataclass(frozen=True)
class OneStep:
    """A step as a field: ``y`` ``[row, width]`` is state, carry, increments and areas side by side, and so is
    the slope, in which increments and areas are as they were.

    shapes  of a row's state and of what is carried
    noise   shape of a row's increments
    args    the end of the step and its length, ``[row]`` in the dtype of the state; then the term's own
    """

    term: SDE
    scheme: Scheme
    shapes: tuple[torch.Size, ...]
    noise: torch.Size
    args: tuple[Tensor, ...]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        later, length, *given = self.args
        parts = [*self.shapes, self.noise, *([self.noise] if self.scheme.area else [])]
        pieces = torch.split(y, [each.numel() for each in parts], 1)
        state, *carry = (p.reshape(-1, *s) for p, s in zip(pieces, self.shapes))
        w, *area = (p.reshape(-1, *self.noise) for p in pieces[len(self.shapes) :])
        over = Stretch(t.to(y.dtype), later, wide(length, state), w, area[0] if area else None)
        state, after = self.scheme.advance(replace(self.term, args=tuple(given)), over, state, tuple(carry))
        return torch.cat([each.flatten(1) for each in (state, *after, w, *area)], 1)


class Native:
    """The steps of ``term`` by ``scheme``, compiled.

    block  increments of one call, which are drawn where they are used: of all rows that one must look at step
           by step, since they failed, the states are 32 MB
    Raises Refused or Unavailable, with the reason.
    """

    block: ClassVar[int] = 2**22

    def __init__(self, term: SDE, scheme: Scheme, now: Moving, grid: Grid, draws: Increments) -> None:
        if now.y.device.type != "cpu":
            raise Refused(f"the state is on {now.y.device}")
        if not len(now.y):
            raise Refused("there are no rows")
        # Always asked: the first call of a corrected drift looks at its noise, which is not to be traced.
        asked = _asks_gradient(term, now)
        if asked and torch.is_grad_enabled():
            raise Refused("a gradient is asked for, and backend='torch' alone keeps the graph of an SDE")
        self.scheme, self.grid, self.draws = scheme, grid, draws
        noise = shape_of_noise(term, now.y, draws.noise.components)
        shapes = tuple(each.shape[1:] for each in (now.y, *now.carry))
        rows = len(now.y)
        t0, t1 = grid.t[:, 0].expand(rows).contiguous(), grid.t[:, 1:2].expand(rows, -1).flatten()
        if not len(t1):
            t1 = t0
        own = (t1.to(now.y.dtype), (t1 - t0).to(now.y.dtype), *term.args)
        step = OneStep(term, scheme, shapes, noise, own)
        # Any numbers of the size of increments show what a step does with them.
        spare = torch.linspace(-1, 1, max(1, (1 + scheme.area) * noise.numel()), dtype=torch.float64)
        start = torch.cat(
            [*(each.flatten(1) for each in (now.y, *now.carry)), spare.to(now.y).expand(rows, -1)], 1
        ).detach()
        found = traced(step, t0, t1, start)
        self.moved, self.motions = sum(each.numel() for each in shapes), noise.numel()
        self.library = native.generated("sde", self._source(found.program, start.shape[1], shapes[0]), FLAGS)
        self.arguments, self.data = found.arguments, found.data
        self.nodes = len(found.program.nodes)
        compare(found, step, t0, t1, start, self._evaluated)

    def _source(self, program: Program, width: int, state: torch.Size) -> str:
        slots = {which: place for place, (which, _) in enumerate(program.arguments) if which < 2}
        defined = {
            "SINGLE": int(program.dtype == torch.float32),
            "WIDTH": width,
            "MOVED": self.moved,
            "STATE": state.numel(),
            "MOTIONS": self.motions,
            "AREA": int(self.scheme.area),
            "ARGUMENTS": len(program.arguments),
            "LATER": slots.get(0, -1),
            "LENGTH": slots.get(1, -1),
        }
        return field_source(defined, "sde.h", program)

    def _evaluated(self, t: Tensor, y: Tensor, arguments: Tensor, data: Tensor) -> Tensor:
        made, given = torch.empty_like(y), (t.contiguous(), y.contiguous(), arguments.contiguous(), data)
        pointers = (ctypes.c_void_p(each.data_ptr()) for each in (*given, made))
        self.library.evaluate(ctypes.c_int64(len(y)), *pointers)
        return made

    def __call__(
        self, now: Moving, first: int, stop: int, keep: Collection[int]
    ) -> tuple[dict[int, Tensor], Moving]:
        """As ``sde_moving.Eager``."""
        grid, draws, count, rows = self.grid, self.draws, stop - first, len(now.y)
        index = None if rows == len(draws.noise.rows) else now.index
        own = not grid.shared
        wanted = sorted(keep)
        scale, area_scale = (
            None if each is None else (each[now.index] if own else each)[:, first:stop].contiguous()
            for each in (draws.scale, draws.area_scale)
        )
        drawn = areas = None
        if draws.places is not None:
            drawn, areas = draws.draw(first, count, index)
        y = torch.cat([each.flatten(1) for each in (now.y, *now.carry)], 1).detach().contiguous()
        states = now.y.new_empty(len(wanted), *now.y.shape)
        arrays = {
            "ids": draws.noise.rows[now.index],
            "t": (grid.t[now.index] if own else grid.t)[:, first : stop + 1].contiguous(),
            "scale": scale,
            "area_scale": area_scale,
            "drawn": None if drawn is None else drawn.contiguous(),
            "areas": None if areas is None else areas.contiguous(),
            "keep": torch.tensor([each - first for each in wanted], dtype=torch.int64),
            "arguments": (self.arguments if index is None else self.arguments[index]).contiguous(),
            "data": self.data,
            "y": y,
            "states": states,
        }
        # Drawing a number takes some 50 operations.
        work = float(rows * count * (self.nodes + 50 * self.motions))
        numbers = {"rows": rows, "first": first, "count": count, "kept": len(wanted), "own_times": own}
        call = _Call(
            **numbers,
            threads=native.threads(work),
            seed=draws.noise.seed,
            **{name: native.pointer(each) for name, each in arrays.items()},
        )
        self.library.take(ctypes.byref(call))
        sizes = [math.prod(each.shape[1:]) for each in (now.y, *now.carry)]
        parts = torch.split(y, sizes, 1)
        end, *carry = (part.reshape(each.shape) for part, each in zip(parts, (now.y, *now.carry)))
        return dict(zip(wanted, states)), Moving(now.index, end, tuple(carry))


FLAGS = ("-ffp-contract=off",)


def _asks_gradient(term: SDE, now: Moving) -> bool:
    one = torch.zeros(1, dtype=torch.int64)
    t = torch.zeros(1, dtype=now.y.dtype)
    return any(each.requires_grad for each in (now.y, *term.args, *fields(of_rows(term, one), t, now.y[:1])))
