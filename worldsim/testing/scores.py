"""Checks of constraints and metrics, on the truth and on what is not true."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from worldsim.baselines import Truth
from worldsim.errors import NotMeasurable
from worldsim.protocols import (
    Constraint,
    HasParametrisation,
    HasRetraction,
    JudgesModels,
    Metric,
    Score,
    System,
    Trajectory,
)
from worldsim.tables import shown
from worldsim.testing.checks import Checks, finite, seeded
from worldsim.testing.worlds import World

DRAWS = 4
"""Of an ensemble, for metrics that one draw is not enough for."""
OBEYED = 1e-6
"""Largest residual of a truth that obeys the constraint."""


def check_constraint(checks: Checks, build: Callable[[System], Constraint], worlds: list[World]) -> None:
    """On the first world that the constraint can be built for."""
    refused = []
    for world in worlds:
        try:
            constraint = build(world.system)
        except (ValueError, TypeError) as error:
            refused.append(f"on {world.name}: {error}")
            continue
        truth = world.truth()
        if isinstance(constraint, JudgesModels):
            _check_judgement(checks, constraint, world, truth)
            return
        _check_residual(checks, constraint, truth)
        if isinstance(constraint, HasRetraction):
            _check_retraction(checks, constraint, truth)
        if isinstance(constraint, HasParametrisation):
            _check_parametrisation(checks, constraint, truth)
        return
    raise AssertionError("no world it works on; give system=...\n    " + "\n    ".join(refused))


def _check_residual(checks: Checks, constraint: Constraint, truth: Trajectory) -> None:
    with torch.no_grad():
        residual = constraint.residual(truth)
    expected = list(truth.states.shape[:2])
    checks.that(list(residual.shape[:2]) == expected, f"a residual {expected} + [...]", list(residual.shape))
    worst = float(residual.abs().max())
    checks.that(worst <= OBEYED, "a residual of zero on the truth", f"{worst:.3g}")
    leaf = truth.states.clone().requires_grad_()
    with torch.enable_grad():
        value = constraint.residual(truth.replace(states=leaf))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    checks.that(finite(gradient), "a residual that can be differentiated where it is zero")
    ramp = torch.linspace(1.0, 2.0, len(truth.times)).reshape(-1, *[1] * len(truth.state_shape))
    broken = (truth.replace(states=truth.states * ramp.to(truth.states)), _disturbed(truth, 1.0))
    checks.that(
        any(bool((constraint.residual(wrong).abs() > OBEYED).any()) for wrong in broken),
        "a residual on a trajectory that is blown up, or on one with noise of its own size",
    )


def _check_judgement(checks: Checks, constraint: JudgesModels, world: World, truth: Trajectory) -> None:
    model = Truth(world.system, truth)
    model.known = truth
    first, again = (constraint.model_residual(truth, model, seeded(0)) for _ in range(2))
    expected = [len(truth), *truth.states.shape[2:3]]
    found = [len(first), *first.shape[2:3]]
    checks.that(found == expected, "a residual of the model [trajectory, draw, time, ...]", list(first.shape))
    checks.that(float(first.abs().max()) <= OBEYED, "a residual of zero for the true system as a model")
    checks.that(torch.equal(first, again), "the same residual from the same generator")


def _check_retraction(checks: Checks, constraint: Any, truth: Trajectory) -> None:
    wrong = _disturbed(truth, 0.1)
    wrong.states[:, :, 0] = truth.states[:, :, 0]
    moved = constraint.retract(wrong)
    worst = float(constraint.residual(moved).abs().max())
    checks.that(worst <= OBEYED, "a retracted trajectory to obey", f"a residual of {worst:.3g}")
    checks.that(torch.equal(moved.states[:, :, 0], truth.states[:, :, 0]), "retract to hold frame 0")
    stays = constraint.retract(truth).states
    checks.that(_near(stays, truth.states), "retract to leave a trajectory that obeys")


def _check_parametrisation(checks: Checks, constraint: Any, truth: Trajectory) -> None:
    free = constraint.free(truth)
    back = constraint.obeying(free, truth.times)
    checks.that(
        back.states.shape == truth.states.shape and _near(back.states, truth.states),
        "obeying(free(x)) to be x for an x that obeys",
    )
    other = constraint.obeying(_disturbed(free, 0.1), truth.times)
    worst = float(constraint.residual(other).abs().max())
    checks.that(worst <= OBEYED, "obeying(y) to obey for other y", f"a residual of {worst:.3g}")
    one = constraint.free(truth.span(0, 1))
    checks.that(
        torch.equal(one.states, free.states[:, :, :1]), "free of a context of one frame to be its first frame"
    )


def _disturbed(truth: Trajectory, share: float) -> Trajectory:
    """With noise of a share of each number's deviation."""
    states = truth.states
    noise = torch.randn(states.shape, dtype=torch.float64, generator=seeded(2)).to(states)
    return truth.replace(states=states + share * noise * states.flatten(0, 2).std(0, correction=0))


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).abs() <= OBEYED * (1 + expected.abs().max())).all())


