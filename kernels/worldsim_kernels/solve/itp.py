"""A bracketed root of many functions at once: interpolate, truncate, project.

Source: Oliveira and Takahashi 2020, *An enhancement of the bisection method average performance preserving
minmax optimality*. It converges like the secant method on smooth functions and never needs more than
``SLACK`` evaluations above bisection. The four operations and comparisons alone, so that a row has the same
bits whatever its companions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NARROW = 2.0**-52
HALVINGS, SLACK = 51, 2
SPREAD = 0.2


def last_positive(value: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The last x found with ``value(x) > 0`` before the sign changes between ``low`` and ``high``, ``[row]``
    float64 in [0, 1], to within 2^-51.

    value  ``x [row], asked [row] -> [row]``, positive at ``low`` and not at ``high``; what it gives for rows
           that are not ``asked``, because they are done, does not matter
    Where that does not hold: ``low`` if it is not positive even there, ``high`` if it is positive there too.
    """
    a, b = low, high
    every = torch.ones_like(a, dtype=torch.bool)
    at_a, at_b = value(a, every), value(b, every)
    b = torch.where(at_a > 0, b, a)
    a = torch.where(at_b > 0, b, a)
    wide = b - a
    reach = NARROW * 2.0 ** (HALVINGS + SLACK)
    while bool((open_ := b - a > 2 * NARROW).any()):
        width = b - a
        middle = (a + b) / 2
        fall = torch.where(open_, at_a - at_b, 1.0)
        secant = torch.where(fall > 0, (b * at_a - a * at_b) / torch.where(fall > 0, fall, 1.0), middle)
        towards = torch.where(middle >= secant, 1.0, -1.0).to(a)
        shift = SPREAD * width * width / torch.where(open_, wide, 1.0)
        truncated = torch.where(shift <= (middle - secant).abs(), secant + towards * shift, middle)
        radius = (reach - width / 2).clamp(min=0)
        near = (truncated - middle).abs() <= radius
        x = torch.where(near, truncated, middle - towards * radius)
        x = torch.where(open_ & (x > a) & (x < b), x, middle)
        found = value(x, open_)
        before = open_ & (found > 0)
        after = open_ & ~(found > 0)
        a, at_a = torch.where(before, x, a), torch.where(before, found, at_a)
        b, at_b = torch.where(after, x, b), torch.where(after, found, at_b)
        reach = reach / 2
    return a
