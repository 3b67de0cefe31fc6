"""``status``, ``show``, ``report`` and ``clean``: a results folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from worldsim.cli.terminal import (
    console,
    opened,
    plugin_files,
    plural,
    print_failures,
    print_tables,
    results_folder,
)


@click.command()
@results_folder
def status(results: Path) -> None:
    """Count the cases done, unscored, failed and missing."""
    from rich.table import Table

    from worldsim.cli import SOME_FAILED

    found = opened(results)
    states = ("done", "unscored", "failed", "missing")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for entry in found.entries:
        counts.setdefault((entry.scenario, entry.model), Counter())[found.status(entry)] += 1
    table = Table("scenario", "model", *states)
    for (scenario, model), count in counts.items():
        table.add_row(scenario, model, *(str(count[state]) for state in states))
    console().print(table)
    total = sum(counts.values(), Counter())
    click.echo(f"{plural(len(found.entries), 'case')}: " + ", ".join(f"{total[s]} {s}" for s in states))
    if print_failures(found):
        raise click.exceptions.Exit(SOME_FAILED)


@click.command()
@results_folder
@click.option("--all", "every", is_flag=True, help="Every score, also those that rank nothing.")
def show(results: Path, every: bool) -> None:
    """Print the tables of scores."""
    print_tables(opened(results), every)


@click.command()
@results_folder
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Instead of RESULTS/report.html.",
)
def report(results: Path, output: Path | None) -> None:
    """Write the HTML report, one file for offline reading."""
    from worldsim.report import write_report

    click.echo(f"report: {write_report(opened(results), output or results / 'report.html')}")


@click.command()
@results_folder
@click.option("--failures", is_flag=True, help="Only what is kept about failures.")
@click.option("--orphans", is_flag=True, help="Only files that no case of the plan refers to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@plugin_files
def clean(results: Path, failures: bool, orphans: bool, yes: bool, plugins: tuple[Path, ...]) -> None:
    """Delete what is no longer needed.

    That is what is kept about failures, and files that no case of the plan refers to.
    """
    from worldsim.leftovers import failure_files, orphan_files

    found = opened(results)
    both = not failures and not orphans
    files = failure_files(found) if failures or both else []
    if orphans or both:
        files += [file for file in orphan_files(found, plugins) if file not in files]
    if not files:
        click.echo("nothing to delete")
        return
    size = sum(file.stat().st_size for file in files)
    for file in files:
        click.echo(str(file))
    if yes or click.confirm(f"delete {plural(len(files), 'file')}, {size / 2**20:.1f} MiB?"):
        for file in files:
            file.unlink(missing_ok=True)
        click.echo(f"deleted {plural(len(files), 'file')}")
