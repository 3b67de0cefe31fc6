"""The twenty-five problems of DETEST, each over 0 <= t <= 20.

Hull, Enright, Fellen, Sedgwick 1972, *Comparing numerical methods for ordinary differential equations*, with
the constants of Enright and Pryce 1987, *Two FORTRAN packages for assessing initial value methods*.

A field takes ``xp`` (numpy or torch), the time and the state with its components on the last axis, so that
one text serves scipy and our rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

END = 20.0


@dataclass(frozen=True)
class Detest:
    """A problem: ``field(xp, t, y)`` and the state at t = 0."""

    name: str
    field: Callable[..., Any]
    start: tuple[float, ...]


def joined(xp, *columns):
    return xp.stack(columns, -1)


def a1(xp, t, y):
    return -y


def a2(xp, t, y):
    return -y * y * y / 2


def a3(xp, t, y):
    return y * xp.cos(t)


def a4(xp, t, y):
    return y / 4 * (1 - y / 20)


def a5(xp, t, y):
    return (y - t) / (y + t)


def b1(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    return joined(xp, 2 * (a - a * b), -(b - a * b))


def b2(xp, t, y):
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return joined(xp, -a + b, a - 2 * b + c, b - c)


def b3(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    return joined(xp, -a, a - b * b, b * b)


def b4(xp, t, y):
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    r = xp.sqrt(a * a + b * b)
    return joined(xp, -b - a * c / r, a - b * c / r, a / r)


def b5(xp, t, y):
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return joined(xp, b * c, -a * c, -0.51 * a * b)


def c1(xp, t, y):
    return decay_chain(xp, y, [1.0] * 9 + [0.0])


def c2(xp, t, y):
    return decay_chain(xp, y, [*map(float, range(1, 10)), 0.0])


def decay_chain(xp, y, rates):
    """Radioactive decay: what leaves one enters the next."""
    lost = xp.asarray(rates, dtype=xp.float64) * y
    return xp.concatenate([-lost[..., :1], lost[..., :-1] - lost[..., 1:]], -1)


def heat(xp, t, y):
    """C3 and C4: the second difference with zeros beyond both ends."""
    nothing = xp.zeros_like(y[..., :1])
    wide = xp.concatenate([nothing, y, nothing], -1)
    return wide[..., :-2] - 2 * y + wide[..., 2:]


GRAVITY = 2.95912208286
SUN = 1.00000597682
MASSES = [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778]
PLACES = [
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
]
SPEEDS = [
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
]


def c5(xp, t, y):
    """Five outer planets about a sun that they move."""
    x = y[..., :15].reshape((*y.shape[:-1], 5, 3))
    masses = xp.asarray(MASSES, dtype=xp.float64)
    pull = x / (x * x).sum(-1)[..., None] ** 1.5
    gap = x[..., None, :, :] - x[..., :, None, :]
    square = (gap * gap).sum(-1) + xp.eye(5)
    pairs = gap / square[..., None] ** 1.5 - pull[..., None, :, :]
    others = masses[:, None] * (1 - xp.eye(5))[..., None] * pairs
    force = GRAVITY * (others.sum(-2) - (SUN + masses)[:, None] * pull)
    return xp.concatenate([y[..., 15:], force.reshape((*y.shape[:-1], 15))], -1)


def kepler(xp, t, y):
    x, z, u, v = y[..., 0], y[..., 1], y[..., 2], y[..., 3]
    square = x * x + z * z
    cube = square * xp.sqrt(square)
    return joined(xp, u, v, -x / cube, -z / cube)


def e1(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    s = t[..., 0] + 1
    return joined(xp, b, -(b / s + (1 - 0.25 / (s * s)) * a))


def e2(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    return joined(xp, b, (1 - a * a) * b - a)


def e3(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    return joined(xp, b, a * a * a / 6 - a + 2 * xp.sin(2.78535 * t[..., 0]))


def e4(xp, t, y):
    b = y[..., 1]
    return joined(xp, b, 0.032 - 0.4 * b * b)


def e5(xp, t, y):
    b = y[..., 1]
    return joined(xp, b, xp.sqrt(1 + b * b) / (25 - t[..., 0]))


def unit(n):
    return (1.0, *[0.0] * (n - 1))


def orbit(e):
    return (1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5)


PROBLEMS = (
    Detest("A1", a1, (1.0,)),
    Detest("A2", a2, (1.0,)),
    Detest("A3", a3, (1.0,)),
    Detest("A4", a4, (1.0,)),
    Detest("A5", a5, (4.0,)),
    Detest("B1", b1, (1.0, 3.0)),
    Detest("B2", b2, (2.0, 0.0, 1.0)),
    Detest("B3", b3, (1.0, 0.0, 0.0)),
    Detest("B4", b4, (3.0, 0.0, 0.0)),
    Detest("B5", b5, (0.0, 1.0, 1.0)),
    Detest("C1", c1, unit(10)),
    Detest("C2", c2, unit(10)),
    Detest("C3", heat, unit(10)),
    Detest("C4", heat, unit(51)),
    Detest("C5", c5, (*PLACES, *SPEEDS)),
    *(Detest(f"D{i}", kepler, orbit(e)) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)),
    Detest("E1", e1, (0.6713967071418030, 0.09540051444747446)),
    Detest("E2", e2, (2.0, 0.0)),
    Detest("E3", e3, (0.0, 0.0)),
    Detest("E4", e4, (30.0, 0.0)),
    Detest("E5", e5, (0.0, 0.0)),
)


def for_scipy(problem):
    """``f(t, y)`` over numpy."""
    return lambda t, y: problem.field(np, np.asarray([t]), y)


def for_rows(problem):
    """``f(t [row], y [row, d])`` over torch."""
    return lambda t, y: problem.field(torch, t[:, None], y)
