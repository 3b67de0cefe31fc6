"""Whether the long-term statistics of a model are those of its world, whatever happens to single forecasts.

    marginal_w1        W1 of the law of each component over trajectories and times, in spreads of the truth,
                       averaged over components
    state_divergence   D_stsp, the KL divergence of the occupied bins of state space, of truth from model
                       (Koppe et al. 2019)
    spectrum_distance  D_H, the Hellinger distance of power spectra, averaged over components
                       (Mikhaeil et al. 2022; the mean periodogram of the trajectories, not smoothed)
    blow_up_rate       share of rollouts that are not finite, or leave the truth by many spreads

Two samples of one law are not at 0: each comes with a floor. It is the climate from the context's end on, and
the truth must be on its attractor by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, Metric, Model, System
from worldsim_kernels.attractors import hellinger, occupation_divergence, power_spectrum, wasserstein1
from worldsim_plugins.metrics import known_dynamics
from worldsim_plugins.metrics.comparison import compare, component_scale
from worldsim_plugins.metrics.truth_samples import floored, truth_samples

LARGEST_GRID = 3
"""Dimensions beyond which the bins are emptier than any sample fills."""
DISTANCES = ("marginal_w1", "state_divergence", "spectrum_distance")


class Climate:
    """marginal_w1 (and marginal_w1_component), state_divergence, spectrum_distance, each with its floor and
    the floor's 95 % quantile, and blow_up_rate.

    The floor is measured over ``pairs`` independent pairs of samples that the system gives afresh, of as many
    trajectories as are scored. Truth and prediction share their starts, so that a value below it says that
    the model still follows single trajectories. Of several draws the first is taken, and all for
    blow_up_rate.

    Raises ValueError over tokens. Rollouts that are not finite leave blow_up_rate alone measurable;
    state_divergence needs at most 3 components, spectrum_distance trajectories of one length.
    """

    met_by: Mapping[str, str] = {
        "blow_up_rate": "every baseline, since none leaves the range of the truth",
        "marginal_w1": "climatology, persistence, shuffled and memoriser, which are at the right places, in "
        "any order",
        "state_divergence": "climatology, shuffled and memoriser, which are at the right places, in any "
        "order",
        "spectrum_distance": "shuffled and memoriser, true trajectories of other starts",
    }
    ground_truths = staticmethod(known_dynamics.of_climate)

    def __init__(
        self,
        system: System,
        *,
        bins: Annotated[int, Field(ge=2, le=1000, description="bins a side for state_divergence")] = 20,
        escape: Annotated[
            float, Field(gt=0, description="distance from the truth's range, in spreads, that is a blow-up")
        ] = 5.0,
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        seed: Annotated[int, Field(ge=0, description="seed of the truth samples for the floor")] = 0,
    ) -> None:
        if isinstance(system, HasAutomaton):
            raise ValueError("climate needs states that are numbers: of tokens, see coherence")
        self.system, self.bins, self.escape, self.pairs, self.seed = system, bins, escape, pairs, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        both = compare(truth, prediction)
        scale, n = component_scale(both.truth, both.valid), len(truth)
        low, high = (pick(both.truth[both.valid], 0) for pick in (torch.amin, torch.amax))
        beyond = torch.maximum(low - both.draws, both.draws - high) / scale > self.escape
        gone = (beyond.any(-1) & both.valid[:, None]).any(-1) | both.broken.any(1)[:, None]
        scores = {"blow_up_rate": Score(float(gone.double().mean()), floor=0.0, n=n)}
        if both.failed:
            lost = Score(float("nan"), n=n, failed=both.failed, reason=both.reason)
            return scores | dict.fromkeys(DISTANCES, lost)
        measure = Measure(scale, low, high, self.bins)
        floors, why = self._floors(truth, measure)
        for name in DISTANCES:
            try:
                value = measure.distance(name, (both.truth, both.valid), (both.draws[:, 0], both.valid))
            except NotMeasurable as reason:
                scores[name] = Score(float("nan"), n=n, reason=str(reason))
            else:
                scores |= floored(name, value, floors.get(name, []), n, why)
        each = measure.marginals((both.truth, both.valid), (both.draws[:, 0], both.valid))
        scores["marginal_w1_component"] = Score(each.numpy(), dims=("component",), better="", n=n)
        return scores

    def _floors(self, truth: Trajectory, measure: Measure) -> tuple[dict[str, list[float]], str]:
        frames = torch.arange(1, len(truth.times))
        try:
            drawn = truth_samples(self.system, 2 * self.pairs, len(truth), truth.times, frames, self.seed)
        except (NotMeasurable, ValueError) as reason:
            return {}, str(reason)
        found: dict[str, list[float]] = {name: [] for name in DISTANCES}
        for pair in zip(drawn[::2], drawn[1::2]):
            for name, values in found.items():
                try:
                    values.append(measure.distance(name, *pair))
                except NotMeasurable:
                    continue
        return found, ""


Frames = tuple[Tensor, Tensor]
"""States ``[trajectory, time, component]`` and which of them are there ``[trajectory, time]``."""


class Measure:
    """The distances between two samples, with what they need of the truth: its ``scale`` ``[component]``, its
    range ``low`` .. ``high``, and the number of ``bins``."""

    def __init__(self, scale: Tensor, low: Tensor, high: Tensor, bins: int) -> None:
        self.scale, self.low, self.high, self.bins = scale, low, high, bins

    def distance(self, name: str, first: Frames, second: Frames) -> float:
        """Raises NotMeasurable where the samples do not allow it."""
        if name == "marginal_w1":
            return float(self.marginals(first, second).mean())
        if name == "spectrum_distance":
            return self.spectra(first, second)
        if len(self.scale) > LARGEST_GRID:
            raise NotMeasurable(
                f"{self.bins}^{len(self.scale)} bins are too many to fill: state_divergence needs at most "
                f"{LARGEST_GRID} components"
            )
        still = self.high <= self.low
        high = torch.where(still, self.low + self.scale, self.high)
        return occupation_divergence(*(x[valid] for x, valid in (first, second)), self.bins, self.low, high)

    def marginals(self, first: Frames, second: Frames) -> Tensor:
        """``[component]``, in spreads."""
        return wasserstein1(*(x[valid] / self.scale for x, valid in (first, second)))

    def spectra(self, first: Frames, second: Frames) -> float:
        if not (first[1].all() and second[1].all()):
            raise NotMeasurable("trajectories end at different times: their spectra do not compare")
        if first[0].shape[1] < 4:
            raise NotMeasurable("a spectrum needs at least four frames after the context")
        p, q = (power_spectrum(x / self.scale) for x, _ in (first, second))
        moves = (p.sum(0) > 0) | (q.sum(0) > 0)
        return float(hellinger(p, q)[moves].mean())


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"climate": Climate}
