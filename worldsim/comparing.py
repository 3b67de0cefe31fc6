"""Two models, or two results folders, score by score: paired differences, their intervals and tests.

Pairs have the scenario, the split, the score and the seed in common; one case without seeds (a baseline)
stands beside every seed of the other side. The test is Student's paired t-test, which takes differences for
normal: with three seeds that is an assumption, and the interval says how little they tell. Its p-values are
corrected for their number by Holm's method (Holm 1979), which keeps the chance that any of them is wrong
below the level that is read off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldsim.errors import ResultError, did_you_mean
from worldsim.results import Results, Row, open_results
from worldsim.tables import scalars

if TYPE_CHECKING:
    from rich.table import Table

LEVEL = 0.05
Place = tuple[str, str, str, str]
"""Scenario, split, score, and the model where folders are compared."""


@dataclass(frozen=True)
class Difference:
    """One score of B less that of A over the pairs.

    first, second  means of A and of B over the pairs
    mean           of the differences, with its 95 % t-interval ``low`` to ``high`` (NaN for fewer than two)
    pairs          how many there are
    alone          seeds that only one side has measured
    p, corrected   of the paired t-test, and by Holm's method among all of one comparison; NaN where the test
                   has nothing to say: fewer than two pairs, or one and the same difference in all
    reasons        why scores of either side are not measurable
    """

    scenario: str
    split: str
    name: str
    model: str
    better: str
    units: str
    first: float
    second: float
    mean: float
    low: float
    high: float
    pairs: int
    alone: tuple[int, ...]
    p: float
    corrected: float = math.nan
    reasons: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Which side is better, when the corrected p-value is below 0.05; "" otherwise."""
        if not self.corrected < LEVEL or not self.better:
            return ""
        return "B" if (self.mean < 0) == (self.better == "lower") else "A"


def compare(
    first: str | Path | Results,
    second: str | Path | Results,
    *,
    results: str | Path | Results = "results",
    split: str | None = None,
) -> list[Difference]:
    """B less A, for every score that ranks. A and B are two results folders, or two models or baselines of
    one folder, ``results``. ``split`` narrows it to one.

    Raises ResultError when there is no such model or folder, or nothing in common.
    """
    if _is_folder(first) and _is_folder(second):
        sides = [_groups(_opened(side), None, split) for side in (first, second)]
    else:
        found = _opened(results)
        sides = [_groups(found, _model(found, side), split) for side in (first, second)]
    places = [place for place in sides[0] if place in sides[1]]
    if not places:
        raise ResultError(f"{first} and {second} have no score in common")
    return corrected([difference(place, sides[0][place], sides[1][place]) for place in places])


def _is_folder(side: str | Path | Results) -> bool:
    return isinstance(side, Results) or Path(side).is_dir()


def _opened(side: str | Path | Results) -> Results:
    return side if isinstance(side, Results) else open_results(side)


def _model(found: Results, side: str | Path | Results) -> str:
    known = dict.fromkeys(entry.model for entry in found.entries)
    if str(side) not in known:
        raise ResultError(
            f"{side} is neither a results folder nor a model of {found.root}; "
            + did_you_mean(str(side), known)
        )
    return str(side)


def _groups(found: Results, model: str | None, split: str | None) -> dict[Place, list[Row]]:
    """Scores that rank, by place: of one model, or of every one."""
    groups: dict[Place, list[Row]] = {}
    for row in scalars(found.rows()):
        if model in (None, row.model) and split in (None, row.split):
            place = (row.scenario, row.split, row.name, "" if model else row.model)
            groups.setdefault(place, []).append(row)
    return {place: rows for place, rows in groups.items() if any(row.score.better for row in rows)}


def difference(place: Place, first: Sequence[Row], second: Sequence[Row]) -> Difference:
    """Of one score, not yet corrected."""
    reasons = tuple(dict.fromkeys(row.score.reason for row in (*first, *second) if row.score.reason))
    a, b = (
        {row.seed: float(row.score.value) for row in rows if not row.score.reason} for rows in (first, second)
    )
    a, b = _beside(a, b, first[0].baseline), _beside(b, a, second[0].baseline)
    seeds = sorted(a.keys() & b.keys())
    x, y = (np.array([side[seed] for seed in seeds], dtype=np.float64) for side in (a, b))
    low, high, p = _t_test(y - x)
    example = next(row.score for row in (*first, *second) if row.score.better)
    one, other, mean = (float(values.mean()) if seeds else math.nan for values in (x, y, y - x))
    alone = tuple(sorted(a.keys() ^ b.keys()))
    return Difference(
        *place, example.better, example.units, one, other, mean, low, high, len(seeds), alone, p,
        reasons=reasons,
    )  # fmt: skip


def _beside(own: Mapping[int, float], other: Mapping[int, float], baseline: bool) -> dict[int, float]:
    """A baseline has one case and no seed of its own: it is set beside every one of the other's."""
    if baseline and len(own) == 1:
        (value,) = own.values()
        return dict.fromkeys(other, value) if other else dict(own)
    return dict(own)


def _t_test(differences: np.ndarray) -> tuple[float, float, float]:
    """95 % interval of the mean, and the two-sided p-value of a mean of 0."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2:
        return math.nan, math.nan, math.nan
    if np.ptp(differences) == 0:
        mean = float(differences[0])
        return mean, mean, math.nan
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return float(low), float(high), float(test.pvalue)


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """With Holm's p-values: the k-th smallest of m times m - k + 1, and no smaller than the one before."""
    tested = sorted((d for d in found if not math.isnan(d.p)), key=lambda d: d.p)
    values: dict[int, float] = {}
    largest = 0.0
    for rank, one in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * one.p))
        values[id(one)] = largest
    return [replace(one, corrected=values.get(id(one), math.nan)) for one in found]


def tables(found: Iterable[Difference], names: tuple[str, str]) -> list[Table]:
    """A table for each scenario and split."""
    from rich.table import Table

    from worldsim.tables import shown

    groups: dict[tuple[str, str], list[Difference]] = {}
    for one in found:
        groups.setdefault((one.scenario, one.split), []).append(one)
    made = []
    for (scenario, split), rows in groups.items():
        table = Table(title=f"{scenario} · {split}: A = {names[0]}, B = {names[1]}", title_justify="left")
        models = any(row.model for row in rows)
        table.add_column("score")
        if models:
            table.add_column("model")
        for name in ("A", "B", "B - A", "95 %", "pairs", "p", "p (Holm)", "better"):
            table.add_column(name, justify="right")
        for row in rows:
            arrow = {"lower": " ↓", "higher": " ↑"}[row.better]
            cells = [f"{row.name}{arrow}", *([row.model] if models else [])]
            if row.pairs:
                cells += [
                    shown(row.first),
                    shown(row.second),
                    shown(row.mean),
                    _interval(row),
                    str(row.pairs),
                ]
                cells += [shown(row.p), shown(row.corrected), row.verdict]
            else:
                cells += ["not measurable", "", "", "", "0", "", "", ""]
            table.add_row(*cells)
        made.append(table)
    return made


def _interval(row: Difference) -> str:
    from worldsim.tables import shown

    return "–" if math.isnan(row.low) else f"[{shown(row.low)}, {shown(row.high)}]"
