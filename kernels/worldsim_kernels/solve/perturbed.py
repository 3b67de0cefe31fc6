"""A stepper that sees a field at both ends of its step from within: for fields that jump where steps meet."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldsim_kernels.solve.stepper import Step, Stepper
from worldsim_kernels.solve.terms import ODE


class Perturbed:
    """``stepper`` over steps that begin a rounding after their start and end one before their end."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.name, self.properties, self.terms = stepper.name, stepper.properties, stepper.terms

    def start(self, term: ODE, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Nothing: each step has a field of its own."""
        return ()

    def within(self, term: ODE, t: Tensor, h: Tensor) -> ODE:
        """``term`` as a step sees it."""
        return within(term, torch.minimum(t, t + h), torch.maximum(t, t + h))

    def step(self, term: ODE, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        inside = self.within(term, t, h)
        step = self._stepper.step(inside, t, h, y, self._stepper.start(inside, t, y))
        begun = int(getattr(self._stepper, "start_evaluations", 0))
        return replace(step, carry=(), evaluations=step.evaluations + begun)

    def interpolate(self, theta: Tensor, h: Tensor, y: Tensor, step: Step) -> Tensor:
        """See ``Stepper.interpolate``."""
        return self._stepper.interpolate(theta, h, y, step)


def within(term: ODE, before: Tensor | None, after: Tensor | None) -> ODE:
    """``term``, shown times after ``before`` and before ``after`` alone; its derivative by time is kept."""

    def field(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        low = None if before is None else torch.nextafter(before.to(t), t.new_tensor(float("inf")))
        high = None if after is None else torch.nextafter(after.to(t), t.new_tensor(float("-inf")))
        return term.field(t + (t.clamp(low, high) - t).detach(), y, *args)

    return ODE(field, term.args)
