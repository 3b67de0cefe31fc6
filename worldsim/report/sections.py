"""What the report says about one scenario, ready to be laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.composed import grids
from worldsim.errors import ResultError
from worldsim.failures import flag
from worldsim.plan_files import Entry
from worldsim.report.answers import answer
from worldsim.report.composed import GridTable, constrained, grid_tables
from worldsim.report.disturbed import over_probability
from worldsim.report.dots import dots
from worldsim.report.graphs import graphs
from worldsim.report.growth import growth, growth_by_label
from worldsim.report.plots import Panel, Plot, Style, styles
from worldsim.report.portraits import portraits
from worldsim.report.samples import couplings, pairs
from worldsim.report.standings import Board, Kind, boards, headlines, kinds, main_split
from worldsim.report.tabulated import Table, downloads, table
from worldsim.report.verdicts import Verdict, verdicts
from worldsim.results import Results, Row
from worldsim.tables import Beside, besides


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
    warnings: tuple[Failure, ...]
    answers: tuple[str, ...]
    elsewhere: tuple[tuple[str, str], ...]
    keys: tuple[tuple[str, Style], ...]
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
    numbers: tuple[dict[str, Any], ...]
    done: int
    published: tuple[Beside, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    grids: tuple[GridTable, ...] = ()

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
    composed = grids(results, scenario)
    # Thirty models in one picture are no picture: those under constraints have their own.
    plain = {model: sort for model, sort in kind.items() if model not in results.compositions(scenario)}
    simple = boards([row for row in rows if row.model in plain], plain)
    panels = _panels(results, scenario, [row for row in rows if row.model in plain], simple, plain)
    return Section(
        name=scenario,
        about=results.about(scenario),
        seeds=max((len(s.values) for board in found for s in board.standings), default=0),
        failures=_failures(results, entries, status),
        warnings=_warnings(results, entries, status),
        answers=tuple(answer(group, simple) for group in headlines(simple, split)),
        elsewhere=_elsewhere(simple, split),
        keys=tuple(styles(plain).items()),
        panels=_placed(scenario, [*constrained(composed), *panels]),
        tables=tuple(
            table(found, name, kind) for name in dict.fromkeys([split, *(b.split for b in found)]) if found
        ),
        numbers=tuple(downloads(scenario, found)),
        done=sum(state == "done" for state in status.values()),
        published=tuple(besides(results, scenario)),
        verdicts=tuple(verdicts(found, split, _components(rows, results.document(scenario)))),
        grids=grid_tables(composed),
    )


def _failures(results: Results, entries: Sequence[Entry], status: Mapping[str, str]) -> tuple[Failure, ...]:
    """What is not done."""
    lost = [entry for entry in entries if status[entry.key] != "done"]
    return _gathered((entry, status[entry.key], results.failure(entry)) for entry in lost)


def _warnings(results: Results, entries: Sequence[Entry], status: Mapping[str, str]) -> tuple[Failure, ...]:
    """What is done and not finite."""
    done = [entry for entry in entries if status[entry.key] == "done"]
    flags = ((entry, flag(results.store, entry.key)) for entry in done)
    return _gathered((entry, "done", words) for entry, words in flags if words)


def _gathered(fates: Iterable[tuple[Entry, str, str]]) -> tuple[Failure, ...]:
    """Seeds with one fate on one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for entry, status, message in fates:
        seed = "" if entry.baseline else str(entry.seed)
        found.setdefault((entry.model, status, message), []).append(seed)
    return tuple(Failure(*fate, tuple(filter(None, seeds)), len(seeds)) for fate, seeds in found.items())


def _in_order(rows: Sequence[Row], document: Mapping[str, Any]) -> list[Row]:
    """Rows by the order in which the scenario names its metrics: what it asks for first comes first."""
    place = {name: i for i, name in reversed(list(enumerate(_named(document))))}
    component = _components(rows, document)
    return sorted(rows, key=lambda row: place.get(component[row.metric], len(place)))


def _named(document: Mapping[str, Any]) -> list[str]:
    """The components that give scores, in the scenario's order."""
    specs = [*document.get("metrics", ()), *document.get("constraints", ())]
    return [str(s if isinstance(s, str) else s.get("name", "")).rpartition("/")[2] for s in specs]


def _components(rows: Sequence[Row], document: Mapping[str, Any]) -> dict[str, str]:
    """Of each metric in ``rows`` its component; the second of one kind is kept with a number after it."""
    known, found = set(_named(document)), {}
    for metric in dict.fromkeys(row.metric for row in rows):
        name, _, number = metric.rpartition("_")
        found[metric] = name if metric not in known and number.isdigit() else metric
    return found


def learns(results: Results, scenario: str) -> dict[str, bool]:
    """Which models are trained, as the plan says."""
    return {e.model: e.learned for e in results.entries if e.scenario == scenario and not e.baseline}


def _elsewhere(found: Sequence[Board], split: str) -> tuple[tuple[str, str], ...]:
    """The first answer of every metric on the other splits."""
    others = dict.fromkeys(board.split for board in found if board.split != split)
    return tuple(
        (other, answer(group, found)) for other in others for group in headlines(found, other, each=1)
    )


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
        *graphs(mine, looks),
        *over_probability(mine, looks),
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
        plots = (
            Drawn(q.data, q.layout, q.square, q.tall, f"{scenario}-{p}-{i}")
            for i, q in enumerate(panel.plots)
        )
        placed.append(Panel(panel.title, panel.caption, tuple(plots), panel.columns))
    return tuple(placed)
