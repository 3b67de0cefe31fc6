"""Exact optimal transport between the law of what a model predicts and the law of the truth.

    W2^2(mu, nu) = min over couplings P of E_P |x - y|^2

The cost is |x - y|^2, never half of it, between states standardised by the truth's spread. Between finite
samples of one and the same law W2 is not 0 but its floor, of order n^(-1/d) in d > 2 dimensions (Fournier and
Guillin 2015), so the value means nothing without it. The standard error comes from the optimal dual
potentials (del Barrio and Loubes 2019): it is that of W2^2 around its expectation at this sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import ot
import torch
from pydantic import Field
from scipy.spatial.distance import cdist
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, System
from worldsim_plugins.metrics.comparison import compare, component_scale
from worldsim_plugins.metrics.truth_samples import truth_samples

LARGEST_UNFLOORED_DIMENSION = 4


class Transport(NamedTuple):
    """An optimal coupling of two samples, float64.

    W2_squared      the cost of the plan
    plan            ``[n, m]``, rows sum to 1/n and columns to 1/m
    potentials      ``[n]`` and ``[m]``, with f_i + g_j <= |x_i - y_j|^2 and equality on the plan
    standard_error  of ``W2_squared``, for independent samples
    """

    W2_squared: float
    plan: Tensor
    potentials: tuple[Tensor, Tensor]
    standard_error: float


def wasserstein2(x: Tensor, y: Tensor) -> Transport:
    """The exact coupling of ``x`` ``[n, d]`` and ``y`` ``[m, d]``, by network simplex (Bonneel et al. 2011).

    Raises ValueError for samples that are empty, not finite or of different dimension, and RuntimeError when
    the simplex stops before the optimum.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"samples {list(x.shape)} and {list(y.shape)}: give [n, d] and [m, d], n and m >= 1")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("samples must be finite: leave out or count what is not, before the distance")
    cost = cdist(x.double().numpy(), y.double().numpy(), "sqeuclidean")
    plan, log = ot.emd(ot.unif(len(x)), ot.unif(len(y)), cost, numItermax=10_000_000, log=True)
    if log["warning"]:
        raise RuntimeError(f"exact transport did not finish: {log['warning']}")
    f, g = torch.from_numpy(log["u"]), torch.from_numpy(log["v"])
    variance = float(f.var(correction=0)) / len(x) + float(g.var(correction=0)) / len(y)
    return Transport(float((plan * cost).sum()), torch.from_numpy(plan), (f, g), variance**0.5)


