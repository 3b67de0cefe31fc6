"""Walks of the truth and of a model along which tangent vectors are carried, for Lyapunov exponents.

A walk is made of one-step maps between frames, of states divided by the spread of the truth (exponents do not
depend on the unit). The truth's is its own flow, ``simulate`` after ``restart``; a model's is its rollout of
one frame after a context, so that the map is on contexts: the new one is the old one less its first frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worldsim import NotMeasurable, Trajectory
from worldsim.protocols import HasDifferentiableRollout, HasDrift, Model, Restartable, System
from worldsim_kernels.lyapunov import NotDifferentiable, Push, by_difference, by_gradient, lyapunov_rates
from worldsim_kernels.solve import ODE, Constant, solve
from worldsim_plugins.metrics.model_failure import blaming_the_model

FINE, COARSE = 1e-5, 1e-3
"""Sizes of central differences, in spreads: of maps in float64, and of maps that round in float32."""
SAME, MOST_STEPS = 1e-9, 16
"""How near steps of order 8 must come to the simulated truth, of its size, and how many may be tried."""


@dataclass(frozen=True)
class Walks:
    """How tangent vectors are walked: times of frames, lengths in frames, how many exponents.

    example  a trajectory of the truth, for shapes and names
    scale    ``[component]``, the spread of the truth
    context  frames that a model is given
    """

    example: Trajectory
    scale: Tensor
    step: float
    context: int
    exponents: int
    transient: int
    steps: int
    seed: int

    def of_truth(self, system: System, starts: Tensor) -> Tensor:
        """log stretch / time, ``[row, step, exponent]``, from ``starts`` ``[row, *state]``.

        Raises NotMeasurable for a truth that is stochastic or cannot be followed from a state.
        """
        if not isinstance(system, Restartable):
            raise NotMeasurable(f"{type(system).__name__} cannot be restarted from a given state")
        shape = starts.shape[1:]
        flow = self._flow(system, starts)

        def after(z: Tensor) -> Tensor:
            return flow((z * self.scale).reshape(-1, *shape)).reshape(len(z), -1) / self.scale

        first = starts.reshape(len(starts), -1).double() / self.scale
        try:
            return self._rates(after, first, by_difference(FINE))
        except ValueError as error:
            raise NotMeasurable(
                f"{type(system).__name__} cannot be walked from a neighbouring state: {error}"
            ) from error

    def _flow(self, system: System, starts: Tensor) -> Callable[[Tensor], Tensor]:
        """The true map over a step. An ordinary differential equation that is not stiff is followed in equal
        steps of order 8, several times as fast as the truth is simulated, and as far as differences see
        as exactly."""
        times = torch.tensor([0.0, self.step], dtype=torch.float64)

        def simulated(states: Tensor, seed: int = 0) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return system.simulate(system.restart(states), times, None, generator).states[:, 0, 1]  # type: ignore[attr-defined]

        if not torch.equal(simulated(starts[:1], 0), simulated(starts[:1], 1)):
            raise NotMeasurable(
                f"{type(system).__name__} is stochastic: two runs from one state differ, and the distance "
                "of neighbours says nothing"
            )
        if not isinstance(system, HasDrift):
            return simulated
        shape, few = starts.shape[1:], starts[:8]
        term = ODE(lambda t, y: system.drift(t[0], y.reshape(-1, *shape), None).flatten(1))

        def stepped(states: Tensor, count: int) -> Tensor:
            controller = Constant(self.step / count)
            end = solve(term, states.flatten(1), 0.0, self.step, stepper="dopri8", controller=controller).y
            return end.reshape(states.shape)

        exact, count = simulated(few), 1
        while count <= MOST_STEPS:
            if float((stepped(few, count) - exact).abs().max()) <= SAME * float(exact.abs().max()):
                return partial(stepped, count=2 * count)
            count *= 2
        return simulated

    def of_model(self, model: Model, histories: Tensor) -> Tensor:
        """The same from contexts ``[row, context, *state]``, by gradient where the model lets it.

        Raises ModelFailed when the model does.
        """
        frames, size = self.step * torch.arange(self.context + 1, dtype=torch.float64), len(self.scale)
        roll = model.rollout
        if isinstance(model, HasDifferentiableRollout):
            roll = model.differentiable_rollout

        def after(z: Tensor) -> Tensor:
            states = (z.unflatten(1, (self.context, size)) * self.scale).reshape(
                len(z), 1, self.context, *histories.shape[2:]
            )
            history = self.example.rows(torch.zeros(len(z), dtype=torch.long)).replace(
                states=states, times=frames[:-1], actions=None, observables={}, length=None
            )
            generator = torch.Generator().manual_seed(self.seed)
            out = roll(history, frames[-2:], None, 1, generator).states[:, 0, 1]
            return torch.cat([z[:, size:], out.reshape(len(z), -1).double() / self.scale], 1)

        first = (histories.double().flatten(2) / self.scale).flatten(1)
        with blaming_the_model():
            if isinstance(model, HasDifferentiableRollout):
                try:
                    return self._rates(after, first, by_gradient)
                except (NotDifferentiable, RuntimeError):
                    return self._rates(after, first, by_difference(COARSE))
            return self._rates(after, first, by_difference(FINE))

    def _rates(self, advance: Callable[[Tensor], Tensor], first: Tensor, push: Push) -> Tensor:
        return lyapunov_rates(
            advance,
            first,
            self.steps,
            exponents=self.exponents,
            push=push,
            transient=self.transient,
            dt=self.step,
        )
