"""Open what was kept: scores as rows or xarray, rollouts as datasets, models ready to roll out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import ResultError
from worldsim.protocols import Score
from worldsim.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from worldsim.scenario import Case, Scenario
    from worldsim.wrapped import Wrapped

PLAN = "plan.jsonl"
LOCK = "suite.lock.json"


@dataclass(frozen=True)
class Entry:
    """One line of the plan: a case, and where its parts are kept."""

    key: str
    scenario: str
    model: str
    seed: int
    baseline: bool
    device: str
    dtype: str
    metrics: Mapping[str, str]
    learned: bool = True

    @property
    def label(self) -> str:
        return f"{self.scenario}/{self.model}/{self.seed}"


@dataclass(frozen=True)
class Row:
    """One named score of one case on one split."""

    scenario: str
    model: str
    seed: int
    baseline: bool
    split: str
    metric: str
    name: str
    score: Score


@dataclass(frozen=True)
class Results:
    """A results folder."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root)

    @cached_property
    def entries(self) -> list[Entry]:
        """The cases of the plan, in its order."""
        path = self.root / PLAN
        if not path.is_file():
            raise ResultError(
                f"{self.root} holds no results ({PLAN} is missing); run a scenario with --out there"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Entry(**json.loads(line)) for line in lines if line.strip()]

    @cached_property
    def lock(self) -> dict[str, Any]:
        return dict(json.loads((self.root / LOCK).read_text(encoding="utf-8")))

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(entry.scenario for entry in self.entries))

    def about(self, scenario: str) -> str:
        return str(self.lock["scenarios"][scenario]["about"])

    def compositions(self, scenario: str) -> dict[str, dict[str, Any]]:
        """Label -> base, constraint, mechanisms, measure and why it is undefined, of models of ``under``."""
        return dict(self.lock.get("compositions", {}).get(scenario, {}))

    def document(self, scenario: str) -> dict[str, Any]:
        """The scenario as it was read, before defaults."""
        return dict(self.lock["scenarios"][scenario])

    def status(self, entry: Entry) -> str:
        """ "done", "failed", "unscored" (rollouts kept, scores not computed yet) or "missing"."""
        kept = self.store.has_run(entry.key)
        if kept and all(self.store.score_path(entry.key, key).is_file() for key in entry.metrics.values()):
            return "done"
        if self.store.open_failure(entry.key):
            return "failed"
        return "unscored" if kept else "missing"

    def failure(self, entry: Entry) -> str:
        kept = self.store.open_failure(entry.key)
        return str(kept["message"]) if kept else ""

    def rows(self, scenario: str | None = None) -> Iterator[Row]:
        """Every score that is kept."""
        from worldsim.score import from_document

        for entry in self.entries:
            if scenario not in (None, entry.scenario):
                continue
            for metric, key in entry.metrics.items():
                kept = self.store.open_scores(entry.key, key) or {}
                for split, document in kept.items():
                    for name, score in from_document(document).items():
                        yield Row(
                            entry.scenario,
                            entry.model,
                            entry.seed,
                            entry.baseline,
                            split,
                            metric,
                            name,
                            score,
                        )

    def find(self, scenario: str, model: str, seed: int | None = None) -> Entry:
        """The case of a model at a seed (its first one when None). Raises ResultError."""
        found = [
            e for e in self.entries if e.scenario == scenario and e.model == model and seed in (None, e.seed)
        ]
        if not found:
            known = sorted({f"{e.scenario}/{e.model}/{e.seed}" for e in self.entries})
            raise ResultError(f"there is no {scenario}/{model}/{seed}; kept are {', '.join(known)}")
        return found[0]

    def rollouts(self, scenario: str, model: str, seed: int | None = None) -> xr.DataTree:
        """Truth and prediction of one case, a group for each split."""
        return self.store.open_run(self.find(scenario, model, seed).key)

    def tree(self) -> xr.DataTree:
        """``/scores`` over (scenario, model, seed, score) and ``/<scenario>/<split>`` groups."""
        from worldsim.xarray_backend import results_tree

        return results_tree(self)

    def _repr_html_(self) -> str:
        from worldsim.tables import as_html

        return as_html(self)


def open_results(path: str | Path = "results") -> Results:
    """Open a results folder. Raises ResultError when it holds none."""
    results = Results(Path(path))
    _ = results.entries
    return results


def write_plan(root: Path, scenarios: Sequence[Scenario], cases: Sequence[Case]) -> None:
    """Freeze what is to be run. Scenarios that are already there and not named now stay."""
    from worldsim.provenance import environment
    from worldsim.score import scored_parts
    from worldsim.store import write_text

    named = {scenario.name for scenario in scenarios}
    old, documents, compositions = _kept_plan(root, named)
    new = [
        {
            "key": case.key, "scenario": case.scenario.name, "model": case.model, "seed": case.seed,
            "baseline": case.is_baseline, "device": case.device, "dtype": case.dtype,
            "metrics": metric_names(scored_parts(case)), "learned": case.is_learned,
        }
        for case in cases
    ]  # fmt: skip
    documents |= {scenario.name: dict(scenario.document) for scenario in scenarios}
    compositions |= {s.name: s.composition_words() for s in scenarios if s.compositions}
    lock = {
        "schema": 1, "scenarios": documents, "environment": environment(), "compositions": compositions
    }  # fmt: skip
    write_text(root / LOCK, json.dumps(lock, indent=1))
    write_text(root / PLAN, "".join(json.dumps(line) + "\n" for line in [*old, *new]))


def metric_names(parts: Sequence[Any]) -> dict[str, str]:
    """Name -> key of each scored part; a name that comes twice is numbered."""
    names: dict[str, str] = {}
    for part in parts:
        name, count = part.component.name, 1
        while name in names:
            count += 1
            name = f"{part.component.name}_{count}"
        names[name] = part.key
    return names


def _kept_plan(root: Path, named: set[str]) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    path = root / PLAN
    if not path.is_file():
        return [], {}, {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    lock = json.loads((root / LOCK).read_text(encoding="utf-8"))
    kept = (lock["scenarios"], lock.get("compositions", {}))
    documents, compositions = (
        {name: value for name, value in part.items() if name not in named} for part in kept
    )
    return [line for line in lines if line["scenario"] not in named], documents, compositions


def load_model(
    results: Results | str | Path, model: str, *, scenario: str | None = None, seed: int | None = None,
    plugins: Sequence[str | Path] = (),
) -> Wrapped:  # fmt: skip
    """The trained model of a kept case, with ``rollout(context, times, actions, draws, generator)``.

    ``scenario`` may be left out when the folder holds one. Everything is in physical units, so that a
    user's own data can be given. Raises ResultError when there is no such case or no finished fit.
    """
    from worldsim.build import load_fitted
    from worldsim.plugins import registry
    from worldsim.reading import from_document
    from worldsim.scenario import Case

    results = results if isinstance(results, Results) else open_results(results)
    if scenario is None:
        if len(results.scenarios) > 1:
            raise ResultError(f"say which scenario: {', '.join(results.scenarios)}")
        scenario = results.scenarios[0]
    entry = results.find(scenario, model, seed)
    document = results.document(scenario)
    read = from_document(document, scenario, registry(tuple(map(Path, plugins))))
    fitted: Wrapped = load_fitted(
        Case(read, entry.model, entry.seed, entry.device, entry.dtype), results.store
    )
    return fitted
