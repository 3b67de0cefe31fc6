"""What 100,000 cases ask of a results folder: its plan, its files, its status, and a run that finds all done.

    python benchmarks/layout.py [--cases 100000] [--folder DIR]

The cases are those of ``batch.py``. The first is computed; every other gets a copy of its rollouts and
scores, under its own key, with its own provenance and checksums, by the same calls that keep a computed one:
each written beside its place, flushed, renamed, and its folder flushed. So a batch of this size is seen to
its end in minutes, and what is measured is all but the computing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from batch import command, document, fsync_seconds, peak_megabytes, timed

VERIFIED = 1000
"""Most cases that are verified here."""


class Copying:
    """An executor that computes the first task, and copies what it gave for the others."""

    def run(self, tasks: Sequence[Any], watch: Any = None) -> Generator[Any]:
        from dataclasses import replace

        from worldsim.archive import members_of, packed
        from worldsim.executors import compute, read_scenario
        from worldsim.files import write_bytes
        from worldsim.provenance import provenance
        from worldsim.scenario import Case
        from worldsim.store import Store

        first, *others = tasks
        receipt = compute(first)
        assert receipt.status == "done", receipt
        yield receipt
        scenario, store = read_scenario(first), Store(Path(first.root))
        members = members_of(store.open_run(first.key))
        (metric,) = (key for _, _, key in scenario.scored)
        scores = store.open_scores(first.key, metric)
        assert scores is not None
        for task in others:
            case = Case(scenario, task.model, task.seed, task.device, task.dtype)
            own = {
                name: data.replace(first.key.encode(), task.key.encode()) if name == "zarr.json" else data
                for name, data in members.items()
            }
            write_bytes(store.run_path(task.key), packed(own, provenance(case)))
            store.keep_scores(task.key, metric, scores)
            yield replace(receipt, key=task.key, label=task.label, cpu_seconds=0.0)

    def cancel(self) -> None:
        """Nothing lasts here."""

    def close(self) -> None:
        """Nothing is held."""


def held(folder: Path) -> tuple[int, float]:
    """(files, bytes of them) in ``folder``."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), float(sum(sizes))


def figures(folder: Path, cases: int) -> Iterable[tuple[str, str]]:
    """(what, value), as they are measured."""
    import worldsim
    from worldsim.plugins import registry
    from worldsim.reading import from_document
    from worldsim.verifying import verify

    scenario = from_document(document(cases), "layout", registry())
    _ = registry().tables
    yield "memory after imports", f"{peak_megabytes():.0f} MB"
    file, out = folder / "layout.yaml", folder / "results"
    file.write_text(json.dumps(document(cases)), encoding="utf-8")
    yield "cases", f"{cases:,}"
    yield "worldsim plan", f"{command('plan', file, '--out', out):.2f} s"
    begun = peak_megabytes()
    _, seconds = timed(lambda: worldsim.run(scenario, out=out, executor=Copying()))
    yield "all of it", f"{seconds:.0f} s, {1e3 * seconds / cases:.2f} ms a case"
    yield "one fsync, of which a case has six", f"{1e3 * fsync_seconds(folder):.2f} ms"
    yield "peak memory, planned and after all", f"{begun:.0f} MB, {peak_megabytes():.0f} MB"
    (results, opening) = timed(lambda: worldsim.open_results(out))
    yield "open_results", f"{opening:.2f} s"
    states, looking = timed(lambda: [results.status(entry) for entry in results.entries])
    assert states == ["done"] * cases
    yield "the state of every case", f"{looking:.2f} s"
    status = [sys.executable, "-m", "worldsim", "status", str(out)]
    _, looking = timed(lambda: subprocess.run(status, check=True, stdout=subprocess.DEVNULL))
    yield "worldsim status, a process of its own", f"{looking:.2f} s"
    again = command("run", file, "--out", out, "--no-report")
    yield "worldsim run again: nothing to compute", f"{again:.2f} s"
    files, size = held(out)
    yield "files, and bytes of a case", f"{files:,}, {size / cases:,.0f}"
    if cases <= VERIFIED:
        found, checking = timed(lambda: verify(out))
        assert not found.damaged, found.damaged[:3]
        yield "worldsim verify: 0 damaged", f"{checking:.0f} s"
    else:
        yield "worldsim verify", f"NOT RUN above {VERIFIED:,} cases: it decodes every array"
    yield "peak memory at the end", f"{peak_megabytes():.0f} MB"


@click.command()
@click.option("--cases", default=100_000, show_default=True, type=click.IntRange(10))
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where results go; a temporary folder if not."
)
def main(cases: int, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for what, value in figures(Path(place), cases):
            click.echo(f"{what:40}  {value}")


if __name__ == "__main__":
    main()
