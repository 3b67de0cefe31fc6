"""How far a function of the state is off in a rollout: the energy of a system that does not keep it, say.

    error(t) = sqrt(mean over trajectories and draws of |O(x^_t) - O(x_t)|^2)

in the units of the observable O, a function of the state that the true system gives (``observe``). The number
is the root of the mean square over trajectories, draws and times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasObservables, Metric, Model, System
from worldsim_plugins.metrics.comparison import Comparison, compare, mean_interval
from worldsim_plugins.metrics.observed import observables_of


class Observables:
    """error_<name> and error_<name>_time for the observables ``of``; the floor is 0.

    Not measurable from where a rollout is not finite on. Raises NotMeasurable for a system that does not give
    observables from states, ValueError for one that it does not give.
    """

    def __init__(
        self,
        system: System,
        *,
        of: Annotated[list[str], Field(min_length=1, description="names of observables of the true system")],
    ) -> None:
        self.system, self.names = system, tuple(of)
        given = observables_of(system)
        missing = sorted(set(of) - set(given))
        if given and missing:
            raise ValueError(f"of: no observable {', '.join(missing)}; there are {', '.join(sorted(given))}")

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not isinstance(self.system, HasObservables):
            raise NotMeasurable(f"{type(self.system).__name__} gives no observables of states")
        both = compare(truth, prediction)
        shape = (*both.draws.shape[:3], *truth.state_shape)
        predicted = self.system.observe(both.draws.reshape(shape))
        true = self.system.observe(both.truth[:, None].reshape(shape[0], 1, *shape[2:]))
        units = getattr(self.system, "units", {})
        scores: dict[str, Score] = {}
        for name in self.names:
            apart = (predicted[name] - true[name]).reshape(*shape[:3], -1).square().sum(-1).mean(1)
            apart = torch.where(both.broken, torch.inf, torch.where(both.valid, apart, 0.0))
            scores |= _scores(f"error_{name}", apart, both, units.get(name, "1"))
        return scores


def _scores(name: str, apart: Tensor, both: Comparison, units: str) -> dict[str, Score]:
    """Of the mean square over draws, ``[trajectory, time]``."""
    growth = (apart.sum(0) / both.valid.sum(0)).sqrt()
    growth[~growth.isfinite()] = torch.nan
    coords, n = {"time": both.times.numpy()}, len(apart)
    over_time = Score(growth.numpy(), units=units, dims=("time",), n=n, failed=both.failed, coords=coords)
    if both.reason:
        return {
            name: Score(float("nan"), n=n, failed=both.failed, reason=both.reason),
            f"{name}_time": over_time,
        }
    seen = both.valid.any(1)
    rows = apart.sum(1)[seen] / both.valid.sum(1)[seen]
    value, interval = float(rows.mean().sqrt()), mean_interval(rows)
    # The interval of the mean square, carried over by the root's slope at it.
    if interval is not None and value > 0:
        half = (interval[1] - interval[0]) / 2 / (2 * value)
        interval = (value - half, value + half)
    score = Score(value, units=units, floor=0.0, interval=interval, n=n)
    return {name: score, f"{name}_time": over_time}


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"observables": Observables}
