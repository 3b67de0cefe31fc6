"""Butcher tableaus of explicit Runge-Kutta methods, in exact fractions where the method has them.

The tests check every one against the order conditions of rooted trees (Butcher 1963), for the solution, the
embedded solution and the interpolant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

Number = Fraction | float


@dataclass(frozen=True)
class Tableau:
    """An explicit method with s stages.

    a      s rows, row i with i entries: the stage i is at y + h sum_j a[i][j] k_j
    b      weights of the solution
    error  weights of the error estimate, b - b_embedded; None for a method without one
    c      times of the stages
    dense  s polynomials in theta without constant term, lowest power first: y(t + theta h) =
           y + h sum_i p_i(theta) k_i; None for the cubic Hermite interpolant
    reuse  whether the last stage is the first of the next step (a[-1] == b)
    """

    order: int
    error_order: int | None
    a: tuple[tuple[Number, ...], ...]
    b: tuple[Number, ...]
    c: tuple[Number, ...]
    error: tuple[Number, ...] | None = None
    dense: tuple[tuple[Number, ...], ...] | None = None
    dense_order: int = 3
    reuse: bool = False


def _fractions(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(each) for each in text.split())


_DOPRI5_B = _fractions("35/384 0 500/1113 125/192 -2187/6784 11/84 0")
_DOPRI5_B4 = _fractions("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40")

TABLEAUS: Mapping[str, Tableau] = MappingProxyType(
    {
        # Dormand and Prince 1980.
        "dopri5": Tableau(
            order=5,
            error_order=4,
            a=(
                (),
                _fractions("1/5"),
                _fractions("3/40 9/40"),
                _fractions("44/45 -56/15 32/9"),
                _fractions("19372/6561 -25360/2187 64448/6561 -212/729"),
                _fractions("9017/3168 -355/33 46732/5247 49/176 -5103/18656"),
                _DOPRI5_B[:-1],
            ),
            b=_DOPRI5_B,
            c=_fractions("0 1/5 3/10 4/5 8/9 1 1"),
            error=tuple(x - y for x, y in zip(_DOPRI5_B, _DOPRI5_B4)),
            reuse=True,
        ),
    }
)
