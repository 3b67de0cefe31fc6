"""Score what was rolled out: the metrics of a scenario, and the residual of each constraint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from worldsim.errors import NotMeasurable, PluginError, WorldsimError
from worldsim.files import is_file
from worldsim.params import Component
from worldsim.protocols import Constraint, JudgesModels, Metric, Model, Score, System, Trajectory
from worldsim.scenario import Case, digest
from worldsim.store import Store


@dataclass(frozen=True)
class ScoredPart:
    """A metric, or a constraint whose residual is scored: one score file for each case."""

    component: Component
    splits: tuple[str, ...]
    key: str
    case: Case

    def score(
        self, system: System, truth: Trajectory, guess: Trajectory, model: Model, split: str = ""
    ) -> dict[str, Score]:
        """Raises PluginError, naming the plugin, when the metric or the constraint raises."""
        name, noun, plugins = self.component.name, self.component.noun, self.case.scenario.registry
        try:
            built = self.built(system, split)
            if noun == "constraint":
                return with_caveats(built, residual_scores(name, built, guess, truth, model))
            return score_with(name, built, truth, guess, model)
        except NotMeasurable as reason:
            return {name: Score(float("nan"), better="", n=0, reason=str(reason))}
        except WorldsimError:
            raise
        except Exception as error:
            provider = plugins.provider(noun, name)
            told = f"{type(error).__name__}: {error}"
            raise PluginError(f"{noun} {name!r} of {provider} raised {told}") from error

    def built(self, system: System, split: str) -> Any:
        """The component, or for a ``split`` one built before in this process where it lets itself be used
        again: what it knows of the truth, such as a floor, is not computed for each model."""
        plugins = self.case.scenario.registry
        if not split or not getattr(
            plugins.builder(self.component.noun, self.component.name), "reusable", False
        ):
            return self.component.build(plugins, system=system)
        shelf = plugins.shelf
        key = digest([self.component.canonical(), self.case.scenario.split_systems[split].canonical()])
        if key not in shelf:
            while len(shelf) >= SHELF:
                del shelf[next(iter(shelf))]
            shelf[key] = self.component.build(plugins, system=system)
        return shelf[key]


SHELF = 8
"""How many reusable metrics a process keeps."""


def scored_parts(case: Case) -> list[ScoredPart]:
    """Every metric of the scenario, and every constraint that it scores or holds a model to."""
    return [ScoredPart(part, splits, key, case) for part, splits, key in case.scenario.scored]


def is_scored(case: Case, store: Store) -> bool:
    """Whether every score of ``case`` is kept."""
    return all(is_file(store.score_path(case.key, part.key)) for part in scored_parts(case))


def score_with(
    name: str, metric: Metric, truth: Trajectory, guess: Trajectory, model: Model
) -> dict[str, Score]:
    """The scores of one metric; a metric that cannot be measured here says so and gives no number.

    Raises PluginError when it returns anything but a mapping of names to ``Score``.
    """
    try:
        scores = metric.score(truth, guess, model)
    except NotMeasurable as reason:
        return {name: Score(float("nan"), better="", n=0, reason=str(reason))}
    if not isinstance(scores, Mapping) or not all(isinstance(s, Score) for s in scores.values()):
        raise PluginError(
            f"metric {name!r}: score must return a mapping of names to Score, it gave {scores!r:.80}"
        )
    return with_caveats(metric, {key: _checked(name, key, score) for key, score in scores.items()})


def with_caveats(part: Metric | Constraint, scores: Mapping[str, Score]) -> dict[str, Score]:
    """The scores with what the metric or constraint says of their names: who meets them without
    understanding. The first pattern that fits counts; what a score says of itself stands."""
    patterns: Mapping[str, str] = getattr(part, "met_by", {})

    def caveat(name: str) -> str:
        return next((text for pattern, text in patterns.items() if fnmatchcase(name, pattern)), "")

    return {
        name: replace(score, met_by=score.met_by or (caveat(name) if score.better else ""))
        for name, score in scores.items()
    }


def _checked(metric: str, name: str, score: Score) -> Score:
    """A number that is not finite must not look like one."""
    value = np.asarray(score.value, dtype=np.float64)
    if value.ndim != len(score.dims):
        raise PluginError(f"metric {metric!r}: {name} has dims {score.dims} but shape {value.shape}")
    if score.reason:
        return score
    if value.ndim == 0 and not np.isfinite(value):
        return Score(
            float("nan"), better=score.better, n=score.n, failed=score.failed, reason=f"it is {value}"
        )
    if value.size and not np.isfinite(value).any():
        lost = f"{score.failed} of {score.n} rollouts failed" if score.failed else "none of it is finite"
        return replace(score, reason=lost)
    return score


WHY_NOT = {1: "unreachable", 2: "not_finite", 3: "unfinished"}
"""Codes of a projection's status, as ``worldsim_kernels.project.Status`` has them."""


