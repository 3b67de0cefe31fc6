"""``score`` and ``compare``: more of what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import click

from worldsim.cli.placing import Place, placing
from worldsim.cli.terminal import (
    console,
    fail,
    known_plugins,
    opened,
    plugin_files,
    plural,
    print_tables,
    results_folder,
    warn_about,
)


@click.command()
@results_folder
@click.option(
    "--metrics",
    metavar="LIST",
    default="",
    help="As a scenario lists them: 'rollout, {name: transport, feature: state}'. Left out: what is missing "
    "of each scenario's own.",
)
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@placing
@click.option("--selftest", is_flag=True, help="Instead: hold metrics to numbers that are known exactly.")
@plugin_files
@click.option("--no-report", is_flag=True, help="Write no HTML report.")
def score(
    results: Path,
    metrics: str,
    scenarios: Sequence[str],
    place: Place,
    selftest: bool,
    plugins: Sequence[Path],
    no_report: bool,
) -> None:
    """Score kept rollouts by other metrics, and train nothing.

    With --selftest, compute on this machine what is known exactly of each metric.
    """
    from worldsim import rescoring
    from worldsim.cli import SOME_FAILED
    from worldsim.cli.following import followed
    from worldsim.cli.running import report_or_hint

    known = known_plugins(plugins)
    warn_about(known)
    if selftest:
        print_ground_truths(known)
        return
    found = opened(results)
    asked = rescoring.metrics_of(metrics) if metrics.strip() else []
    plan = rescoring.planned(found, asked, scenarios, plugins)
    devices = {entry.device for entry in found.entries}
    executor = place.executor("cuda" if "cuda" in devices else "cpu")
    with followed(executor, len(plan.unscored)) as follower:
        scored = rescoring.carried_out(found, plan, executor, plugins, follower.finished, follower.working)
    failed = follower.failed
    print_tables(scored)
    if plan.left_out:
        shown = ", ".join(plan.left_out[:5]) + (", ..." if len(plan.left_out) > 5 else "")
        click.echo(f"{plural(len(plan.left_out), 'case')} without rollouts left out: {shown}")
    if not no_report:
        report_or_hint(scored, results / "report.html")
    if failed:
        fail(f"{failed} of {plural(len(plan.unscored), 'case')} could not be scored", SOME_FAILED)


def print_ground_truths(known: Any) -> None:
    """A line for each number that a metric knows exactly; leaves with 1 when one is missed."""
    from rich.table import Table

    from worldsim.cli import SOME_FAILED
    from worldsim.testing.ground_truths import ground_truths

    table = Table("metric", "what", "right", "found", "within", "", "source")
    missed = total = 0
    for metric, one in ground_truths(known):
        total += 1
        missed += not one.holds
        verdict = "holds" if one.holds else "MISSED"
        table.add_row(
            metric,
            one.what,
            f"{one.right:.10g}",
            f"{one.found:.10g}",
            f"{one.within:.0e}",
            verdict,
            one.source,
        )
    console().print(table)
    click.echo(f"{plural(total, 'number')}, {missed} missed")
    if missed or not total:
        raise click.exceptions.Exit(SOME_FAILED)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--results",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where A and B are models.",
)
@click.option("--split", help="Only this split.")
def compare(a: str, b: str, results: Path, split: str | None) -> None:
    """Print paired differences of scores, with intervals and p-values.

    A and B are two results folders, or two models or baselines of one.
    """
    from worldsim.comparing import compare as differences
    from worldsim.comparing import tables

    found = differences(a, b, results=results, split=split)
    out = console()
    for table in tables(found, (a, b)):
        out.print(table)
    for reason in dict.fromkeys(reason for one in found for reason in one.reasons):
        click.echo(f"not measurable: {reason}")
    alone = sorted({seed for one in found for seed in one.alone})
    if alone:
        click.echo(f"seeds that only one side has measured, left out: {', '.join(map(str, alone))}")
    tests = plural(sum(not isnan(one.p) for one in found), "test")
    click.echo(
        "B - A over pairs of equal seeds, its 95 % t-interval, Student's paired t-test, and Holm's "
        f"correction for {tests}."
    )
