"""Scores summarised over seeds, and drawn as a table in the terminal or a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

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
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in scalars(rows):
        groups.setdefault((row.scenario, row.split, row.name, row.model), []).append(row)
    return _with_floors([_summary(group) for group in groups.values()])


def _with_floors(summaries: list[Summary]) -> list[Summary]:
    """Where a metric gives no floor of its own, the true system's score stands for it."""
    truth = {(s.scenario, s.split, s.name): s.mean for s in summaries if s.baseline and s.model == "truth"}

    def floor(summary: Summary) -> float | None:
        own = truth.get((summary.scenario, summary.split, summary.name))
        return own if summary.floor is None and summary.better else summary.floor

    return [replace(summary, floor=floor(summary)) for summary in summaries]


def _summary(group: Sequence[Row]) -> Summary:
    first = group[0]
    good = [float(row.score.value) for row in group if not row.score.reason]
    low, high = interval(good)
    if len(good) == 1 and (own := next(r.score for r in group if not r.score.reason).interval):
        low, high = own
    floors = [row.score.floor for row in group if row.score.floor is not None]
    return Summary(
        first.scenario, first.split, first.metric, first.name, first.model, first.baseline, tuple(good),
        float(np.mean(good)) if good else math.nan, low, high,
        float(np.mean(floors)) if floors else None,
        first.score.better, first.score.units, first.score.n,
        tuple(dict.fromkeys(row.score.reason for row in group if row.score.reason)),
    )  # fmt: skip


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


def terminal_tables(results: Results, every: bool = False) -> list[Table]:
    """One table a scenario and split: models down, scores across, seeds as an interval."""
    from rich.table import Table

    tables = []
    for scenario in results.scenarios:
        summaries = summarise(results.rows(scenario))
        for split in dict.fromkeys(s.split for s in summaries):
            part = [s for s in summaries if s.split == split and (every or s.better)]
            names = list(dict.fromkeys(s.name for s in part))
            names = names if every else headlines(part)
            table = Table(
                title=f"{scenario} · {split}", caption=results.about(scenario), title_justify="left"
            )
            table.add_column("model")
            for name in names:
                table.add_column(heading(next(s for s in part if s.name == name)), justify="right")
            for model in dict.fromkeys(s.model for s in part):
                mine = {s.name: s for s in part if s.model == model}
                style = "dim" if next(iter(mine.values())).baseline else ""
                cells = [cell(mine[name]) if name in mine else "–" for name in names]
                table.add_row(model, *cells, style=style)
            tables.append(table)
    return tables


def headlines(summaries: Sequence[Summary]) -> list[str]:
    """The first scores of each metric; the labels of one score count as one."""
    by_metric: dict[str, dict[str, dict[str, None]]] = {}
    for summary in summaries:
        score = summary.name.partition("[")[0]
        by_metric.setdefault(summary.metric, {}).setdefault(score, {})[summary.name] = None
    firsts = [names for scores in by_metric.values() for names in list(scores.values())[:HEADLINES]]
    return [name for names in firsts for name in names]


def as_html(results: Results) -> str:
    """The scores as an HTML table for a notebook; every text is escaped."""
    lines = ["<table><tr><th>scenario<th>split<th>model<th>score<th>value<th>floor"]
    for s in summarise(results.rows()):
        texts = (s.scenario, s.split, s.model, heading(s), cell(s), shown(s.floor))
        lines.append("<tr>" + "".join(f"<td>{html.escape(text)}" for text in texts))
    return "\n".join([*lines, "</table>"])
