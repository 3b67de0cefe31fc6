"""What the commands share: options that mean the same everywhere, and the console."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

    from worldsim.plugins import Registry
    from worldsim.results import Results

PIPE_WIDTH = 160
"""Columns when the output is no terminal: a table in a log is not cut at 80."""

targets = click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
plugin_files = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="A plugin in a file of its own; may be given again.",
)
out_folder = click.option(
    "--out",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The results folder.",
)
results_folder = click.argument("results", default="results", type=click.Path(path_type=Path))


def console() -> Console:
    """A rich console on standard output that shows text as it is, and cuts no table in a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def known_plugins(files: Sequence[Path]) -> Registry:
    """The registry with ``files``; a file that cannot be loaded is refused, for it was asked for by name."""
    from worldsim.errors import PluginError
    from worldsim.plugins import registry

    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise click.BadParameter(f"there is no file {', '.join(absent)}", param_hint="--plugin")
    found = registry(tuple(files))
    asked = {str(Path(file).resolve()) for file in files}
    wrong = [str(broken) for broken in found.broken if broken.provider.file in asked]
    if wrong:
        raise PluginError("\n".join(wrong))
    return found


def warn_about(plugins: Registry) -> None:
    """Name the plugins that do not work; the rest does."""
    _ = plugins.tables
    for broken in plugins.broken:
        click.echo(f"warning: plugin {broken}", err=True)


def opened(path: Path) -> Results:
    """The results at ``path``; ResultError when there are none."""
    from worldsim.results import open_results

    return open_results(path)


def print_tables(results: Results, every: bool = False) -> None:
    """The score tables, then every failure by name."""
    from worldsim.composed import grids
    from worldsim.tables import grid_table, published_table, terminal_tables

    out = console()
    for scenario in results.scenarios:
        out.print(f"\n{scenario}: {results.about(scenario)}")
        for table in terminal_tables(results, scenario, every, out.width):
            out.print(table)
        for grid in grids(results, scenario):
            out.print(grid_table(grid))
        published = published_table(results, scenario)
        if published is not None:
            out.print(published)
    print_failures(results)


def print_failures(results: Results) -> int:
    """Name every case that has failed, with its reason; how many there are."""
    failed = [
        entry for entry in results.entries if results.failure(entry) and results.status(entry) != "done"
    ]
    for entry in failed:
        click.echo(f"failed: {entry.label}: {results.failure(entry)}")
    return len(failed)


def fail(message: str, code: int) -> NoReturn:
    """Print a message for people and leave."""
    click.echo(message, err=True)
    raise click.exceptions.Exit(code)


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"