def bures(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """W2^2 of two Gaussians, |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Olkin and Pukelsheim 1982).

    Means ``[d]``, covariances ``[d, d]``. Raises ValueError for a covariance that is not symmetric and
    positive semi-definite.
    """
    root = _root(cov_a.double())
    cross = _root(root @ _symmetric(cov_b.double()) @ root)
    shift = (mean_a.double() - mean_b.double()).square().sum()
    return float(shift + torch.trace(cov_a.double() + cov_b.double() - 2 * cross))


def _symmetric(matrix: Tensor) -> Tensor:
    size = float(matrix.abs().max())
    if float((matrix - matrix.mT).abs().max()) > 1e-10 * size:
        raise ValueError("a covariance must be symmetric")
    if float(torch.linalg.eigvalsh(matrix).min()) < -1e-10 * size:
        raise ValueError("a covariance must be positive semi-definite")
    return (matrix + matrix.mT) / 2


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


class Wasserstein:
    """W2 and W2_squared with their floor, 95 % interval and n; W2_ratio, the value over the floor, and
    W2_floor_q95; W2_dimension; and the coupling for a picture: coupling_truth, coupling_prediction
    ``[point, axis]`` and coupling_match ``[point]``, the prediction's point that each of the truth goes to.

    The floor is measured over ``pairs`` independent pairs of samples that the system gives afresh. Truth and
    prediction share their starts: a ratio far below 1 says that the model follows each trajectory, about 1
    that its law cannot be told from the truth's, clearly above 1 that the law is wrong.

    Of several draws the first is taken. The points of feature ``state`` are not independent (a trajectory
    gives many), so they come with a floor and no interval. Raises NotMeasurable over tokens, with fewer than
    ``minimum`` trajectories, with trajectories too short for the feature, where the system gives no floor
    although the dimension is above 4, and where a constant would lie below the floor; rollouts that are not
    finite leave nothing measurable.
    """

    def __init__(
        self,
        system: System,
        *,
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
        seed: Annotated[int, Field(ge=0, description="seed of the truth samples for the floor")] = 0,
    ) -> None:
        self.system = system
        self.feature = feature
        self.frames = frames
        self.points = points
        self.pairs = pairs
        self.minimum = minimum
        self.seed = seed
        self._floors: dict[tuple[object, ...], tuple[list[float], str]] = {}

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
            return {"W2": lost, "W2_squared": lost, "W2_ratio": lost}
        picked = self.needed_frames(both.valid)
        valid = both.valid[:, picked]
        x, y = (self.sample(states[:, picked] / scale, valid) for states in (both.truth, both.draws[:, 0]))
        floors, without = self.floor(truth, 1 + picked, scale)
        if without and x.shape[1] > LARGEST_UNFLOORED_DIMENSION:
            raise NotMeasurable(f"W2 in {x.shape[1]} dimensions says nothing without its floor: {without}")
        if floors and sum(floors) / len(floors) > float(x.var(0, correction=0).sum()):
            # Then whoever always says the mean is nearer to the truth than the truth is to itself.
            raise NotMeasurable(
                f"{len(x)} points are too few for {x.shape[1]} dimensions: a constant at the truth's mean "
                "would lie below the floor; score more trajectories, or fewer frames"
            )
        found = wasserstein2(x, y)
        scores = distances(found, torch.tensor(floors, dtype=torch.float64), x, self.feature != "state")
        if without:
            scores["W2_ratio"] = Score(float("nan"), n=len(x), reason=f"no floor: {without}")
        return scores | coupling(found, x, y)

    def needed_frames(self, valid: Tensor) -> Tensor:
        """Indices of the frames that the feature reads, from ``valid`` ``[trajectory, time]``."""
        count = valid.shape[1]
        if self.feature == "trajectory":
            if not valid.all():
                raise NotMeasurable(
                    "trajectories end at different times: compare final_state or state instead"
                )
            return torch.linspace(0, count, min(self.frames, count) + 1).round()[1:].long() - 1
        if self.feature == "final_state" and valid.all():
            return torch.tensor([count - 1])
        return torch.arange(count)

    def sample(self, states: Tensor, valid: Tensor) -> Tensor:
        """Points ``[point, d]`` of ``states`` ``[trajectory, frame, component]`` at the needed frames."""
        rows = valid.any(1)
        if self.feature == "trajectory":
            points = states[rows].flatten(1)
        elif self.feature == "final_state":
            points = states[rows, valid[rows].sum(1) - 1]
        else:
            # Spread over trajectories and times alike: a stride that visits every trajectory.
            points = states[valid]
            return points[torch.linspace(0, len(points) - 1, min(self.points, len(points))).round().long()]
        return points[: self.points]

    def floor(self, truth: Trajectory, frames: Tensor, scale: Tensor) -> tuple[list[float], str]:
        """W2^2 of each of ``pairs`` independent pairs of truth samples, or why there are none."""
        n = len(truth) if self.feature == "state" else min(len(truth), self.points)
        key = (n, tuple(truth.times.tolist()), tuple(frames.tolist()), tuple(scale.tolist()))
        if key not in self._floors:
            try:
                samples = self.samples(n, truth.times, frames, scale)
            except (NotMeasurable, ValueError) as reason:
                self._floors[key] = [], str(reason)
            else:
                pairs = zip(samples[::2], samples[1::2])
                self._floors[key] = [wasserstein2(*pair).W2_squared for pair in pairs], ""
        return self._floors[key]

    def samples(self, n: int, times: Tensor, frames: Tensor, scale: Tensor) -> list[Tensor]:
        """Two independent samples of the truth for each pair, each from ``n`` trajectories."""
        drawn = truth_samples(self.system, 2 * self.pairs, n, times, frames, self.seed)
        samples = [self.sample(states / scale, reached) for states, reached in drawn]
        if samples[0].shape == samples[1].shape and torch.equal(samples[0], samples[1]):
            raise NotMeasurable(f"{type(self.system).__name__} goes to one state from all starts")
        return samples


def distances(found: Transport, floors: Tensor, x: Tensor, independent: bool) -> dict[str, Score]:
    """The named scores of one coupling, with what the truth scores against itself; W2^2 has an interval
    when the points are independent."""
    margin = 1.959964 * found.standard_error
    interval = (max(found.W2_squared - margin, 0.0), found.W2_squared + margin) if independent else None
    value, root = found.W2_squared**0.5, _scaled_root(interval, 1.0)
    roots = floors.sqrt()
    floor = float(roots.mean()) if len(roots) else None
    squared = float(floors.mean()) if len(roots) else None
    scores = {
        "W2": Score(value, floor=floor, interval=root, n=len(x)),
        "W2_squared": Score(found.W2_squared, floor=squared, interval=interval, n=len(x)),
        "W2_dimension": Score(float(x.shape[1]), better="", n=len(x)),
    }
    if floor is None:
        return scores
    scores["W2_floor_q95"] = Score(float(roots.quantile(0.95)), better="", n=len(roots))
    scores["W2_ratio"] = Score(value / floor, floor=1.0, interval=_scaled_root(interval, floor), n=len(x))
    return scores


def _scaled_root(interval: tuple[float, float] | None, unit: float) -> tuple[float, float] | None:
    return None if interval is None else (interval[0] ** 0.5 / unit, interval[1] ** 0.5 / unit)


def coupling(found: Transport, x: Tensor, y: Tensor) -> dict[str, Score]:
    """The coupling in the two leading principal axes of the truth ``x`` ``[n, d]``."""
    centre = x.mean(0)
    axes = torch.linalg.svd(x - centre, full_matrices=False).Vh[:2]
    match = found.plan.argmax(1)
    flat, dims = {"better": "", "n": len(x)}, ("point", "axis")
    return {
        "coupling_truth": Score(((x - centre) @ axes.mT).numpy(), dims=dims, **flat),
        "coupling_prediction": Score(((y - centre) @ axes.mT).numpy(), dims=dims, **flat),
        "coupling_match": Score(match.double().numpy(), dims=("point",), **flat),
    }


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"transport": Wasserstein}
