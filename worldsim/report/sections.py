"""What the report says about one scenario, ready to be laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.errors import ResultError, WorldsimError
from worldsim.report.answers import answer, number
from worldsim.report.curves import couplings, dots, growth, growth_by_label, pairs
from worldsim.report.plots import Panel, Plot, Style, styles
from worldsim.report.portraits import portraits
from worldsim.report.standings import Board, Kind, Standing, boards, headlines, is_variant, kinds, main_split
from worldsim.results import Entry, Results, Row

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


@dataclass(frozen=True)
class Drawn(Plot):
    """A plot with the name of its place on the page."""

    id: str = ""


@dataclass(frozen=True)
class Failure:
    """Cases of one model that ended, or did not begin, in the same way."""

    model: str
    status: str
    message: str
    seeds: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Section:
    """One scenario."""

    name: str
    about: str
    seeds: int
    failures: tuple[Failure, ...]
    answers: tuple[str, ...]
    elsewhere: tuple[tuple[str, str], ...]
    keys: tuple[tuple[str, Style], ...]
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
    numbers: tuple[dict[str, Any], ...]
    done: int

    @property
    def plots(self) -> list[Drawn]:
        return [plot for panel in self.panels for plot in panel.plots if isinstance(plot, Drawn)]


def section(results: Results, scenario: str) -> Section:
    """Read what is kept of a scenario, and what is not."""
    entries = [entry for entry in results.entries if entry.scenario == scenario]
    status = {entry.key: results.status(entry) for entry in entries}
    rows = _in_order(list(results.rows(scenario)), results.document(scenario))
    kind = kinds(rows, learns(results, scenario))
    found = boards(rows, kind)
    split = main_split(found)
    return Section(
        name=scenario,
        about=results.about(scenario),
        seeds=max((len(s.values) for board in found for s in board.standings), default=0),
        failures=_failures(results, entries, status),
        answers=tuple(answer(group) for group in headlines(found, split)),
        elsewhere=_elsewhere(found, split),
        keys=tuple(styles(kind).items()),
        panels=_placed(scenario, _panels(results, scenario, rows, found, kind)),
        tables=tuple(
            _table(found, name, kind) for name in dict.fromkeys([split, *(b.split for b in found)]) if found
        ),
        numbers=tuple(_downloads(scenario, found)),
        done=sum(state == "done" for state in status.values()),
    )


def _failures(results: Results, entries: Sequence[Entry], status: Mapping[str, str]) -> tuple[Failure, ...]:
    """What is not done, seeds with one fate on one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        if status[entry.key] != "done":
            fate = (entry.model, status[entry.key], results.failure(entry))
            found.setdefault(fate, []).append("" if entry.baseline else str(entry.seed))
    return tuple(Failure(*fate, tuple(filter(None, seeds)), len(seeds)) for fate, seeds in found.items())


def _in_order(rows: Sequence[Row], document: Mapping[str, Any]) -> list[Row]:
    """Rows by the order in which the scenario names its metrics: what it asks for first comes first."""
    specs = [*document.get("metrics", ()), *document.get("constraints", ())]
    names = [str(s if isinstance(s, str) else s.get("name", "")).rpartition("/")[2] for s in specs]
    place = {name: i for i, name in reversed(list(enumerate(names)))}

    def key(row: Row) -> int:
        return place.get(row.metric, place.get(row.metric.rpartition("_")[0], len(names)))

    return sorted(rows, key=key)


def learns(results: Results, scenario: str) -> dict[str, bool]:
    """Which models are trained, as their plugins say; a model whose plugin is not here is left out."""
    from worldsim.plugins import registry

    found = {}
    for model, spec in dict(results.document(scenario).get("models", {})).items():
        name = spec if isinstance(spec, str) else spec.get("name", "")
        try:
            found[model] = bool(getattr(registry().builder("model", str(name)), "trainable", True))
        except WorldsimError:
            continue
    return found


def _elsewhere(found: Sequence[Board], split: str) -> tuple[tuple[str, str], ...]:
    """The first answer of every metric on the other splits."""
    others = dict.fromkeys(board.split for board in found if board.split != split)
    return tuple((other, answer(group)) for other in others for group in headlines(found, other, each=1))


def _panels(
    results: Results, scenario: str, rows: Sequence[Row], found: Sequence[Board], kind: dict[str, Kind]
) -> list[Panel]:
    looks, split = styles(kind), main_split(found)
    mine = [row for row in rows if row.split == split]
    here = [board for board in found if board.split == split]
    unit = _time_unit(results, scenario, split)
    first = dots(headlines(found, split), looks)
    return [
        *([first] if first else []),
        *portraits(results, scenario, split, looks),
        *growth_by_label(mine, looks, unit),
        *growth(mine, here, looks, unit),
        *pairs(mine, looks, unit),
        *couplings(mine, looks),
    ]


def _time_unit(results: Results, scenario: str, split: str) -> str:
    """As kept beside the rollouts; "1" when no rollout can be read."""
    for entry in results.entries:
        if entry.scenario == scenario and results.store.has_run(entry.key):
            try:
                tree = results.store.open_run(entry.key)
            except ResultError:
                continue
            if split in tree.children:
                return str(tree[split]["time"].attrs.get("units", "1"))
    return "1"


def _placed(scenario: str, panels: Sequence[Panel]) -> tuple[Panel, ...]:
    placed = []
    for p, panel in enumerate(panels):
        plots = (Drawn(q.data, q.layout, q.square, f"{scenario}-{p}-{i}") for i, q in enumerate(panel.plots))
        placed.append(Panel(panel.title, panel.caption, tuple(plots), panel.columns))
    return tuple(placed)


def _table(found: Sequence[Board], split: str, kind: dict[str, Kind]) -> Table:
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
    best = {s.model for s in ranked if len(ranked) > 1 and s.mean == ranked[0].mean}
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


def _downloads(scenario: str, found: Sequence[Board]) -> list[dict[str, Any]]:
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
