"""Stiff initial value problems, as batched fields and for scipy, with published solutions.

Sources: Mazzia and Magherini 2008, *Test Set for Initial Value Problem Solvers*; Hairer and Wanner 1996,
*Solving Ordinary Differential Equations II*, IV.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """dy/dt = field(t, y) from ``y0`` at 0 to ``end``.

    exact  y(end); None where scipy finds it easily
    atol   the absolute tolerance in units of the relative one: a small component of the solution
    """

    field: Callable[[Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    end: float
    atol: float
    exact: tuple[float, ...] | None = None

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """``[row=1, d]``."""
        return torch.tensor([self.y0], dtype=dtype)

    def scipy(self, method: str, rtol: float, atol: float) -> np.ndarray:
        """y(end) ``[d]``."""

        def slope(t: float, y: np.ndarray) -> np.ndarray:
            return self.field(torch.tensor([t]), torch.from_numpy(y)[None])[0].numpy()

        found = solve_ivp(slope, (0.0, self.end), self.y0, method=method, rtol=rtol, atol=atol)
        assert found.success
        return found.y[:, -1]

    def solution(self) -> np.ndarray:
        """y(end) ``[d]``."""
        return self.scipy("DOP853", 1e-13, 1e-13) if self.exact is None else np.array(self.exact)


def robertson(t: Tensor, y: Tensor, k1: float = 0.04, k2: float = 3e7, k3: float = 1e4) -> Tensor:
    a, b, c = y.unbind(-1)
    decay, catalysis, back = k1 * a, k2 * b * b, k3 * b * c
    return torch.stack([back - decay, decay - back - catalysis, catalysis], -1)


def hires(t: Tensor, y: Tensor) -> Tensor:
    """The response of a plant to light: eight reactions (Schaefer 1975)."""
    a, b, c, d, e, f, g, h = y.unbind(-1)
    meeting = 280.0 * f * h
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -meeting + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            meeting - 1.81 * g,
            -meeting + 1.81 * g,
        ],
        -1,
    )


def oregonator(t: Tensor, y: Tensor) -> Tensor:
    """The Belousov-Zhabotinskii reaction (Field and Noyes 1974)."""
    a, b, c = y.unbind(-1)
    return torch.stack(
        [77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1
    )


def van_der_pol(t: Tensor, y: Tensor, stiffness: float | Tensor = 1e6) -> Tensor:
    """In the time of the slow stretches: mu^2 = ``stiffness``."""
    x, v = y.unbind(-1)
    return torch.stack([v, stiffness * ((1 - x * x) * v - x)], -1)


def brusselator(t: Tensor, y: Tensor) -> Tensor:
    """Prigogine and Lefever 1968 without diffusion, A = 1, B = 3: a limit cycle."""
    x, v = y.unbind(-1)
    return torch.stack([1 + x * x * v - 4 * x, 3 * x - x * x * v], -1)


PROBLEMS = {
    "robertson": Problem(
        robertson,
        (1.0, 0.0, 0.0),
        1e11,
        1e-8,
        (0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050),
    ),
    "hires": Problem(
        hires,
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
        321.8122,
        1e-4,
        (
            0.7371312573325668e-3,
            0.1442485726316185e-3,
            0.5888729740967575e-4,
            0.1175651343283149e-2,
            0.2386356198831331e-2,
            0.6238968252742796e-2,
            0.2849998395185769e-2,
            0.2850001604814231e-2,
        ),
    ),
    "oregonator": Problem(
        oregonator,
        (1.0, 2.0, 3.0),
        360.0,
        1e-2,
        (0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
    ),
    "van_der_pol": Problem(van_der_pol, (2.0, 0.0), 2.0, 1.0, (0.1706167732170483e1, -0.8928097010247975e0)),
    "brusselator": Problem(brusselator, (1.5, 3.0), 12.0, 1.0),
}
