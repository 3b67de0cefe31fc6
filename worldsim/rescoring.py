"""Score rollouts that are kept: by metrics that were thought of later, and without training anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.batch import task_of
from worldsim.errors import ResultError, WorldsimError, did_you_mean
from worldsim.executors import InProcess, Local, carry_out
from worldsim.plan_files import Entry, made_plan, read_plan, write_plan
from worldsim.results import Results, open_results

if TYPE_CHECKING:
    from worldsim.executors import Executor, Watch
    from worldsim.plugins import Registry
    from worldsim.run import Receipt
    from worldsim.scenario import Case, Scenario

PLACE = Path("--metrics")
"""Where the problems of a list of metrics are said to be."""


@dataclass(frozen=True)
class Rescoring:
    """What there is to score in a results folder.

    scenarios  with the metrics that were asked for beside their own
    cases      of these scenarios, in the order of the plan
    unscored   those whose rollouts are kept and whose scores are not all there
    left_out   labels of those without rollouts
    """

    scenarios: tuple[Scenario, ...]
    cases: tuple[Case, ...]
    unscored: tuple[Case, ...]
    left_out: tuple[str, ...]


def rescore(
    results: str | Path | Results,
    metrics: Sequence[Any] = (),
    *,
    scenarios: Sequence[str] = (),
    workers: int = 0,
    timeout: float | None = None,
    plugins: Sequence[str | Path] = (),
    executor: Executor | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
) -> Results:
    """Compute ``metrics``, written as in a scenario, on every rollout that is kept in ``results``, and what
    is missing of the scenarios' own; nothing is rolled out or trained again.

    ``scenarios`` narrows it to some by name. The new scores stand in tables and reports like the others,
    until a scenario is run again without them. Raises ScenarioError for metrics that a scenario cannot have,
    and ResultError where no rollouts are kept, or not by the plugins that are installed now.
    """
    results = results if isinstance(results, Results) else open_results(results)
    plan = planned(results, metrics, scenarios, plugins)
    executor = executor or (Local(workers, timeout) if workers else InProcess())
    return carried_out(results, plan, executor, plugins, on_receipt)


def carried_out(
    results: Results,
    plan: Rescoring,
    executor: Executor,
    plugins: Sequence[str | Path],
    on_receipt: Callable[[Receipt], None] | None,
    on_progress: Watch | None = None,
) -> Results:
    """The results with what ``plan`` says in them."""
    cases: dict[str, list[Case]] = {}
    for case in plan.cases:
        cases.setdefault(case.scenario.name, []).append(case)
    for scenario in plan.scenarios:
        old = read_plan(results.root, scenario.name)
        write_plan(results.root, made_plan(scenario, cases[scenario.name], old, results.store))
    tasks = [replace(task_of(case, results.root, plugins), train=False) for case in plan.unscored]
    carry_out(executor, tasks, results.root, on_receipt, on_progress)
    return Results(results.root)


def planned(
    results: Results, metrics: Sequence[Any], scenarios: Sequence[str], plugins: Sequence[str | Path]
) -> Rescoring:
    """What ``rescore`` would do; raises as it does."""
    from worldsim.plugins import registry
    from worldsim.score import is_scored

    for name in scenarios:
        if name not in results.scenarios:
            raise WorldsimError(
                f"{results.root} has no scenario {name!r}; {did_you_mean(name, results.scenarios)}"
            )
    known = registry(tuple(map(Path, plugins)))
    read = {name: extended(results, name, metrics, known) for name in scenarios or results.scenarios}
    entries = [entry for entry in results.entries if entry.scenario in read]
    cases = [case_of(entry, read) for entry in entries]
    store = results.store
    if not any(store.has_run(entry.key) for entry in entries):
        raise ResultError(f"no rollouts are kept in {results.root}: run the scenarios first")
    refuse_others(results, entries, cases)
    unscored = tuple(case for case in cases if store.has_run(case.key) and not is_scored(case, store))
    left_out = tuple(case.label for case in cases if not store.has_run(case.key))
    return Rescoring(tuple(read.values()), tuple(cases), unscored, left_out)


def extended(results: Results, name: str, metrics: Sequence[Any], plugins: Registry) -> Scenario:
    """The kept scenario ``name`` with ``metrics`` after its own, none of them twice."""
    from worldsim.reading import from_document

    document = results.document(name)
    listed = list(document["metrics"])
    for metric in metrics:
        if as_mapping(metric) not in map(as_mapping, listed):
            listed.append(metric)
    return from_document({**document, "metrics": listed}, name, plugins)


def as_mapping(metric: Any) -> Mapping[str, Any]:
    return {"name": metric} if isinstance(metric, str) else metric


def case_of(entry: Entry, scenarios: Mapping[str, Scenario]) -> Case:
    from worldsim.scenario import Case

    return Case(scenarios[entry.scenario], entry.model, entry.seed, entry.device, entry.dtype)


def refuse_others(results: Results, entries: Sequence[Entry], cases: Sequence[Case]) -> None:
    """Raise ResultError for rollouts that what is installed now would not make again: a metric would ask a
    model or a system that is another one."""
    others = [
        case.label
        for entry, case in zip(entries, cases, strict=True)
        if case.key != entry.key and results.store.has_run(entry.key)
    ]
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ResultError(
            f"{len(others)} of {len(cases)} cases in {results.root} ({shown}) were made by other versions of "
            "worldsim or of their plugins than those installed now: run their scenarios again, or install "
            "those versions"
        )


def metrics_of(text: str) -> list[Any]:
    """The metrics of a list as a scenario writes it, ``transport, {name: coherence, horizon: 4}``, with or
    without brackets. Raises ScenarioError with what is wrong."""
    from worldsim.strict_yaml import parse

    inner = text.strip()
    inner = inner if inner.startswith("[") else f"[{inner}]"
    found = parse(f"metrics: {inner}", PLACE).data["metrics"]
    assert isinstance(found, list)
    return found
