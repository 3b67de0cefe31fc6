"""A prediction beside the truth, frame by frame, and the intervals of what is averaged over trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from worldsim import NotMeasurable, Trajectory

CONFIDENCE = 0.95
LARGEST = 1e150
"""Beyond this the square of a prediction is not finite, and so nor is it."""


@dataclass(frozen=True)
class Comparison:
    """Truth and prediction on the same times, frame 0 (the given context) left out, all in float64.

    truth   ``[trajectory, time, component]``, the state axes flattened; 0 where not valid
    draws   ``[trajectory, draw, time, component]``; 0 where not valid or not finite
    valid   ``[trajectory, time]`` the truth reaches this frame
    broken  ``[trajectory, time]`` a draw is not finite here (or has no finite square), or was not before
    times   ``[time]``
    start   the time of the last given frame
    """

    truth: Tensor
    draws: Tensor
    valid: Tensor
    broken: Tensor
    times: Tensor
    start: float

    @property
    def mean(self) -> Tensor:
        """The forecast: the mean of the draws, ``[trajectory, time, component]``."""
        return self.draws.mean(1)

    @property
    def failed(self) -> int:
        return int(self.broken.any(1).sum())

    @property
    def reason(self) -> str:
        """Why an average over these trajectories is not measurable; "" when it is."""
        if not self.failed:
            return ""
        first = float(self.times[self.broken.any(0)][0])
        return f"{self.failed} of {len(self.truth)} rollouts are not finite from t={first:g}"


def compare(truth: Trajectory, prediction: Trajectory) -> Comparison:
    """The two as one ``Comparison``.

    Raises ValueError when they are not on the same times, of the same trajectories or of the same state, and
    NotMeasurable when nothing is left to score.
    """
    _check(truth, prediction)
    valid = within(truth)[:, 1:]
    if not valid.any():
        raise NotMeasurable("no frame is left after the given context: ask for a longer horizon")
    actual = truth.states[:, 0, 1:].double().reshape(*valid.shape, -1)
    actual = torch.where(valid[..., None], actual, 0.0)
    if not actual.isfinite().all():
        raise ValueError("the truth is not finite within its length: give ragged ends as Trajectory.length")
    draws = prediction.states[:, :, 1:].double()
    draws = draws.reshape(*draws.shape[:3], -1)
    seen, finite = valid[:, None, :, None], draws.abs() < LARGEST
    broken = (~(finite | ~seen).all(3).all(1)).cumsum(1) > 0
    draws = torch.where(finite & seen, draws, 0.0)
    times = truth.times[1:].double()
    return Comparison(actual, draws, valid, broken & valid, times, float(truth.times[0]))


def _check(truth: Trajectory, prediction: Trajectory) -> None:
    if len(truth) != len(prediction) or truth.state_shape != prediction.state_shape:
        raise ValueError(
            f"prediction {list(prediction.states.shape)} against truth {list(truth.states.shape)}; "
            "[trajectory, draw, time, *state] may differ in draw alone"
        )
    if len(truth.times) != len(prediction.times) or not torch.allclose(truth.times, prediction.times):
        raise ValueError("prediction and truth are not on the same times: roll the model out at truth.times")


def within(truth: Trajectory) -> Tensor:
    """Which frames each trajectory reaches, ``[trajectory, time]``."""
    count = truth.states.shape[2]
    if truth.length is None:
        return torch.ones(len(truth), count, dtype=torch.bool)
    return torch.arange(count) < truth.length[:, :1]


def component_scale(states: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation of each component over all valid frames of all trajectories, ``[component]``.

    states ``[trajectory, time, component]``, valid ``[trajectory, time]``. A component that never varies has
    no scale of its own and takes the root mean square of the others'. Raises NotMeasurable when none varies.
    """
    pool = states[valid]
    spread = pool.std(0, correction=0)
    varies = spread > 1e-12 * pool.abs().amax(0)
    if not varies.any():
        raise NotMeasurable("the truth never varies, so an error has no scale")
    return torch.where(varies, spread, spread[varies].square().mean().sqrt())


def mean_interval(values: Tensor) -> tuple[float, float] | None:
    """Student's t interval of the mean of independent ``values`` ``[n]``; None below two."""
    n = len(values)
    if n < 2:
        return None
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(values.std()) / n**0.5
    return float(values.mean()) - margin, float(values.mean()) + margin


def median_interval(values: Tensor) -> tuple[float, float] | None:
    """Order-statistic interval of the median of independent ``values`` ``[n]``, of any law (Conover 1999).

    None below six values: not even the smallest and the largest of five cover it often enough.
    """
    n = len(values)
    low = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    if low < 1:
        return None
    ordered = values.sort().values
    return float(ordered[low - 1]), float(ordered[n - low])


def median(values: Tensor) -> float:
    """The usual median, the mean of the middle two for an even count."""
    return float(values.quantile(0.5))
