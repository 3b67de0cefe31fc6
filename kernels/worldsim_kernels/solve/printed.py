"""A program of scalars as C, and an explicit Runge-Kutta method; the loop around them is ``csrc/ode.h``."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import torch

from worldsim_kernels.solve.scalars import TRUTHS, Node, Program
from worldsim_kernels.solve.tableaus import Number, Tableau

INLINED = 300
"""Nodes up to which a field is printed into each of its stages rather than called."""

INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
    "xor": "^",
}
_NAMES = {"min": "least", "max": "greatest", "abs": "magnitude", "where": "choose", "round": "lanes_rint"}
_PREFIX = {"neg": "-", "not": "~"}


def source(program: Program, method: Tableau, adaptive: bool) -> str:
    """The whole of a C source; ``csrc`` is in its search path."""
    single = program.dtype == torch.float32
    stages, between = len(method.a), len(method.a) + len(method.more)
    defined = {
        "SINGLE": int(single),
        "STATE": len(program.outputs),
        "ARGUMENTS": len(program.arguments),
        "STAGES": stages,
        "BETWEEN": between,
        "REUSE": int(method.reuse),
        "ADAPTIVE": int(adaptive),
    }
    parts = (_attempt(method, adaptive, single), _look_into(method, single), _between(method))
    return "\n".join([field_source(defined, "ode.h", program), *parts])


def field_source(defined: Mapping[str, int], header: str, program: Program) -> str:
    """The numbers that ``csrc/HEADER`` asks for, the header, and its ``field``."""
    lines = [f"#define {name} {value}" for name, value in defined.items()]
    return "\n".join([*lines, f'#include "{header}"', _field(program, bool(defined["SINGLE"]))])


def number(value: float, single: bool) -> str:
    """A literal of the state's dtype, rounded once."""
    if single:
        value = struct.unpack("f", struct.pack("f", value))[0]
    if value != value:
        return "NAN"
    if value in (float("inf"), float("-inf")):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({value.hex()}{'f' if single else ''})"


_ARGUMENTS = "const real_v *arguments, const real *data"
_FIELD = (
    "void field(real_v t, const real_v *restrict y, const real_v *restrict arguments,\n"
    "    const real *restrict data, real_v *restrict slope)"
)


def _field(program: Program, single: bool) -> str:
    inlined = len(program.nodes) <= INLINED
    lines = [f"{'INLINE' if inlined else 'static __attribute__((noinline))'} {_FIELD} {{"]
    for place, node in enumerate(program.nodes):
        kind = "truth_v" if node[0] in TRUTHS else "real_v"
        lines.append(f"    const {kind} v{place} = {_value(node, single)};")
    lines += [f"    slope[{i}] = v{place};" for i, place in enumerate(program.outputs)]
    return "\n".join([*lines, "}"])


def _value(node: Node, single: bool) -> str:
    op, *rest = node
    if op == "literal":
        return f"splat({number(rest[0], single)})"
    if op == "flag":
        return "(truth_v){0} == 0" if rest[0] else "(truth_v){0}"
    if op in ("t", "y", "arg", "data"):
        place = {"t": "t", "y": "y[%d]", "arg": "arguments[%d]", "data": "splat(data[%d])"}[op]
        return place % tuple(rest)
    names = [f"v{each}" for each in rest]
    if op in INFIX:
        return f"{names[0]} {INFIX[op]} {names[1]}"
    if op in _PREFIX:
        return f"{_PREFIX[op]}{names[0]}"
    return f"{_NAMES.get(op, f'lanes_{op}')}({', '.join(names)})"


def _attempt(method: Tableau, adaptive: bool, single: bool) -> str:
    lines = [
        f"INLINE void attempt(f64v t, f64v h, const real_v *y, {_ARGUMENTS},",
        "    real_v (*slope)[STATE], real_v *end, real_v *error) {",
        "    real_v step = NARROW(h), at[STATE];",
    ]
    if not method.reuse:
        lines.append("    field(NARROW(t), y, arguments, data, slope[0]);")
    for i in range(1, len(method.a)):
        to = "end" if method.reuse and i == len(method.a) - 1 else "at"
        lines += _stage(i, method.a[i], method.c[i], to, single)
    if not method.reuse:
        lines.append(_each(f"end[j] = y[j] + step * ({_sum(method.b, single)})"))
    if adaptive:
        assert method.error is not None
        lines.append(_each(f"error[j] = step * ({_sum(method.error, single)})"))
    return "\n".join([*lines, "}"])


def _stage(i: int, weights: Sequence[Number], node: Number, to: str, single: bool) -> list[str]:
    return [
        _each(f"{to}[j] = y[j] + step * ({_sum(weights, single)})"),
        f"    field(NARROW(t + {number(float(node), False)} * h), {to}, arguments, data, slope[{i}]);",
    ]


def _each(statement: str) -> str:
    return f"    for (int j = 0; j < STATE; j++) {statement};"


def _sum(weights: Sequence[Number], single: bool) -> str:
    terms = [f"{number(float(w), single)} * slope[{i}][j]" for i, w in enumerate(weights) if w]
    return " + ".join(terms) or "splat(0)"


def _look_into(method: Tableau, single: bool) -> str:
    lines = [
        f"INLINE void look_into(f64v t, f64v h, const real_v *y, {_ARGUMENTS},",
        "    real_v (*slope)[STATE]) {",
        "    real_v step = NARROW(h), at[STATE];",
    ]
    for i, (weights, node) in enumerate(zip(method.more, method.more_c), len(method.a)):
        lines += _stage(i, weights, node, "at", single)
    return "\n".join([*lines, "    (void)step, (void)at;", "}"])


def _between(method: Tableau) -> str:
    lines = [
        "INLINE void between(f64v theta, f64v h, const real_v *y,",
        "    real_v (*slope)[STATE], const real_v *end, real_v *at) {",
        "    truth_v whole = NARROW_TRUTH(theta == 1);",
    ]
    used = [i for i, polynomial in enumerate(method.dense) if any(polynomial)]
    for i in used:
        *lower, highest = (number(float(each), False) for each in method.dense[i])
        value = f"{highest} * theta"
        for coefficient in reversed(lower):
            value = f"({value} + {coefficient}) * theta"
        lines.append(f"    real_v w{i} = NARROW({value});")
    total = " + ".join(f"w{i} * slope[{i}][j]" for i in used)
    lines.append(_each(f"at[j] = choose(whole, end[j], y[j] + NARROW(h) * ({total}))"))
    return "\n".join([*lines, "}"])
