"""How good an ensemble is as a probabilistic forecast: sharp, and right as often as it says.

    CRPS          E|X - x| - E|X - X'| / 2, of each component at each time, averaged
    energy score  the same with the Euclidean norm of the whole trajectory, which sees how its parts depend
    spread-skill  sqrt((M + 1) / M) spread of M draws over the error of their mean (Fortin et al. 2014)
    ranks         of the truth among the draws: uniform when it is one more draw

(Gneiting and Raftery 2007). States are standardised by the truth's spread. CRPS and energy score are fair for
the number of draws (Ferro 2014): their expectation is that of infinitely many. For a perfect forecast of a
stochastic world they are not 0: their floor is what the true system scores, forecasting itself from the same
starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, Restartable, System
from worldsim_kernels import laws
from worldsim_plugins.metrics import known_values
from worldsim_plugins.metrics.comparison import Comparison, compare, component_scale, mean_interval
from worldsim_plugins.metrics.law_scores import NORMAL

LOST = ("fair_crps", "energy_score", "spread_skill_error", "rank_chi_square")


class Forecast:
    """fair_crps and fair_crps_time; energy_score, over the root of its dimension; both with ``*_ratio``, the
    value over the floor, and ``*_floor_q95``. spread_skill (1 is right, less is overconfident) and
    spread_skill_error, its |logarithm|. rank_histogram, rank_chi_square (its floor is the mean of its law for
    a truth that is one more draw) and rank_p_value; a trajectory has one rank, the average rank of
    Thorarinsdottir, Scheuerer and Heinz (2016).

    The floor needs a system that can be restarted, and is measured over ``pairs`` independent truths, each
    with its own ensemble of as many draws. Raises NotMeasurable over tokens and with a single draw; rollouts
    that are not finite leave nothing measurable.
    """

    met_by: Mapping[str, str] = {
        "spread_skill_error": "climatology and shuffled, as unsure as they should be where the start "
        "tells little",
        "rank_chi_square": "climatology and shuffled, as unsure as they should be where the start "
        "tells little",
    }

    def __init__(
        self,
        system: System,
        *,
        pairs: Annotated[
            int, Field(ge=20, description="truths with their ensembles that measure the floor")
        ] = 20,
        seed: Annotated[int, Field(ge=0, description="seed of the floor, and of ranks that are tied")] = 0,
    ) -> None:
        self.system, self.pairs, self.seed = system, pairs, seed

    ground_truths = staticmethod(known_values.of_forecast)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not truth.states.is_floating_point():
            raise NotMeasurable("tokens have no distance: forecast needs states that are numbers")
        draws = prediction.states.shape[1]
        if draws < 2:
            raise NotMeasurable("one draw is no ensemble: set draws of the scenario to 2 or more")
        both = compare(truth, prediction)
        scale = component_scale(both.truth, both.valid)
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            return dict.fromkeys(LOST, lost)
        reached = both.valid.any(1)
        found = measured((both.draws / scale)[reached], (both.truth / scale)[reached], both.valid[reached])
        floors, without = self.floors(truth, both, scale, draws)
        scores = proper("fair_crps", found.crps, [each.crps for each in floors])
        scores["fair_crps_time"] = crps_over_time(both, scale)
        scores |= proper("energy_score", found.energy, [each.energy for each in floors])
        if without:
            unmeasured = Score(float("nan"), n=len(truth), reason=f"no floor: {without}")
            scores |= {"fair_crps_ratio": unmeasured, "energy_score_ratio": unmeasured}
        generator = torch.Generator().manual_seed(self.seed)
        scores |= calibration(found, floors)
        return scores | ranked(both, reached, generator)

    def floors(
        self, truth: Trajectory, both: Comparison, scale: Tensor, draws: int
    ) -> tuple[list[Measured], str]:
        """What the true system scores against itself, for each pair; or why it does not."""
        if not isinstance(self.system, Restartable):
            return [], f"{type(self.system).__name__} cannot be restarted from a given state"
        if not both.valid.all():
            return [], "trajectories end at different times"
        generator, found = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.pairs):
            try:
                states = self.futures(self.system, truth, draws + 1, generator)[:, :, 1:] / scale
            except (NotMeasurable, ValueError) as reason:
                return [], str(reason)
            found.append(measured(states[:, 1:], states[:, 0], both.valid))
            if torch.equal(states[:, :1].expand_as(states), states):
                # A world without noise forecasts itself without error, however often it is asked.
                return found * self.pairs, ""
        return found, ""

    @staticmethod
    def futures(system: Restartable, truth: Trajectory, count: int, generator: torch.Generator) -> Tensor:
        """``[trajectory, count, time, component]`` from the last given states."""
        rows = truth.states[:, 0, 0].repeat_interleave(count, 0)
        actions = None if truth.actions is None else truth.actions.repeat_interleave(count, 0)
        times = truth.times - truth.times[0]
        made = system.simulate(system.restart(rows), times, actions, generator)  # type: ignore[attr-defined]
        return made.states[:, 0].double().reshape(len(truth), count, len(times), -1)


class Measured(NamedTuple):
    """Of each trajectory ``[n]``: CRPS and energy score, the variance of the draws and the squared error of
    their mean, averaged over components and times."""

    crps: Tensor
    energy: Tensor
    variance: Tensor
    error: Tensor

    @property
    def spread_skill(self) -> float:
        return float((self.variance.mean() / self.error.mean()).sqrt())


def measured(draws: Tensor, truth: Tensor, valid: Tensor) -> Measured:
    """``draws`` ``[n, draw, time, component]`` beside ``truth`` ``[n, time, component]``, both 0 where not
    ``valid`` ``[n, time]``."""
    count, size = draws.shape[1], truth.shape[2]
    frames = valid.sum(1)

    def over(each: Tensor) -> Tensor:
        return (each.mean(2) * valid).sum(1) / frames

    energy = laws.energy_score(draws.flatten(2), truth.flatten(1)) / (frames * size).sqrt()
    variance = draws.var(1) * (count + 1) / count
    error = (draws.mean(1) - truth).square()
    return Measured(over(laws.crps(draws, truth)), energy, over(variance), over(error))


def proper(name: str, rows: Tensor, floors: list[Tensor]) -> dict[str, Score]:
    """The mean of ``rows`` ``[n]`` beside those of the truth's own forecasts."""
    value, n, interval = float(rows.mean()), len(rows), mean_interval(rows)
    if not floors:
        return {name: Score(value, interval=interval, n=n)}
    means = torch.stack([each.mean() for each in floors])
    floor = float(means.mean())
    scores = {
        name: Score(value, floor=floor, interval=interval, n=n),
        f"{name}_floor_q95": Score(float(means.quantile(0.95)), better="", n=len(means)),
    }
    if not floor > 0:
        nothing = "the truth forecasts itself without error, so there is no unit"
        return scores | {f"{name}_ratio": Score(float("nan"), n=n, reason=nothing)}
    scaled = None if interval is None else (interval[0] / floor, interval[1] / floor)
    return scores | {f"{name}_ratio": Score(value / floor, floor=1.0, interval=scaled, n=n)}


