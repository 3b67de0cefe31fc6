"""Operations of our kernels for ``torch.utils.flop_counter.FlopCounterMode``.

Import this module before counting: the counter cannot see into an opaque operator and would report none.

Counted are the operations of the equations, a multiplication and an addition each for one, whatever the
backend (chunked forms do more): for state_scan 4 K V a token and head, K V more with gates and 4 K V with the
pair a, b. Torch's own convention for attention, the full matrix also when it is causal, is kept.

Torch counts nothing for its own fused attention on a CPU either, so a formula is added where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

import worldsim_kernels.scan  # noqa: F401, which defines the operator

Shape = Sequence[int]


def state_scan_flops(
    q: Shape, k: Shape, v: Shape, g: Shape | None, a: Shape | None, *others: Any, **more: Any
) -> int:
    """Write and read 4 K V, decay K V, low rank 4 K V; for every token and head."""
    return _entries(q, v) * (4 + (g is not None) + 4 * (a is not None))


def state_scan_backward_flops(
    grads: Any,
    outputs: Any,
    needed: Any,
    q: Shape,
    k: Shape,
    v: Shape,
    g: Shape | None,
    a: Shape | None,
    *others: Any,
    **more: Any,
) -> int:
    """All gradients: 2 K V each for D, dq, dk, dv and the state again; gates 4 K V, low rank 12 K V more.

    D is the gradient of the state. Gates decay both and give dg; the pair also gives da, db and their reads.
    """
    return _entries(q, v) * (10 + 4 * (g is not None) + 12 * (a is not None))


def _entries(q: Shape, v: Shape) -> int:
    """Entries of the state, over all tokens."""
    batch, length, heads, keys = q
    return batch * length * heads * keys * v[3]


def attention_flops(q: Shape, k: Shape, v: Shape, *others: Any, **more: Any) -> int:
    """Scores 2 K and values 2 V for every pair; shapes [B, H, T, K] as in torch."""
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def attention_backward_flops(grad: Shape, q: Shape, k: Shape, v: Shape, *others: Any, **more: Any) -> int:
    """Scores, dq and dk 2 K each, the gradient of the weights and dv 2 V each, for every pair."""
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (3 * width + 2 * v[3])


def _register() -> None:
    ours, aten = torch.ops.worldsim, torch.ops.aten
    register: Any = register_flop_formula
    formulas = {
        ours.state_scan: state_scan_flops,
        ours.state_scan_backward: state_scan_backward_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    for operator, formula in formulas.items():
        if operator not in flop_registry:
            register(operator)(formula)


_register()
