"""``run`` and ``validate``: from scenario files to kept results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worldsim.cli.placing import Place, placing
from worldsim.cli.terminal import (
    fail,
    known_plugins,
    out_folder,
    plugin_files,
    plural,
    print_tables,
    selecting,
    targets,
    warn_about,
)

if TYPE_CHECKING:
    from worldsim.results import Results
    from worldsim.scenario import Scenario
    from worldsim.selection import Selection


def _shard(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise click.BadParameter(f"{text!r} is no part; of 4 there are 0/4, 1/4, 2/4 and 3/4")
    return int(found[1]), int(found[2])


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
@selecting
@quick_look
@placing
@click.option("--fail-fast", is_flag=True, help="Begin nothing more after a failure.")
@click.option(
    "--max-failures", type=click.IntRange(min=1), metavar="N", help="Begin nothing more after N failures."
)
@click.option(
    "--shard", metavar="I/N", callback=_shard, help="Only the part I of N, counted from 0: for job arrays."
)
@click.option("--dry-run", is_flag=True, help="Say what would be computed, as plan does.")
@device_name
@dtype_name
@plugin_files
@click.option("--no-report", is_flag=True, help="Write no HTML report.")
def run(
    targets: Sequence[str],
    out: Path,
    only: Selection,
    quick: bool,
    place: Place,
    fail_fast: bool,
    max_failures: int | None,
    shard: tuple[int, int] | None,
    dry_run: bool,
    device: str,
    dtype: str,
    plugins: Sequence[Path],
    no_report: bool,
) -> None:
    """Run scenarios: files, folders, or installed suites by name.

    What is kept is not computed again.
    """
    from worldsim import batch
    from worldsim.build import checked_device
    from worldsim.cli import SOME_FAILED
    from worldsim.cli.following import followed
    from worldsim.cli.planning import print_plan
    from worldsim.planning import make_plan
    from worldsim.results import open_results
    from worldsim.store import Store

    executor = place.executor(device)
    known = known_plugins(plugins)
    scenarios = hastened(batch.read_scenarios(targets, plugins), quick)
    warn_about(known)
    if place.is_here:
        checked_device(device)
    try:
        plan = make_plan(scenarios, out, only, device=device, dtype=dtype, shard=shard)
    except OSError:  # a folder that cannot be looked into can least of all be written: that has advice
        Store(out).refuse_unwritable()
        raise
    if dry_run:
        print_plan(plan)
        return
    Store(out).refuse_unwritable()
    todo = len(batch.tasks(plan, plugins))
    if not todo:
        fresh = batch.freeze(plan)
        click.echo(f"nothing to compute: {plan.summary()}; worldsim show {out} prints the scores")
        if not no_report and not shard and (fresh or not (out / "report.html").exists()):
            report_or_hint(open_results(out), out / "report.html")
        return
    with followed(executor, todo) as follower:
        most = 1 if fail_fast else max_failures
        results = batch.perform(plan, executor, plugins, follower.finished, follower.working, most)
    failed, done = follower.failed, follower.count
    print_tables(results)
    if not no_report and not shard:
        report_or_hint(results, out / "report.html")
    if failed:
        left = f", {todo - done} left alone" if done < todo else ""
        fail(
            f"{failed} of {plural(todo, 'case')} failed{left}; the same command tries them again", SOME_FAILED
        )


def hastened(scenarios: Sequence[Scenario], quick: bool) -> list[Scenario]:
    from worldsim.quick import first_look

    return [first_look(each) if quick else each for each in scenarios]


def report_or_hint(results: Results, path: Path) -> None:
    """Write the report; without its libraries say how to have them, for the results are kept all the same."""
    from worldsim.errors import WorldsimError
    from worldsim.report import write_report

    try:
        click.echo(f"report: {write_report(results, path)}")
    except WorldsimError as error:
        click.echo(f"no report: {error}", err=True)


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
