"""Sums, products and other reductions as nodes of a program, each from left to right: see ``lowering``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.elementwise import formula, operation, scaled
from worldsim_kernels.solve.scalars import MOST, Machine, Symbolic
from worldsim_kernels.solve.trace import Refused


def _reduction(name: str, *, truth: bool = False) -> Callable[..., Tensor]:
    """Over axes, from left to right."""

    def lower(machine: Machine, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        cast = machine.truth if truth else machine.real
        columns, shape = _columns(machine.ids(x), dim, keepdim)
        start = {"add": 0.0, "mul": 1.0}.get(name)
        found = []
        for column in columns:
            if not column and not truth:
                assert start is not None
            total = cast(column[0]) if column else machine.literal(start or 0.0)
            for each in column[1:]:
                total = machine.node(name, total, cast(each))
            found.append(total)
        return torch.tensor(found).long().reshape(shape)

    return lower


def _columns(ids: Tensor, dim: Any, keepdim: bool) -> tuple[list[list[int]], tuple[int, ...]]:
    """What is reduced together, and the shape of the result."""
    axes = range(ids.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    reduced = sorted({axis % max(ids.dim(), 1) for axis in axes}) if ids.dim() else []
    kept = [axis for axis in range(ids.dim()) if axis not in reduced]
    count = math.prod(ids.shape[axis] for axis in reduced)
    columns = ids.permute(*kept, *reduced).reshape(-1, count) if ids.dim() else ids.reshape(1, 1)
    shape = tuple(1 if axis in reduced else n for axis, n in enumerate(ids.shape) if keepdim or axis in kept)
    return columns.tolist(), shape


def _mean(machine: Machine, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    total = _reduction("add")(machine, x, dim, keepdim)
    count = x.ids.numel() // max(1, total.numel())
    return operation("div")(machine, Symbolic(total, machine.dtype, True), float(count))


def _norm(
    machine: Machine, x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    if ord != 2:
        raise Refused(f"it uses a norm of order {ord}")
    squares = formula(lambda m, each: m.node("mul", each, each))(machine, x)
    total = _reduction("add")(machine, Symbolic(squares, machine.dtype, True), dim, keepdim)
    return operation("sqrt")(machine, Symbolic(total, machine.dtype, True))


def _running(name: str) -> Callable[..., Tensor]:
    def lower(machine: Machine, x: Any, dim: int, dtype: Any = None) -> Tensor:
        moved = x.ids.movedim(dim, -1)
        rows = []
        for row in moved.reshape(-1, moved.shape[-1]).tolist():
            for i in range(1, len(row)):
                row[i] = machine.node(name, row[i - 1], machine.real(row[i]))
            rows.append(row)
        return torch.tensor(rows).long().reshape(moved.shape).movedim(-1, dim)

    return lower


def _products(machine: Machine, x: Any, y: Any) -> Tensor:
    """Matrix products ``[..., i, k] [..., k, j]``, each a sum from left to right."""
    left, right = machine.ids(x), machine.ids(y)
    if left.numel() * right.shape[-1] > MOST:
        raise Refused(f"it takes more than {MOST} scalar operations")
    shape = (*left.shape[:-1], right.shape[-1])
    left, right = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:]).mT
    found = [
        _dot(machine, row, column)
        for rows, columns in zip(left.tolist(), right.tolist())
        for row in rows
        for column in columns
    ]
    return torch.tensor(found).long().reshape(shape)


def _dot(m: Machine, row: Sequence[int], column: Sequence[int]) -> int:
    total = None
    for a, b in zip(row, column):
        product = m.node("mul", a, b)
        total = product if total is None else m.node("add", total, product)
    return m.zero if total is None else total


def _mv(machine: Machine, x: Any, y: Any) -> Tensor:
    return _products(machine, x, Symbolic(machine.ids(y)[:, None], y.dtype, True))[:, 0]


def _inner(machine: Machine, x: Any, y: Any) -> Tensor:
    return _mv(machine, Symbolic(machine.ids(x)[None], x.dtype, True), y)[0]


def _added(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def lower(machine: Machine, bias: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        product = Symbolic(multiply(machine, x, y), machine.dtype, True)

        def rule(m: Machine, a: int, b: int) -> int:
            return m.node("add", scaled(m, a, alpha), scaled(m, b, beta))

        return formula(rule)(machine, product, bias) if beta else product.ids

    return lower


REDUCTIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "sum": _reduction("add"),
        "prod": _reduction("mul"),
        "amax": _reduction("max"),
        "amin": _reduction("min"),
        "any": _reduction("or", truth=True),
        "all": _reduction("and", truth=True),
        "mean": _mean,
        "linalg_vector_norm": _norm,
        "cumsum": _running("add"),
        "cumprod": _running("mul"),
        "mm": _products,
        "bmm": _products,
        "mv": _mv,
        "dot": _inner,
        "addmm": _added(_products),
        "baddbmm": _added(_products),
        "addmv": _added(_mv),
    }
)
"""By the name of the operation, of any overload."""
