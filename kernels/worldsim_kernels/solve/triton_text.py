"""Pieces of Triton source: a field's program, and what is done to every component of a state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worldsim_kernels.solve.printed import INFIX
from worldsim_kernels.solve.scalars import Node, Program
from worldsim_kernels.solve.tableaus import Number, Tableau

FUNCTIONS = {
    **dict.fromkeys(
        ("abs", "where", "exp", "exp2", "log", "log2", "sin", "cos", "erf", "floor", "ceil"), "tl"
    ),
    **dict.fromkeys(("root", "quotient", "least", "greatest", "expm1", "log1p", "tanh"), "ode"),
}
"""Where each function is."""
_OWN = {"sqrt": "root", "div": "quotient", "min": "least", "max": "greatest"}
_LEAVES = ("literal", "flag", "t", "y", "arg", "data")
_PREFIX = {"neg": "-", "not": "~"}


def unprintable(program: Program) -> str | None:
    """The first operation that has no Triton form here; None when all have."""
    known = {*FUNCTIONS, *_OWN, *_LEAVES, *_PREFIX, *INFIX}
    return next((node[0] for node in program.nodes if node[0] not in known), None)


class Text:
    """Lines of source. Component j of a vector ``v`` is the variable ``v_j``."""

    def __init__(self, program: Program, method: Tableau, adaptive: bool) -> None:
        self.program, self.method, self.adaptive = program, method, adaptive
        self.real = "tl.float32" if program.dtype == torch.float32 else "tl.float64"
        self.size = len(program.outputs)
        self.stages = len(method.a)

    def each(self, statement: str) -> list[str]:
        """The statement for every component, {j} its number."""
        return [statement.replace("{j}", str(j)) for j in range(self.size)]

    def vector(self, name: str) -> list[str]:
        return self.each(f"{name}_{{j}}")

    def constant(self, value: float, real: str | None = None) -> str:
        text = repr(float(value)) if value == value and abs(value) != float("inf") else f'float("{value}")'
        return f"tl.full([BLOCK], {text}, {real or self.real})"

    def double(self, value: float) -> str:
        return self.constant(value, "tl.float64")

    def call(self, to: str, t: str, state: str) -> str:
        """A slope by the field."""
        arguments = [f"argument_{k}" for k in range(len(self.program.arguments))]
        given = ", ".join([f"({t}).to({self.real})", *self.vector(state), *arguments, "data", "BLOCK"])
        return f"{', '.join(self.vector(to))} = field({given})"

    def total(self, weights: Sequence[Number]) -> str:
        terms = [f"{self.constant(float(w))} * k{i}_{{j}}" for i, w in enumerate(weights) if w]
        return " + ".join(terms) or self.constant(0.0)

    def finite(self, *names: str) -> str:
        return " & ".join(f'(tl.abs({each}) < float("inf"))' for name in names for each in self.vector(name))

    def norm(self, to: str, value: str) -> list[str]:
        """Root mean square of value over scale, added in halves."""
        lines = self.each(f"part_{{j}} = ode.part_of({value}_{{j}}, scale_{{j}})")
        terms = self.vector("part")
        lines += [f"{each} = {each} * {each}" for each in terms]
        while len(terms) > 1:
            half = len(terms) // 2
            lines += [f"{terms[j]} = {terms[j]} + {terms[half + j]}" for j in range(half)]
            terms = [*terms[:half], *terms[2 * half :]]
        return [*lines, f"{to} = tl.sqrt({terms[0]} / {self.double(self.size)})"]

    def scale(self, end: str) -> list[str]:
        return [
            *self.each("low_{j} = tl.abs(y_{j})"),
            *self.each(f"high_{{j}} = tl.abs({end}_{{j}})"),
            *self.each("scale_{j} = atol + rtol * tl.where(high_{j} > low_{j}, high_{j}, low_{j})"),
        ]

    def field(self) -> list[str]:
        arguments = [f"argument_{k}" for k in range(len(self.program.arguments))]
        lines = [
            "@triton.jit",
            f"def field(t, {', '.join([*self.vector('y'), *arguments])}, data, BLOCK: tl.constexpr):",
        ]
        lines += [f"    v{place} = {self.value(node)}" for place, node in enumerate(self.program.nodes)]
        return [*lines, f"    return {', '.join(f'v{place}' for place in self.program.outputs)}"]

    def value(self, node: Node) -> str:
        op, *rest = node
        if op == "literal":
            return self.constant(rest[0])
        if op == "flag":
            return f"tl.full([BLOCK], {int(rest[0])}, tl.int1)"
        if op == "data":
            return f"tl.load(data + {rest[0]} + tl.zeros([BLOCK], tl.int32))"
        if op in _LEAVES:
            return {"t": "t", "y": "y_%d", "arg": "argument_%d"}[op] % tuple(rest)
        names = [f"v{each}" for each in rest]
        function = _OWN.get(op, op)
        if function in FUNCTIONS:
            return f"{FUNCTIONS[function]}.{function}({', '.join(names)})"
        if op in _PREFIX:
            return f"{_PREFIX[op]}{names[0]}"
        return f"{names[0]} {INFIX[op]} {names[1]}"
