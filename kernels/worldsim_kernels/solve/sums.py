"""Sums whose bits do not depend on the other rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def added(terms: Tensor, axis: int) -> Tensor:
    """The sum over one axis, the second half added to the first until one is left: the order in which
    ``torch.sum`` adds depends on all sizes."""
    count = terms.shape[axis]
    if not count:
        return terms.sum(axis)
    while count > 1:
        half = count // 2
        total = terms.narrow(axis, 0, half) + terms.narrow(axis, half, half)
        terms = torch.cat([total, terms.narrow(axis, 2 * half, 1)], axis) if count % 2 else total
        count = terms.shape[axis]
    return terms.squeeze(axis)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a b over all axes but the first, ``[row]``."""
    return added((a * b).flatten(1), 1)
