"""``plan`` and ``why``: what would be computed, and for what reason."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worldsim.cli.running import device_name, dtype_name, hastened, quick_look
from worldsim.cli.terminal import (
    known_plugins,
    opened,
    out_folder,
    plugin_files,
    plural,
    selecting,
    targets,
    warn_about,
)

if TYPE_CHECKING:
    from worldsim.plan_files import Entry
    from worldsim.planning import Plan
    from worldsim.plugins import Registry
    from worldsim.results import Results
    from worldsim.scenario import Case
    from worldsim.selection import Selection

LEAST_OF_A_KEY = 6
"""How many digits of a key are taken for one."""


@click.command()
@targets
@out_folder
@selecting
@quick_look
@click.option("--freeze", is_flag=True, help="Make it the plan of the results folder: for shards.")
@device_name
@dtype_name
@plugin_files
def plan(
    targets: Sequence[str],
    out: Path,
    only: Selection,
    quick: bool,
    freeze: bool,
    device: str,
    dtype: str,
    plugins: Sequence[Path],
) -> None:
    """Say what run would do with each case, and why."""
    from worldsim import batch
    from worldsim.planning import make_plan
    from worldsim.store import Store

    known = known_plugins(plugins)
    scenarios = hastened(batch.read_scenarios(targets, plugins), quick)
    warn_about(known)
    made = make_plan(scenarios, out, only, device=device, dtype=dtype)
    print_plan(made)
    if freeze:
        Store(out).refuse_unwritable()
        batch.freeze(made)
        click.echo(f"frozen: {plural(sum(len(each.entries) for each in made.scenarios), 'case')} in {out}")


def print_plan(plan: Plan) -> None:
    """A line for each case, and a summary."""
    for step in plan.steps:
        why = plan.why(step)
        click.echo(f"{step.does:7} {step.entry.label}  {step.entry.key}{f'  {why}' if why else ''}")
    click.echo(plan.summary())


@click.command()
@click.argument("case", metavar="KEY|LABEL")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@out_folder
@plugin_files
def why(case: str, targets: Sequence[str], out: Path, plugins: Sequence[Path]) -> None:
    """Print what a case's key is made of, and what differs from what is kept.

    The case is looked for in the plan of the results folder, or in the scenarios TARGET as they are now.
    """
    known = known_plugins(plugins)
    if targets:
        explain(*planned_now(case, targets, out, plugins))
    else:
        results = opened(out)
        if in_no_plan(case, results):
            return
        entry = found(case, results.entries)
        explain(entry, read_again(entry, results, known), out)


def in_no_plan(key: str, results: Results) -> bool:
    """Print the key document of a result that is kept and that the plan does not name; whether it is one."""
    from worldsim.planning import kept_meaning

    planned = {entry.key for entry in results.entries}
    if not re.fullmatch(r"[0-9a-f]{32}", key) or key in planned or not results.store.has_run(key):
        return False
    click.echo(json.dumps(kept_meaning(key, results.store), indent=1))
    click.echo(f"\nkept    {results.store.run_path(key)}, of an earlier plan")
    return True


def found(case: str, entries: Sequence[Entry]) -> Entry:
    """The entry of a label, or of a key or the beginning of one. Raises WorldsimError."""
    from worldsim.errors import WorldsimError, did_you_mean

    for entry in entries:
        if case in (entry.label, entry.key):
            return entry
    starting = [e for e in entries if e.key.startswith(case)] if len(case) >= LEAST_OF_A_KEY else []
    if len({entry.key for entry in starting}) == 1:
        return starting[0]
    labels = [entry.label for entry in entries]
    hint = f"{len(starting)} keys begin so" if starting else did_you_mean(case, labels[:1000])
    raise WorldsimError(f"no case has the key or label {case!r}; {hint}")


def planned_now(
    case: str, targets: Sequence[str], out: Path, plugins: Sequence[Path]
) -> tuple[Entry, Case, Path]:
    from worldsim import batch
    from worldsim.planning import make_plan

    made = make_plan(batch.read_scenarios(targets, plugins), out)
    entry = found(case, [step.entry for step in made.steps])
    return next((entry, step.case, out) for step in made.steps if step.entry is entry)


def read_again(entry: Entry, results: Results, plugins: Registry) -> Case:
    from worldsim.reading import from_document
    from worldsim.scenario import Case

    scenario = from_document(results.document(entry.scenario), entry.scenario, plugins)
    return Case(scenario, entry.model, entry.seed, entry.device, entry.dtype)


def explain(entry: Entry, case: Case, out: Path) -> None:
    """The key document of a case as the installed plugins make it, and how what is kept differs from it."""
    from worldsim.changes import changes
    from worldsim.errors import ResultError
    from worldsim.index import look
    from worldsim.planning import kept_meaning, since
    from worldsim.store import Store

    store = Store(out)
    click.echo(json.dumps(case.meaning, indent=1))
    click.echo(f"\nlabel   {entry.label}\nkey     {case.key}\nfit     {case.fit_key}")
    click.echo(f"state   {look(out).state(entry)}")
    if store.has_run(case.key):
        click.echo(f"kept    {store.run_path(case.key)}")
    failure = store.open_failure(case.key)
    if failure:
        click.echo(f"failed  {failure.get('message', '')}")
    if entry.key != case.key:
        old = kept_meaning(entry.key, store)
        found: Sequence[Any] = changes(old, case.meaning) if old else []
        click.echo(f"planned as {entry.key}, which the installed plugins and worldsim do not make")
    else:
        try:
            found = since(case.meaning, entry, store)
        except ResultError as error:
            if entry.before:
                click.echo(str(error))
            return
    click.echo("\nwhat differs from what is kept under this label:")
    for change in found:
        click.echo(f"  {change}")
