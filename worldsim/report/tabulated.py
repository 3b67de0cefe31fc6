"""Every number of a split: laid out for a reader, and row by row for a download."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.report.answers import number
from worldsim.report.standings import Board, Kind, Standing
from worldsim.tables import is_variant

ARROWS = {"lower": "↓", "higher": "↑", "": ""}


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or why there is none."""

    text: str
    detail: str = ""
    note: str = ""
    reasons: str = ""
    best: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """One score of a table."""

    metric: str
    title: str
    units: str
    arrow: str
    cells: tuple[Cell, ...]
    floor: str


@dataclass(frozen=True)
class Table:
    """Every score of one split: what ranks, what is a variant of it, and what only describes."""

    split: str
    models: tuple[tuple[str, Kind], ...]
    lines: tuple[Line, ...]
    variants: tuple[Line, ...]
    descriptions: tuple[Line, ...]


def table(found: Sequence[Board], split: str, kind: Mapping[str, Kind]) -> Table:
    mine = [board for board in found if board.split == split]
    models = [model for model in kind if any(board.of(model) for board in mine)]
    order: list[Kind] = ["learned", "model", "reference", "truth", "baseline"]
    models.sort(key=lambda model: order.index(kind[model]))
    names = {board.name for board in mine}
    sorts: tuple[list[Line], ...] = ([], [], [])
    for board in mine:
        sorts[2 if not board.better else int(is_variant(board.name, names))].append(_line(board, models))
    return Table(split, tuple((model, kind[model]) for model in models), *map(tuple, sorts))


def _line(board: Board, models: Sequence[str]) -> Line:
    ranked = [s for s in board.ranked() if s.kind in ("learned", "model", "reference")]
    best = {s.model for s in ranked if len(ranked) > 1 and number(s.mean) == number(ranked[0].mean)}
    cells = tuple(_cell(board.of(model), model in best) for model in models)
    floors = [s.floor for s in board.standings if s.floor is not None]
    units = "" if board.units in ("", "1") else board.units
    return Line(board.metric, board.title, units, ARROWS[board.better], cells, _floor(floors))


def _floor(floors: Sequence[float]) -> str:
    texts = list(dict.fromkeys(map(number, sorted(floors))))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}" if texts else ""


def _cell(standing: Standing | None, best: bool) -> Cell:
    if standing is None:
        return Cell("–")
    reasons = "; ".join(standing.reasons)
    if not standing.values:
        return Cell("", note="not measurable", reasons=reasons, kind=standing.kind)
    low, high = standing.spread
    detail = "" if low == high or not math.isfinite(low + high) else f"{number(low)} to {number(high)}"
    note = f"{len(standing.values)} seeds, others not measurable" if reasons else ""
    return Cell(number(standing.mean), detail, note, reasons, best, standing.kind)


def downloads(scenario: str, found: Sequence[Board]) -> list[dict[str, Any]]:
    """A row for each seed, and one without a value for each model that has none."""
    numbers = []
    for board in found:
        for s in board.standings:
            shared = {
                "scenario": scenario, "split": board.split, "metric": board.metric, "score": board.name,
                "label": board.label, "model": s.model, "kind": s.kind, "better": board.better,
                "units": board.units, "floor": s.floor if s.floor is None or math.isfinite(s.floor) else None,
                "failed": s.failed, "reason": "; ".join(s.reasons),
            }  # fmt: skip
            for seed, value in s.values.items():
                numbers.append({**shared, "seed": seed, "value": value if math.isfinite(value) else None})
            if not s.values:
                numbers.append({**shared, "seed": None, "value": None})
    return numbers
