"""Explicit symplectic steps for Hamiltonians that do not split: Tao's extended phase space.

The state (q, p) has a twin (x, y), and

    H'(q, p, x, y) = H(q, y) + H(x, p) + omega (|q - x|^2 + |p - y|^2) / 2

is a sum of three parts whose flows are known. Symplectic in the space of both; the twins stay close when
omega is large enough. Source: Tao 2016, *Explicit symplectic approximation of nonseparable Hamiltonians:
algorithm and long time performance* (arXiv:1609.02212).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.splitting import check_halves
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import Hamiltonian, wide


class Tao(CubicHermite):
    """Order 2, three gradients of H per step.

    omega  strength of the binding in radians per unit of time, several times the fastest motion: on orbits of
           eccentricity 0.6, whose fastest rate is 5.6, the twins parted within ten orbits at omega = 10 and
           stayed within 1e-3 at 20. One omega binds places and momenta, which should have similar sizes

    The binding turns the difference of the twins by 2 atan(omega h) instead of 2 omega h: a rotation by the
    four operations alone, so that a row has the same bits in every batch, that is, Tao's own with the omega
    atan(omega h) / h. The twin is handed on from step to step (``carry``): it is part of the state, and a
    step from y alone begins with equal twins. Raises ValueError for an omega that is not positive.
    """

    terms = (Hamiltonian,)
    start_evaluations = 1
    remembers = True
    """The carry is more than a function of y."""
    properties = Properties(2, symplectic=True, volume_preserving=True, reversible=True)

    def __init__(self, name: str = "tao", omega: float = 20.0) -> None:
        if not omega > 0:
            raise ValueError(f"omega must be positive, not {omega}")
        self.name, self.omega = name, float(omega)

    def start(self, term: Hamiltonian, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The twin, equal to y, and dH/d(q, p) there. Raises ValueError unless the last axis is (q, p)."""
        check_halves(self.name, y)
        return y, term.slope(y)

    def step(self, term: Hamiltonian, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``; the carry is the twin (x, y) and the gradient of H at (q, y)."""
        half, (q, p), (x, w) = wide(h / 2, y), y.chunk(2, -1), carry[0].chunk(2, -1)
        by_q, by_p = carry[1].chunk(2, -1)
        p, x = p - half * by_q, x + half * by_p
        by_q, by_p = term.slope(torch.cat([x, p], -1)).chunk(2, -1)
        q, w = q + half * by_p, w - half * by_q
        q, p, x, w = bound(q, p, x, w, self.omega * wide(h, q))
        by_q, by_p = term.slope(torch.cat([x, p], -1)).chunk(2, -1)
        q, w = q + half * by_p, w - half * by_q
        slope = term.slope(torch.cat([q, w], -1))
        by_q, by_p = slope.chunk(2, -1)
        p, x = p - half * by_q, x + half * by_p
        return Step(torch.cat([q, p], -1), carry=(torch.cat([x, w], -1), slope), evaluations=3)


def bound(
    q: Tensor, p: Tensor, x: Tensor, w: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The twins (q, p), (x, w), their difference turned by twice the angle of this ``tangent``."""
    scale = 1 + tangent * tangent
    cos, sin = (1 - tangent * tangent) / scale, 2 * tangent / scale
    middle_q, middle_p, apart_q, apart_p = (q + x) / 2, (p + w) / 2, (q - x) / 2, (p - w) / 2
    turned_q, turned_p = cos * apart_q + sin * apart_p, cos * apart_p - sin * apart_q
    return middle_q + turned_q, middle_p + turned_p, middle_q - turned_q, middle_p - turned_p
