"""Who stands where: every score of a scenario as a board of models over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from worldsim.results import Row
from worldsim.tables import interval, is_variant, met_without_truth

Kind = Literal["learned", "model", "reference", "baseline", "truth"]
GRIDS = frozenset({"time", "pair", "point", "axis", "class", "frame", "probability"})
"""Axes that are sampled, not named: an array over one of them is a picture, never a column of numbers."""


@dataclass(frozen=True)
class Standing:
    """One model on one score. ``values`` by seed; ``reasons`` why a seed has none."""

    model: str
    kind: Kind
    values: dict[int, float]
    reasons: tuple[str, ...]
    floor: float | None
    own_interval: tuple[float, float] | None
    failed: int

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """Minimum and maximum below five seeds, a t-interval from five on, a single value's own interval."""
        if len(self.values) == 1 and self.own_interval:
            return self.own_interval
        return interval(list(self.values.values()))

    @property
    def ranks(self) -> bool:
        """Measured on every seed and on every trajectory: nobody wins by leaving out what went wrong."""
        return bool(self.values) and not self.reasons and self.failed == 0


@dataclass(frozen=True)
class Board:
    """One score on one split, with everybody who has it. ``label`` is one entry of a named axis, or ""."""

    split: str
    metric: str
    name: str
    label: str
    better: str
    units: str
    standings: tuple[Standing, ...]
    met_by: str = ""
    """Who scores like the truth without following it, as the metric says."""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.label}" if self.label else self.name

    def ranked(self) -> list[Standing]:
        """Those that rank, best first; nobody where the score has no better end."""
        if not self.better:
            return []
        sign = 1 if self.better == "lower" else -1
        return sorted((s for s in self.standings if s.ranks), key=lambda s: sign * s.mean)

    def of(self, model: str) -> Standing | None:
        return next((s for s in self.standings if s.model == model), None)

    def at_least(self, one: float, other: float) -> bool:
        """Whether ``one`` is as good as ``other`` or better."""
        return one <= other if self.better == "lower" else one >= other


def by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    return models


def kinds(rows: Sequence[Row], learns: Mapping[str, bool]) -> dict[str, Kind]:
    """Model -> kind. ``learns`` says which models are trained; who is not in it is just a "model"."""
    baseline = {row.model: row.baseline for row in rows}
    return {model: _kind(model, is_baseline, learns.get(model)) for model, is_baseline in baseline.items()}


def _kind(model: str, baseline: bool, learns: bool | None) -> Kind:
    if baseline:
        return "truth" if model == "truth" else "baseline"
    return "model" if learns is None else "learned" if learns else "reference"


def boards(rows: Sequence[Row], kind: Mapping[str, Kind]) -> list[Board]:
    """Every number of a scenario, in the order it is kept; an array over a named axis gives one a label."""
    groups: dict[tuple[str, str, str, str], dict[str, list[Row]]] = {}
    for row in _numbers(rows):
        label = str(row.score.coords.get("label", ""))
        models = groups.setdefault((row.split, row.metric, row.name, label), {})
        models.setdefault(row.model, []).append(row)
    return [
        Board(
            *key, _better(models), next(iter(models.values()))[0].score.units,
            tuple(_standing(model, kind[model], group) for model, group in models.items()),
            next((r.score.met_by for rows in models.values() for r in rows if r.score.met_by), ""),
        )
        for key, models in groups.items()
    ]  # fmt: skip


