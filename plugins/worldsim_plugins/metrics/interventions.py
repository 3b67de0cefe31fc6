"""Experiments on the truth and on a model: the same starts and the same noise under two plans of actions.

A plan is one sequence of actions for all starts. A pair of plans agrees until the context ends, so that both
forecasts have one and the same past, and what differs afterwards is the effect of the second plan (do(a'),
Pearl 2009), start by start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim import NotMeasurable, Trajectory
from worldsim.protocols import Model, System
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.truth_samples import whole_grid


@dataclass(frozen=True)
class Experiments:
    """``plans`` pairs of plans on ``n`` starts.

    grid     ``[time]`` of context and forecast together
    last     index of the last given frame
    first    ``[plan, time, *action]``
    second   the same, equal to ``first`` before ``last``
    start    the system's ``n`` starts
    scale    ``[component]`` spreads of the truth
    """

    system: System
    grid: Tensor
    last: int
    first: Tensor
    second: Tensor
    start: Any
    n: int
    scale: Tensor
    seed: int

    @staticmethod
    def designed(system: Any, truth: Trajectory, scale: Tensor, plans: int, n: int, seed: int) -> Experiments:
        """Raises NotMeasurable where the forecast has fewer than two frames."""
        if len(truth.times) < 3:
            raise NotMeasurable("an intervention needs at least two frames after the context")
        grid = whole_grid(truth.times)
        last, generator = len(grid) - len(truth.times), torch.Generator().manual_seed(seed)
        drawn = system.sample_actions(2 * plans, grid, generator)
        first, second = drawn[:plans], torch.cat([drawn[:plans, :last], drawn[plans:, last:]], 1)
        return Experiments(system, grid, last, first, second, system.sample(n, generator), n, scale, seed)

    def happen(self, plans: Tensor, noise: int = 0) -> Trajectory:
        """The truth under each of ``plans``, ``[plan * start, 1, time, *state]``, with the same noise."""
        runs = []
        for plan in plans:
            generator = torch.Generator().manual_seed(self.seed + 1 + noise)
            actions = plan.expand(self.n, *plan.shape)
            runs.append(self.system.simulate(self.start, self.grid, actions, generator))
        if not all(run.states[:, 0][within(run)].isfinite().all() and within(run).all() for run in runs):
            raise NotMeasurable("episodes end at different times: their forecasts do not compare")
        return runs[0].replace(
            states=torch.cat([run.states for run in runs]),
            actions=torch.cat([run.actions for run in runs if run.actions is not None]),
            observables={},
            length=None,
        )

    def predict(self, model: Model, past: Trajectory, plans: Tensor) -> Tensor:
        """The model's forecasts of the contexts of ``past`` under ``plans``, ``[plan, start, time,
        component]`` in spreads, frame 0 of the forecast included. Raises ModelFailed when it fails."""
        actions = plans[:, self.last :].repeat_interleave(self.n, 0)
        generator = torch.Generator().manual_seed(self.seed)
        with blaming_the_model():
            out = model.rollout(past.span(0, self.last + 1), self.grid[self.last :], actions, 1, generator)
        found = self.standardised(out.states[:, 0].detach())
        if not found.isfinite().all():
            raise ModelFailed("forecasts under an intervention are not finite")
        return found

    def standardised(self, states: Tensor) -> Tensor:
        """``[plan, start, time, component]`` of ``[plan * start, time, *state]``, in spreads."""
        flat = states.double().cpu().flatten(2) if states.dim() > 2 else states.double().cpu()[..., None]
        return flat.unflatten(0, (-1, self.n)) / self.scale

    def future(self, happened: Trajectory) -> Tensor:
        return self.standardised(happened.states[:, 0, self.last :])


def size(value: Tensor) -> Tensor:
    """|.|, the root mean square over the last axis."""
    return value.square().mean(-1).sqrt()


@dataclass(frozen=True)
class Effects:
    """Outcomes under both plans, of the truth and of a model, ``[plan, start, time, component]`` in spreads,
    frame 0 left out."""

    true_first: Tensor
    true_second: Tensor
    first: Tensor
    second: Tensor

    @property
    def true(self) -> Tensor:
        return self.true_second - self.true_first

    @property
    def found(self) -> Tensor:
        return self.second - self.first

    def counterfactual(self) -> Tensor:
        """|y^_do(a') - y_do(a')| of each plan and start, averaged over time, ``[plan * start]``."""
        return size(self.second - self.true_second).mean(2).flatten()

    def effect(self) -> Tensor:
        """|tau^ - tau| over E|tau|, ``[plan * start]`` (Hill 2011, there as the root of a mean square)."""
        return (size(self.found - self.true).mean(2) / size(self.true).mean()).flatten()

    def average_effect(self) -> float:
        """|E tau^ - E tau| over |E tau|, with E over starts and both averaged over plans and times."""
        true, found = self.true.mean(1), self.found.mean(1)
        return float(size(found - true).mean() / size(true).mean())

    def sensitivity(self) -> float:
        """E|tau^| over E|tau|."""
        return float(size(self.found).mean() / size(self.true).mean())
