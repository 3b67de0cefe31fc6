"""How much two frames of a forecast tell about each other, beside what two frames of the truth do."""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory
from worldsim.protocols import HasActions, Restartable, System
from worldsim_kernels.information import Information, gaussian_copula, nearest_neighbours

Pair = tuple[Tensor, Tensor]
"""Two frames ``[sample, component]`` of the same trajectories."""

NOTHING = Information(0.0, 0.0, 0)


def varying(states: Tensor) -> Tensor:
    """The columns of ``states`` ``[sample, component]`` that vary: a constant tells nothing."""
    return states[:, states.std(0, correction=0) > 1e-12 * states.abs().amax(0)]


def estimates(pair: Pair, seed: int | None = None) -> dict[str, Information | str]:
    """By name, an estimate or the reason why there is none; standard errors where there is a ``seed``."""
    x, y = (varying(each) for each in pair)
    if not x.shape[1] or not y.shape[1]:
        return {name: NOTHING._replace(n=len(x)) for name in ("information", "copula_information")}
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found: dict[str, Information | str] = {}
    try:
        found["copula_information"] = gaussian_copula(x, y)
    except ValueError as reason:
        # One frame determines the other, and then the other estimate is a number that only grows with n.
        return dict.fromkeys(("information", "copula_information"), str(reason))
    try:
        found["information"] = nearest_neighbours(x, y, generator=generator)
    except ValueError as reason:
        found["information"] = str(reason)
    return found


def state_scores(
    truth: Pair, prediction: Pair, floors: list[tuple[Pair, Pair]], seed: int
) -> dict[str, Score]:
    """``information`` and ``copula_information`` of the prediction, ``*_truth``, ``*_error``, and the floor's
    95 % quantile; ``floors`` are pairs of independent samples of the truth."""
    right, found = estimates(truth, seed), estimates(prediction, seed)
    apart: dict[str, list[float]] = {"information": [], "copula_information": []}
    for two in floors:
        one, other = (estimates(each) for each in two)
        for name in apart:
            a, b = one[name], other[name]
            if isinstance(a, Information) and isinstance(b, Information):
                apart[name].append(abs(a.value - b.value))
    scores: dict[str, Score] = {}
    for name, floor in apart.items():
        scores[name] = described(found[name])
        scores[f"{name}_truth"] = described(right[name])
        scores |= error_scores(name, found[name], right[name], floor)
    return scores


def described(found: Information | str) -> Score:
    """A number that ranks nothing, in nats."""
    if isinstance(found, str):
        return Score(float("nan"), better="", n=0, reason=found)
    margin = 1.959964 * found.standard_error
    return Score(found.value, better="", interval=(found.value - margin, found.value + margin), n=found.n)


def error_scores(
    name: str, found: Information | str, right: Information | str, floors: list[float]
) -> dict[str, Score]:
    for each in (right, found):
        if isinstance(each, str):
            return {f"{name}_error": Score(float("nan"), n=0, reason=each)}
    error = abs(found.value - right.value)  # type: ignore[union-attr]
    # As if the two were independent: they share their starts, so this errs to the wide side.
    margin = 1.959964 * (found.standard_error**2 + right.standard_error**2) ** 0.5  # type: ignore[union-attr]
    interval, n = (max(error - margin, 0.0), error + margin), found.n  # type: ignore[union-attr]
    return floored_error(name, error, floors, interval, n)


def floored_error(
    name: str,
    error: float,
    floors: list[float],
    interval: tuple[float, float] | None,
    n: int,
    units: str = "1",
) -> dict[str, Score]:
    """``<name>_error`` with the mean of ``floors`` as its floor, and their 95 % quantile beside it."""
    if not floors:
        return {f"{name}_error": Score(error, units=units, interval=interval, n=n)}
    sample = torch.tensor(floors, dtype=torch.float64)
    highest = Score(float(sample.quantile(0.95)), better="", units=units, n=len(sample))
    value = Score(error, units=units, floor=float(sample.mean()), interval=interval, n=n)
    return {f"{name}_error": value, f"{name}_error_floor_q95": highest}


def refuse_determinism(system: System, truth: Trajectory) -> None:
    """Raises NotMeasurable where a whole later state is a function of a whole earlier one."""
    if not isinstance(system, Restartable) or isinstance(system, HasActions):
        return
    rows, times = truth.states[:4, 0, 0], truth.times - truth.times[0]
    futures = [
        system.simulate(
            system.restart(rows), times[[0, -1]], None, torch.Generator().manual_seed(seed)
        ).states
        for seed in (0, 1)
    ]
    if torch.equal(*futures):
        raise NotMeasurable(
            f"{type(system).__name__} is deterministic, so a whole state tells infinitely much about a later "
            "one: name some of its components"
        )
