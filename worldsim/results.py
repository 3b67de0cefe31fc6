"""Open what was kept: scores as rows or xarray, rollouts as datasets, models ready to roll out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import ResultError
from worldsim.files import is_file
from worldsim.index import look
from worldsim.plan_files import Entry, ScenarioPlan, read_plans
from worldsim.selection import EVERYTHING, Selection
from worldsim.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from worldsim.protocols import Score
    from worldsim.wrapped import Wrapped


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
    """A results folder. ``only`` are the labels of the cases that are meant; None means all."""

    root: Path
    only: frozenset[str] | None = None

    @property
    def store(self) -> Store:
        return Store(self.root)

    @cached_property
    def plans(self) -> list[ScenarioPlan]:
        """What was planned of each scenario, by name. Raises ResultError when nothing was."""
        plans = read_plans(self.root)
        if not plans:
            raise ResultError(f"{self.root} holds no results: run a scenario with --out there")
        return plans

    @cached_property
    def entries(self) -> list[Entry]:
        """The cases of the plan, in its order, or those of them that are meant."""
        everything = [entry for plan in self.plans for entry in plan.entries]
        return everything if self.only is None else [e for e in everything if e.label in self.only]

    def selected(self, only: Selection) -> Results:
        """The same folder with the cases that are meant alone; ``failed`` and ``limit`` count."""
        if only == EVERYTHING:
            return self
        found = only.of(self.plans)
        if only.failed:
            index = look(self.root)
            found = [entry for entry in found if index.state(entry) == "failed"]
        return replace(self, only=frozenset(entry.label for entry in found[: only.limit]))

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(entry.scenario for entry in self.entries))

    @cached_property
    def _plan_of(self) -> dict[str, ScenarioPlan]:
        return {plan.scenario: plan for plan in self.plans}

    @property
    def environment(self) -> dict[str, Any]:
        """Where the last scenario was planned."""
        return dict(self.plans[-1].environment)

    def about(self, scenario: str) -> str:
        return str(self.document(scenario)["about"])

    def compositions(self, scenario: str) -> dict[str, dict[str, Any]]:
        """Label -> base, constraint, mechanisms, measure and why it is undefined, of models of ``under``."""
        return dict(self._plan_of[scenario].compositions)

    def document(self, scenario: str) -> dict[str, Any]:
        """The scenario as it was read, before defaults."""
        return dict(self._plan_of[scenario].document)

    def status(self, entry: Entry) -> str:
        """ "done", "failed", "unscored" (rollouts kept, scores not computed yet) or "missing"."""
        kept = self.store.has_run(entry.key)
        if kept and all(is_file(self.store.score_path(entry.key, key)) for key in entry.metrics.values()):
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
    _ = results.plans
    return results


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
