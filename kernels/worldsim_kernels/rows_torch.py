"""The row operations in tensor operations, with backwards in closed form. rows.py checks and chooses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(
    s: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    """The norms' formula for rows s [..., D]; the others broadcast to them."""
    s = s - s.mean(-1, keepdim=True) if centred else s
    y = s * (s.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight.to(y.dtype)
    y = y if scale is None else y * (1 + scale)
    return y if shift is None else y + shift


def norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """(output, x + residual) of rows [N, D]."""
    total = x if residual is None else x + residual
    grouped = _grouped(total, groups_of(scale, shift))
    scale, shift = (None if one is None else one[:, None] for one in (scale, shift))
    return normalised(grouped, weight, scale, shift, eps, centred).reshape(x.shape), total


def norm_backward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    dy: Tensor,
    dtotal: Tensor | None,
    groups: int,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, and for each group [G, D] the sums over its rows of dy n, n the normalised row, and
    of dy: dx = r (h - n mean(n h)) + dtotal with h = dy weight (1 + scale), less mean h where centred."""
    s = x if residual is None else x + residual
    s = s - s.mean(-1, keepdim=True) if centred else s
    r = (s.square().mean(-1, keepdim=True) + eps).rsqrt()
    n, h = s * r, dy if weight is None else dy * weight
    h = h if scale is None else (_grouped(h, groups) * (1 + scale[:, None])).reshape(x.shape)
    dx = h - n * (n * h).mean(-1, keepdim=True)
    dx = r * (dx - h.mean(-1, keepdim=True) if centred else dx)
    dx = dx if dtotal is None else dx + dtotal
    return dx, _grouped(dy * n, groups).sum(1), _grouped(dy, groups).sum(1)


def sum_rows(x: Tensor) -> Tensor:
    """[N, D] -> [D]."""
    return x.sum(0)


def groups_of(scale: Tensor | None, shift: Tensor | None) -> int:
    """How many rows of scale or shift [G, D] there are; 1 without both."""
    return next((len(one) for one in (scale, shift) if one is not None), 1)


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape(groups, len(x) // max(groups, 1), x.shape[1])


def swiglu_forward(a: Tensor, b: Tensor) -> Tensor:
    """a sigmoid(a) b for rows [N, D]."""
    return F.silu(a) * b


def swiglu_backward(a: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a and b."""
    gate = a.sigmoid()
    return dy * b * gate * (1 + a * (1 - gate)), dy * a * gate


def shift_forward(x: Tensor, mu: Tensor, previous: Tensor) -> Tensor:
    """x [B, T, D], mu [M, D], previous [B, D] -> [M, B, T, D]."""
    before = torch.cat([previous[:, None], x[:, :-1]], dim=1)[:, : x.shape[1]]
    return x + (before - x) * mu[:, None, None]


def shift_backward(
    x: Tensor, mu: Tensor, previous: Tensor, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, mu and previous, for T of at least 1."""
    before = torch.cat([previous[:, None], x[:, :-1]], dim=1)
    back = (dy * mu[:, None, None]).sum(0)
    dx = (dy * (1 - mu[:, None, None])).sum(0)
    dx[:, :-1] += back[:, 1:]
    if dlast is not None:
        dx[:, -1] += dlast
    return dx, (dy * (before - x)).sum((1, 2)), back[:, 0]
