"""What the commands share: options that mean the same everywhere, and the console."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

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
_SELECTING = (
    click.option(
        "-k", "words", default="", metavar="EXPR", help="Only labels with these words: 'flow and not truth'."
    ),
    click.option(
        "--scenario", "scenarios", multiple=True, metavar="GLOB", help="Only these scenarios; repeatable."
    ),
    click.option("--tag", "tags", multiple=True, help="Only scenarios with this tag; repeatable."),
    click.option(
        "--model", "models", multiple=True, metavar="LABEL", help="Only this model or baseline; repeatable."
    ),
    click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; repeatable."),
    click.option("--failed", is_flag=True, help="Only cases that failed."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="No more cases than this."),
)


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that narrow down which cases are meant; the command is given ``only``."""

    @wraps(command)
    def narrowed(
        *arguments: Any,
        words: str,
        scenarios: Sequence[str],
        tags: Sequence[str],
        models: Sequence[str],
        seeds: Sequence[int],
        failed: bool,
        limit: int | None,
        **options: Any,
    ) -> Any:
        from worldsim.selection import Selection

        only = Selection(words, scenarios, tags, models, seeds, failed, limit)
        return command(*arguments, only=only, **options)

    for option in reversed(_SELECTING):
        narrowed = option(narrowed)
    return narrowed


results_folder = click.argument("results", default="results", type=click.Path(path_type=Path))


def console() -> Console:
    """A rich console on standard output that shows text as it is, and cuts no table in a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


class MemorySize(click.ParamType[int]):
    """``4GB``, ``500 MB`` or ``2GiB`` as bytes."""

    name = "size"
    units: ClassVar = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
        "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)", str(value).strip().upper())
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no size; write a number and a unit, such as 4GB or 500MiB", param, ctx)
        return round(float(found[1]) * self.units[found[2]])


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


SHOWN_FAILURES = 20
"""How many failures are named before the rest is counted."""


def print_failures(results: Results, every: bool = False) -> int:
    """Name the cases that have failed, with the kind of failure and its message, and those whose forecasts
    are not finite; how many have failed."""
    from worldsim.failures import flag
    from worldsim.index import look

    index = look(results.root)
    failed = [entry for entry in results.entries if index.state(entry) == "failed"]
    lines = []
    for entry in failed:
        kept = results.store.open_failure(entry.key) or {}
        kind = f"{kept['kind']}: " if kept.get("kind") not in (None, "exception") else ""
        message = str(kept.get("message", ""))
        lines.append(f"failed: {entry.label}: {message if message.startswith(kind) else kind + message}")
    for entry in results.entries:
        if entry.key in index.failures and index.state(entry) != "failed":
            words = flag(results.store, entry.key)
            lines += [f"warning: {entry.label}: {words}"] if words else []
    for line in lines if every else lines[:SHOWN_FAILURES]:
        click.echo(line)
    if len(lines) > SHOWN_FAILURES and not every:
        click.echo(f"and {len(lines) - SHOWN_FAILURES} more; worldsim status --all names them")
    return len(failed)


def speak_to_nobody() -> None:
    """The reader of standard output has gone: what else is said there is lost, and no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, code: int) -> NoReturn:
    """Print a message for people and leave."""
    click.echo(message, err=True)
    raise click.exceptions.Exit(code)


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"
