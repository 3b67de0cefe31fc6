"""Operations of our kernels for ``torch.utils.flop_counter.FlopCounterMode``.

Import this module before counting: the counter cannot see into an opaque operator and would report none.
Torch has no formula for its own fused attention on a CPU either, so this adds one.

Counted are the operations of the equations, an addition, a product and an exponential as one each, whatever
the backend: chunked forms do more. The counter knows no row operations, so ours are left out too; causal
attention counts as the full matrix, as in torch. A backward counts as if all gradients were asked for, and
recomputes what the forward did not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from worldsim_kernels.backends import KERNELS

Shape = Sequence[int]


def state_scan(q: Shape, k: Shape, v: Shape, g: Shape | None, a: Shape | None, *rest: Any) -> int:
    """For every entry of every token's state: 2 to write, 2 to read, 1 to decay, 4 for the low rank."""
    return prod(q) * v[3] * (4 + (g is not None) + 4 * (a is not None))


def state_scan_backward(q: Shape, k: Shape, v: Shape, g: Shape | None, a: Shape | None, *rest: Any) -> int:
    """For every entry: 2 each for the state again, its gradient, dq, dk and dv.

    A gate adds 4: it decays both, and dg. The low rank adds 12: 4 for the state again, 8 for its gradient,
    da and db.
    """
    return prod(q) * v[3] * (10 + 4 * (g is not None) + 12 * (a is not None))


def affine_scan(a: Shape, b: Shape, *rest: Any) -> int:
    """A product and a sum for every element."""
    return 2 * prod(b)


def affine_scan_backward(a: Shape, b: Shape, *rest: Any) -> int:
    """The same recurrence backwards, and a product for the gradient of a."""
    return 3 * prod(b)


def selective_scan(u: Shape, delta: Shape, A: Shape, *rest: Any) -> int:
    """For every state of every channel and token: delta A, exp, the two products, their sum, 2 to read."""
    return 7 * prod(u) * A[1]


def selective_scan_backward(u: Shape, delta: Shape, A: Shape, *rest: Any) -> int:
    """5 for the state again, 3 for its gradient, 2 each for those of A, B, C, e^(delta A), delta, delta u."""
    return 20 * prod(u) * A[1]


def attend(q: Shape, k: Shape, v: Shape, *rest: Any) -> int:
    """For every query and key: 2 K for the score, 2 V for the value."""
    return 2 * prod(q[:3]) * k[1] * (q[3] + v[3])


def attend_backward(q: Shape, k: Shape, v: Shape, *rest: Any) -> int:
    """For every query and key: 2 K each for the score again, dq and dk, 2 V each for the weight's and dv."""
    return 2 * prod(q[:3]) * k[1] * (3 * q[3] + 2 * v[3])


def grouped_matmul(x: Shape, weight: Shape, *rest: Any) -> int:
    """One matrix product: every row of x meets one matrix."""
    return 2 * x[0] * weight[1] * weight[2]


def grouped_matmul_backward(x: Shape, weight: Shape, *rest: Any) -> int:
    """Two."""
    return 2 * grouped_matmul(x, weight)


def _heads_second(formula: Callable[..., int]) -> Callable[..., int]:
    """The formula for [B, H, T, K], as in torch."""
    return lambda *shapes: formula(*((s[0], s[2], s[1], s[3]) for s in shapes[:3]))


def _register(operator: Any, formula: Callable[..., int], skip: int = 0) -> None:
    """The operator's first ``skip`` arguments are not the formula's. A formula that torch has is kept."""
    register: Any = register_flop_formula
    if operator not in flop_registry:
        register(operator)(lambda *shapes, **named: formula(*shapes[skip:]))


FORMULAS: Mapping[str, tuple[Callable[..., int], Callable[..., int]]] = {
    "state_scan": (state_scan, state_scan_backward),
    "affine_scan": (affine_scan, affine_scan_backward),
    "selective_scan": (selective_scan, selective_scan_backward),
    "attend": (attend, attend_backward),
    "grouped_matmul": (grouped_matmul, grouped_matmul_backward),
}
"""Operator -> operations of its forward and of its backward, from the shapes of its arguments."""

for name, (forward, backward) in FORMULAS.items():
    import_module(f"worldsim_kernels.{KERNELS[name]}")
    _register(getattr(torch.ops.worldsim, name), forward)
    _register(getattr(torch.ops.worldsim, f"{name}_backward"), backward, skip=3)
_fused = "_scaled_dot_product_flash_attention_for_cpu"
_register(getattr(torch.ops.aten, _fused), _heads_second(attend))
_register(getattr(torch.ops.aten, f"{_fused}_backward"), _heads_second(attend_backward), skip=1)