def crps_over_time(both: Comparison, scale: Tensor) -> Score:
    """The mean over trajectories and components at each time."""
    each = laws.crps(both.draws / scale, both.truth / scale).mean(2) * both.valid
    growth = each.sum(0) / both.valid.sum(0)
    return Score(growth.numpy(), dims=("time",), n=len(each), coords={"time": both.times.numpy()})


def calibration(found: Measured, floors: list[Measured]) -> dict[str, Score]:
    """Spread over skill, with an interval by the delta method on its logarithm."""
    n, ratio = len(found.error), found.spread_skill
    if not 0 < ratio < float("inf"):
        reason = (
            "the draws have no spread" if ratio == 0 else "the forecast has no error, so no skill to compare"
        )
        return {
            "spread_skill": Score(float("nan"), better="", n=n, reason=reason),
            "spread_skill_error": Score(float("nan"), n=n, reason=reason),
        }
    influence = (found.variance / found.variance.mean() - found.error / found.error.mean()) / 2
    interval = None
    if n > 1:
        factor = float((NORMAL * influence.std() / n**0.5).exp())
        interval = (ratio / factor, ratio * factor)
    own = torch.tensor([each.spread_skill for each in floors], dtype=torch.float64)
    known = len(own) > 0 and bool(own.isfinite().all())
    floor = float(own.log().abs().mean()) if known else None
    return {
        "spread_skill": Score(
            ratio,
            better="",
            floor=float(own.mean()) if known else None,
            interval=interval,
            n=n,
        ),
        "spread_skill_error": Score(abs(float(torch.tensor(ratio).log())), floor=floor, n=n),
    }


def ranked(both: Comparison, reached: Tensor, generator: torch.Generator) -> dict[str, Score]:
    """Where the truth stands among the draws; one rank for each trajectory, so that they are independent."""
    draws, truth = both.draws[reached].flatten(2), both.truth[reached].flatten(1)
    members, n = draws.shape[1], len(truth)
    found = laws.rank_histogram(laws.average_ranks(draws, truth, generator), members)
    coords = {"rank": list(range(members + 1))}
    scores = {
        "rank_histogram": Score(found.counts.double().numpy(), dims=("rank",), better="", n=n, coords=coords)
    }
    if not found.degrees:
        reason = f"{n} trajectories are too few for a test of ranks; 10 are needed"
        return scores | {"rank_chi_square": Score(float("nan"), n=n, reason=reason)}
    return scores | {
        "rank_chi_square": Score(float(found.chi_square), floor=float(found.degrees), n=n),
        "rank_p_value": Score(float(found.p_value), better="", n=n),
    }


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"forecast": Forecast}
