"""How well a rollout keeps what the true system conserves.

    drift(t) = |I(x^_t) - I(x_0)| / max(|I(x_0)|, S)

x_0 is the true last given state and S the standard deviation of I(x_0) over the scored trajectories: |I(x_0)|
alone depends on where I was called zero and may vanish on an ordinary trajectory. Vector invariants are
measured by their norm. An integrator that conserves a nearby invariant (leapfrog) oscillates without
drifting, so beside the largest drift stands its slope,

    slope = | d/dt of the line through (I(x^_t) - I(x_0)) / max(|I(x_0)|, S), by least squares |

with the sign of what moved, so that an oscillation averages out over its periods and a secular drift does
not; and the whole curve is given, not its end.

Papers on learned energies mostly give the mean of |I(x^_t) - I(x_0)|^2 instead, in the units of their own H:
a number that a few trajectories of high energy may make, and that cannot be compared between systems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasObservables, Metric, Model, System
from worldsim_plugins.metrics import known_dynamics
from worldsim_plugins.metrics.comparison import compare, mean_interval, median, median_interval


class Invariants:
    """drift_<name>, the median over trajectories of the largest drift in time, drift_<name>_slope, that of
    its slope per unit of time, and drift_<name>_time, the median at each time, for every invariant of the
    system; the floor is what the truth itself scores.
    With ``squared`` also squared_error_<name>, the mean over trajectories, draws and times.

    Not measurable where a rollout is not finite, and where the truth itself drifts by its scale (a total
    momentum of zero, say: only rounding is left) unless ``scale`` declares one. Raises NotMeasurable for a
    system that conserves nothing, ValueError for a ``scale`` of something that it does not conserve.
    """

    met_by: Mapping[str, str] = {
        "drift_*_slope": "persistence, constant, shuffled and memoriser, which stay where they are or move "
        "as a true trajectory does, without a trend",
        "*": "persistence, which keeps all that it was given because it never changes",
    }
    ground_truths = classmethod(known_dynamics.of_invariants)

    def __init__(
        self,
        system: System,
        *,
        scale: Annotated[
            dict[str, float] | None,
            Field(description="invariant -> error that counts as 1, in its units, instead of its own size"),
        ] = None,
        squared: Annotated[
            bool, Field(description="give the mean squared error too, in squared units, as papers do")
        ] = False,
    ) -> None:
        self.system, self.squared = system, squared
        self.scale = dict(scale or {})
        conserved = getattr(system, "conserved", ())
        for name, value in self.scale.items():
            if name not in conserved or not value > 0:
                raise ValueError(
                    f"scale of {name!r} is {value}; give a positive number for one of: "
                    f"{', '.join(conserved) or 'nothing, this system conserves nothing'}"
                )

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not isinstance(self.system, HasObservables) or not self.system.conserved:
            raise NotMeasurable(f"{type(self.system).__name__} conserves nothing as configured")
        both = compare(truth, prediction)
        shape = (*both.draws.shape[:3], *truth.state_shape)
        predicted = self.system.observe(both.draws.reshape(shape))
        true = self.system.observe(both.truth[:, None].reshape(shape[0], 1, *shape[2:]))
        first = self.system.observe(truth.states[:, :, :1].double())
        scores: dict[str, Score] = {}
        for name in self.system.conserved:
            scale = self._scale(name, first[name])
            drift, own = (_drift(value[name], first[name], scale) for value in (predicted, true))
            drift = torch.where(both.broken[:, None], torch.inf, drift)
            found = _scores(name, drift, own, both.valid, both.reason, both.times)
            scores |= found
            slope, level = (
                _slope(value[name] - first[name], scale, both.valid, both.times)
                for value in (predicted, true)
            )
            slope = torch.where(both.broken.any(1)[:, None], torch.inf, slope)
            scores[f"drift_{name}_slope"] = _slopes(
                slope, level, found[f"drift_{name}"].reason, self._per_time(truth)
            )
            if self.squared:
                moved = _norm(predicted[name] - first[name])
                moved = torch.where(both.broken[:, None], torch.inf, moved)
                scores[f"squared_error_{name}"] = _squared(name, moved, both.valid, self._unit(name))
        return scores

    def _unit(self, name: str) -> str:
        unit = getattr(self.system, "units", {}).get(name, "1")
        return "1" if unit in ("", "1") else f"({unit})2"

    def _per_time(self, truth: Trajectory) -> str:
        unit = truth.units.get("time", "1")
        return "1" if unit in ("", "1") else f"({unit})-1"

    def _scale(self, name: str, first: Tensor) -> Tensor:
        """``[trajectory, 1, 1]``."""
        if name in self.scale:
            return torch.full((len(first), 1, 1), self.scale[name], dtype=torch.float64)
        spread = _norm(first - first.mean(0)).square().mean().sqrt()
        return torch.maximum(_norm(first), spread)


def _norm(value: Tensor) -> Tensor:
    """``[trajectory, draw, time, ...]`` to ``[trajectory, draw, time]``."""
    return value.reshape(*value.shape[:3], -1).norm(dim=-1)


def _drift(value: Tensor, first: Tensor, scale: Tensor) -> Tensor:
    """``[trajectory, draw, time]``; inf where a vanishing scale is exceeded."""
    moved = _norm(value - first)
    return torch.where(moved == 0, 0.0, moved / scale)


def _slope(moved: Tensor, scale: Tensor, valid: Tensor, times: Tensor) -> Tensor:
    """Norm of the slope in time of ``moved`` ``[trajectory, draw, time, ...]`` over its scale, by least
    squares over the valid frames, ``[trajectory, draw]``; NaN with fewer than two of them."""
    parts = moved.reshape(*moved.shape[:3], -1)
    seen = valid.to(parts)
    count = seen.sum(1, keepdim=True)
    centred = (times - (seen * times).sum(1, keepdim=True) / count.clamp(min=1)) * seen
    # Frames beyond the end may hold anything: 0 times NaN is NaN.
    parts = torch.where(valid[:, None, :, None], parts, 0.0)
    rate = (centred[:, None, :, None] * parts).sum(2).norm(dim=-1) / centred.square().sum(1)[:, None]
    slope = torch.where(rate == 0, 0.0, rate / scale[..., 0])
    return slope.masked_fill(count < 2, torch.nan)


def _slopes(slope: Tensor, own: Tensor, reason: str, unit: str) -> Score:
    """The median over trajectories of the median over draws; ``own`` is the truth's."""
    long = ~own[:, 0].isnan()
    n, lost = int(long.sum()), int((~slope[long].isfinite().all(1)).sum())
    if not reason and not n:
        reason = "a slope needs two frames after the context"
    elif not reason and lost:
        reason = f"{lost} of {n} rollouts have no finite slope"
    if reason:
        return Score(float("nan"), units=unit, n=n, failed=lost, reason=reason)
    rows = slope[long].quantile(0.5, dim=1)
    floor = median(own[long, 0])
    return Score(median(rows), units=unit, floor=floor, interval=median_interval(rows), n=n)


