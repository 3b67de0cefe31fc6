"""Is the shape of a forecast that of the truth: its pieces, loops and voids?

Over states, the cloud of all states that are visited, as the Rips complex sees it: a limit cycle is one
piece with one loop, two wells without crossing are two pieces. Over fields on a grid, what lies below a level
in the last frame of each trajectory: islands and lakes. Distances between diagrams of persistence are
bottleneck distances (Cohen-Steiner, Edelsbrunner and Harer 2007), in spreads of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import Metric, Model, System
from worldsim_plugins.metrics import known_shapes
from worldsim_plugins.metrics.comparison import compare, component_scale, mean_interval
from worldsim_plugins.metrics.persistence import (
    Diagram,
    alpha_diagrams,
    betti,
    bottleneck,
    cubical_diagrams,
    farthest_points,
    require_gudhi,
    rips_diagrams,
)
from worldsim_plugins.metrics.truth_samples import truth_samples

Shape = Sequence[Diagram]
"""One diagram for each dimension from 0 on."""
FRAMES = 32
LARGEST_ALPHA = 3


class Topology:
    """For each dimension k (0 pieces, 1 loops, 2 voids):

    betti_<k>, betti_<k>_truth  how many classes last longer than ``persistence``
    betti_<k>_error             their absolute difference
    bottleneck_<k>              distance of the two diagrams
    diagram_<k>, *_truth        births and deaths ``[bar, end]``, longest first (clouds only)

    errors and distances with a floor, the same between pairs of independent samples of the truth, and its
    95 % quantile. Over fields they are means over trajectories, each forecast beside its own truth; their
    floor is between different truths: far below it a forecast follows the field, at it it has the law alone.

    Of several draws the first is taken. Raises NotMeasurable without gudhi (the extra ``topology``), over
    tokens, and for the alpha complex in more than three dimensions; a forecast that is not finite leaves
    nothing measurable.
    """

    met_by: Mapping[str, str] = {
        "betti_*_error": "climatology, shuffled and memoriser: a small whole number is soon right",
        "bottleneck_*": "shuffled and memoriser, whose trajectories have the shape of true ones",
    }
    ground_truths = staticmethod(known_shapes.of_topology)

    def __init__(
        self,
        system: System,
        *,
        complex: Annotated[
            Literal["rips", "alpha", "cubical"] | None,
            Field(
                description="how a shape is made; cubical over fields on a grid and rips over other states "
                "when left out. alpha is faster, for up to three dimensions, and rests on code under the GPL"
            ),
        ] = None,
        dimension: Annotated[int, Field(ge=0, le=2, description="highest dimension of the homology")] = 1,
        persistence: Annotated[
            float, Field(gt=0, description="a class counts when it lasts longer, in spreads of the truth")
        ] = 0.5,
        points: Annotated[
            int, Field(ge=8, le=1000, description="most points of a cloud, spread over it by farthest points")
        ] = 128,
        fields: Annotated[int, Field(ge=2, le=1000, description="most trajectories of fields")] = 16,
        component: Annotated[int, Field(ge=0, description="which component of a field")] = 0,
        periodic: Annotated[bool, Field(description="whether the grid of a field closes on itself")] = False,
        pairs: Annotated[int, Field(ge=20, description="pairs of truth samples that measure the floor")] = 20,
        seed: Annotated[int, Field(ge=0, description="seed of the truth samples for the floor")] = 0,
    ) -> None:
        require_gudhi()
        self.system = system
        self.complex = complex
        self.dimension, self.persistence = dimension, persistence
        self.points, self.fields = points, fields
        self.component, self.periodic = component, periodic
        self.pairs, self.seed = pairs, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """Truth ``[trajectory, 1, time, *state]`` against prediction ``[trajectory, draw, time, *state]``."""
        if not truth.states.is_floating_point():
            raise NotMeasurable("tokens have no distance, so their states have no shape")
        on_grid = len(truth.state_shape) > 1 and truth.axes[:1] != ("body",)
        both = compare(truth, prediction)
        if both.failed:
            lost = Score(float("nan"), n=len(truth), failed=both.failed, reason=both.reason)
            return {f"bottleneck_{k}": lost for k in range(self.dimension + 1)}
        if (self.complex or ("cubical" if on_grid else "rips")) == "cubical":
            return self._of_fields(truth, both.truth, both.draws[:, 0], both.valid)
        return self._of_clouds(truth, both.truth, both.draws[:, 0], both.valid)

    def _of_clouds(
        self, truth: Trajectory, right: Tensor, guess: Tensor, valid: Tensor
    ) -> Mapping[str, Score]:
        scale = component_scale(right, valid)
        if self.complex == "alpha" and right.shape[2] > LARGEST_ALPHA:
            raise NotMeasurable(f"the alpha complex of {right.shape[2]} dimensions is too large: take rips")
        picked = torch.linspace(0, right.shape[1] - 1, min(FRAMES, right.shape[1])).round().long()
        seen = valid[:, picked]
        one, other = (self._cloud(states[:, picked], seen, scale) for states in (right, guess))
        drawn = self._samples(truth, len(truth), 1 + picked)
        clouds = [self._cloud(states, reached, scale) for states, reached in drawn]
        floors = [
            {k: (_betti_error(a, b, k, self.persistence), bottleneck(a[k], b[k])) for k in self._all}
            for a, b in zip(clouds[::2], clouds[1::2])
        ]
        n = min(self.points, int(seen.sum()))
        scores: dict[str, Score] = {}
        for k in self._all:
            for end, shape in (("", other), ("_truth", one)):
                scores[f"betti_{k}{end}"] = Score(float(betti(shape[k], self.persistence)), better="", n=n)
                scores[f"diagram_{k}{end}"] = Score(
                    shape[k],
                    dims=(f"bar_{k}{end}", "end"),
                    coords={"end": ["birth", "death"]},
                    better="",
                    n=n,
                )
            found = (_betti_error(one, other, k, self.persistence), bottleneck(one[k], other[k]))
            scores |= self._with_floors(k, found, (None, None), [each[k] for each in floors], n)
        return scores

    def _cloud(self, states: Tensor, valid: Tensor, scale: Tensor) -> Shape:
        made = alpha_diagrams if self.complex == "alpha" else rips_diagrams
        return made(farthest_points(states[valid] / scale, self.points), self.dimension)

    def _of_fields(
        self, truth: Trajectory, right: Tensor, guess: Tensor, valid: Tensor
    ) -> Mapping[str, Score]:
        if not valid.all():
            raise NotMeasurable("fields end at different times: they have no common last frame")
        shape = partial(self._field, truth=truth)
        unit = float(shape(right[:, -1]).std(correction=0))
        if not unit > 0:
            raise NotMeasurable("the true fields never vary, so levels have no scale")
        n = min(len(right), self.fields)
        one, other = (self._shapes(shape(states[:n, -1]) / unit) for states in (right, guess))
        drawn = self._samples(truth, n, torch.tensor([len(truth.times) - 1]))
        fresh = [self._shapes(shape(states[:, -1]) / unit) for states, _ in drawn]
        floors = [self._apart(a, b) for a, b in zip(fresh[::2], fresh[1::2])]
        scores: dict[str, Score] = {}
        found = self._apart(one, other)
        for k in range(min(self.dimension + 1, len(one[0]))):
            for end, shapes in (("", other), ("_truth", one)):
                counts = torch.tensor([betti(each[k], self.persistence) for each in shapes]).double()
                scores[f"betti_{k}{end}"] = Score(
                    float(counts.mean()), better="", interval=mean_interval(counts), n=n
                )
            means = tuple(float(rows.mean()) for rows in found[k])
            intervals = tuple(mean_interval(rows) for rows in found[k])
            apart = [tuple(float(rows.mean()) for rows in each[k]) for each in floors]
            scores |= self._with_floors(k, means, intervals, apart, n)
        return scores

    def _field(self, states: Tensor, *, truth: Trajectory) -> Tensor:
        """``[trajectory, *grid]`` of flattened states ``[trajectory, number]``."""
        states = states.reshape(len(states), *truth.state_shape)
        if "component" not in truth.labels:
            return states  # the last axis is one of the grid's
        if self.component >= states.shape[-1]:
            raise ValueError(f"component {self.component}: the field has {states.shape[-1]}, from 0 on")
        return states[..., self.component]

    def _shapes(self, fields: Tensor) -> list[Shape]:
        return [cubical_diagrams(field, periodic=self.periodic) for field in fields]

    def _apart(self, one: list[Shape], other: list[Shape]) -> dict[int, tuple[Tensor, Tensor]]:
        """Of each dimension, difference of Betti numbers and distance of diagrams, each ``[trajectory]``."""
        return {
            k: (
                torch.tensor([_betti_error(a, b, k, self.persistence) for a, b in zip(one, other)]),
                torch.tensor([bottleneck(a[k], b[k]) for a, b in zip(one, other)], dtype=torch.float64),
            )
            for k in range(min(self.dimension + 1, len(one[0])))
        }

    @property
    def _all(self) -> range:
        return range(self.dimension + 1)

    def _samples(self, truth: Trajectory, n: int, frames: Tensor) -> list[tuple[Tensor, Tensor]]:
        try:
            return truth_samples(self.system, 2 * self.pairs, n, truth.times, frames, self.seed)
        except (NotMeasurable, ValueError):
            return []

    def _with_floors(
        self,
        k: int,
        found: Sequence[float],
        intervals: Sequence[tuple[float, float] | None],
        floors: Sequence[Sequence[float]],
        n: int,
    ) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        for at, name in enumerate((f"betti_{k}_error", f"bottleneck_{k}")):
            own = np.array([each[at] for each in floors])
            value, interval = found[at], intervals[at]
            if not np.isfinite(value):
                reason = f"the numbers of unending classes of dimension {k} differ"
                scores[name] = Score(float("nan"), n=n, reason=reason)
            elif not len(own):
                scores[name] = Score(value, interval=interval, n=n)
            else:
                scores[name] = Score(value, floor=float(own.mean()), interval=interval, n=n)
                highest = float(np.quantile(own, 0.95))
                scores[f"{name}_floor_q95"] = Score(highest, better="", n=len(own))
        return scores


def _betti_error(one: Shape, other: Shape, k: int, persistence: float) -> float:
    return float(abs(betti(one[k], persistence) - betti(other[k], persistence)))


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"topology": Topology}
