"""How long a forecast of a chaotic world holds, and whether the model is chaotic as its world is.

    valid prediction time   first t with |x^_t - x_t| / sqrt<|x|^2> > threshold, times lambda_1 of the truth
                            (Pathak et al. 2018; Vlachas et al. 2020)
    correlation time        first t at which the anomaly correlation of forecast and truth, over trajectories
                            and components, falls below a level
    Lyapunov exponents      of the model's one-step map and of the true flow, by QR (Benettin et al. 1980)

Neighbours part as exp(lambda_1 t), so that an error of 1e-6 in the state and one of 1e-3 in the law differ in
their horizon by some Lyapunov times alone: an RMSE beyond it ranks nothing, see ``climate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasActions, HasAutomaton, Metric, Model, System
from worldsim_plugins.metrics import known_dynamics
from worldsim_plugins.metrics.comparison import Comparison, compare, component_scale, mean_interval
from worldsim_plugins.metrics.model_failure import ModelFailed
from worldsim_plugins.metrics.rollout import valid_time
from worldsim_plugins.metrics.tangent_walks import Walks

GROWN = 10.0
"""How much a perturbation of the truth must grow over the second half of a walk to be called chaos: where
neighbours part linearly in time, as in regular motion, it about doubles."""
RESAMPLES = 200


class Chaos:
    """valid_lyapunov_times, correlation_time; lyapunov_max of the model (its floor is the truth's),
    lyapunov_error, the distance of the two, and both spectra, lyapunov_spectrum and lyapunov_spectrum_truth.

    The true exponents come from ``samples`` x ``walkers`` walks; the floor of lyapunov_error is the mean
    distance of ``walkers`` true walks from them. The model's are by gradient through its rollout, or by
    central differences where it gives none.

    Raises ValueError over tokens and for a driven system. Of a truth that is stochastic, cannot be restarted
    or is not chaotic the exponents, and the time counted in them, are not measurable.
    """

    ground_truths = staticmethod(known_dynamics.of_chaos)

    def __init__(
        self,
        system: System,
        *,
        threshold: Annotated[
            float,
            Field(gt=0, description="error, over the root mean square of the state, that ends validity"),
        ] = 0.4,
        correlation: Annotated[
            float, Field(gt=0, lt=1, description="anomaly correlation below which a forecast has no skill")
        ] = 0.8,
        exponents: Annotated[
            int, Field(ge=1, le=64, description="largest exponents wanted, at most the size of the state")
        ] = 3,
        walkers: Annotated[int, Field(ge=2, description="walks of the model, averaged")] = 8,
        steps: Annotated[int, Field(ge=10, description="frames of a walk that are averaged")] = 150,
        transient: Annotated[
            int, Field(ge=0, description="frames before, in which the vectors turn into their directions")
        ] = 50,
        samples: Annotated[
            int, Field(ge=20, description="samples of the truth, each of `walkers` walks")
        ] = 20,
        seed: Annotated[int, Field(ge=0, description="seed of the walks' starts")] = 0,
    ) -> None:
        if isinstance(system, HasAutomaton):
            raise ValueError("chaos needs states that are numbers: tokens have no neighbours")
        if isinstance(system, HasActions):
            raise ValueError("chaos needs a law of its own: this system is driven from outside")
        self.system, self.threshold, self.correlation = system, threshold, correlation
        self.exponents, self.walkers, self.steps = exponents, walkers, steps
        self.transient, self.samples, self.seed = transient, samples, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        both, unit = compare(truth, prediction), truth.units.get("time", "1")
        scale = component_scale(both.truth, both.valid)
        scores = {"correlation_time": correlation_time(both, self.correlation, unit, self.seed)}
        step = float(truth.times[1] - truth.times[0])
        context = round(float(truth.times[0]) / step) + 1
        exponents = min(self.exponents, both.truth.shape[-1])
        walks = Walks(truth, scale, step, context, exponents, self.transient, self.steps, self.seed)
        try:
            histories = self._histories(truth, step, context)
            rates = walks.of_truth(self.system, histories[:, -1])
        except NotMeasurable as reason:
            lost = Score(float("nan"), n=0, reason=str(reason))
            return scores | {
                "valid_lyapunov_times": replace(lost, better="higher"),
                "lyapunov_max": replace(lost, better=""),
                "lyapunov_error": lost,
            }
        true = rates.mean(1)
        scores["valid_lyapunov_times"] = self._horizon(both, true, rates, step)
        return scores | self._exponents(walks, model, histories[: self.walkers], true, unit)

    def _histories(self, truth: Trajectory, step: float, context: int) -> Tensor:
        """Contexts of the truth, ``[samples * walkers, context, *state]``."""
        generator = torch.Generator().manual_seed(self.seed)
        start = self.system.sample(self.samples * self.walkers, generator)
        times = step * torch.arange(max(context, 2), dtype=torch.float64)
        states = self.system.simulate(start, times, None, generator).states[:, 0, :context]
        if torch.equal(states[0], states[1]):
            raise NotMeasurable(f"the starts of {type(self.system).__name__} are fixed: there is one walk")
        return states

    def _horizon(self, both: Comparison, true: Tensor, rates: Tensor, step: float) -> Score:
        """The valid time over the Lyapunov time of the truth."""
        rate, late = float(true[:, 0].mean()), float(rates[:, self.steps // 2 :, 0].mean())
        n, lifetime = len(both.truth), late * step * (self.steps - self.steps // 2)
        # Written so that a rate that is not a number is no chaos either.
        if not lifetime > torch.tensor(GROWN).log():
            reason = (
                f"the true system is not chaotic as far as {self.steps} frames can tell (lambda_1 = "
                f"{rate:.3g}): there is no Lyapunov time; if it is, raise steps"
            )
            return Score(float("nan"), better="higher", n=n, reason=reason)
        size = both.truth.square().sum(-1)[both.valid].mean().sqrt()
        distance = (both.mean - both.truth).norm(dim=-1) / size
        found = valid_time(both, distance, self.threshold, "1")["valid_time"]
        interval = None if found.interval is None else (rate * found.interval[0], rate * found.interval[1])
        whole = rate * (float(both.times[-1]) - both.start)
        return Score(
            rate * float(found.value),
            better="higher",
            floor=whole,
            interval=interval,
            n=found.n,
            failed=found.failed,
        )

    def _exponents(
        self, walks: Walks, model: Model, histories: Tensor, true: Tensor, unit: str
    ) -> dict[str, Score]:
        """Of the model against ``true`` ``[row, exponent]``, the exponents of single true walks."""
        per = "1" if unit == "1" else f"({unit})-1"
        spectrum = true.mean(0)
        apart = true[:, 0].unflatten(0, (self.samples, self.walkers)).mean(1) - spectrum[0]
        index = {"exponent": list(range(1, len(spectrum) + 1))}
        known = Score(spectrum.numpy(), dims=("exponent",), better="", units=per, n=len(true), coords=index)
        try:
            each = walks.of_model(model, histories).mean(1)
        except ModelFailed as error:
            lost = Score(float("nan"), units=per, n=0, failed=self.walkers, reason=str(error))
            return {
                "lyapunov_max": replace(lost, better=""),
                "lyapunov_error": lost,
                "lyapunov_spectrum_truth": known,
            }
        failed = int(each.isnan().any(1).sum())
        reason = f"{failed} of {len(each)} walks of the model are not finite" if failed else ""
        if not reason and not each[:, 0].isfinite().all():
            reason = "the model forgets where it was at once: its one-step map has no derivative but 0"
        shared = {"units": per, "n": len(each), "failed": failed}
        found = each.mean(0)
        largest, error = (
            (float(found[0]), abs(float(found[0] - spectrum[0]))) if not reason else (float("nan"),) * 2
        )
        interval = None if reason else mean_interval(each[:, 0])
        floor = float(apart.abs().mean())
        return {
            "lyapunov_max": Score(
                largest, better="", floor=float(spectrum[0]), interval=interval, reason=reason, **shared
            ),
            "lyapunov_error": Score(error, floor=floor, reason=reason, **shared),
            "lyapunov_spectrum": Score(
                found.numpy(), dims=("exponent",), better="", coords=index, reason=reason, **shared
            ),
            "lyapunov_spectrum_truth": known,
        }


def correlation_time(both: Comparison, level: float, unit: str, seed: int) -> Score:
    """First time after the context's end at which the anomaly correlation (Murphy and Epstein 1989), with
    the truth's mean over all trajectories and frames taken off both and each component in its own spread, is
    below ``level``; the whole horizon if it never is. The interval is a bootstrap over trajectories."""
    scale = component_scale(both.truth, both.valid)
    mean = both.truth[both.valid].mean(0)
    seen = (both.valid & ~both.broken)[..., None]
    true, guess = (torch.where(seen, (x - mean) / scale, 0.0) for x in (both.truth, both.mean))
    lost = both.broken.any(0)
    products = torch.stack([(a * b).sum(-1) for a, b in ((true, guess), (true, true), (guess, guess))])

    def crossing(rows: Tensor) -> float:
        cross, own, other = products[:, rows].sum(1)
        correlation = torch.where(own * other > 0, cross / (own * other).clamp(min=1e-300).sqrt(), 0.0)
        below = (correlation < level) | lost
        last = below.long().argmax() if bool(below.any()) else len(both.times) - 1
        return float(both.times[last]) - both.start

    n = len(both.truth)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    again = torch.tensor([crossing(rows) for rows in drawn], dtype=torch.float64)
    interval = tuple(again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())
    return Score(
        crossing(torch.arange(n)),
        better="higher",
        units=unit,
        floor=float(both.times[-1]) - both.start,
        interval=interval if n > 1 else None,
        n=n,
        failed=both.failed,
    )


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"chaos": Chaos}
