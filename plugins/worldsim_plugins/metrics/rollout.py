"""How far a rollout is from the truth, and for how long it is near.

With the state standardised per component by the mean and spread of the truth over all scored trajectories
and times, and |.| its root mean square over components:

    nRMSE(t)    sqrt(mean over trajectories of |x^_t - x_t|^2): 1 for whoever predicts the mean state, sqrt(2)
                for an independent sample of the truth
    valid time  first t at which |x^_t - x_t| exceeds a threshold (Vlachas et al. 2020; there the state is
                divided by sqrt<|x|^2>, which is the same for a standardised state)
    CRPS        E|X - x| - E|X - X'| / 2, fair for the number of draws (Ferro 2014)

The forecast x^ is the mean of the draws. Frame 0, the given context, is in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, Metric, Model, System
from worldsim_kernels import laws
from worldsim_plugins.metrics import known_dynamics
from worldsim_plugins.metrics.comparison import (
    Comparison,
    compare,
    component_scale,
    mean_interval,
    median,
    median_interval,
)


class Rollout:
    """nrmse, nrmse_time, valid_time, valid_to_horizon; crps with two draws or more; position_error and
    position_error_time for bodies with positions, and position_floor where the system states its accuracy
    (``stated_accuracy() -> {body: error in position units}``). Over tokens: token_validity alone.

    A rollout that is not finite makes every average over it not measurable from there on; its valid time ends
    there. Raises ValueError when prediction and truth do not match, NotMeasurable when the truth is constant.
    """

    ground_truths = classmethod(known_dynamics.of_rollout)

    def __init__(
        self,
        system: System,
        *,
        threshold: Annotated[
            float, Field(gt=0, description="standardised error at which a forecast stops being valid")
        ] = 0.4,
    ) -> None:
        self.system = system
        self.threshold = threshold

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not truth.states.is_floating_point():
            return {"token_validity": token_validity(self.system, truth, prediction)}
        both = compare(truth, prediction)
        scale = component_scale(both.truth, both.valid)
        error = ((both.mean - both.truth) / scale).square().mean(-1)
        bodies = truth.axes == ("body", "component")
        scores = position_errors(both, truth, self.system) if bodies else {}
        scores |= error_growth(both, error)
        scores |= valid_time(both, error.sqrt(), self.threshold, truth.units.get("time", "1"))
        if both.draws.shape[1] > 1:
            scores["crps"] = crps(both, scale)
        return scores


def error_growth(both: Comparison, error: Tensor) -> dict[str, Score]:
    """nRMSE over time, and its mean with a t interval by the delta method, from ``error``
    ``[trajectory, time]``, the mean squared standardised error."""
    n, count = len(error), both.valid.sum(0)
    reached = count > 0
    growth = (error.sum(0) / count).sqrt()
    growth[both.broken.any(0) | ~reached] = torch.nan
    coords = {"time": both.times.numpy()}
    over_time = Score(growth.numpy(), dims=("time",), n=n, failed=both.failed, coords=coords)
    if both.failed:
        return {"nrmse": _lost(both), "nrmse_time": over_time}
    growth, count, error, valid = growth[reached], count[reached], error[:, reached], both.valid[:, reached]
    influence = growth + (error - growth**2 * valid) * n / count / (2 * growth.clamp(min=1e-300))
    value, interval = float(growth.mean()), mean_interval(influence.mean(1))
    if interval is not None:
        interval = max(interval[0], 0.0), interval[1]
    return {"nrmse": Score(value, interval=interval, n=n), "nrmse_time": over_time}


def _lost(both: Comparison, better: Any = "lower", units: str = "1") -> Score:
    """What cannot be averaged because some rollouts are not finite."""
    return Score(
        float("nan"), better=better, units=units, n=len(both.truth), failed=both.failed, reason=both.reason
    )


def valid_time(both: Comparison, distance: Tensor, threshold: float, units: str) -> dict[str, Score]:
    """Median over trajectories of the first time at which ``distance`` ``[trajectory, time]`` exceeds the
    threshold, counted from the context's end; a trajectory that never does counts with its whole horizon."""
    over = ((distance > threshold) | both.broken) & both.valid
    crossed = over.any(1)
    last = both.valid.sum(1) - 1
    at = torch.where(crossed, over.int().argmax(1), last)
    times = torch.where(last >= 0, both.times[at.clamp(min=0)] - both.start, torch.nan)
    times, n = times[last >= 0], int((last >= 0).sum())
    stayed = (~crossed)[last >= 0].double()
    return {
        "valid_time": Score(
            median(times),
            better="higher",
            units=units,
            interval=median_interval(times),
            n=n,
            failed=both.failed,
        ),
        "valid_to_horizon": Score(float(stayed.mean()), better="higher", n=n, failed=both.failed),
    }


