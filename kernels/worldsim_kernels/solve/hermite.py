"""Cubic Hermite interpolation between the ends of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from worldsim_kernels.solve.stepper import Step
from worldsim_kernels.solve.terms import wide


def cubic_hermite(
    theta: Tensor, h: Tensor, start: Tensor, end: Tensor, slope: Tensor, end_slope: Tensor
) -> Tensor:
    """The cubic with these values and slopes ``[row, *state]`` at both ends of a step ``h`` ``[row]``, at
    ``theta`` ``[row]`` in [0, 1]; the ends themselves at 0 and 1, to the bit.

    Source: Hairer, Norsett, Wanner 1993, *Solving Ordinary Differential Equations I*, II.6.
    """
    at, step = wide(theta, start), wide(h, start)
    bend = (1 - 2 * at) * (end - start) + (at - 1) * (step * slope) + at * (step * end_slope)
    return (1 - at) * start + at * end + at * (at - 1) * bend


class CubicHermite:
    """The interpolant of a stepper that has no better one: of order 3, whatever the order of the steps. Both
    slopes are evaluated where a state in between is asked for, and nowhere else."""

    def prepare(self, term: Any, t: Tensor, h: Tensor, y: Tensor, step: Step) -> Step:
        """The step with the slopes at its ends, of rows that will be interpolated."""
        return replace(step, dense=(term(t, y), term(t + h, step.y)))

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``; ``step`` comes from ``prepare``."""
        return cubic_hermite(theta, h, y, step.y, *step.dense)
