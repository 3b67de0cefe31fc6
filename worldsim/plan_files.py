"""The plan of a results folder: which cases there are to be, frozen.

plan/<hash of a scenario's name>.jsonl   one line about the scenario, then one for each case

Each scenario has a file of its own, which says the same whoever writes it. So runs that share a folder write
different files, or the same one alike, each whole; none has lines to merge into those of another, and
no lock is needed, which a network file system might not honour.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import ResultError
from worldsim.files import write_text
from worldsim.store import Store
from worldsim.untrusted import plan_of

if TYPE_CHECKING:
    from worldsim.scenario import Case, Scenario

FOLDER = "plan"
SCHEMA = 2
REMEMBERED = 4
"""How many earlier keys of a label are kept with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A case of the plan, and where its parts are kept.

    ``before`` are keys that the same label had in earlier plans, the latest first, where something is kept.
    """

    key: str
    scenario: str
    model: str
    seed: int
    baseline: bool
    device: str
    dtype: str
    metrics: Mapping[str, str]
    learned: bool = True
    before: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.scenario}/{self.model}/{self.seed}"


@dataclass(frozen=True)
class ScenarioPlan:
    """The cases of one scenario, with the scenario as it was read, before defaults."""

    scenario: str
    document: Mapping[str, Any]
    compositions: Mapping[str, Any]
    environment: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.document.get("tags", ()))


def plan_path(root: Path, scenario: str) -> Path:
    """A hash, since names that differ in case alone are one file on some systems."""
    return Path(root) / FOLDER / f"{hashlib.sha256(scenario.encode()).hexdigest()[:32]}.jsonl"


def plan_paths(root: Path) -> list[Path]:
    """The files that the plan of a folder consists of, in order."""
    return sorted((root / FOLDER).glob("*.jsonl"))


def has_plan(root: Path) -> bool:
    return (root / FOLDER).is_dir()


def read_plans(root: Path) -> list[ScenarioPlan]:
    """Every scenario's plan, by name; none for a folder without. Raises ResultError for a damaged one."""
    return sorted(map(_read, plan_paths(root)), key=lambda plan: plan.scenario)


def read_plan(root: Path, scenario: str) -> ScenarioPlan | None:
    """One scenario's plan; None when there is none that can be read, for then it is made anew."""
    path = plan_path(root, scenario)
    try:
        return _read(path) if path.is_file() else None
    except ResultError:
        return None


def made_plan(
    scenario: Scenario, cases: Iterable[Case], old: ScenarioPlan | None, store: Store
) -> ScenarioPlan:
    """The plan of a scenario now, with the keys that its labels had in the plan ``old``."""
    metrics = metric_keys(scenario)
    past = {entry.label: entry for entry in old.entries} if old else {}
    learned: dict[str, bool] = {}
    entries = []
    for case in cases:
        if case.model not in learned:
            learned[case.model] = case.is_learned
        entry = past.get(case.label)
        entries.append(
            Entry(
                case.key, scenario.name, case.model, case.seed, case.is_baseline, case.device, case.dtype,
                metrics, learned[case.model], _before(entry, case.key, store) if entry else (),
            )
        )  # fmt: skip
    return ScenarioPlan(scenario.name, scenario.document, scenario.composition_words(), {}, tuple(entries))


def _before(entry: Entry, key: str, store: Store) -> tuple[str, ...]:
    latest = (entry.key,) if entry.key != key and store.has_run(entry.key) else ()
    return (*latest, *(each for each in entry.before if each not in (key, *latest)))[:REMEMBERED]


def write_plan(root: Path, plan: ScenarioPlan) -> bool:
    """Freeze a scenario's plan in place of its earlier one; whether anything in it is new."""
    from worldsim.provenance import environment

    old = read_plan(root, plan.scenario)
    path = plan_path(root, plan.scenario)
    if old is not None:
        pairs = zip_longest(_lines(old, {}), _lines(plan, {}))
        if all(before == now for before, now in pairs):
            return False
    write_text(path, "".join(_lines(plan, environment())))
    return True


def metric_keys(scenario: Scenario) -> dict[str, str]:
    """Name -> key of each scored part; a name that comes twice is numbered."""
    names: dict[str, str] = {}
    for part, _, key in scenario.scored:
        name, count = part.name, 1
        while name in names:
            count += 1
            name = f"{part.name}_{count}"
        names[name] = key
    return names


_SHARED = ("device", "dtype", "metrics")
"""What the cases of a scenario have in common: said once, in the first line."""


def _lines(plan: ScenarioPlan, environment: Mapping[str, Any]) -> Iterator[str]:
    first = plan.entries[0] if plan.entries else None
    head = {
        "schema": SCHEMA, "scenario": plan.scenario, "document": plan.document,
        "compositions": plan.compositions, "environment": environment,
        **{key: getattr(first, key, None) for key in _SHARED},
    }  # fmt: skip
    yield json.dumps(head) + "\n"
    for e in plan.entries:
        line = {"key": e.key, "model": e.model, "seed": e.seed, "baseline": e.baseline, "learned": e.learned}
        yield json.dumps(line | ({"before": e.before} if e.before else {})) + "\n"


def _read(path: Path) -> ScenarioPlan:
    head, lines = plan_of(path)
    shared = {key: head[key] for key in _SHARED}
    entries = tuple(_entry(line, head["scenario"], shared, path) for line in lines)
    return ScenarioPlan(
        head["scenario"], head["document"], head["compositions"], head["environment"], entries
    )


def _entry(line: Mapping[str, Any], scenario: str, shared: Mapping[str, Any], path: Path) -> Entry:
    told = {**line, "scenario": scenario, **shared, "before": tuple(line.get("before", ()))}
    try:
        return Entry(**told)
    except TypeError as error:
        raise ResultError(
            f"{path} was written by another version ({error}); run its scenarios again"
        ) from None
