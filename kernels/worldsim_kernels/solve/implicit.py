"""Implicit Runge-Kutta steps of constant length for stiff equations, all stages at once by Newton's method.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),    y' = y + h sum_i b_i k_i

Collocation methods are given by their nodes: a_ij is the integral to c_i of the j-th Lagrange polynomial, b_j
that to 1. Source: Hairer and Wanner 1996, *Solving Ordinary Differential Equations II*, IV.3, IV.5, IV.6 and
IV.8; TR-BDF2 as a Runge-Kutta method is of Hosea and Shampine 1996, *Analysis and implementation of TR-BDF2*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.explicit import weighted
from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.jacobian import linearised
from worldsim_kernels.solve.linear import Factors, factorise
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, wide

SIMPLIFIED, FULL = 8, 12
"""Most iterations with the Jacobian of the step's start, and with those of the stages."""
SETTLED, SMALL, ROUNDING = 64.0, 1e-6, 0.8
"""A change that ends the iteration: in rounding units of the component, or of this part of the row's largest;
and the power of the rounding unit below which changes that no longer fall are the field's own rounding."""


@dataclass(frozen=True)
class Coefficients:
    """a, b and c of s stages."""

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


def collocation(order: int, *nodes: float) -> Coefficients:
    """The method of these nodes."""

    def weights(end: float) -> tuple[float, ...]:
        found = []
        for node in nodes:
            polynomial = [1.0]  # lowest power first
            for other in nodes:
                if other != node:
                    shifted = [0.0, *polynomial]
                    scaled = [*(other * each for each in polynomial), 0.0]
                    polynomial = [(x - z) / (node - other) for x, z in zip(shifted, scaled)]
            found.append(math.fsum(each * end ** (i + 1) / (i + 1) for i, each in enumerate(polynomial)))
        return tuple(found)

    return Coefficients(order, tuple(map(weights, nodes)), weights(1.0), nodes)


def _stiffly_accurate(order: int, *a: tuple[float, ...]) -> Coefficients:
    return Coefficients(order, a, a[-1], tuple(map(math.fsum, a)))


_ROOT2, _ROOT3, _ROOT6, _ROOT15 = (math.sqrt(each) for each in (2, 3, 6, 15))
_GAMMA = 1 - _ROOT2 / 2
METHODS: Mapping[str, Coefficients] = MappingProxyType(
    {
        "implicit_euler": collocation(1, 1.0),
        "implicit_midpoint": collocation(2, 0.5),
        "trapezoid": collocation(2, 0.0, 1.0),
        "radau3": collocation(3, 1 / 3, 1.0),
        "radau5": collocation(5, (4 - _ROOT6) / 10, (4 + _ROOT6) / 10, 1.0),
        "gauss4": collocation(4, 0.5 - _ROOT3 / 6, 0.5 + _ROOT3 / 6),
        "gauss6": collocation(6, 0.5 - _ROOT15 / 10, 0.5, 0.5 + _ROOT15 / 10),
        "sdirk2": _stiffly_accurate(2, (_GAMMA, 0.0), (1 - _GAMMA, _GAMMA)),
        "trbdf2": _stiffly_accurate(
            2, (0.0, 0.0, 0.0), (_GAMMA, _GAMMA, 0.0), (_ROOT2 / 4, _ROOT2 / 4, _GAMMA)
        ),
    }
)


class ImplicitRungeKutta(CubicHermite):
    """A method of ``METHODS``. A row whose equations are not solved has ``settled`` False.

    Raises ValueError for an unknown name.
    """

    terms = (ODE, Separable, Hamiltonian)

    def __init__(self, name: str) -> None:
        if name not in METHODS:
            raise ValueError(f"there is no implicit method {name!r}; there are {', '.join(METHODS)}")
        self.name, self.method = name, METHODS[name]
        self.properties = Properties(self.method.order, implicit=True)

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Nothing is handed on."""
        return ()

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``; in the first iterations all stages have the Jacobian of the start."""
        stages = Stages(self.method, term, t, h, y)
        with torch.no_grad():
            k, settled, evaluations = stages.solved()
        if torch.is_grad_enabled():
            k = stages.attached(k)
        end = y + wide(h, y) * weighted(self.method.b, k.unbind(1)).reshape(y.shape)
        return Step(end, settled=settled, evaluations=evaluations)


