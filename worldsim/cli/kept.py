"""``status``, ``show``, ``report`` and ``clean``: a results folder."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from worldsim.cli.terminal import (
    console,
    opened,
    plugin_files,
    plural,
    print_failures,
    print_tables,
    results_folder,
    selecting,
)

if TYPE_CHECKING:
    from worldsim.results import Results
    from worldsim.selection import Selection

Rows: TypeAlias = "list[tuple[tuple[str, ...], Counter[str]]]"


@click.command()
@results_folder
@selecting
@click.option("--all", "every", is_flag=True, help="Every model and every failure, however many.")
@click.option("--watch", is_flag=True, help="Again and again, until nothing is left to be done.")
@click.option(
    "--every",
    "seconds",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
def status(results: Path, only: Selection, every: bool, watch: bool, seconds: float) -> None:
    """Count the cases done, unscored, failed, running and missing."""
    from worldsim.cli import SOME_FAILED

    found = opened(results).selected(only)
    left, text = counted(found, every)
    while watch and left:
        click.clear()
        click.echo(text)
        time.sleep(seconds)
        found = opened(results).selected(only)
        left, text = counted(found, every)
    click.echo(text)
    if print_failures(found, every):
        raise click.exceptions.Exit(SOME_FAILED)


def counted(results: Results, every: bool) -> tuple[int, str]:
    """How many cases are neither done nor failed, and a table and a line of what there is."""
    from rich.table import Table

    from worldsim.index import STATES, failure_kind, look

    index = look(results.root)
    total: Counter[str] = Counter()
    models: dict[tuple[str, str], Counter[str]] = {}
    kinds: Counter[str] = Counter()
    running = 0
    for entry in results.entries:
        state = index.state(entry)
        total[state] += 1
        models.setdefault((entry.scenario, entry.model), Counter())[state] += 1
        running += state != "done" and entry.key in index.running
        if state == "failed":
            kinds[failure_kind(results.store.open_failure(entry.key) or {})] += 1
    lines: list[str] = []
    rows = by_rows(models, every)
    if rows:
        table = Table(*rows[0][0], *STATES)
        for names, counts in rows[1:]:
            table.add_row(*names, *(str(counts[state]) for state in STATES))
        out = console()
        with out.capture() as captured:
            out.print(table)
        lines.append(captured.get().rstrip())
    words = [f"{total[state]} {state}" for state in STATES]
    if running:
        words.append(f"{running} of them running")
    lines.append(f"{plural(len(results.entries), 'case')}: {', '.join(words)}")
    if kinds:
        lines.append("failed by " + ", ".join(f"{kind} {kinds[kind]}" for kind in sorted(kinds)))
    return total["missing"] + total["unscored"], "\n".join(lines)


SHOWN_ROWS = 50
"""The most rows of a table that is read."""


def by_rows(models: dict[tuple[str, str], Counter[str]], every: bool) -> Rows:
    """Heads and counts by model, or by scenario where these are too many, or none where those are, too."""
    if every or len(models) <= SHOWN_ROWS:
        return [(("scenario", "model"), Counter()), *models.items()]
    scenarios: dict[str, Counter[str]] = {}
    for (scenario, _), counts in models.items():
        scenarios.setdefault(scenario, Counter()).update(counts)
    if len(scenarios) > SHOWN_ROWS:
        return []
    return [(("scenario",), Counter()), *(((name,), counts) for name, counts in scenarios.items())]


@click.command()
@results_folder
@click.option("--all", "every", is_flag=True, help="Every score, also those that rank nothing.")
def show(results: Path, every: bool) -> None:
    """Print the tables of scores."""
    print_tables(opened(results), every)


@click.command()
@results_folder
@selecting
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Instead of RESULTS/report.html.",
)
def report(results: Path, only: Selection, output: Path | None) -> None:
    """Write the HTML report, one file for offline reading."""
    from worldsim.report import write_report

    click.echo(f"report: {write_report(opened(results).selected(only), output or results / 'report.html')}")


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
