"""Scores summarised over seeds, and drawn as a table in the terminal or a notebook."""

from __future__ import annotations

import html
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

    from worldsim.composed import Cell, Grid
    from worldsim.protocols import Score
    from worldsim.results import Results, Row


@dataclass(frozen=True)
class Summary:
    """One score of one model over its seeds.

    ``low`` and ``high``: minimum and maximum below five seeds, a 95 % t-interval from five on; the score's
    own interval for a single seed.
    """

    scenario: str
    split: str
    metric: str
    name: str
    model: str
    baseline: bool
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    floor: float | None
    better: str
    units: str
    n: int
    reasons: tuple[str, ...]
    met_by: str = ""


def scalars(rows: Iterable[Row]) -> Iterator[Row]:
    """Scalar scores; an array along one labelled axis gives one for each label, ``name[label]``."""
    for row in rows:
        score = row.score
        labels = score.coords.get(score.dims[0]) if len(score.dims) == 1 else None
        if not score.dims:
            yield row
        elif labels is not None and all(isinstance(label, str) for label in labels):
            for label, value in zip(labels, np.asarray(score.value), strict=True):
                one = replace(score, value=float(value), dims=(), coords={}, interval=None)
                yield replace(row, name=f"{row.name}[{label}]", score=one)


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Scalar scores, grouped over seeds, in the order they come."""
    groups: dict[tuple[str, str, str, str], _Seeds] = {}
    for row in scalars(rows):
        place = row.scenario, row.split, row.name, row.model
        if place not in groups:
            groups[place] = _Seeds(row)
        groups[place].add(row.score)
    return _with_floors([group.summary() for group in groups.values()])


class _Seeds:
    """A score of a model, seed by seed: the numbers alone, for a batch has 100,000."""

    def __init__(self, first: Row) -> None:
        self.first = first
        self.values, self.floors = array("d"), array("d")
        self.interval: tuple[float, float] | None = None
        self.reasons: dict[str, None] = {}
        self.met_by = ""

    def add(self, score: Score) -> None:
        if score.reason:
            self.reasons[score.reason] = None
        else:
            self.values.append(float(score.value))
            self.interval = score.interval
        if score.floor is not None:
            self.floors.append(score.floor)
        self.met_by = self.met_by or score.met_by

    def summary(self) -> Summary:
        first, good = self.first, tuple(self.values)
        low, high = self.interval if len(good) == 1 and self.interval else interval(good)
        return Summary(
            first.scenario, first.split, first.metric, first.name, first.model, first.baseline, good,
            float(np.mean(good)) if good else math.nan, low, high,
            float(np.mean(self.floors)) if self.floors else None,
            first.score.better, first.score.units, first.score.n, tuple(self.reasons), self.met_by,
        )  # fmt: skip


def _with_floors(summaries: list[Summary]) -> list[Summary]:
    """Where a metric gives no floor of its own, the true system's score stands for it."""
    truth = {(s.scenario, s.split, s.name): s.mean for s in summaries if s.baseline and s.model == "truth"}

    def floor(summary: Summary) -> float | None:
        own = truth.get((summary.scenario, summary.split, summary.name))
        return own if summary.floor is None and summary.better else summary.floor

    return [replace(summary, floor=floor(summary)) for summary in summaries]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Minimum and maximum below five values, a 95 % t-interval of the mean from five on."""
    if not values:
        return math.nan, math.nan
    if len(values) < 5:
        return min(values), max(values)
    from scipy.stats import t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def shown(value: float | None) -> str:
    """Three significant digits, no more than a score deserves."""
    if value is None or math.isnan(value):
        return "–"
    return "0" if value == 0 else f"{value:.3g}"


def cell(summary: Summary) -> str:
    """``mean [low, high]``, or why there is no number."""
    if not summary.values:
        return "not measurable"
    if summary.low == summary.high == summary.mean:
        return shown(summary.mean)
    return f"{shown(summary.mean)} [{shown(summary.low)}, {shown(summary.high)}]"


def heading(summary: Summary) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(summary.better, "")
    unit = "" if summary.units in ("", "1") else f" ({summary.units})"
    return f"{summary.name}{unit}{arrow}"


HEADLINES = 2
"""Scores of a metric in the terminal's table, the first that it names; the report has all of them."""
BESIDE = ("fidelity", "crps")
"""Shown wherever they are kept: coherence without fidelity may be that of a world which is wrong throughout,
and an error of single draws says nothing about a law."""
ROUNDING = 1e-9
"""Two numbers below this are the rounding of a computer."""
CELL_PADDING = 3
"""Columns that a border and the space beside it take."""


