"""A term as a program of scalars, and how it is held against the term before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.elementwise import BINARY, UNARY
from worldsim_kernels.solve.lowering import can_lower
from worldsim_kernels.solve.scalars import Node, Program, program_of
from worldsim_kernels.solve.terms import SDE, of_rows
from worldsim_kernels.solve.trace import Refused, Tape, record

KEPT = 256
POINTS = 8
"""Rows at which a program is compared with its field."""


@dataclass(frozen=True)
class Traced:
    """A term as a program, and the numbers it reads.

    arguments  ``[row, slot]``, in the dtype of the state
    data       ``[slot]``, the same for every row
    """

    program: Program
    arguments: Tensor
    data: Tensor


_PROGRAMS: dict[str, Program | str] = {}
"""By the key of the tape: the program, or why there is none. The last KEPT."""


def traced(term: Any, t0: Tensor, t1: Tensor, y0: Tensor) -> Traced:
    """The program of ``term`` for rows like ``y0`` ``[row, *state]``.

    The field is recorded at every call, for it may have changed; what follows from the recording is kept.
    Whoever runs the program must ``compare`` it first. Raises Refused, with the reason.
    """
    if isinstance(term, SDE):
        raise Refused("a stochastic equation is not a field")
    if not len(y0) or not y0[0].numel():
        raise Refused("there are no rows or no components")
    tape = record(term, t0, y0, can_lower)
    key = f"{y0.dtype} {tape.key()}"
    found = _PROGRAMS.get(key)
    if found is None:
        while len(_PROGRAMS) >= KEPT:
            _PROGRAMS.pop(next(iter(_PROGRAMS)), None)
        try:
            found = program_of(tape, y0.dtype)
        except Refused as refusal:
            found = str(refusal)
        _PROGRAMS[key] = found
    if isinstance(found, str):
        raise Refused(found)
    return Traced(found, arguments_of(found, term), data_of(found, tape))


def arguments_of(program: Program, term: Any) -> Tensor:
    """``[row, slot]``. Raises Refused for whole numbers that the dtype cannot hold."""
    columns = [term.args[which].flatten(1)[:, place] if term.args[which].dim() > 1 else term.args[which]
               for which, place in program.arguments]  # fmt: skip
    if not columns:
        return torch.empty(0, 0, dtype=program.dtype)
    for each in columns:
        if not each.is_floating_point() and not torch.equal(each.to(program.dtype).to(each.dtype), each):
            raise Refused(f"an argument has whole numbers that {program.dtype} cannot hold")
    return torch.stack([each.detach().to(program.dtype) for each in columns], 1)


def data_of(program: Program, tape: Tape) -> Tensor:
    """``[slot]``: the numbers of tensors that the field closed over."""
    found = torch.empty(
        len(program.data), dtype=program.dtype, device=tape.leaves[0].device if tape.leaves else None
    )
    by_leaf: dict[int, tuple[list[int], list[int]]] = {}
    for slot, (leaf, place) in enumerate(program.data):
        slots, places = by_leaf.setdefault(leaf, ([], []))
        slots.append(slot)
        places.append(place)
    for leaf, (slots, places) in by_leaf.items():
        found[slots] = tape.leaves[leaf][places].to(program.dtype)
    return found


def compare(
    found: Traced, term: Any, t0: Tensor, t1: Tensor, y0: Tensor, evaluate: Callable[..., Tensor]
) -> None:
    """Raises Refused unless ``evaluate(t, y, arguments, data)`` and the field agree at some rows taken
    together, near the starts.

    To be asked at every solve: the recordings of a field that hides what it does from torch and of one that
    is constant are alike.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(POINTS) % len(y0)
    y, one = y0[rows].detach(), [1] * (y0.dim() - 1)
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    moved = (torch.arange(POINTS) % 4 > 0).to(y).reshape(-1, *one)
    y = y + 0.1 * moved * noise * (1 + y.abs())
    t = t0[rows] + torch.rand(POINTS, generator=generator, dtype=torch.float64).to(t0) * (t1 - t0)[rows]
    some = of_rows(term, rows.to(y.device))
    try:
        with torch.no_grad():
            wanted = some(t, y)
    except Exception as problem:
        raise Refused(f"the field fails at {POINTS} rows: {type(problem).__name__}: {problem}") from problem
    got = evaluate(t, y, arguments_of(found.program, some), found.data)
    bound = 1e-9 if y.dtype == torch.float64 else 1e-3
    largest = wanted.abs().flatten(1).nan_to_num(0.0, 0.0, 0.0).amax(1).reshape(-1, *one)
    same = (got == wanted) | (got.isnan() & wanted.isnan()) | ((got - wanted).abs() <= bound * (1 + largest))
    if not bool(same.all()):
        row = int((~same).flatten(1).any(1).nonzero()[0, 0])
        raise Refused(
            "recorded for one row the field gives other numbers than for several: it mixes rows, keeps a "
            f"state of its own or leaves torch (at y = {_few(y[row])}: {_few(wanted[row])}, "
            f"not {_few(got[row])})"
        )


def _few(values: Tensor) -> list[float]:
    return values.flatten()[:4].tolist()


def evaluate(program: Program, t: Tensor, y: Tensor, arguments: Tensor, data: Tensor) -> Tensor:
    """The slope ``[row, *state]`` by the program in torch."""
    state, time = y.flatten(1), t.to(program.dtype)
    values: list[Tensor] = []
    for node in program.nodes:
        values.append(_value(node, values, time, state, arguments, data))
    return torch.stack([values[each] for each in program.outputs], 1).reshape(y.shape)


def _value(node: Node, values: list[Tensor], t: Tensor, y: Tensor, arguments: Tensor, data: Tensor) -> Tensor:
    op, *rest = node
    if op in ("literal", "flag"):
        return torch.full_like(t, rest[0], dtype=torch.bool if op == "flag" else t.dtype)
    if op == "t":
        return t
    if op in ("y", "arg"):
        return (y if op == "y" else arguments)[:, rest[0]]
    if op == "data":
        return data[rest[0]].expand_as(t)
    return _functions()[op](*(values[each] for each in rest))


@cache
def _functions() -> dict[str, Callable[..., Tensor]]:
    other = {
        "min": torch.minimum,
        "max": torch.maximum,
        "and": torch.logical_and,
        "or": torch.logical_or,
        "xor": torch.logical_xor,
        "not": torch.logical_not,
    }
    names = (*UNARY.split(), *BINARY.split(), "add", "sub", "div", "pow", "where")
    return {**other, **{name: getattr(torch, name) for name in names}}
