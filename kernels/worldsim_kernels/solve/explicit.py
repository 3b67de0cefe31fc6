"""Explicit Runge-Kutta steps.

    k_1 = f(t, y),  k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j),  y' = y + h sum_i b_i k_i

The order of operations is part of the method, so that every backend gives the same bits:

- h [row] is float64 and rounded once to the dtype of the state, as is every coefficient;
- a sum over stages is (((w_1 k_1) + w_2 k_2) + w_3 k_3) + ..., coefficients of 0 left out, each product and
  each sum rounded once (no fused multiply-add);
- a stage is y + h * sum, the error h * sum with the weights b - b_embedded;
- the time of a stage is t + c_i * h in float64;
- where the last stage is the first of the next step, its state is the end, and b is not summed again;
- an interpolant takes p_i(theta) in float64 by Horner's rule, (((p_m theta + p_(m-1)) theta + ...) + p_1)
  theta, rounds it to the dtype of the state, and is y + h * sum with these weights, stages whose polynomial
  is 0 left out; at theta = 1 it is y' itself.

Source: Hairer, Norsett, Wanner 1993, *Solving Ordinary Differential Equations I*, II.1, II.4 and II.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
        self._between = [i for i, polynomial in enumerate(self.tableau.dense) if any(polynomial)]
        self._stages = [i for i in self._between if i < len(self.tableau.b)]
        self._polynomials = torch.tensor(
            [[float(each) for each in self.tableau.dense[i]] for i in self._between], dtype=torch.float64
        )

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
        dense = tuple(slopes[i] for i in self._stages)
        return Step(end, error, carry, dense, None, len(slopes) - method.reuse)

    def prepare(self, term: Any, t: Tensor, h: Tensor, y: Tensor, step: Step) -> Step:
        """See ``Stepper``: with the slopes of the stages that the interpolant alone needs."""
        slopes = dict(zip(self._stages, step.dense))
        first = len(self.tableau.b)
        for i, (weights, node) in enumerate(zip(self.tableau.more, self.tableau.more_c), first):
            used = [weights[j] for j in slopes]
            state = y + wide(h, y) * weighted(used, tuple(slopes.values()))
            slopes[i] = term(t + float(node) * h, state)
        return replace(step, dense=tuple(slopes.values()))

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``; by the method's own polynomials, of order ``tableau.dense_order``."""
        polynomials = self._polynomials.to(theta.device)
        weights = polynomials[:, -1] * theta[:, None]
        for coefficient in polynomials[:, :-1].flip(1).unbind(1):
            weights = (weights + coefficient) * theta[:, None]
        total = wide(weights[:, 0], y) * step.dense[0]
        for i, slope in enumerate(step.dense[1:], 1):
            total = total + wide(weights[:, i], y) * slope
        at_end = (theta == 1).reshape(-1, *[1] * (y.dim() - 1))
        return torch.where(at_end, step.y, y + wide(h, y) * total)


def weighted(weights: Sequence[Number | float], slopes: Sequence[Tensor]) -> Tensor:
    """Sum of ``weights[i] * slopes[i]`` from left to right, zeros left out."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes):
        if weight:
            term = float(weight) * slope
            total = term if total is None else total + term
    return torch.zeros_like(slopes[0]) if total is None else total