def terminal_tables(results: Results, scenario: str, every: bool = False, width: int = 160) -> list[Table]:
    """Models down, scores across, seeds as an interval, for each split of a scenario; as many tables below
    each other as ``width`` columns need."""
    tables = []
    summaries = summarise(results.rows(scenario))
    if not every:  # models under constraints have tables of their own
        composed = results.compositions(scenario)
        summaries = [s for s in summaries if s.model not in composed]
    for split in dict.fromkeys(s.split for s in summaries):
        part = [s for s in summaries if s.split == split and (every or s.better)]
        columns = _columns(part, list(dict.fromkeys(s.name for s in part)) if every else headlines(part))
        for i, group in enumerate(_fitting(columns, width)):
            title = f"{scenario} · {split}{' (more)' if i else ''}"
            tables.append(_table(title, columns[0], group, {"floor", *(s.model for s in part if s.baseline)}))
    return tables


def grid_table(grid: Grid) -> Table:
    """One constraint: models down, ways to be held to it across."""
    from rich.table import Table

    table = Table(title=f"{grid.scenario} · {grid.split}: {grid.constraint}", title_justify="left")
    table.add_column("model")
    for word in grid.columns:
        table.add_column(word or "no constraint")
    for base, cells in grid.cells.items():
        table.add_row(base, *(_grid_cell(cell, cells[0], grid.law) for cell in cells), end_section=True)
    table.caption = (
        "violation: median (largest), 0 for who obeys; then distance of law (floor), one-step defect, cost "
        "of sampling, and which law is sampled"
    )
    return table


