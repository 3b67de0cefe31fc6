"""Exponential time differencing for fields in Fourier space, dv/dt = L v + N(v) with diagonal L.

The linear part, which is stiff, is solved exactly; the rest by a Runge-Kutta method of order 4.

Sources: Cox and Matthews 2002, *Exponential time differencing for stiff systems*; Kassam and Trefethen 2005,
*Fourth-order time-stepping for stiff PDEs*, for coefficients without cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 64
"""On the circle over which coefficients are averaged; 32 give 1e-15 already for real L."""


@dataclass(frozen=True)
class ETDRK4:
    """Steps of length ``h`` (which may be negative where L allows it).

    whole, half   e^(Lh) and e^(Lh/2)
    q, f1, f2, f3  the weights of Kassam and Trefethen 2005, section 2
    """

    whole: Tensor
    half: Tensor
    q: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor

    @staticmethod
    def of(linear: Tensor, h: float) -> ETDRK4:
        """The coefficients of a step for the symbol ``linear`` ``[..., k]``, real or complex (double)."""
        middles = torch.arange(POINTS, dtype=torch.float64, device=linear.device) + 0.5
        angle = 2 * math.pi / POINTS * middles
        z = (h * linear).unsqueeze(-1) + torch.polar(torch.ones_like(angle), angle)
        e = torch.exp(z)
        q = (torch.exp(z / 2) - 1) / z
        f1 = (-4 - z + e * (4 - 3 * z + z * z)) / z**3
        f2 = (2 + z + e * (z - 2)) / z**3
        f3 = (-4 - 3 * z - z * z + e * (4 - z)) / z**3
        weights = [h * each.mean(-1) for each in (q, f1, f2, f3)]
        if not linear.is_complex():
            weights = [each.real for each in weights]
        return ETDRK4(torch.exp(h * linear), torch.exp(h / 2 * linear), *weights)

    def step(self, v: Tensor, nonlinear: Callable[[Tensor], Tensor]) -> Tensor:
        """``v`` ``[row, ..., k]`` complex, one step later; ``nonlinear`` maps such a field to its N."""
        n1 = nonlinear(v)
        a = self.half * v + self.q * n1
        n2 = nonlinear(a)
        n3 = nonlinear(self.half * v + self.q * n2)
        n4 = nonlinear(self.half * a + self.q * (2 * n3 - n1))
        return self.whole * v + self.f1 * n1 + 2 * self.f2 * (n2 + n3) + self.f3 * n4
