"""How far the law of what a model predicts is from that of the truth: exact transport, and other distances.

    W2^2(mu, nu) = min over couplings P of E_P |x - y|^2

The cost is |x - y|^2, never half of it, between states standardised by the truth's spread. Between finite
samples of one and the same law W2 is not 0 but its floor, of order n^(-1/d) in d > 2 dimensions (Fournier and
Guillin 2015), so the value means nothing without it. The standard error comes from the optimal dual
potentials (del Barrio and Loubes 2019): it is that of W2^2 around its expectation at this sample size.

Other distances trade what they see for how well few samples show it: along lines (Rabin et al. 2012), of two
moments (Olkin and Pukelsheim 1982), smoothed (Feydy et al. 2019), with mass that may be lost (Liero et al.
2018), up to rotation (Memoli 2011), by a kernel with an exact test (Gretton et al. 2012; Szekely and Rizzo
2013), over paths in order (Salvi et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, System
from worldsim_plugins.metrics import known_values
from worldsim_plugins.metrics.comparison import compare, component_scale
from worldsim_plugins.metrics.law_distances import DISTANCES, Distance, Setting
from worldsim_plugins.metrics.law_samples import Feature, fresh_samples
from worldsim_plugins.metrics.law_scores import coupling, scores_of

LARGEST_UNFLOORED_DIMENSION = 4


class Wasserstein:
    """A distance between laws with its floor, 95 % interval and n. Under the name of the distance also

    *_squared         the square, where the name is that of a root
    *_ratio           the value over the floor; that of an unbiased statistic, which is 0 on average at the
                      floor, over the floor's 95 % quantile
    *_floor_q95       95 % quantile of the floor
    *_standard_error  around the expectation at this sample size, of the square where there is one
    *_p_value         how often a model whose futures cannot be told from the truth's scores as badly, by a
                      permutation test that swaps truth and prediction within trajectories
    *_dimension       and where there are such *_epsilon (absolute) and *_gap, a bound on the numerical error

    The names are W2, W1, sliced_W2, max_sliced_W2, sinkhorn_divergence, bures_W2, unbalanced_transport,
    gromov_wasserstein, MMD_squared (of a Gaussian kernel as wide as the median distance of true points),
    energy_distance_squared and signature_MMD_squared. W2 comes with its coupling for a picture:
    coupling_truth, coupling_prediction ``[point, axis]`` and coupling_match ``[point]``, the point of the
    prediction that each of the truth goes to.

    The floor is measured over ``pairs`` independent pairs of samples that the system gives afresh. Truth and
    prediction share their starts: a ratio far below 1 says that the model follows each trajectory, about 1
    that its law cannot be told from the truth's, clearly above 1 that the law is wrong.

    Of several draws the first is taken. The points of feature ``state`` are not independent (a trajectory
    gives many), so they come with a floor and neither interval nor test. Raises NotMeasurable over tokens,
    with fewer than ``minimum`` trajectories, with trajectories too short for the feature, for a biased
    distance where the system gives no floor although the dimension is above 4, and where a constant would lie
    below the floor; rollouts that are not finite leave nothing measurable.
    """

    reusable = True

    met_by: Mapping[str, str] = {
        "*": "shuffled and memoriser: true trajectories of other starts have the right law",
    }

    def __init__(
        self,
        system: System,
        *,
        distance: Annotated[
            Literal[
                "W2",
                "W1",
                "sliced",
                "max_sliced",
                "sinkhorn",
                "bures",
                "unbalanced",
                "gromov",
                "mmd",
                "energy",
                "signature_mmd",
            ],
            Field(
                description="W2 and W1 are exact; sliced, bures, mmd and energy need fewer points in many "
                "dimensions; gromov looks past rotations, unbalanced past outliers; signature_mmd sees the "
                "order in time, of trajectories of any length"
            ),
        ] = "W2",
        feature: Annotated[
            Literal["final_state", "trajectory", "state"],
            Field(
                description="what is compared: the state at the end, whole trajectories (at `frames` times), "
                "or states at any time (the occupation of state space)"
            ),
        ] = "trajectory",
        frames: Annotated[int, Field(ge=1, description="times at which a trajectory is compared")] = 8,
        points: Annotated[
            int, Field(ge=2, le=2000, description="largest number of points in a sample")
        ] = 256,
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        minimum: Annotated[int, Field(ge=2, description="fewest trajectories that make a sample")] = 16,
        epsilon: Annotated[
            float, Field(gt=0, description="of sinkhorn, in medians of |x - x'|^2 between true points")
        ] = 0.05,
        reach: Annotated[
            float,
            Field(
                gt=0,
                description="of unbalanced: mass much further apart is not carried; in the same unit",
            ),
        ] = 1.0,
        projections: Annotated[int, Field(ge=2, description="directions of sliced and max_sliced")] = 128,
        permutations: Annotated[int, Field(ge=19, description="of mmd, energy and signature_mmd")] = 999,
        seed: Annotated[
            int, Field(ge=0, description="of the floor's truth samples, directions and permutations")
        ] = 0,
    ) -> None:
        if distance == "signature_mmd" and feature != "trajectory":
            raise ValueError(
                "signature_mmd compares trajectories: leave feature out, or set it to trajectory"
            )
        self.system = system
        self.distance: Distance = DISTANCES[distance]
        self.feature = Feature(feature, frames, points, as_path=distance == "signature_mmd")
        self.pairs = pairs
        self.minimum = minimum
        self.fixed = {
            "epsilon": epsilon,
            "reach": reach,
            "projections": projections,
            "permutations": permutations,
            "seed": seed,
        }
        self.seed = seed
        self._samples: dict[tuple[object, ...], tuple[list[Tensor], str]] = {}
        self._floors: dict[tuple[object, ...], list[float]] = {}

    ground_truths = staticmethod(known_values.of_transport)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not truth.states.is_floating_point():
            raise NotMeasurable("tokens have no distance: transport needs states that are numbers")
        if len(truth) < self.minimum:
            raise NotMeasurable(
                f"{len(truth)} trajectories make no sample of a law; {self.minimum} are needed"
            )
        both = compare(truth, prediction)
        scale = component_scale(both.truth, both.valid)
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            return dict.fromkeys((*self.distance.scores, f"{self.distance.name}_ratio"), lost)
        picked = self.feature.needed_frames(both.valid)
        valid = both.valid[:, picked]
        x, y = (
            self.feature.sample(states[:, picked] / scale, valid) for states in (both.truth, both.draws[:, 0])
        )
        key = (len(truth), *(tuple(each.tolist()) for each in (truth.times, picked, scale)))
        fresh, without = self.fresh(key, truth, 1 + picked, scale)
        setting = Setting(fresh[0] if fresh else x, bool(fresh), **self.fixed)
        dimension = x[0].numel() - (len(picked) if self.feature.as_path else 0)
        floors = self.floor(key, fresh, setting)
        self.refuse(x, dimension, floors, without, setting)
        found = self.distance.measure(x, y, setting)
        independent = self.feature.kind != "state"
        scores = scores_of(self.distance, found, floors, len(x), dimension, independent)
        if without:
            unmeasured = Score(float("nan"), n=len(x), reason=f"no floor: {without}")
            scores |= {f"{self.distance.name}_{what}": unmeasured for what in self.distance.need_fresh}
        return scores if found.plan is None else scores | coupling(found.plan, x, y)

    def fresh(
        self, key: tuple[object, ...], truth: Trajectory, frames: Tensor, scale: Tensor
    ) -> tuple[list[Tensor], str]:
        """Two independent samples of the truth for each pair, or why there are none."""
        if key not in self._samples:
            n, count = self.feature.size(len(truth)), 2 * self.pairs
            try:
                samples = fresh_samples(
                    self.system, self.feature, n, truth.times, frames, scale, count, self.seed
                )
            except (NotMeasurable, ValueError) as reason:
                self._samples[key] = [], str(reason)
            else:
                self._samples[key] = samples, ""
        return self._samples[key]

    def floor(self, key: tuple[object, ...], fresh: list[Tensor], setting: Setting) -> Tensor:
        """The distance of each pair of truth samples, ``[pair]`` float64."""
        if key not in self._floors:
            untested = replace(setting, permutations=0)
            pairs = zip(fresh[::2], fresh[1::2])
            self._floors[key] = [self.distance.measure(x, y, untested).value for x, y in pairs]
        return torch.tensor(self._floors[key], dtype=torch.float64)

    def refuse(self, x: Tensor, dimension: int, floors: Tensor, without: str, setting: Setting) -> None:
        """Raises NotMeasurable where a biased distance would say nothing about these samples."""
        if not self.distance.biased:
            return
        if without and dimension > LARGEST_UNFLOORED_DIMENSION:
            raise NotMeasurable(
                f"{self.distance.name} in {dimension} dimensions says nothing without its floor: {without}"
            )
        if not len(floors):
            return
        constant = self.distance.measure(x, x.mean(0).expand_as(x), replace(setting, permutations=0)).value
        if float(floors.mean()) > constant:
            # Then whoever always says the mean is nearer to the truth than the truth is to itself.
            raise NotMeasurable(
                f"{len(x)} points are too few for {dimension} dimensions: a constant at the truth's mean "
                "would lie below the floor; score more trajectories, or fewer frames"
            )


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"transport": Wasserstein}