def residual_scores(
    name: str,
    constraint: Constraint,
    guess: Trajectory,
    truth: Trajectory | None = None,
    model: Model | None = None,
) -> dict[str, Score]:
    """Median and maximum over rollouts of the largest |residual|; floor 0 by definition.

    Of a residual of each frame, that of frame 0, which was given, is left out. A constraint that judges
    models asks ``model`` again, from torch's own generator, which the caller forks and seeds.
    """
    if isinstance(constraint, JudgesModels):
        if truth is None or model is None:
            raise NotMeasurable(f"{name} judges a model by asking it again, and there is none here")
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        residual = constraint.model_residual(truth, model, rng).detach().abs().double()
    else:
        residual = constraint.residual(guess).detach().abs().double()
    if getattr(constraint, "local_in_time", False) or residual.shape[2:3] == guess.times.shape:
        residual = residual[:, :, 1:]
    worst = residual.reshape(*residual.shape[:2], -1).amax(2).flatten()
    good = worst.isfinite()
    failed = int((~good).sum())
    if failed:
        reason = f"{failed} of {len(worst)} rollouts have no finite residual"
        return {f"violation_{name}": Score(float("nan"), n=len(worst), failed=failed, reason=reason)}
    scores = {
        f"violation_{name}": Score(float(worst.median()), floor=0.0, n=len(worst)),
        f"violation_{name}_max": Score(float(worst.max()), floor=0.0, n=len(worst)),
    }
    flag = guess.observables.get(f"projected_{name}")
    if flag is not None:
        off = float((flag[:, :, 0] < 1).double().mean())
        scores[f"projection_failures_{name}"] = Score(off, floor=0.0, n=len(worst))
        status = guess.observables.get(f"projection_status_{name}", torch.zeros(()))
        for code in WHY_NOT:
            share = float((status[:, :, 0] == code).double().mean()) if status.ndim else 0.0
            if share:
                scores[f"projection_{WHY_NOT[code]}_{name}"] = Score(share, floor=0.0, n=len(worst))
    return scores


def to_document(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Plain JSON; NaN is written as null and read back as NaN."""
    return {
        name: {
            "value": _plain(score.value),
            "dims": list(score.dims),
            "better": score.better,
            "units": score.units,
            "floor": _plain(score.floor),
            "interval": _plain(score.interval),
            "n": int(score.n),
            "failed": int(score.failed),
            "reason": score.reason,
            "coords": {key: _plain(value) for key, value in score.coords.items()},
            "met_by": score.met_by,
        }
        for name, score in scores.items()
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value.tolist() if hasattr(value, "tolist") else value)
    if array.dtype.kind in "UOS":
        return [str(item) for item in array.tolist()]
    return _null(array.tolist())


def _null(value: Any) -> Any:
    if isinstance(value, list):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def from_document(document: Mapping[str, Any]) -> dict[str, Score]:
    """The scores as they were before ``to_document``."""
    return {name: _score(entry) for name, entry in document.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _score(entry: Mapping[str, Any]) -> Score:
    value = np.asarray(entry["value"], dtype=np.float64)
    interval = entry["interval"]
    return Score(
        value=float(value) if value.ndim == 0 else value,
        dims=tuple(entry["dims"]),
        better=entry["better"],
        units=entry["units"],
        floor=entry["floor"],
        interval=None if interval is None else (_number(interval[0]), _number(interval[1])),
        n=entry["n"],
        failed=entry["failed"],
        reason=entry["reason"],
        coords=entry["coords"],
        met_by=entry.get("met_by", ""),  # results kept by earlier versions do not say
    )
