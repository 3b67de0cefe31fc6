"""Explicit Runge-Kutta steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.tableaus import TABLEAUS, Number
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, wide


class ExplicitRungeKutta:
    """The method of ``TABLEAUS[name]``. Raises ValueError for an unknown name."""

    terms = (ODE, Separable, Hamiltonian)

    def __init__(self, name: str) -> None:
        if name not in TABLEAUS:
            raise ValueError(f"there is no explicit method {name!r}; there are {', '.join(TABLEAUS)}")
        self.name = name
        self.tableau = TABLEAUS[name]
        self.properties = Properties(self.tableau.order, self.tableau.error_order)
        self.start_evaluations = int(self.tableau.reuse)

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The slope at the start, where steps hand on their last one."""
        return (term(t, y),) if self.tableau.reuse else ()

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        method, step = self.tableau, wide(h, y)
        slopes = [carry[0] if method.reuse else term(t, y)]
        last = y
        for weights, node in zip(method.a[1:], method.c[1:]):
            last = y + step * weighted(weights, slopes)
            slopes.append(term(t + float(node) * h, last))
        end = last if method.reuse else y + step * weighted(method.b, slopes)
        error = None if method.error is None else step * weighted(method.error, slopes)
        carry = (slopes[-1],) if method.reuse else ()
        evaluations = len(slopes) - method.reuse
        return Step(end, error, carry, tuple(slopes), None, evaluations)

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``; by the method's own polynomials, or cubic Hermite without."""
        raise NotImplementedError


def weighted(weights: Sequence[Number], slopes: Sequence[Tensor]) -> Tensor:
    """Sum of ``weights[i] * slopes[i]`` from left to right, zeros left out: each product and each sum rounds
    once, so the result has the same bits in every batch and in C without contraction."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes):
        if weight:
            term = float(weight) * slope
            total = term if total is None else total + term
    return torch.zeros_like(slopes[0]) if total is None else total