def _numbers(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        if not row.score.dims:
            yield replace(row, score=replace(row.score, coords={}))
        elif is_labelled(row):
            labels = row.score.coords.get(row.score.dims[0]) or range(len(np.asarray(row.score.value)))
            for label, value in zip(labels, np.asarray(row.score.value).tolist()):
                reason = row.score.reason or ("" if math.isfinite(value) else "it has no finite value")
                one = replace(row.score, value=value, dims=(), coords={"label": label}, reason=reason)
                yield replace(row, score=one)


def is_labelled(row: Row) -> bool:
    return len(row.score.dims) == 1 and row.score.dims[0] not in GRIDS and row.name != "coupling_match"


def _better(models: dict[str, list[Row]]) -> str:
    """A score that could not be measured for one model may have lost its direction there."""
    return next((r.score.better for group in models.values() for r in group if r.score.better), "")


def _standing(model: str, kind: Kind, rows: Sequence[Row]) -> Standing:
    good = [row for row in rows if not row.score.reason]
    floors = [row.score.floor for row in good if row.score.floor is not None]
    return Standing(
        model, kind,
        {row.seed: float(row.score.value) for row in good},
        tuple(dict.fromkeys(row.score.reason for row in rows if row.score.reason)),
        float(np.mean(floors)) if floors else None,
        good[0].score.interval if good else None,
        max(row.score.failed for row in rows),
    )  # fmt: skip


def fidelity_beside(board: Board, found: Iterable[Board]) -> Board | None:
    """How far a model's futures are from the truth's, where the metric of ``board`` says so beside it."""
    for other in found:
        if (other.split, other.metric, other.name) == (board.split, board.metric, "fidelity"):
            return other if other.name != board.name else None
    return None


def among_faithful(board: Board, fidelity: Board) -> Board:
    """``board`` with a reason beside every model whose futures are no nearer to the truth's than those of a
    baseline: a model that is wrong in one and the same way everywhere is coherent, and nothing more."""
    rivals = [s for s in fidelity.ranked() if s.kind == "baseline" and s.model != "memoriser"]
    if not rivals:
        return board
    best = rivals[0]
    reason = f"no nearer to the true futures than the baseline {best.model}"
    poor = {
        s.model
        for s in fidelity.standings
        if s.kind not in ("baseline", "truth") and s.ranks and fidelity.at_least(best.mean, s.mean)
    }
    return replace(
        board,
        standings=tuple(
            replace(s, reasons=(*s.reasons, reason)) if s.model in poor else s for s in board.standings
        ),
    )


def main_split(found: Sequence[Board]) -> str:
    """ "test", or the first one where there is none of that name."""
    splits = list(dict.fromkeys(board.split for board in found))
    return "test" if "test" in splits or not splits else splits[0]


def headlines(found: Sequence[Board], split: str, each: int = 2) -> list[list[Board]]:
    """What a reader looks at first: up to ``each`` scores of every metric, a labelled one as one group.

    Of a metric, what could be measured comes first, then what stands over named things, then what most models
    have, then the order in which it is kept; a score named after an earlier one (``W2_squared``) is a
    variant of it, not a new one.
    The error of a forecast law is always among them: that of single draws says nothing about a law.
    A score that is met without understanding is left out wherever the metric has another one.
    """
    chosen = []
    for metric in dict.fromkeys(board.metric for board in found):
        groups: dict[str, list[Board]] = {}
        for board in found:
            if (board.split, board.metric) == (split, metric) and board.better:
                groups.setdefault(board.name, []).append(board)
        ordered = sorted(groups, key=lambda name: _place(groups[name][0]))
        names: list[str] = []
        for name in ordered:
            if not is_variant(name, groups):
                names.append(name)
        alone = [name for name in names if not is_met(groups[name], found)]
        names = alone if any(s.values for name in alone for s in groups[name][0].standings) else names
        beside = [name for name in names[each:] if name == "crps"] if each > 1 else []
        chosen += [groups[name] for name in [*names[:each], *beside]]
    return chosen


def is_met(group: Sequence[Board], found: Iterable[Board]) -> bool:
    """Whether the boards of one score are met without understanding: the metric says so, or a baseline is as
    good as the truth in all of them. Coherence with its fidelity is not, since who is as far from the truth
    as a baseline does not rank in it."""
    if group[0].name == "coherence_auc" and fidelity_beside(group[0], found):
        return False
    return any(board.met_by for board in group) or all(map(_a_baseline_meets, group))


def _a_baseline_meets(board: Board) -> bool:
    truth = next((s.mean for s in board.standings if s.kind == "truth" and s.ranks), math.nan)
    baselines = [s.mean for s in board.standings if s.kind == "baseline" and s.ranks]
    return met_without_truth(board.better, truth, baselines)


def _place(board: Board) -> tuple[bool, bool, int]:
    return not any(s.values for s in board.standings), not board.label, -len(board.standings)
