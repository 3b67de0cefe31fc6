"""How far a film is from the true one, and its energy: read from its frames, and believed by the model.

    pixel_mse(t)  mean over trajectories and pixels of |brightness - true brightness|^2
    drift(t)      |E(t) - E_0| / max(|E_0|, S)

E(t) is what the system reads from the predicted frames (position from each of them, momentum from their
differences), E_0 the true energy of the hidden state where the forecast begins, and S the standard deviation
of E_0 over trajectories. A rollout that carries a ``latent_energy`` is scored on that as well, against its
own first value: a model may conserve what it believes and still lose the energy of what it shows. Pixels are
compared with the mean of the draws, without frame 0, which is the given context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, System
from worldsim_plugins.metrics.comparison import mean_interval, median, median_interval, within


@runtime_checkable
class Filmed(Protocol):
    """A system whose energy can be read from its frames."""

    def energy_of_frames(self, frames: Tensor, times: Tensor) -> Tensor:
        """``[..., time - 4]`` for ``[..., time, *state]``: all frames but two at either end."""


class Film:
    """pixel_mse and pixel_mse_time; film_energy_drift, the median over trajectories of the largest drift in
    time (of the median draw), with the drift that is read from the true film as its floor;
    film_energy_drift_time, the median at each time; latent_energy_drift, the same of the model's own energy,
    over its spread between trajectories.

    Not measurable where a predicted film is not finite, or its energy cannot be read (a black frame). Raises
    NotMeasurable for a system that is no film, for films of fewer than 5 frames and for those that end at
    different times.
    """

    met_by: Mapping[str, str] = {
        "latent_energy_drift": "a model whose own energy is no energy of what it shows",
    }

    def __init__(self, system: System) -> None:
        self.system = system

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not isinstance(self.system, Filmed) or "energy" not in truth.observables:
            raise NotMeasurable(f"no energy can be read from the states of {type(self.system).__name__}")
        if len(truth.times) < 5:
            raise NotMeasurable("momentum is read from 5 frames at least: ask for a longer horizon")
        if not within(truth).all():
            raise NotMeasurable("films that end at different times cannot be compared frame by frame")
        first = truth.observables["energy"][:, :, :1].double()
        scale = torch.maximum(first.abs(), first.std(correction=0))
        drift, own = (
            ((self.system.energy_of_frames(film.states, truth.times) - first) / scale).abs()
            for film in (prediction, truth)
        )
        scores = {**_seen(truth, prediction), **self._shown(drift, own, truth.times[2:-2])}
        latent = prediction.observables.get("latent_energy")
        return scores if latent is None else {**scores, **_believed(latent.double())}

    def _shown(self, drift: Tensor, own: Tensor, times: Tensor) -> dict[str, Score]:
        unread = ~drift.isfinite().all(2)
        rows, n = drift.amax(2).quantile(0.5, dim=1), len(drift)
        failed = int(unread.any(1).sum())
        growth = drift.flatten(0, 1).quantile(0.5, dim=0).numpy()
        over_time = Score(growth, dims=("time",), n=n, failed=failed, coords={"time": times.numpy()})
        if failed:
            lost = Score(
                float("nan"), n=n, failed=failed, reason=f"the energy of {failed} of {n} films cannot be read"
            )
            return {"film_energy_drift": lost, "film_energy_drift_time": over_time}
        value = Score(median(rows), floor=median(own.amax(2)[:, 0]), interval=median_interval(rows), n=n)
        return {"film_energy_drift": value, "film_energy_drift_time": over_time}


def _seen(truth: Trajectory, prediction: Trajectory) -> dict[str, Score]:
    """The squared error of pixels."""
    guess, film = prediction.states.double().mean(1), truth.states[:, 0].double()
    error = (guess - film)[:, 1:].square().flatten(2).mean(2)
    n, failed = len(error), int((~error.isfinite().all(1)).sum())
    coords = {"time": truth.times[1:].numpy()}
    over_time = Score(error.mean(0).numpy(), dims=("time",), n=n, failed=failed, coords=coords)
    if failed:
        lost = Score(float("nan"), n=n, failed=failed, reason=f"{failed} of {n} films are not finite")
        return {"pixel_mse": lost, "pixel_mse_time": over_time}
    rows = error.mean(1)
    return {
        "pixel_mse": Score(float(rows.mean()), floor=0.0, interval=mean_interval(rows), n=n),
        "pixel_mse_time": over_time,
    }


def _believed(latent: Tensor) -> dict[str, Score]:
    """The drift of ``[trajectory, draw, time]`` over its spread between trajectories."""
    spread = latent[:, :, 0].std(correction=0)
    rows = ((latent - latent[:, :, :1]).abs().amax(2) / spread).quantile(0.5, dim=1)
    if not bool(rows.isfinite().all()):
        lost = Score(float("nan"), n=len(rows), reason="the model's energy is constant, or not finite")
        return {"latent_energy_drift": lost}
    value = Score(median(rows), floor=0.0, interval=median_interval(rows), n=len(rows))
    return {"latent_energy_drift": value}


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"film": Film}
