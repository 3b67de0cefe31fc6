"""Many cases: read the scenarios, freeze the plan, skip what is kept, map the rest over an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import Problem, ScenarioError, WorldsimError, did_you_mean
from worldsim.executors import InProcess, Local, Task, carry_out
from worldsim.plan_files import write_plan
from worldsim.planning import Plan, make_plan
from worldsim.results import Results
from worldsim.selection import EVERYTHING, Selection
from worldsim.store import Store

if TYPE_CHECKING:
    from worldsim.executors import Executor, Watch
    from worldsim.plugins import Registry
    from worldsim.run import Receipt
    from worldsim.scenario import Case, Scenario


def scenario_files(target: str | Path, plugins: Registry) -> list[Path]:
    """The YAML files of a file, a folder, or the name of an installed suite or ``suite/scenario``.

    Raises WorldsimError for a file that leads out of the folder it is found in, by a link or by ``..``.
    """
    path = Path(target)
    if path.is_file():
        return [path]
    folders = plugins.scenario_folders()
    if not path.is_dir() and str(target) in folders:
        path = folders[str(target)]
    suite, _, name = str(target).partition("/")
    if not path.exists() and suite in folders and (folders[suite] / f"{name}.yaml").is_file():
        return _within(folders[suite], [folders[suite] / f"{name}.yaml"])
    if not path.is_dir():
        hint = did_you_mean(str(target), folders)
        raise WorldsimError(f"{target} is neither a file, a folder nor an installed suite; {hint}")
    found = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
    if not found:
        raise WorldsimError(f"there is no .yaml file in {path}")
    return _within(path, found)


def _within(folder: Path, files: list[Path]) -> list[Path]:
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise WorldsimError(
                f"{file} leads out of {folder}, to {file.resolve()}: a suite of somebody else could name any "
                "file of yours; give that file itself if it is meant"
            )
    return files


def read_scenarios(targets: Iterable[str | Path], plugins: Sequence[str | Path] = ()) -> list[Scenario]:
    """Every scenario of the targets; raises ScenarioError with the problems of all files together."""
    from worldsim.plugins import registry
    from worldsim.reading import load_all

    known = registry(tuple(map(Path, plugins)))
    scenarios: list[Scenario] = []
    problems: list[Problem] = []
    files = [path for target in targets for path in scenario_files(target, known)]
    for path in {path.resolve(): path for path in files}.values():
        try:
            scenarios += load_all(path, plugins=plugins)
        except ScenarioError as error:
            problems.extend(error.problems)
    if problems:
        raise ScenarioError(problems)
    _refuse_twins(scenarios)
    return scenarios


def _refuse_twins(scenarios: Sequence[Scenario]) -> None:
    seen: dict[str, Path] = {}
    for scenario in scenarios:
        if scenario.name in seen:
            raise WorldsimError(
                f"{seen[scenario.name]} and {scenario.file} have one name; rename one of them"
            )
        seen[scenario.name] = scenario.file


def run(
    target: str | Path | Scenario | Sequence[str | Path | Scenario],
    *,
    out: str | Path = "results",
    models: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    only: Selection = EVERYTHING,
    shard: tuple[int, int] | None = None,
    max_failures: int | None = None,
    workers: int = 0,
    timeout: float | None = None,
    memory: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    plugins: Sequence[str | Path] = (),
    executor: Executor | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
    on_progress: Watch | None = None,
) -> Results:
    """Run scenarios and keep their results in ``out``; what is already kept there is not computed again.

    ``only`` narrows it, as ``models`` and ``seeds`` do; ``shard`` (i, N) is the i-th of N parts, from 0.
    ``workers`` child processes (0 computes in this process), each case of which may take ``timeout`` seconds
    and hold ``memory`` bytes. A case that fails is kept as a failure and harms no other: look at
    ``Results.status``; after ``max_failures`` nothing more is begun. ``executor`` computes elsewhere. Raises
    ScenarioError, DeviceError or WorldsimError before anything is computed.
    """
    from worldsim.build import checked_device, checked_dtype

    if executor is None:  # another one computes on devices of its own
        checked_device(device)
    checked_dtype(dtype)
    only = replace(only, models=(*only.models, *(models or ())), seeds=(*only.seeds, *(seeds or ())))
    plan = make_plan(gather(target, plugins), Path(out), only, device=device, dtype=dtype, shard=shard)
    executor = executor or (Local(workers, timeout, memory) if workers else InProcess())
    return perform(plan, executor, plugins, on_receipt, on_progress, max_failures)


class TooManyFailures(WorldsimError):
    """So many cases have failed that the others are left alone."""


def perform(
    plan: Plan,
    executor: Executor,
    plugins: Sequence[str | Path] = (),
    on_receipt: Callable[[Receipt], None] | None = None,
    on_progress: Watch | None = None,
    max_failures: int | None = None,
) -> Results:
    """Freeze the plan, and do what is to be done of it."""
    failures = 0

    def receive(receipt: Receipt) -> None:
        nonlocal failures
        failures += receipt.status == "failed"
        if on_receipt:
            on_receipt(receipt)
        if max_failures and failures >= max_failures:
            raise TooManyFailures(f"stopped after {failures} failures")

    freeze(plan)
    with suppress(TooManyFailures):
        carry_out(executor, tasks(plan, plugins), plan.root, receive, on_progress)
    return Results(plan.root)


def freeze(plan: Plan) -> bool:
    """Write what is new of the plan; whether anything was. What killed runs left half-written goes."""
    Store(plan.root).clear_parts()
    written = [write_plan(plan.root, each) for each in plan.scenarios]
    return any(written)


def tasks(plan: Plan, plugins: Sequence[str | Path]) -> list[Task]:
    """What is to be computed, each once: cases of two labels may mean the same and be scored alike.

    Within each scenario, cases that train come before those that take over what was trained, so that two
    workers seldom train the same weights at once.
    """
    seen: set[tuple[str, ...]] = set()
    fits: set[str] = set()
    turns: dict[str, tuple[list[Task], list[Task]]] = {}
    for step in plan.todo:
        case, means = step.case, (step.entry.key, *step.entry.metrics.values())
        if means in seen:
            continue
        seen.add(means)
        first, later = turns.setdefault(step.entry.scenario, ([], []))
        trains = not step.entry.baseline and case.fit_key not in fits
        (first if trains else later).append(task_of(case, plan.root, plugins))
        fits.add(case.fit_key)
    return [task for turn in turns.values() for part in turn for task in part]


def gather(target: Any, plugins: Sequence[str | Path]) -> list[Scenario]:
    """Scenarios of paths, names or scenarios, one or many."""
    from worldsim.scenario import Scenario

    targets = [target] if isinstance(target, str | Path | Scenario) else list(target)
    ready = [item for item in targets if isinstance(item, Scenario)]
    paths = [item for item in targets if not isinstance(item, Scenario)]
    scenarios = ready + (read_scenarios(paths, plugins) if paths else [])
    _refuse_twins(scenarios)
    return scenarios


def task_of(case: Case, root: Path, plugins: Sequence[str | Path]) -> Task:
    files = tuple(str(Path(file).resolve()) for file in plugins)
    return Task(
        case.scenario.document,
        case.scenario.name,
        case.model,
        case.seed,
        case.device,
        case.dtype,
        str(root),
        files,
        case.key,
    )
