"""What a run would do with each case, and why."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from worldsim.changes import Change, changes
from worldsim.errors import ResultError, WorldsimError
from worldsim.index import Index, failure_kind, look
from worldsim.plan_files import Entry, ScenarioPlan, made_plan, read_plan
from worldsim.scenario import Case, Scenario
from worldsim.selection import EVERYTHING, Selection
from worldsim.store import Store, provenance_of

DOES = {
    "new": "to run",
    "changed": "changed, to run",
    "retry": "to try again",
    "score": "to score",
    "kept": "kept",
}
"""What is done with a case, as a summary says it."""
_OF_STATE = {"missing": "new", "failed": "retry", "unscored": "score", "done": "kept"}
SHOWN = 4
"""How many changes a line names."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with a case: a key of ``DOES``. The case itself is made when it is asked for, since
    a hundred thousand of them with their keys take much memory."""

    scenario: Scenario
    entry: Entry
    does: str

    @property
    def case(self) -> Case:
        entry = self.entry
        return Case(self.scenario, entry.model, entry.seed, entry.device, entry.dtype)


@dataclass(frozen=True)
class Plan:
    """The whole plan of some scenarios, and the ``steps`` of it that are meant."""

    root: Path
    scenarios: tuple[ScenarioPlan, ...]
    steps: tuple[Step, ...]
    index: Index

    @property
    def todo(self) -> list[Step]:
        return [step for step in self.steps if step.does != "kept"]

    def summary(self) -> str:
        counts = Counter(step.does for step in self.steps)
        return (
            ", ".join(f"{counts[does]} {words}" for does, words in DOES.items() if counts[does]) or "no case"
        )

    @cached_property
    def _kept_models(self) -> set[tuple[str, str]]:
        return {
            (entry.scenario, entry.model)
            for plan in self.scenarios
            for entry in plan.entries
            if entry.key in self.index.runs
        }

    def why(self, step: Step) -> str:
        """The reason in a line: what is new about a case, why it failed, which scores are missing."""
        entry, store = step.entry, Store(self.root)
        if step.does == "retry":
            kept = store.open_failure(entry.key) or {}
            return f"{failure_kind(kept)}: {str(kept.get('message', '')).partition(chr(10))[0]}"
        if step.does == "score":
            return f"not scored: {', '.join(self.index.unscored(entry))}"
        if step.does == "new" and (entry.scenario, entry.model) in self._kept_models:
            return f"seed {entry.seed} is new"
        if step.does == "changed":
            try:
                found = since(step.case.meaning, entry, store)
            except ResultError as error:
                return str(error)
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            return ", ".join(map(str, found[:SHOWN])) + more
        return ""


def since(meaning: dict[str, Any], entry: Entry, store: Store) -> list[Change]:
    """What is different in a case from the nearest one that is kept under its label.

    Raises ResultError when none of these says what it was.
    """
    kept = [kept_meaning(key, store) for key in entry.before if store.has_run(key)]
    found = [changes(old, meaning) for old in kept if old is not None]
    if not found:
        raise ResultError(f"nothing kept under {entry.label} says what it was")
    return min(found, key=len)


def kept_meaning(key: str, store: Store) -> dict[str, Any] | None:
    """The key document in a kept result; None where it cannot be read."""
    try:
        return dict(provenance_of(store.run_path(key))["meaning"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, WorldsimError):
        return None


def make_plan(
    scenarios: Sequence[Scenario],
    root: Path,
    only: Selection = EVERYTHING,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    shard: tuple[int, int] | None = None,
) -> Plan:
    """What a run would do. ``shard`` (i, N) is the i-th of N parts, counted from 0; cases that share a fit
    are in one part. Parts are taken from the sorted keys of the fits, whatever the order of the cases.

    Raises WorldsimError for a selection that means nothing, and for a shard of another plan than is frozen
    in ``root``.
    """
    store, index = Store(root), look(root)
    plans: list[ScenarioPlan] = []
    for scenario in scenarios:
        old = read_plan(root, scenario.name)
        plan = made_plan(scenario, scenario.cases(device=device, dtype=dtype), old, store)
        if shard and old:
            _refuse_other(plan, old, root)
        plans.append(plan)
    named = {scenario.name: scenario for scenario in scenarios}
    steps = [Step(named[entry.scenario], entry, _does(entry, index)) for entry in only.of(plans)]
    if shard:
        every = [Step(named[plan.scenario], entry, "") for plan in plans for entry in plan.entries]
        share = set(sorted({step.case.fit_key for step in every})[shard[0] :: shard[1]])
        steps = [step for step in steps if step.case.fit_key in share]
    if only.failed:
        steps = [step for step in steps if step.does == "retry"]
    if only.limit:
        todo = [step for step in steps if step.does != "kept"][: only.limit]
        steps = [step for step in steps if step.does == "kept"] + todo
    return Plan(root, tuple(plans), tuple(steps), index)


def _does(entry: Entry, index: Index) -> str:
    does = _OF_STATE[index.state(entry)]
    return "changed" if does == "new" and index.runs.intersection(entry.before) else does


def _refuse_other(plan: ScenarioPlan, old: ScenarioPlan, root: Path) -> None:
    now, then = {entry.key for entry in plan.entries}, {entry.key for entry in old.entries}
    if now != then:
        raise WorldsimError(
            f"{len(now - then)} cases of {plan.scenario!r} are not in the plan that is frozen in {root}, so "
            "its shards would not fit together: worldsim plan tells what has changed, and worldsim plan "
            "--freeze makes that the plan"
        )
