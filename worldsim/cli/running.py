"""``run``, ``validate`` and ``plan``: from scenario files to kept results."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worldsim.cli.terminal import (
    fail,
    known_plugins,
    out_folder,
    plugin_files,
    plural,
    print_tables,
    targets,
    warn_about,
)

if TYPE_CHECKING:
    from worldsim.plugins import Registry
    from worldsim.results import Results
    from worldsim.scenario import Case, Scenario


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


model_labels = click.option(
    "--model", "models", multiple=True, metavar="LABEL", help="Only this model or baseline; repeatable."
)
seed_numbers = click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; repeatable.")


def _device(context: click.Context, option: click.Parameter, name: str) -> str:
    """Refuse what is no device here; whether the machine has it is looked at later."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise click.BadParameter(f"{name!r} is no device; allowed: cpu, cuda, cuda:0 and so on")
    return name


device_name = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda",
    callback=_device,
    help="Where models live.",
)
dtype_name = click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float64"]),
    help="The dtype of models.",
)


quick_look = click.option(
    "--quick", is_flag=True, help="A first look: the first seed, and a tenth of the training steps."
)


@click.command()
@targets
@out_folder
@model_labels
@seed_numbers
@quick_look
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Child processes, 0 for none; all cores if left out.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds a case may take.")
@device_name
@dtype_name
@plugin_files
@click.option("--no-report", is_flag=True, help="Write no HTML report.")
def run(
    targets: Sequence[str],
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    quick: bool,
    workers: int | None,
    timeout: float | None,
    device: str,
    dtype: str,
    plugins: Sequence[Path],
    no_report: bool,
) -> None:
    """Run scenarios: files, folders, or installed suites by name.

    What is kept is not computed again.
    """
    from worldsim import batch
    from worldsim.cli import SOME_FAILED
    from worldsim.cli.progress import progress

    workers = cores() if workers is None else workers
    if timeout is not None and workers == 0:
        raise click.UsageError("--timeout needs child processes: give --workers 1 or more")
    known = known_plugins(plugins)
    scenarios = hastened(batch.read_scenarios(targets, plugins), quick)
    warn_about(known)
    todo = [case for case, state in planned(scenarios, out, models, seeds, device, dtype) if state != "kept"]
    refuse_unwritable(out)
    if not todo:
        click.echo("nothing to compute: every case is kept")
    failed = 0
    with progress(len(todo), known) as finished:

        def receive(receipt: Any) -> None:
            nonlocal failed
            failed += receipt.status == "failed"
            finished(receipt)

        try:
            results = batch.run(
                scenarios,
                out=out,
                models=models or None,
                seeds=seeds or None,
                workers=workers,
                timeout=timeout,
                device=device,
                dtype=dtype,
                plugins=plugins,
                on_receipt=receive,
            )
        except KeyboardInterrupt:
            click.echo("\nWhat is finished is kept: the same command goes on from there.", err=True)
            raise
    print_tables(results)
    if not no_report:
        report_or_hint(results, out / "report.html")
    if failed:
        fail(
            f"{failed} of {plural(len(todo), 'case')} failed; the same command tries them again", SOME_FAILED
        )


def hastened(scenarios: Sequence[Scenario], quick: bool) -> list[Scenario]:
    from worldsim.quick import first_look

    return [first_look(each) if quick else each for each in scenarios]


def refuse_unwritable(folder: Path) -> None:
    """Raise OSError before anything is computed, not after."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable.{os.getpid()}"
    probe.touch()
    probe.unlink()


def report_or_hint(results: Results, path: Path) -> None:
    """Write the report; without its libraries say how to have them, for the results are kept all the same."""
    from worldsim.errors import WorldsimError
    from worldsim.report import write_report

    try:
        click.echo(f"report: {write_report(results, path)}")
    except WorldsimError as error:
        click.echo(f"no report: {error}", err=True)


def planned(
    scenarios: Sequence[Scenario],
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    device: str,
    dtype: str,
) -> list[tuple[Case, str]]:
    """Every case that is asked for, and what there is to do: "run", "retry", "score" or nothing ("kept")."""
    from worldsim.batch import refuse_unknown, wanted
    from worldsim.store import Store

    store = Store(out)
    cases = [case for scenario in scenarios for case in scenario.cases(device=device, dtype=dtype)]
    refuse_unknown(cases, models, seeds)
    return [(case, state_of(case, store)) for case in cases if wanted(case, models or None, seeds or None)]


def state_of(case: Case, store: Any) -> str:
    from worldsim.score import is_scored

    if store.has_run(case.key):
        return "kept" if is_scored(case, store) else "score"
    return "retry" if store.failure_path(case.key).is_file() else "run"


@click.command()
@targets
@plugin_files
def validate(targets: Sequence[str], plugins: Sequence[Path]) -> None:
    """Check scenario files, and compute nothing.

    Every problem of every file is named with its line.
    """
    from worldsim.batch import read_scenarios, scenario_files
    from worldsim.cli import USAGE
    from worldsim.errors import ScenarioError

    known = known_plugins(plugins)
    warn_about(known)
    files = [file for target in targets for file in scenario_files(target, known)]
    try:
        scenarios = read_scenarios(targets, plugins)
    except ScenarioError as error:
        wrong = len({problem.file for problem in error.problems})
        fail(f"{error} in {wrong} of {plural(len(files), 'file')}", USAGE)
    else:
        cases = sum(len(scenario.cases()) for scenario in scenarios)
        click.echo(f"{plural(len(scenarios), 'scenario')}, {plural(cases, 'case')}: no problems")


@click.command()
@targets
@out_folder
@model_labels
@seed_numbers
@quick_look
@device_name
@dtype_name
@plugin_files
def plan(
    targets: Sequence[str],
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    quick: bool,
    device: str,
    dtype: str,
    plugins: Sequence[Path],
) -> None:
    """Say what run would compute and what is kept."""
    from worldsim.batch import read_scenarios

    known: Registry = known_plugins(plugins)
    scenarios = hastened(read_scenarios(targets, plugins), quick)
    warn_about(known)
    counts: dict[str, int] = {}
    for case, state in planned(scenarios, out, models, seeds, device, dtype):
        counts[state] = counts.get(state, 0) + 1
        click.echo(f"{state:6} {case.label}  {case.key}")
    meaning = {"run": "to run", "retry": "to try again", "score": "to score", "kept": "kept"}
    click.echo(
        ", ".join(f"{counts[state]} {meaning[state]}" for state in meaning if state in counts) or "no case"
    )
