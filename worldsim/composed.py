"""Models under constraints, beside the same ones without: what holds, which law comes out, at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from worldsim.errors import ResultError
from worldsim.results import Results, Row
from worldsim.store import provenance_of

LAW, DEFECT = "transport", "one_step_defect"
NORMAL = 1.96


@dataclass(frozen=True)
class Measured:
    """One model over its seeds. NaN where nothing was measured.

    violation  mean over seeds of the median over rollouts of the largest residual
    worst      the largest of all
    flagged    share of rollouts that did not arrive; 0 where nothing is projected
    law        mean distance of law, with its floor and the standard error of this mean
    defect     mean one-step dynamics defect
    cost       CPU seconds of the rollouts over those of the same model without a constraint
    """

    violation: float
    worst: float
    flagged: float
    law: float
    law_floor: float
    law_error: float
    defect: float
    cost: float


@dataclass(frozen=True)
class Cell:
    """A model under a constraint: ``word`` is "" for the model without one, or says by which mechanisms.

    ``note`` says why there is nothing: undefined, failed, or not run.
    """

    base: str
    word: str
    measure: str
    found: Measured | None
    note: str = ""

    def law_is_worse(self, free: Measured | None) -> bool:
        """By more than two standard errors of the difference from the model without a constraint."""
        if self.found is None or free is None:
            return False
        error = math.hypot(self.found.law_error, free.law_error)
        return self.found.law - free.law > 2 * error


@dataclass(frozen=True)
class Grid:
    """One constraint: a row for each model, a column for no constraint and for each way to be held to it."""

    scenario: str
    split: str
    constraint: str
    law: str
    cells: Mapping[str, tuple[Cell, ...]]

    @property
    def columns(self) -> tuple[str, ...]:
        first = next(iter(self.cells.values()))
        return tuple(cell.word for cell in first)


def grids(results: Results, scenario: str) -> list[Grid]:
    """A grid for each constraint of ``under`` and each scored split; none for a scenario without it."""
    compositions = results.compositions(scenario)
    rows = list(results.rows(scenario))
    law = next((row.name for row in rows if row.metric == LAW and not row.baseline), "")
    made = []
    for split in dict.fromkeys(row.split for row in rows):
        for constraint in dict.fromkeys(one["constraint"] for one in compositions.values()):
            mine = {k: v for k, v in compositions.items() if v["constraint"] == constraint}
            table = _Table(results, scenario, split, constraint, law, [r for r in rows if r.split == split])
            made.append(Grid(scenario, split, constraint, law, table.cells(mine)))
    return made


@dataclass(frozen=True)
class _Table:
    """What the cells of one grid are computed from."""

    results: Results
    scenario: str
    split: str
    constraint: str
    law: str
    rows: Sequence[Row]

    def cells(self, compositions: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Cell, ...]]:
        found: dict[str, tuple[Cell, ...]] = {}
        for base in dict.fromkeys(one["base"] for one in compositions.values()):
            free = self.measured(base, base)
            line = [Cell(base, "", "learned", free, "" if free else self.reason(base))]
            for label, one in compositions.items():
                if one["base"] != base:
                    continue
                got = None if one["undefined"] else self.measured(label, base)
                note = f"undefined: {one['undefined']}" if one["undefined"] else self.reason(label)
                line.append(Cell(base, one["word"], one["measure"], got, "" if got else note))
            found[base] = tuple(line)
        return found

    def measured(self, model: str, base: str) -> Measured | None:
        scores = {
            name: [row.score for row in self.rows if row.model == model and row.name == name]
            for name in (*self.violations, self.law, DEFECT)
        }
        medians, worst, lost = (
            [float(s.value) for s in scores[name] if not s.reason] for name in self.violations
        )
        if not any(scores.values()):
            return None
        laws = [s for s in scores[self.law] if not s.reason]
        errors = [(s.interval[1] - s.interval[0]) / (2 * NORMAL) for s in laws if s.interval]
        floors = [s.floor for s in laws if s.floor is not None]
        return Measured(
            _mean(medians),
            max(worst, default=math.nan),
            fmean(lost) if lost else 0.0,
            _mean(float(s.value) for s in laws),
            _mean(floors),
            math.sqrt(sum(e * e for e in errors)) / len(errors) if errors else math.nan,
            _mean(float(s.value) for s in scores[DEFECT] if not s.reason),
            self.seconds(model) / self.seconds(base),
        )

    @property
    def violations(self) -> tuple[str, str, str]:
        name = self.constraint
        return f"violation_{name}", f"violation_{name}_max", f"projection_failures_{name}"

    def seconds(self, model: str) -> float:
        """The least CPU time over seeds of its rollouts: what disturbs a clock adds to it. NaN where none
        is kept."""
        spent = []
        for entry in self.results.entries:
            if (entry.scenario, entry.model) == (self.scenario, model) and self.results.store.has_run(
                entry.key
            ):
                with suppress(ResultError, AttributeError):  # a file that is damaged, or a stranger's
                    kept = provenance_of(self.results.store.run_path(entry.key))
                    spent.append(float(kept.get("rollout_cpu_seconds", {}).get(self.split, math.nan)))
        return min(spent, default=math.nan)

    def reason(self, model: str) -> str:
        mine = [e for e in self.results.entries if (e.scenario, e.model) == (self.scenario, model)]
        return next((why for why in map(self.results.failure, mine) if why), "not run")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return fmean(values) if values else math.nan