def crps(both: Comparison, scale: Tensor) -> Score:
    """Fair continuous ranked probability score, averaged over components, times and trajectories."""
    if both.failed:
        return _lost(both)
    each = laws.crps(both.draws / scale, both.truth / scale).mean(-1) * both.valid
    reached = both.valid.any(1)
    rows = each[reached].sum(1) / both.valid[reached].sum(1)
    return Score(float(rows.mean()), interval=mean_interval(rows), n=len(rows))


def position_errors(both: Comparison, truth: Trajectory, system: System) -> dict[str, Score]:
    """Mean distance of each body from where it truly is, over trajectories, and over time too."""
    bodies, components = truth.labels.get("body"), truth.labels.get("component", ())
    places = [components.index(name) for name in "xyz" if name in components]
    if not bodies or not places:
        return {}
    shape = (*both.truth.shape[:2], len(bodies), len(components))
    distance = (both.mean - both.truth).reshape(shape)[..., places].norm(dim=-1)
    growth = distance.sum(0) / both.valid.sum(0)[:, None]
    growth[both.broken.any(0)] = torch.nan
    units, coords = truth.units.get(components[places[0]], "1"), {"body": list(bodies)}
    shared: dict[str, Any] = {"units": units, "n": len(truth), "failed": both.failed}
    reached = growth[both.valid.any(0)]
    scores = {
        "position_error": Score(
            reached.mean(0).numpy(), dims=("body",), coords=coords, reason=both.reason, **shared
        ),
        "position_error_time": Score(
            growth.T.numpy(), dims=("body", "time"), coords={**coords, "time": both.times.numpy()}, **shared
        ),
    }
    if hasattr(system, "stated_accuracy"):
        stated = torch.tensor([system.stated_accuracy()[name] for name in bodies], dtype=torch.float64)
        scores["position_floor"] = Score(
            stated.numpy(), dims=("body",), better="", units=units, coords=coords
        )
    return scores


def token_validity(system: System, truth: Trajectory, prediction: Trajectory) -> Score:
    """Share of rolled-out tokens that are legal after all those before; none is after an illegal one."""
    state = truth.observables.get("automaton_state")
    if not isinstance(system, HasAutomaton) or state is None:
        raise NotMeasurable("token validity needs an automaton and its state where the context ends")
    table = system.transitions()
    size = table.shape[1]
    tokens = prediction.states[:, :, 1:]
    here = state[:, :, 0].expand(tokens.shape[:2])
    legal = []
    for token in tokens.unbind(2):
        known = (here >= 0) & (token >= 0) & (token < size)
        here = torch.where(known, table[here.clamp(min=0), token.clamp(0, size - 1)], -1)
        legal.append(here >= 0)
    if not legal:
        raise NotMeasurable("no token is left after the given context: ask for a longer horizon")
    rows = torch.stack(legal, dim=-1).double().mean((1, 2))
    return Score(float(rows.mean()), better="higher", floor=1.0, interval=mean_interval(rows), n=len(rows))


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"rollout": Rollout}
