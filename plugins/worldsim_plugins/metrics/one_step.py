"""Whether each frame of a prediction follows from the one before it.

    defect_t = |x_{t+1} - Phi_h(x_t)|,    Phi_h the true flow over the time h between two frames

in units of the truth's spread. A prediction that keeps an energy to the last digit may go round its orbit at
the wrong speed: it obeys the constraint, and not the dynamics. Here no error is carried on: nobody is blamed
for where he began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasUnseenStart, Metric, Model, Restartable, System
from worldsim_plugins.metrics.comparison import component_scale, median, median_interval, within

LARGEST = 1e6
"""Spreads from its middle beyond which the true flow is not asked where a state goes."""


class OneStep:
    """one_step_defect, the median over trajectories of the root mean square over frames and components; and
    one_step_defect_worst, the largest of them all. Of several draws the mean over draws.

    Needs a deterministic system that can be restarted from a state; one whose first frame shows nothing is
    asked from its frame 1 on. The interval is that of a median. The floor is what the truth itself scores,
    the error of its own integration. A prediction that is not finite, or is further than 10^6 spreads away,
    is counted as failed, and nothing is averaged over the others; nor is anything where the true system
    cannot be followed from a predicted state, such as one with less than nothing of a substance. Raises
    NotMeasurable for a system that draws where it goes, and for a prediction of a single frame.
    """

    def __init__(
        self,
        system: System,
        *,
        trajectories: Annotated[
            int,
            Field(
                ge=1,
                description="most trajectories that are looked at, the first ones",
            ),
        ] = 1000,
    ) -> None:
        self.most = trajectories
        self.first = int(isinstance(system, HasUnseenStart))
        self.world: System = system.inner if isinstance(system, HasUnseenStart) else system
        if not isinstance(self.world, Restartable):
            raise ValueError(
                f"one_step asks the true system where a state goes; {type(self.world).__name__} cannot be "
                "started from a given state"
            )

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]``, prediction ``[trajectory, draw, time, *state]``."""
        few = slice(0, self.most)
        truth, prediction = truth.rows(few), prediction.rows(few)
        if len(truth.times) < self.first + 2:
            raise NotMeasurable("a single frame leads nowhere: ask for a longer horizon")
        valid = within(truth)[:, self.first :]
        flat = truth.states[:, 0, self.first :].double().flatten(2)
        scale, middle = component_scale(flat, valid), flat[valid].mean(0)
        own = self.defects(truth, scale, valid)[:, 0]
        states = prediction.states[:, :, self.first :].double().flatten(3)
        off = ((states - middle) / scale).abs().nan_to_num(nan=torch.inf).amax(3)
        lost = ((off > LARGEST) & valid[:, None]).flatten(1).any(1)
        n, failed = len(truth), int(lost.sum())
        if failed:
            reason = f"{failed} of {n} predictions are not finite, or far from any state of the truth"
            return {"one_step_defect": Score(float("nan"), n=n, failed=failed, reason=reason)}
        try:
            each = self.defects(prediction, scale, valid).mean(1)
        except ValueError as error:  # of the true system: it goes nowhere from a state that cannot be
            reason = f"the true system cannot be followed from a state that is predicted: {error}"
            return {"one_step_defect": Score(float("nan"), n=n, failed=n, reason=reason)}
        floor = float(own.max())
        if not floor < 0.5:
            raise NotMeasurable(
                "the true system does not repeat itself from a state: it draws where it goes, or its states "
                "do not say all"
            )
        return {
            "one_step_defect": Score(median(each), floor=median(own), interval=median_interval(each), n=n),
            "one_step_defect_worst": Score(float(each.max()), floor=floor, n=n),
        }

    def defects(self, trajectory: Trajectory, scale: Tensor, valid: Tensor) -> Tensor:
        """Root mean square over frames and components, ``[trajectory, draw]``."""
        states = trajectory.states.double()[:, :, self.first :]
        beyond = ~valid[:, None].reshape(len(valid), 1, -1, *[1] * (states.ndim - 3))
        states = torch.where(beyond, states[:, :, :1], states)  # what lies there may be anything
        here, there = states[:, :, :-1], states[:, :, 1:]
        lead, counted = here.shape[:3], (valid[:, :-1] & valid[:, 1:])[:, None]
        square = torch.zeros(lead, dtype=torch.float64)
        for step, frames in steps_of(trajectory.times[self.first :]):
            asked = here[:, :, frames].reshape(-1, *trajectory.state_shape)
            acts = None
            if trajectory.actions is not None:
                acts = trajectory.actions[:, None, self.first : -1][:, :, frames]
                acts = acts.expand(-1, lead[1], *acts.shape[2:]).flatten(0, 2)[:, None]
                acts = acts.expand(-1, 2, *acts.shape[2:])
            times = torch.tensor([0.0, step], dtype=torch.float64)
            rng = torch.Generator().manual_seed(0)
            reached = self.world.simulate(self.world.restart(asked), times, acts, rng)  # type: ignore[attr-defined]
            gone = reached.states[:, 0, -1].double().reshape(*lead[:2], len(frames), -1)
            error = (there[:, :, frames].flatten(3) - gone) / scale
            square[:, :, frames] = error.square().mean(-1)
        count = counted.sum(2).clamp(min=1)
        return (torch.where(counted, square, 0.0).sum(2) / count).sqrt()


def steps_of(times: Tensor) -> list[tuple[float, list[int]]]:
    """Each different step between frames, and the frames before it; steps as near as rounding are one."""
    steps = times.double().diff()
    found: list[tuple[float, list[int]]] = []
    for i, step in enumerate(steps.tolist()):
        for known, frames in found:
            if abs(known - step) <= 1e-9 * abs(known):
                frames.append(i)
                break
        else:
            found.append((step, [i]))
    return found


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"one_step": OneStep}
