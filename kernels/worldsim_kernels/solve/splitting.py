"""Symplectic steps of separable Hamiltonians: kicks of the momenta by forces, drifts of the places.

Each is the exact flow of V(q) or of T(p), so any sequence of them is symplectic; the weights decide the
order.
Sources: Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*, II.4, V.3, VI.3; Yoshida 1990,
*Construction of higher order symplectic integrators*; Kahan and Li 1997, *Composition constants for raising
the orders of unconventional schemes for ordinary differential equations*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import Separable, wide

# The order of the weights matters: another one keeps symplecticity and reversibility, and loses the order.
_TRIPLE = 1 / (2 - 2 ** (1 / 3))
_SIX = (0.784513610477557263819, 0.235573213359358133685, -1.177679984178871006946)
_EIGHT = (
    *(0.13020248308889008087881763, 0.56116298177510838456196441, -0.38947496264484728640807860),
    *(0.15884190655515560089621075, -0.39590389413323757733623154, 0.18453964097831570709183254),
    *(0.25837438768632204729397911, 0.29501172360931029887096624),
)


def symmetric(half: Sequence[float]) -> tuple[float, ...]:
    """``half``, the middle weight that makes the sum 1, and ``half`` backwards."""
    return (*half, 1 - 2 * sum(half), *reversed(half))


WEIGHTS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "leapfrog": (1.0,),
        "yoshida4": symmetric((_TRIPLE,)),
        "yoshida6": symmetric(_SIX),
        "yoshida8": symmetric(_EIGHT),
    }
)
"""Lengths of the leapfrogs that make one step, in steps.

yoshida4  Yoshida's triple jump
yoshida6  his solution A, seven leapfrogs
yoshida8  seventeen leapfrogs by Kahan and Li (s17odr8a). After one orbit of eccentricity 0.6 with 3,000
          forces they erred by 7e-10, the fifteen of Suzuki and Umeno 1993 by 2e-9, and fifteen by Yoshida,
          whose weights go up to 2.4, by 2e-3
"""
ORDERS: Mapping[str, int] = MappingProxyType(
    {"symplectic_euler": 1, "leapfrog": 2, "yoshida4": 4, "yoshida6": 6, "yoshida8": 8}
)


class Splitting(CubicHermite):
    """Kick, drift, kick, ...: p += a_i h F(q), q += b_i h v(p), and a last kick.

    name     one of ``ORDERS``
    weights  of the leapfrogs instead of those of ``WEIGHTS[name]``
    The force at the end of a step is that at the start of the next, and is handed on. Raises ValueError for
    an unknown name, and in ``start`` for a state whose last axis is not (q, p).
    """

    terms = (Separable,)
    start_evaluations = 1

    def __init__(self, name: str = "leapfrog", weights: Sequence[float] | None = None) -> None:
        if name not in ORDERS:
            raise ValueError(f"there is no splitting {name!r}; there are {', '.join(ORDERS)}")
        symmetrical = name != "symplectic_euler"
        self.name = name
        self.properties = Properties(
            ORDERS[name], symplectic=True, volume_preserving=True, reversible=symmetrical
        )
        self.drifts = tuple(weights or WEIGHTS.get(name, (1.0,)))
        pairs = zip((0.0, *self.drifts), (*self.drifts, 0.0))
        self.kicks = tuple((a + b) / 2 for a, b in pairs) if symmetrical else (1.0, 0.0)

    def start(self, term: Separable, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The force ``[row, *half]`` at the start."""
        check_halves(self.name, y)
        return (term.force(y.chunk(2, -1)[0], *term.args),)

    def step(self, term: Separable, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        (q, p), force = y.chunk(2, -1), carry[0]
        for kick, drift in zip(self.kicks, self.drifts):
            p = p + wide(kick * h, p) * force
            q = q + wide(drift * h, q) * term.velocity(p, *term.args)
            force = term.force(q, *term.args)
        if self.kicks[-1]:
            p = p + wide(self.kicks[-1] * h, p) * force
        return Step(torch.cat([q, p], -1), carry=(force,), evaluations=len(self.drifts))


def check_halves(name: str, y: Any) -> None:
    """Raises ValueError unless the last axis of ``y`` ``[row, *state]`` may be (q, p), half and half."""
    if y.shape[-1] % 2:
        raise ValueError(
            f"{name} needs a last axis (q, p), half and half; the state is {list(y.shape[1:])}, and "
            f"{y.shape[-1]} is odd"
        )
