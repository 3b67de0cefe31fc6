"""Rosenbrock methods: implicit Runge-Kutta steps whose equations are linear, one factorisation per step.

    k_i = f(t + alpha_i h, y + h sum_j a_ij k_j) + h J sum_(j <= i) gamma_ij k_j + gamma_i h df/dt,
    y(t + h) = y + h sum_i b_i k_i,   J = df/dy(t, y),

solved without products by J for u_i = h sum_j gamma_ij k_j (Hairer and Wanner 1996, *Solving Ordinary
Differential Equations II*, IV.7):

    (I - h gamma J) u_i = gamma (h f(t + alpha_i h, y + sum_j a_ij u_j) + sum_j c_ij u_j + h^2 gamma_i df/dt),
    y(t + h) = y + sum_i m_i u_i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.explicit import weighted
from worldsim_kernels.solve.jacobian import Linearised, linearised
from worldsim_kernels.solve.linear import factorise
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, wide

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RosenbrockTableau:
    """A Rosenbrock method with s stages in the variables u.

    gamma    the diagonal of gamma_ij
    a, c     s rows, row i with i entries
    nodes    alpha_i
    by_time  gamma_i, the sums of gamma_ij over j
    m        weights of the solution
    error    weights of the error estimate, y - y_embedded = sum_i error_i u_i
    dense    rows d_k of y(t + theta h) = (1 - theta) y + theta (y(t + h) + (1 - theta) (K_1 + theta (K_2 +
             theta K_3))), K_k = sum_i d_ki u_i
    """

    order: int
    error_order: int
    dense_order: int
    gamma: float
    a: Rows
    c: Rows
    nodes: tuple[float, ...]
    by_time: tuple[float, ...]
    m: tuple[float, ...]
    error: tuple[float, ...]
    dense: Rows


def shampine_reichelt() -> RosenbrockTableau:
    """Rosenbrock23 of Shampine and Reichelt 1997, *The MATLAB ODE Suite*: order 2, L-stable, with an error
    estimate from order 3. Their formulas are gamma_21 = -gamma, gamma_31 = (4 + sqrt 2) gamma, gamma_32 =
    -(6 + sqrt 2) gamma in k; here k_i is written out in u."""
    root = math.sqrt(2)
    g = 1 / (2 + root)
    k1 = (1 / g, 0.0, 0.0)
    k2 = (1 / g, 1 / g, 0.0)
    k3 = (((6 + root) - (4 + root)) / g, (6 + root) / g, 1 / g)
    return RosenbrockTableau(
        order=2,
        error_order=2,
        dense_order=2,
        gamma=g,
        a=((), (k1[0] / 2,), k2[:2]),
        c=((), (-k2[0],), (-k3[0], -k3[1])),
        nodes=(0.0, 0.5, 1.0),
        by_time=(g, 0.0, -g),
        m=k2,
        error=tuple((2 * y - x - z) / 6 for x, y, z in zip(k1, k2, k3)),
        dense=(tuple((x - y) / (1 - 2 * g) for x, y in zip(k1, k2)),),
    )


_LAST = (
    -7.502846399306121,
    2.561846144803919,
    -11.627539656261098,
    -0.18268767659942256,
    0.030198172008377946,
)

STEINEBACH = RosenbrockTableau(
    # Rodas5P: Steinebach 2023, *Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks
    # within the Julia Differential Equations package*: order 5(4), stiffly accurate, L-stable.
    order=5,
    error_order=4,
    dense_order=4,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST,
        (*_LAST, 1.0),
        (*_LAST, 1.0, 1.0),
    ),
    c=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    ),
    nodes=(
        0.0,
        0.6358126895828704,
        0.4095798393397535,
        0.9769306725060716,
        0.4288403609558664,
        1.0,
        1.0,
        1.0,
    ),
    by_time=(
        0.21193756319429014,
        -0.42387512638858027,
        -0.3384627126235924,
        1.8046452872882734,
        2.325825639765069,
        0.0,
        0.0,
        0.0,
    ),
    m=(*_LAST, 1.0, 1.0, 1.0),
    error=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    dense=(
        (
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ),
        (
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ),
        (
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ),
    ),
)

ROSENBROCK: Mapping[str, RosenbrockTableau] = MappingProxyType(
    {"rosenbrock23": shampine_reichelt(), "rodas5p": STEINEBACH}
)


class Rosenbrock:
    """The method of ``ROSENBROCK[name]``. Raises ValueError for an unknown name."""

    terms = (ODE, Separable, Hamiltonian)

    def __init__(self, name: str) -> None:
        if name not in ROSENBROCK:
            raise ValueError(f"there is no Rosenbrock method {name!r}; there are {', '.join(ROSENBROCK)}")
        self.name = name
        self.tableau = ROSENBROCK[name]
        self.properties = Properties(self.tableau.order, self.tableau.error_order, implicit=True)

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Nothing is handed on."""
        return ()

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``; a row whose matrix I - h gamma J is singular has not settled."""
        return self.advance(linearised(term, t, y), term, t, h, y)

    def advance(self, at: Linearised, term: Any, t: Tensor, h: Tensor, y: Tensor) -> Step:
        """The step with the derivatives of the field at ``t`` and ``y``."""
        method, shape, width = self.tableau, y.shape, wide(h, y.flatten(1))
        identity = torch.eye(at.by_state.shape[-1], dtype=y.dtype, device=y.device)
        factors = factorise(identity - (method.gamma * width).unsqueeze(2) * at.by_state)
        by_time = (width * width) * at.by_time.flatten(1)
        stages: list[Tensor] = []
        for a, c, node, gamma in zip(method.a, method.c, method.nodes, method.by_time):
            slope = at.slope
            if stages:
                state = y + weighted(a, stages).reshape(shape)
                slope = term(t + node * h, state)
            right = width * slope.flatten(1)
            if stages:
                right = right + weighted(c, stages)
            if gamma:
                right = right + gamma * by_time
            stages.append(factors.solve(method.gamma * right))
        end = y + weighted(method.m, stages).reshape(shape)
        error = weighted(method.error, stages).reshape(shape)
        evaluations = at.evaluations + len(stages) - 1
        kept = tuple(each.reshape(shape) for each in stages)
        return Step(end, error, (), kept, ~factors.singular, evaluations)

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``."""
        s = wide(theta, y)
        *bends, bend = (weighted(row, step.dense) for row in self.tableau.dense)
        for each in reversed(bends):
            bend = each + s * bend
        return (1 - s) * y + s * (step.y + (1 - s) * bend)
