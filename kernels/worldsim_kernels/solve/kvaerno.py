"""Kvaerno's diagonally implicit method of order 5 with an explicit first stage.

    z_i = h f(t + c_i h, y + sum_(j <= i) a_ij z_j),   y(t + h) = y + sum_j a_7j z_j

Stiffly accurate and L-stable; its sixth stage is the embedded solution, of order 4 and A-stable.

Source: Kvaerno 2004, *Singly diagonally implicit Runge-Kutta methods with an explicit first stage*. The
interpolant, of order 4 and continuously differentiable, is ours: the one with the least coefficients among
those of degree 4 that meet the order conditions for every theta.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.explicit import weighted
from worldsim_kernels.solve.jacobian import linearised
from worldsim_kernels.solve.linear import factorise
from worldsim_kernels.solve.newton import Stage, attached, newton
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, wide

GAMMA = 0.26
A: tuple[tuple[float, ...], ...] = (
    (),
    (0.26,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (
        0.13659751177640291,
        0.0,
        -0.05496908796538376,
        -0.04118626728321046,
        0.62993304899016403,
        0.06962479448202728,
    ),
)
"""Below the diagonal, which is 0, then GAMMA."""

NODES = (0.0, *(sum(row) + GAMMA for row in A[1:]))
B = (*A[6], GAMMA)
ERROR = tuple(x - y for x, y in zip(B, (*A[5], GAMMA, 0.0)))
DENSE: tuple[tuple[float, ...], ...] = (
    (1.0, -2.0720375887956863, 1.6904652246969822, -0.4818301241248939),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 0.8427243190616551, -1.9053249899848461, 1.0076315829578069),
    (0.0, -0.6665857136422381, 1.1684263581516345, -0.5430269117926072),
    (0.0, 3.256928814399348, -3.9941254328380507, 1.3671296674288627),
    (0.0, -0.6050255205696943, 1.4885502190674975, -0.8138999040157766),
    (0.0, -0.7560043104533961, 1.5520086209067943, -0.5360043104533971),
)
"""Coefficients of theta .. theta^4 of the weight of each z_i."""

NEAREST = ((), (0,), (0, 1), (0, 1, 2), (0, 1, 3), (1, 2, 3), (5,))
"""From which stages the first guess of each is extrapolated: few, because noise grows with the degree."""


def lagrange(at: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of the values at ``nodes`` in the polynomial through them, at ``at``."""
    weights = []
    for node in nodes:
        weight = 1.0
        for other in nodes:
            if other != node:
                weight *= (at - other) / (node - other)
        weights.append(weight)
    return tuple(weights)


SETTLED, PART, SMALL = 64.0, 0.01, 1e-6
"""An error that ends Newton's iteration: in rounding units of the component, and as a part of the tolerance;
and a part of the largest component below which a component is not looked at by itself."""

GUESS = tuple(
    tuple(dict(zip(near, lagrange(node, tuple(NODES[j] for j in near)))).get(j, 0.0) for j in range(i))
    for i, (near, node) in enumerate(zip(NEAREST, NODES))
)


class Kvaerno5:
    """The method, "kvaerno5".

    rtol, atol  the tolerances of the solve, when they are known: the equations of a stage are then solved to
                a hundredth of them rather than to rounding, for about half the cost
    """

    terms = (ODE, Separable, Hamiltonian)
    properties = Properties(order=5, error_order=4, implicit=True)

    def __init__(self, name: str = "kvaerno5", *, rtol: float = 0.0, atol: float = 0.0) -> None:
        self.name = name
        self.rtol, self.atol = rtol, atol

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Nothing is handed on."""
        return ()

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``; a row has settled when all its stages have."""
        at, flat = linearised(term, t, y), y.flatten(1)
        width = wide(h, flat)
        identity = torch.eye(flat.shape[1], dtype=y.dtype, device=y.device)
        factors = factorise((identity - (GAMMA * width).unsqueeze(2) * at.by_state).detach())
        stages = [width * at.slope.flatten(1)]
        sizes = torch.maximum(flat.detach().abs(), stages[0].detach().abs())
        size = sizes.amax(1)
        size = torch.where(size > 0, size, torch.ones_like(size))
        unit = SETTLED * torch.finfo(y.dtype).eps
        scale = unit * torch.maximum(sizes, SMALL * size[:, None])
        scale = torch.maximum(scale, PART * (self.atol + self.rtol * flat.detach().abs()))
        settled, evaluations = ~factors.singular, torch.full_like(h, at.evaluations, dtype=torch.int64)
        for i in range(1, len(A)):
            stage = Stage(term, t + NODES[i] * h, width, flat + weighted(A[i], stages), y.shape[1:], GAMMA)
            with torch.no_grad():
                found = newton(stage, weighted(GUESS[i], stages), settled, factors, scale, size)
            settled, evaluations = found.settled, evaluations + found.evaluations
            stages.append(attached(stage, found.z) if torch.is_grad_enabled() else found.z)
        end = y + weighted(B, stages).reshape(y.shape)
        error = weighted(ERROR, stages).reshape(y.shape)
        return Step(end, error, (), tuple(each.reshape(y.shape) for each in stages), settled, evaluations)

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``."""
        s = wide(theta, y)
        powers = [weighted(column, step.dense) for column in zip(*DENSE)]
        between = y + s * (powers[0] + s * (powers[1] + s * (powers[2] + s * powers[3])))
        return torch.where(s == 1, step.y, between)
