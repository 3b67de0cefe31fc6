"""Rules that carry noise along a velocity, dx/ds = v(x, s) from s = 0 to 1: one step of each is a function.

``velocity(x, s)`` takes ``x`` ``[sample, ...]`` and a number s, and gives the shape of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import Tensor

Velocity: TypeAlias = Callable[[Tensor, float], Tensor]
Method: TypeAlias = Literal["euler", "midpoint", "heun"]


def euler(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """Order 1, one evaluation."""
    return x + h * velocity(x, s)


def midpoint(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """Order 2, two evaluations, the last of them before s + h."""
    return x + h * velocity(euler(velocity, x, s, h / 2), s + h / 2)


def heun(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """Order 2, two evaluations, the last of them at s + h; a step that ends on the data is Euler's (as in
    Karras et al. 2022), so that no velocity is asked for at s = 1, where a guided one divides by 1 - s."""
    start = velocity(x, s)
    if s + h > 1 - h / 2:
        return x + h * start
    return x + h / 2 * (start + velocity(x + h * start, s + h))


RULES: dict[Method, Callable[[Velocity, Tensor, float, float], Tensor]] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
}


def transported(velocity: Velocity, x: Tensor, steps: int, method: Method) -> Tensor:
    """Noise ``x`` at s = 0, carried to s = 1 by ``steps`` equal steps."""
    rule = RULES[method]
    for i in range(steps):
        x = rule(velocity, x, i / steps, 1 / steps)
    return x
