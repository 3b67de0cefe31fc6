"""What a stepper is: one step of one method for many rows, each with its own t and h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Properties:
    """What is claimed of a method; the tests hold it to every claim.

    order              global error O(h^order)
    error_order        order of the embedded solution; None: no error estimate, fixed steps only
    symplectic         the Jacobian J of a step of a Hamiltonian system obeys J^T Omega J = Omega
    volume_preserving  det J = 1 for Hamiltonian systems
    reversible         a step of -h undoes a step of h
    energy_exact       H(y') = H(y) to rounding, for every H
    implicit           solves equations at each step; fit for stiff problems when also L-stable
    """

    order: int
    error_order: int | None = None
    symplectic: bool = False
    volume_preserving: bool = False
    reversible: bool = False
    energy_exact: bool = False
    implicit: bool = False


@dataclass(frozen=True)
class Step:
    """An attempted step of k rows.

    y            ``[row, *state]`` at t + h
    error        the local error estimate, as ``y``; None for a method without one
    carry        tensors ``[row, ...]`` for the next step (the last slope of a first-same-as-last method)
    dense        tensors ``[row, ...]`` from which ``interpolate`` makes the states in between
    settled      ``[row]`` bool: whether implicit equations were solved; None when there are none
    evaluations  of the field, per row: a number, or ``[row]``
    """

    y: Tensor
    error: Tensor | None = None
    carry: tuple[Tensor, ...] = ()
    dense: tuple[Tensor, ...] = ()
    settled: Tensor | None = None
    evaluations: int | Tensor = 0


def rows_of(step: Step, index: Tensor) -> Step:
    """The attempted steps of the rows ``index`` alone."""
    return replace(
        step,
        y=step.y[index],
        error=None if step.error is None else step.error[index],
        carry=tuple(each[index] for each in step.carry),
        dense=tuple(each[index] for each in step.dense),
        settled=None if step.settled is None else step.settled[index],
        evaluations=0,
    )


class Stepper(Protocol):
    """A method. Row i of every result depends on row i of the arguments alone, to the last bit where the
    field does so: sums over stages are written out, because the order in which a matmul adds depends on the
    number of rows.

    A stepper whose interpolant needs more evaluations of the field has also ``prepare(term, t, h, y, step) ->
    Step``, which the loop calls for those accepted steps alone that will be interpolated. One whose ``start``
    evaluates the field says how often in ``start_evaluations``.
    """

    name: str
    properties: Properties
    terms: Sequence[type]  # what it can solve

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The carry of the first step."""

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """From ``y`` ``[row, *state]`` at ``t`` ``[row]`` over ``h`` ``[row]``, both float64; h may be
        negative."""

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """``[row, *state]`` at t + theta h, theta ``[row]`` in [0, 1]; at 1 it is ``step.y``."""
