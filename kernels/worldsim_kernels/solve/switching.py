"""Tsit5 where a row is not stiff and Rodas5P where it is, decided for every row and every step.

An explicit step is bound by stability when h |lambda| reaches the edge of its stability region. The slopes
of Tsit5's last two stages, both at t + h, give |lambda| about |k_7 - k_6| / |Y_7 - Y_6| (Hairer and Wanner
1996, *Solving Ordinary Differential Equations II*, IV.2); in the other direction the Jacobian is at hand, and
its norms bound |lambda|. A row changes over only when the sign has been there for a while.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.control import norm
from worldsim_kernels.solve.explicit import ExplicitRungeKutta, weighted
from worldsim_kernels.solve.jacobian import Linearised, linearised
from worldsim_kernels.solve.rosenbrock import Rosenbrock
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import ODE, Hamiltonian, Separable, of_rows, wide

EDGE = 3.15
"""Nine tenths of 3.5, where the stability region of Tsit5 ends within 60 degrees of the negative axis."""
STIFF_AFTER, FORGIVEN_AFTER, MILD_AFTER = 15, 6, 5
"""Steps at the edge before a row becomes stiff; steps below it in a row that forget them; and steps in a row
that Tsit5 could have taken before a row is mild again."""


class Switching:
    """The stepper "auto".

    carry  the slope at t where the next step is explicit ``[row, *state]``; ``[row, 3]``: 1 where the next
           step is implicit, steps that speak for a change, steps in a row that speak against it
    """

    terms = (ODE, Separable, Hamiltonian)
    properties = Properties(order=5, error_order=4, implicit=True)
    start_evaluations = 1
    remembers = True
    """The carry is more than a function of t and y."""

    def __init__(self, name: str = "auto") -> None:
        self.name = name
        self.explicit, self.implicit = ExplicitRungeKutta("tsit5"), Rosenbrock("rodas5p")

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Every row begins with Tsit5."""
        return term(t, y), torch.zeros(len(y), 3, dtype=torch.float64, device=y.device)

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        stiff = carry[1][:, 0] == 1
        if not bool(stiff.any()):
            return self._mild(term, t, h, y, carry)
        if bool(stiff.all()):
            return self._stiff(term, t, h, y, carry)
        groups, parts = [(~stiff).nonzero()[:, 0], stiff.nonzero()[:, 0]], []
        for index, take in zip(groups, (self._mild, self._stiff)):
            own = tuple(each[index] for each in carry)
            parts.append(take(of_rows(term, index), t[index], h[index], y[index], own))
        return _merged(parts[0], parts[1], torch.cat(groups).argsort())

    def _mild(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        step = self.explicit.step(term, t, h, y, carry[:1])
        beyond = slope_ratio(self.explicit, h, y, step) > EDGE
        votes = carry[1]
        against = torch.where(beyond, 0.0, votes[:, 2] + 1)
        speak = torch.where(against >= FORGIVEN_AFTER, 0.0, votes[:, 1] + beyond)
        change = speak >= STIFF_AFTER
        votes = torch.stack([change, speak * ~change, against * ~change], 1).to(votes)
        ones = torch.ones_like(beyond)
        dense = (ones[:, None], *step.dense, torch.zeros_like(y))
        evaluations = torch.full_like(h, float(step.evaluations)).long()
        return replace(step, carry=(step.carry[0], votes), dense=dense, settled=ones, evaluations=evaluations)

    def _stiff(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        at = linearised(term, t, y)
        step = self.implicit.advance(at, term, t, h, y)
        within = h.abs() * radius(at) < EDGE
        speak = torch.where(within, carry[1][:, 1] + 1, 0.0)
        change = speak >= MILD_AFTER
        votes = torch.stack([~change, speak * ~change, torch.zeros_like(speak)], 1).to(carry[1])
        slope, evaluations = torch.zeros_like(y), torch.full_like(h, float(step.evaluations)).long()
        index = change.nonzero()[:, 0]
        if len(index):
            ahead = of_rows(term, index)(t[index] + h[index], step.y[index])
            slope, evaluations = slope.index_copy(0, index, ahead), evaluations + change
        dense = (torch.zeros_like(within)[:, None], *step.dense)
        return replace(step, carry=(slope, votes), dense=dense, evaluations=evaluations)

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``; by the polynomial of the method that took the step."""
        mild, *dense = step.dense
        groups = [mild[:, 0].nonzero()[:, 0], (~mild[:, 0]).nonzero()[:, 0]]
        methods: tuple[Any, Any] = (self.explicit, self.implicit)
        parts = []
        for index, method, count in zip(groups, methods, (7, 8)):
            own = Step(step.y[index], dense=tuple(each[index] for each in dense[:count]))
            parts.append(method.interpolate(theta[index], h[index], y[index], own))
        return torch.cat(parts)[torch.cat(groups).argsort()]


def slope_ratio(method: ExplicitRungeKutta, h: Tensor, y: Tensor, step: Step) -> Tensor:
    """h |k_7 - k_6| / |Y_7 - Y_6| ``[row]``, 0 where the states are equal or anything is not finite."""
    with torch.no_grad():
        slopes = step.dense
        state = y + wide(h, y) * weighted(method.tableau.a[5], slopes)
        apart = norm(step.y - state)
        found = h.abs() * norm(slopes[6] - slopes[5]) / torch.where(apart > 0, apart, 1.0)
        return torch.where((apart > 0) & found.isfinite(), found, 0.0)


def radius(at: Linearised) -> Tensor:
    """A bound of the eigenvalues of the Jacobian, ``[row]`` float64: the lesser of its norms of rows and of
    columns, added one by one."""
    sizes = at.by_state.detach().double().abs()
    rows, columns = torch.zeros_like(sizes[:, 0]), torch.zeros_like(sizes[:, 0])
    for i in range(sizes.shape[1]):
        columns, rows = columns + sizes[:, i], rows + sizes[:, :, i]
    return torch.minimum(rows.amax(1), columns.amax(1))


def _merged(first: Step, second: Step, place: Tensor) -> Step:
    """The rows of both, row i being number ``place[i]`` of them."""

    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])[place]

    assert first.error is not None
    assert second.error is not None
    assert first.settled is not None
    assert second.settled is not None
    return Step(
        join(first.y, second.y),
        join(first.error, second.error),
        tuple(join(a, b) for a, b in zip(first.carry, second.carry)),
        tuple(join(a, b) for a, b in zip(first.dense, second.dense)),
        join(first.settled, second.settled),
        join(torch.as_tensor(first.evaluations), torch.as_tensor(second.evaluations)),
    )