def check_metric(checks: Checks, build: Callable[[System], Metric], worlds: list[World]) -> None:
    """On every world; at least one must be measurable."""
    reasons: list[str] = []
    for world in worlds:
        truth = world.truth()
        for guess in (truth, _ensemble(truth)):
            try:
                scores = _scored(build(world.system), world, truth, guess)
            except (NotMeasurable, ValueError, TypeError) as error:
                reasons.append(f"on {world.name}: {error}")
                continue
            measured = [name for name, score in scores.items() if not score.reason]
            reasons += [
                f"on {world.name}: {name}: {score.reason}" for name, score in scores.items() if score.reason
            ]
            if measured:
                _check_scores(checks, build, world, truth, guess, scores)
                return
    raise AssertionError("no world it can measure; give system=...\n    " + "\n    ".join(reasons))


def _ensemble(truth: Trajectory) -> Trajectory:
    """The truth as several draws, for metrics of ensembles."""

    def several(value: Tensor) -> Tensor:
        return value.expand(-1, DRAWS, *value.shape[2:])

    observables = {name: several(value) for name, value in truth.observables.items()}
    length = None if truth.length is None else several(truth.length)
    return truth.replace(states=several(truth.states), observables=observables, length=length)


def _scored(metric: Metric, world: World, truth: Trajectory, guess: Trajectory) -> Mapping[str, Score]:
    model = Truth(world.system, truth)
    model.known = truth
    return metric.score(truth, guess, model)


def _check_scores(
    checks: Checks,
    build: Callable[[System], Metric],
    world: World,
    truth: Trajectory,
    guess: Trajectory,
    scores: Mapping[str, Score],
) -> None:
    good = isinstance(scores, Mapping) and all(isinstance(score, Score) for score in scores.values())
    checks.that(good, "a mapping of names to Score", repr(scores)[:80])
    patterns = getattr(build(world.system), "met_by", {})
    texts = isinstance(patterns, Mapping) and all(isinstance(t, str) for kv in patterns.items() for t in kv)
    checks.that(texts, "met_by: a mapping of patterns of names to sentences", repr(patterns)[:80])
    before = truth.states.clone()
    with checks.leaving_random_state("score"):
        again = _scored(build(world.system), world, truth, guess)
    checks.that(torch.equal(truth.states, before), "score to leave the trajectories it is given as they are")
    order = torch.arange(1, len(truth) + 1) % len(truth)
    wrong = _scored(build(world.system), world, truth, guess.rows(order))
    for name, score in scores.items():
        _check_score(checks, name, score)
        same = [shown(_number(one)) for one in (score, again[name])]
        checks.that(same[0] == same[1], f"{name} to be the same when it is asked for again", same)
        if score.better and not score.dims and not score.reason and name in wrong and not wrong[name].reason:
            _check_direction(checks, name, score, wrong[name])


def _check_score(checks: Checks, name: str, score: Score) -> None:
    value = torch.as_tensor(score.value, dtype=torch.float64)
    checks.that(value.dim() == len(score.dims), f"{name}: a name for each of {value.dim()} dims", score.dims)
    checks.that(
        score.better in ("lower", "higher", ""), f"{name}: better lower, higher or empty", score.better
    )
    if not score.dims:
        known = math.isfinite(float(value)) or bool(score.reason)
        checks.that(known, f"{name}: a finite number, or a reason why there is none", value)
    if score.interval is not None:
        low, high = score.interval
        checks.that(low <= high, f"{name}: an interval from low to high", score.interval)


def _check_direction(checks: Checks, name: str, right: Score, wrong: Score) -> None:
    sign = 1 if right.better == "lower" else -1
    gap = sign * (_number(wrong) - _number(right))
    found = f"{_number(right):.3g} for the truth and {_number(wrong):.3g} for another trajectory's"
    checks.that(gap >= -1e-9, f"{name} ({right.better} is better) not to be worse for the truth", found)


def _number(score: Score) -> float:
    value = torch.as_tensor(score.value, dtype=torch.float64)
    return float(value) if value.dim() == 0 else float(value.nansum())