@dataclass(frozen=True)
class Stages:
    """The equations of one step: ``k`` ``[row, stage, d]``."""

    method: Coefficients
    term: Any
    t: Tensor
    h: Tensor
    y: Tensor

    def solved(self) -> tuple[Tensor, Tensor, Tensor]:
        """k, the slopes at the start where it was not found; whether it was ``[row]``; evaluations of the
        field ``[row]``."""
        at = linearised(self.term, self.t, self.y)
        count = len(self.method.b)
        # Where an equation is stiff, the slope at the start leads far away.
        start = torch.stack([at.slope.flatten(1)] * count, 1)
        guess = torch.zeros_like(start)
        settled = torch.zeros(len(guess), dtype=torch.bool, device=guess.device)
        evaluations = torch.full_like(self.h, at.evaluations, dtype=torch.int64)
        k = guess
        for limit, full in ((SIMPLIFIED, False), (FULL, True)):
            moving, least = ~settled, torch.full_like(self.h, float("inf"))
            k = torch.where(settled[:, None, None], k, guess)
            factors = self.factors([at.by_state] * count)
            for _ in range(limit):
                if not bool(moving.any()):
                    break
                if full:
                    points = self.points(k)
                    found = [linearised(self.term, *point) for point in points]
                    factors = self.factors([each.by_state for each in found])
                    evaluations = evaluations + moving * sum(each.evaluations for each in found)
                change = factors.solve((self.slopes(k) - k).flatten(1)).reshape(k.shape)
                evaluations = evaluations + moving * count
                moving = moving & change.flatten(1).isfinite().all(1) & ~factors.singular
                small, largest = self._small(k, change, least)
                least = torch.minimum(least, largest)
                k = torch.where(moving[:, None, None], k + change, k)
                settled, moving = settled | (moving & small), moving & ~small
        return torch.where(settled[:, None, None], k, start), settled, evaluations

    def attached(self, k: Tensor) -> Tensor:
        """``k``, found without a graph, with first and second derivatives, as ``newton.attached``."""
        with torch.no_grad():
            factors = self.factors([linearised(self.term, *point).by_state for point in self.points(k)])
        for _ in range(2):
            k = k + factors.solve((self.slopes(k) - k).flatten(1)).reshape(k.shape)
        return k

    def points(self, k: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Time and state of every stage."""
        step, slopes = wide(self.h, self.y), k.unbind(1)
        return [
            (self.t + c * self.h, self.y + step * weighted(row, slopes).reshape(self.y.shape))
            for c, row in zip(self.method.c, self.method.a)
        ]

    def slopes(self, k: Tensor) -> Tensor:
        """What ``k`` is to be equal to."""
        return torch.stack([self.term(*point).flatten(1) for point in self.points(k)], 1)

    def factors(self, jacobians: Sequence[Tensor]) -> Factors:
        """Of 1 - h a_ij J_i, for the Jacobians ``[row, d, d]`` of all stages."""
        at = torch.stack(list(jacobians), 1)
        n, count, size, _ = at.shape
        a = torch.tensor(self.method.a, dtype=at.dtype, device=at.device)[None, :, None, :, None]
        coupled = self.h.to(at.dtype).reshape(-1, 1, 1, 1, 1) * a * at.unsqueeze(3)
        identity = torch.eye(count * size, dtype=at.dtype, device=at.device)
        return factorise(identity - coupled.reshape(n, count * size, count * size))

    def _small(self, k: Tensor, change: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """Whether this change is the last ``[row]``, and its largest component."""
        step, eps = wide(self.h, k).abs(), torch.finfo(k.dtype).eps
        size = self.y.flatten(1).abs().unsqueeze(1) + step * k.abs()
        whole = size.flatten(1).amax(1)
        moved = step * change.abs()
        largest = moved.flatten(1).amax(1)
        allowed = SETTLED * eps * torch.maximum(size, SMALL * wide(whole, size))
        small = (moved <= allowed).flatten(1).all(1)
        return small | ((largest >= least) & (largest <= eps**ROUNDING * whole)), largest
