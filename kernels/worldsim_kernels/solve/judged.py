"""A stepper whose errors are judged by the caller's tolerances and norm, and which tells callbacks of steps.

The loop takes the root mean square of error / tolerance over a row. Here the error is measured first, and
given to the loop as a constant that it will find to be that measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.eager import ratio
from worldsim_kernels.solve.solution import Solution
from worldsim_kernels.solve.stepper import Step, Stepper
from worldsim_kernels.solve.terms import wide

HARMLESS = 0.25
"""Of a step that may not be shortened: it is accepted, and no proposal after it is shorter."""


@dataclass(frozen=True)
class Judge:
    """How large the error of a step is, 1 being just allowed.

    rtol, atol  broadcast with the rows of a state
    norm        ``[row, *state] -> [row]``
    unit        the atol of the loop's PID, whose rtol is 0
    shortest    steps up to this length are always accepted
    """

    rtol: Tensor
    atol: Tensor
    norm: Callable[[Tensor], Tensor]
    unit: float
    shortest: float = 0.0

    def __call__(self, h: Tensor, y: Tensor, step: Step) -> Tensor | None:
        """What the loop is given as the error ``[row, *state]``."""
        if step.error is None:
            return None
        allowed = self.atol + self.rtol * torch.maximum(y.abs(), step.y.abs())
        size = self.norm(ratio(step.error, allowed.to(y.dtype)))
        if self.shortest > 0:
            short = h.abs() <= self.shortest * (1 + 1e-9)
            size = torch.where(short, size.clamp(max=HARMLESS), size)
        return wide(size * self.unit, y).expand_as(y)


class Judged:
    """``stepper`` under a ``Judge`` and with callbacks, which are called while ``listening``.

    callbacks  "step", "accept" and "reject" -> ``(t, y, h)`` of one row; absent ones are not called
    """

    def __init__(
        self,
        stepper: Stepper,
        judge: Judge | None,
        callbacks: Mapping[str, Callable[[Tensor, Tensor, Tensor], Any]],
    ) -> None:
        self._stepper, self._judge, self._callbacks = stepper, judge, callbacks
        self.name, self.properties, self.terms = stepper.name, stepper.properties, stepper.terms
        self.listening = False
        self._tried: tuple[Tensor, Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stepper"], name)

    def start(self, term: Any, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """See ``Stepper.start``."""
        return self._stepper.start(term, t, y)

    def step(self, term: Any, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        if self.listening:
            self._hear(t, h, y)
        step = self._stepper.step(term, t, h, y, carry)
        return step if self._judge is None else replace(step, error=self._judge(h, y, step))

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``."""
        return self._stepper.interpolate(theta, h, y, step)

    def settle(self, solution: Solution) -> None:
        """Tell of the last attempt of a solve, and stop listening."""
        self._tell(accepted=not bool(solution.failed.any()))
        self.listening, self._tried = False, None

    def _hear(self, t: Tensor, h: Tensor, y: Tensor) -> None:
        # Whether an attempt was accepted shows where the next one begins.
        if self._tried is not None:
            self._tell(accepted=bool((self._tried[0] != t).any()))
        self._tried = (t, y, h)
        self._call("step")

    def _tell(self, accepted: bool) -> None:
        if self._tried is not None:
            self._call("accept" if accepted else "reject")

    def _call(self, name: str) -> None:
        if name in self._callbacks and self._tried is not None:
            self._callbacks[name](*self._tried)