def _grid_cell(cell: Cell, free: Cell, law: str) -> str:
    if cell.found is None:
        return cell.note
    m = cell.found
    flagged = f", {100 * m.flagged:.3g} % flagged" if m.flagged else ""
    worse = " WORSE" if cell.law_is_worse(free.found) else ""
    lines = [
        f"{shown(m.violation)} ({shown(m.worst)}{flagged})",
        f"{law} {shown(m.law)} ({shown(m.law_floor)}){worse}",
        f"defect {shown(m.defect)}",
        *([f"cost {shown(m.cost)}x, {cell.measure}"] if cell.word else []),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Beside:
    """A published number and, where one of our scores measures the same, ours."""

    model: str
    quantity: str
    published: str
    ours: str
    source: str
    note: str


def besides(results: Results, scenario: str) -> list[Beside]:
    """The ``published`` section of a scenario, with our own numbers filled in."""
    rows = results.document(scenario).get("published", ())
    ours = {(s.split, s.model, s.name): s for s in summarise(results.rows(scenario))} if rows else {}
    return [
        Beside(
            row["model"],
            row["quantity"],
            shown(row["value"]) + (f" ± {shown(row['spread'])}" if row.get("spread") is not None else ""),
            _ours(ours, row),
            row["source"],
            row.get("note", ""),
        )
        for row in rows
    ]


def _ours(found: Mapping[tuple[str, str, str], Summary], row: Mapping[str, Any]) -> str:
    if row.get("score") is None:
        return "–"
    summary = found.get((row.get("split", "test"), row["model"], row["score"]))
    return f"{row['score']} is not kept" if summary is None else cell(summary)


def published_table(results: Results, scenario: str) -> Table | None:
    """What ``besides`` says, for the terminal; None when nothing is published."""
    from rich.table import Table

    rows = besides(results, scenario)
    if not rows:
        return None
    table = Table(title=f"{scenario} · beside what is published", title_justify="left")
    for name in ("model", "quantity", "published", "ours", "source", "note"):
        table.add_column(name, justify="right" if name in ("published", "ours") else "left")
    for row in rows:
        table.add_row(row.model, row.quantity, row.published, row.ours, row.source, row.note)
    return table


def _columns(part: Sequence[Summary], names: Sequence[str]) -> list[list[str]]:
    """The models, then every score: each a heading and a cell for each model."""
    models = list(dict.fromkeys(s.model for s in part))
    by_place = {(s.name, s.model): s for s in part}
    columns = [["model", *models]]
    floors = []
    for name in names:
        found = [by_place.get((name, model)) for model in models]
        title = heading(next(s for s in found if s))
        columns.append([title, *(cell(s) if s else "–" for s in found)])
        floors.append(_own_floor(found))
    if any(floors):
        for column, floor in zip(columns, ["floor", *floors]):
            column.append(floor or "–")
    return columns


def _own_floor(found: Sequence[Summary | None]) -> str:
    """The floor of a score, where it is not what the true system scores, which has a row already."""
    truth = next((s.mean for s in found if s and s.baseline and s.model == "truth"), None)
    floor = next((s.floor for s in found if s and s.floor is not None), None)
    if floor is None or math.isnan(floor):
        return ""
    if truth is not None and math.isclose(floor, truth, abs_tol=ROUNDING):
        return ""
    return shown(floor)


def _fitting(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """The columns after the first in groups that fit beside it; at least one in each."""
    groups: list[list[list[str]]] = []
    taken = 0
    for column in columns[1:]:
        wide = _width(column)
        if not groups or taken + wide > width:
            groups.append([])
            taken = _width(columns[0]) + 1
        groups[-1].append(column)
        taken += wide
    return groups


def _width(column: Sequence[str]) -> int:
    return max(map(len, column)) + CELL_PADDING


def _table(title: str, models: list[str], columns: Sequence[list[str]], dimmed: set[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(models[0])
    for column in columns:
        table.add_column(column[0], justify="right")
    for model, *cells in zip(models[1:], *(column[1:] for column in columns)):
        if set(cells) == {"–"}:
            continue
        table.add_row(model, *cells, style="dim" if model in dimmed else "")
    return table


def is_variant(name: str, names: Iterable[str]) -> bool:
    """Whether a score is named after another one: ``W2_squared`` after ``W2``."""
    return any(name.startswith(f"{other}_") for other in names)


def headlines(summaries: Sequence[Summary]) -> list[str]:
    """The first scores of each metric that are no variants, measured ones before others, and none that is met
    without understanding where there is another; the labels of one score count as one."""
    by_metric: dict[str, dict[str, dict[str, None]]] = {}
    measured = {summary.name for summary in summaries if summary.values}
    for summary in summaries:
        score = summary.name.partition("[")[0]
        by_metric.setdefault(summary.metric, {}).setdefault(score, {})[summary.name] = None
    found = []
    for scores in by_metric.values():
        own = [score for score in scores if not is_variant(score, scores)]
        own.sort(key=lambda score: not measured & scores[score].keys())
        gated = "coherence_auc" if "fidelity" in scores else ""
        alone = [score for score in own if score == gated or not _is_met(scores[score], summaries)]
        own = alone if any(measured & scores[score].keys() for score in alone) else own
        shown = [*own[:HEADLINES], *(score for score in own[HEADLINES:] if score in BESIDE)]
        found += [name for score in shown for name in scores[score]]
    return found


def _is_met(names: Iterable[str], summaries: Sequence[Summary]) -> bool:
    """Whether a score, with its labels ``names``, is met without understanding: its metric says so, or a
    baseline is as good as the truth for each of them."""
    groups = [[s for s in summaries if s.name == name] for name in names]
    return any(s.met_by for group in groups for s in group) or all(map(_a_baseline_meets, groups))


def _a_baseline_meets(group: Sequence[Summary]) -> bool:
    means = {s.model: s.mean for s in group if s.baseline and s.values}
    truth = means.pop("truth", math.nan)
    return met_without_truth(group[0].better, truth, means.values())


def met_without_truth(better: str, truth: float, baselines: Iterable[float]) -> bool:
    """Whether a baseline is at least as good as the true system: the score cannot tell them apart."""
    sign = 1 if better == "lower" else -1
    return any(sign * value <= sign * truth + ROUNDING for value in baselines)


def as_html(results: Results) -> str:
    """The scores as an HTML table for a notebook; every text is escaped."""
    lines = ["<table><tr><th>scenario<th>split<th>model<th>score<th>value<th>floor"]
    for s in summarise(results.rows()):
        texts = (s.scenario, s.split, s.model, heading(s), cell(s), shown(s.floor))
        lines.append("<tr>" + "".join(f"<td>{html.escape(text)}" for text in texts))
    return "\n".join([*lines, "</table>"])