def _scores(
    name: str, drift: Tensor, own: Tensor, valid: Tensor, reason: str, times: Tensor
) -> dict[str, Score]:
    seen = valid[:, None]
    rows = _worst(drift, seen)
    lost = int((~rows.isfinite()).sum())
    floor = median(_worst(own, seen))
    if not reason and lost:
        reason = f"{lost} of {len(rows)} rollouts have no finite {name}"
    # A scale within the rounding of the truth measures nothing, whatever the model does.
    if not floor < 1:
        reason = f"the truth itself drifts by its own {name}: declare scale.{name}"
    growth = torch.stack([_median_at(drift[:, :, t], valid[:, t]) for t in range(len(times))])
    coords = {"time": times.numpy()}
    over_time = Score(growth.numpy(), dims=("time",), n=len(rows), failed=lost, coords=coords)
    if reason:
        nothing = Score(float("nan"), n=len(rows), failed=lost, reason=reason)
        return {f"drift_{name}": nothing} | ({f"drift_{name}_time": over_time} if floor < 1 else {})
    value = Score(median(rows), floor=floor, interval=median_interval(rows), n=len(rows))
    return {f"drift_{name}": value, f"drift_{name}_time": over_time}


def _squared(name: str, moved: Tensor, valid: Tensor, unit: str) -> Score:
    """The mean over trajectories of the mean square of ``moved`` ``[trajectory, draw, time]``."""
    seen = valid.any(1)
    mean_square = torch.where(valid[:, None], moved.square(), 0.0).sum(2).mean(1)[seen]
    rows = mean_square / valid.sum(1)[seen]
    lost = int((~rows.isfinite()).sum())
    if lost:
        reason = f"{lost} of {len(rows)} rollouts have no finite {name}"
        return Score(float("nan"), n=len(rows), failed=lost, reason=reason)
    return Score(float(rows.mean()), units=unit, floor=0.0, interval=mean_interval(rows), n=len(rows))


def _worst(drift: Tensor, seen: Tensor) -> Tensor:
    """Largest drift in time, median over draws, ``[trajectory]``; trajectories without a frame left out."""
    worst = torch.where(seen, drift, 0.0).amax(2)[seen[:, 0].any(1)]
    lost = ~worst.isfinite().all(1)
    return torch.where(lost, torch.inf, worst.quantile(0.5, dim=1))


def _median_at(drift: Tensor, valid: Tensor) -> Tensor:
    """Median over trajectories and draws at one time; NaN when one of them is not finite."""
    values = drift[valid].flatten()
    if not len(values) or not values.isfinite().all():
        return torch.tensor(torch.nan, dtype=drift.dtype)
    return values.quantile(0.5)


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"invariants": Invariants}
