"""Many cases: read the scenarios, freeze the plan, skip what is kept, map the rest over an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import Problem, ScenarioError, WorldsimError, did_you_mean
from worldsim.executors import InProcess, Local, Task
from worldsim.results import Results, write_plan

if TYPE_CHECKING:
    from worldsim.executors import Executor
    from worldsim.plugins import Registry
    from worldsim.run import Receipt
    from worldsim.scenario import Case, Scenario


def scenario_files(target: str | Path, plugins: Registry) -> list[Path]:
    """The YAML files of a file, a folder, or the name of an installed suite or ``suite/scenario``."""
    path = Path(target)
    if path.is_file():
        return [path]
    folders = plugins.scenario_folders()
    if not path.is_dir() and str(target) in folders:
        path = folders[str(target)]
    suite, _, name = str(target).partition("/")
    if not path.exists() and suite in folders and (folders[suite] / f"{name}.yaml").is_file():
        return [folders[suite] / f"{name}.yaml"]
    if not path.is_dir():
        hint = did_you_mean(str(target), folders)
        raise WorldsimError(f"{target} is neither a file, a folder nor an installed suite; {hint}")
    found = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
    if not found:
        raise WorldsimError(f"there is no .yaml file in {path}")
    return found


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
    workers: int = 0,
    timeout: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    plugins: Sequence[str | Path] = (),
    executor: Executor | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
) -> Results:
    """Run scenarios and keep their results in ``out``; what is already kept there is not computed again.

    ``workers`` child processes (0 computes in this process). A case that fails is kept as a failure and
    harms no other: look at ``Results.status``. Raises ScenarioError, DeviceError or WorldsimError before
    anything is computed.
    """
    from worldsim.build import checked_device, checked_dtype

    checked_device(device)
    checked_dtype(dtype)
    scenarios = gather(target, plugins)
    cases = [c for s in scenarios for c in s.cases(device=device, dtype=dtype)]
    refuse_unknown(cases, models, seeds)
    root = Path(out)
    write_plan(root, scenarios, cases)
    asked = [case for case in cases if wanted(case, models, seeds)]
    chosen = [task_of(case, root, plugins) for case in in_turn(asked)]
    executor = executor or (Local(workers, timeout) if workers else InProcess())
    for receipt in executor.run(pending(chosen, Results(root))):
        if on_receipt:
            on_receipt(receipt)
    return Results(root)


def in_turn(cases: Sequence[Case]) -> list[Case]:
    """Within each scenario, cases that train before those that take over what was trained, so that two
    workers seldom train the same weights at once."""
    fits: set[str] = set()
    first = {}
    for case in cases:
        first[case.key] = not case.is_baseline and case.fit_key not in fits
        fits.add(case.fit_key)
    place = {case.scenario.name: i for i, case in reversed(list(enumerate(cases)))}
    return sorted(cases, key=lambda case: (place[case.scenario.name], not first[case.key]))


def gather(target: Any, plugins: Sequence[str | Path]) -> list[Scenario]:
    """Scenarios of paths, names or scenarios, one or many."""
    from worldsim.scenario import Scenario

    targets = [target] if isinstance(target, str | Path | Scenario) else list(target)
    ready = [item for item in targets if isinstance(item, Scenario)]
    paths = [item for item in targets if not isinstance(item, Scenario)]
    scenarios = ready + (read_scenarios(paths, plugins) if paths else [])
    _refuse_twins(scenarios)
    return scenarios


def refuse_unknown(cases: Sequence[Case], models: Sequence[str] | None, seeds: Sequence[int] | None) -> None:
    """Raises WorldsimError for a model or a seed that no scenario has, instead of running nothing."""
    labels = {case.model for case in cases}
    for label in models or ():
        if label not in labels:
            raise WorldsimError(
                f"no scenario has a model or baseline {label!r}; {did_you_mean(label, labels)}"
            )
    numbers = sorted({case.seed for case in cases if not case.is_baseline})
    for seed in seeds or ():
        if seed not in numbers:
            raise WorldsimError(f"no scenario has the seed {seed}; allowed: {', '.join(map(str, numbers))}")


def wanted(case: Case, models: Sequence[str] | None, seeds: Sequence[int] | None) -> bool:
    if case.is_baseline:
        return models is None or case.model in models
    return (models is None or case.model in models) and (seeds is None or case.seed in seeds)


def task_of(case: Case, root: Path, plugins: Sequence[str | Path]) -> Task:
    document = dict(case.scenario.document)
    files = tuple(str(Path(file).resolve()) for file in plugins)
    return Task(
        document,
        case.scenario.name,
        case.model,
        case.seed,
        case.device,
        case.dtype,
        str(root),
        files,
        case.key,
    )


def pending(tasks: Sequence[Task], results: Results) -> list[Task]:
    """The tasks whose results are not whole yet."""
    status = {entry.key: results.status(entry) for entry in results.entries}
    return [task for task in tasks if status.get(task.key) != "done"]
