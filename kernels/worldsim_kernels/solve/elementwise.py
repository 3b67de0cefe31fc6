"""Operations on elements, as nodes of a program: see ``lowering``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.scalars import Machine, Symbolic
from worldsim_kernels.solve.trace import Refused

UNARY = (
    "neg abs sqrt exp expm1 exp2 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh "
    "atanh erf floor ceil trunc round"
)
BINARY = "mul atan2 fmod hypot lt le gt ge eq ne"
LOGICAL = "and or xor not"


def each_of(machine: Machine, rule: Callable[..., int], *operands: Any) -> Tensor:
    """``rule`` of every element of the operands, broadcast."""
    spread = torch.broadcast_tensors(*map(machine.ids, operands))  # type: ignore[no-untyped-call]
    found = [rule(*each) for each in zip(*(each.flatten().tolist() for each in spread))]
    return torch.tensor(found, dtype=torch.int64).reshape(spread[0].shape)


def operation(name: str) -> Callable[..., Tensor]:
    def lower(machine: Machine, *operands: Any) -> Tensor:
        return each_of(machine, lambda *each: machine.node(name, *map(machine.real, each)), *operands)

    return lower


def logical(name: str) -> Callable[..., Tensor]:
    def lower(machine: Machine, *operands: Any) -> Tensor:
        return each_of(machine, lambda *each: machine.node(name, *map(machine.truth, each)), *operands)

    return lower


def bitwise(name: str) -> Callable[..., Tensor]:
    def lower(machine: Machine, *operands: Any) -> Tensor:
        for each in operands:
            if isinstance(each, (Symbolic, Tensor)) and each.dtype != torch.bool:
                raise Refused("it computes with the bits of whole numbers of the state")
        return logical(name)(machine, *operands)

    return lower


def formula(rule: Callable[..., int]) -> Callable[..., Tensor]:
    """An operation that is a few nodes: ``rule(machine, *elements)``."""

    def lower(machine: Machine, *operands: Any) -> Tensor:
        return each_of(machine, lambda *each: rule(machine, *map(machine.real, each)), *operands)

    return lower


def scaled(machine: Machine, x: int, factor: Any) -> int:
    return x if factor == 1 else machine.node("mul", machine.literal(factor), x)


def _add(machine: Machine, x: Any, y: Any, alpha: Any = 1, *, sign: str = "add") -> Tensor:
    def rule(m: Machine, a: int, b: int) -> int:
        return m.node(sign, a, scaled(m, b, alpha))

    return formula(rule)(machine, x, y)


def _rsub(machine: Machine, x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _add(machine, y, x, alpha, sign="sub")


def _div(machine: Machine, x: Any, y: Any, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise Refused("it uses a division that rounds")
    return operation("div")(machine, x, y)


def _power(m: Machine, x: int, exponent: float) -> int:
    """x ** exponent by products and a root where it is a small multiple of 1/2."""
    if exponent == 0:
        return m.literal(1.0)
    if exponent != exponent or abs(exponent) > 8 or 2 * exponent != int(2 * exponent):
        return m.node("pow", x, m.literal(exponent))
    whole, root = divmod(abs(exponent), 1)
    value = m.node("sqrt", x) if root else None
    if whole:
        product = _whole_power(m, x, int(whole))
        value = product if value is None else m.node("mul", product, value)
    assert value is not None
    return value if exponent > 0 else m.node("div", m.literal(1.0), value)


def _whole_power(m: Machine, x: int, count: int) -> int:
    if count <= 3:
        value = x
        for _ in range(count - 1):
            value = m.node("mul", value, x)
        return value
    half = _whole_power(m, x, count // 2)
    square = m.node("mul", half, half)
    return m.node("mul", square, x) if count % 2 else square


def _pow(machine: Machine, x: Any, exponent: Any) -> Tensor:
    if isinstance(exponent, (int, float)):
        return formula(lambda m, each: _power(m, each, float(exponent)))(machine, x)
    return operation("pow")(machine, x, exponent)


def _remainder(m: Machine, x: int, y: int) -> int:
    rest = m.node("fmod", x, y)
    below = m.node("lt", rest, m.zero)
    wrong = m.node("and", m.node("ne", rest, m.zero), m.node("xor", below, m.node("lt", y, m.zero)))
    return m.node("where", wrong, m.node("add", rest, y), rest)


def _sigmoid(m: Machine, x: int) -> int:
    one = m.literal(1.0)
    return m.node("div", one, m.node("add", one, m.node("exp", m.node("neg", x))))


def _softplus(machine: Machine, x: Any, beta: float = 1, threshold: float = 20) -> Tensor:
    def rule(m: Machine, each: int) -> int:
        inner = scaled(m, each, beta)
        soft = m.node("log1p", m.node("exp", inner))
        soft = soft if beta == 1 else m.node("div", soft, m.literal(beta))
        return m.node("where", m.node("gt", inner, m.literal(threshold)), each, soft)

    return formula(rule)(machine, x)


def _clamp(machine: Machine, x: Any, min: Any = None, max: Any = None) -> Tensor:
    ids = machine.ids(x)
    for bound, name in ((min, "max"), (max, "min")):
        if bound is not None:
            ids = operation(name)(machine, Symbolic(ids, machine.dtype, True), bound)
    return ids


def _where(machine: Machine, choice: Any, x: Any, y: Any) -> Tensor:
    def rule(c: int, a: int, b: int) -> int:
        if machine.is_truth(a) and machine.is_truth(b):
            c = machine.truth(c)
            kept, other = machine.node("and", c, a), machine.node("not", c)
            return machine.node("or", kept, machine.node("and", other, b))
        return machine.node("where", machine.truth(c), machine.real(a), machine.real(b))

    return each_of(machine, rule, choice, x, y)


def _sign(m: Machine, x: int) -> int:
    one, minus = m.literal(1.0), m.literal(-1.0)
    below = m.node("where", m.node("lt", x, m.zero), minus, m.zero)
    return m.node("where", m.node("gt", x, m.zero), one, below)


def _addcmul(name: str) -> Callable[..., Tensor]:
    def lower(machine: Machine, x: Any, a: Any, b: Any, *, value: Any = 1) -> Tensor:
        def rule(m: Machine, start: int, left: int, right: int) -> int:
            return m.node("add", start, m.node(name, scaled(m, left, value), right))

        return formula(rule)(machine, x, a, b)

    return lower


def _tanh_backward(m: Machine, grad: int, y: int) -> int:
    return m.node("mul", grad, m.node("sub", m.literal(1.0), m.node("mul", y, y)))


def _threshold_backward(machine: Machine, grad: Any, x: Any, threshold: float) -> Tensor:
    def rule(m: Machine, g: int, each: int) -> int:
        return m.node("where", m.node("le", each, m.literal(threshold)), m.zero, g)

    return formula(rule)(machine, grad, x)


ELEMENTWISE: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        **{name: operation(name) for name in (*UNARY.split(), *BINARY.split())},
        **{f"logical_{name}": logical(name) for name in LOGICAL.split()},
        **{f"bitwise_{name}": bitwise(name) for name in LOGICAL.split()},
        "add": _add,
        "sub": partial(_add, sign="sub"),
        "rsub": _rsub,
        "div": _div,
        "true_divide": _div,
        "pow": _pow,
        "square": formula(lambda m, x: m.node("mul", x, x)),
        "reciprocal": formula(lambda m, x: m.node("div", m.literal(1.0), x)),
        "rsqrt": formula(lambda m, x: m.node("div", m.literal(1.0), m.node("sqrt", x))),
        "remainder": formula(_remainder),
        "sigmoid": formula(_sigmoid),
        "silu": formula(
            lambda m, x: m.node("div", x, m.node("add", m.literal(1.0), m.node("exp", m.node("neg", x))))
        ),
        "softplus": _softplus,
        "relu": formula(lambda m, x: m.node("max", x, m.zero)),
        "minimum": operation("min"),
        "maximum": operation("max"),
        "clamp": _clamp,
        "clamp_min": lambda machine, x, low: _clamp(machine, x, low),
        "clamp_max": lambda machine, x, high: _clamp(machine, x, None, high),
        "where": _where,
        "masked_fill": lambda machine, x, mask, value: _where(machine, mask, value, x),
        "sign": formula(_sign),
        "isnan": formula(lambda m, x: m.node("ne", x, x)),
        "addcmul": _addcmul("mul"),
        "addcdiv": _addcmul("div"),
        "tanh_backward": formula(_tanh_backward),
        "threshold_backward": _threshold_backward,
    }
)
"""By the name of the operation, of any overload."""
