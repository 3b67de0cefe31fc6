"""What a batch costs beside its cases: planning, handing out, keeping, resuming, and the driver's memory.

    python benchmarks/batch.py [--cases 10000] [--workers 2] [--folder DIR] [--executor dask]

A case is a small simulation of the doubling map by its own installed plugins: 16 trajectories of 32 steps
beside a forecast that learns nothing, scored by ``rollout``; it is kept like any other case.

*Overhead* is (wall time x workers - processor time of all cases) / cases. The processor time of a case is its
process's, from the moment it gets the task until it hands in the receipt, and waiting for the disk is no
processor time: the time of one fsync of a small file in the same folder stands beside, and how many files a
case writes. Each is flushed, and so are its folder and a folder that is new. Wall time counts from the first
receipt, since all workers import torch first; how long that takes has a line of its own.

*Scaling* is how many more cases two workers end in a second than one, which gets a fifth of the cases; beside
it what the machine gives two processes that share nothing and compute the same cases without any executor.

With ``--executor dask`` the batches run on a Dask cluster of this machine with its scheduler in this process;
the local executor's overhead for the same cases stands beside.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

STEPS = 32
SCALED = 200
"""Cases of each process when the machine's own scaling is measured."""
ROUNDS = 3


def document(cases: int) -> dict[str, Any]:
    return {
        "about": "What does a batch cost?",
        "system": "doubling_map",
        "data": {
            "step": 1.0,
            "splits": {
                "train": {"trajectories": 4, "horizon": 4.0},
                "test": {"trajectories": 16, "horizon": float(STEPS)},
            },
        },
        "models": {"elapsed_time": "elapsed_time"},
        "metrics": ["rollout"],
        "baselines": ["persistence"],
        "seeds": list(range(cases - 1)),
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return call(), time.perf_counter() - begun


def command(*arguments: object) -> float:
    """Seconds of a command in this process, which has the plugins loaded; it must succeed."""
    from worldsim.cli import exit_code

    with contextlib.redirect_stdout(io.StringIO()):
        code, seconds = timed(lambda: exit_code([str(each) for each in arguments]))
    assert code == 0
    return seconds


def fsync_seconds(folder: Path, rounds: int = 200) -> float:
    """Of one small file, on average."""
    spent = 0.0
    for _ in range(rounds):
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            spent += timed(lambda file=file: os.fsync(file.fileno()))[1]
    return spent / rounds


def files_of_a_case(results: Any) -> float:
    """How many files are written for a case, on average."""
    kept = sum(1 for kind in ("runs", "fits", "scores") for _ in (results.root / kind).rglob("*.*"))
    return kept / len(results.entries)


def executor_of(name: str, workers: int) -> Any:
    from worldsim.executors import Local

    if name == "local":
        return Local(workers)
    from worldsim.dask_clusters import local_cluster
    from worldsim.dask_executor import Dask

    return Dask(partial(local_cluster, workers))


def batch(folder: Path, cases: int, workers: int, executor: str) -> dict[str, float]:
    """Seconds of a batch on ``workers``, from its first receipt on, and of all its cases."""
    import worldsim
    from worldsim.plugins import registry
    from worldsim.reading import from_document

    scenario = from_document(document(cases), "batch", registry())
    times, spent = [], []

    def ended(receipt: Any) -> None:
        assert receipt.status == "done", receipt
        times.append(time.perf_counter())
        spent.append(receipt.cpu_seconds)

    begun = time.perf_counter()
    with closing(executor_of(executor, workers)) as place:
        worldsim.run(scenario, out=folder, executor=place, on_receipt=ended)
    wall, counted = times[-1] - times[0], len(times) - 1
    return {
        "start": times[0] - begun,
        "rate": counted / wall,
        "case": 1e3 * sum(spent[1:]) / counted,
        "overhead": 1e3 * (wall * workers - sum(spent[1:])) / counted,
    }


def alone(folder: str, first: int, count: int, turn: Any, answer: Any) -> None:
    """Seconds of ``count`` cases in this process, without any executor."""
    from worldsim.batch import task_of
    from worldsim.executors import compute
    from worldsim.plugins import registry
    from worldsim.reading import from_document

    scenario = from_document(document(1 + first + count), "batch", registry())
    tasks = [task_of(case, Path(folder), ()) for case in scenario.cases()[first : first + count]]
    compute(tasks[0])
    turn.wait()
    answer.put(timed(lambda: [compute(task) for task in tasks[1:]])[1])


def machine_scaling(folder: Path, count: int) -> float:
    """How many more cases two processes that share nothing end in a second than one, by the shortest of a few
    rounds in turn: a disk that still writes what came before slows the first ones."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turns in range(ROUNDS):
        for processes, found in seconds.items():
            turn, answer = spawn.Barrier(processes), spawn.Queue()
            places = [str(folder / f"alone{turns}{processes}{i}") for i in range(processes)]
            children = [
                spawn.Process(target=alone, args=(place, i * count, count, turn, answer))
                for i, place in enumerate(places)
            ]
            for child in children:
                child.start()
            found.append(max(answer.get() for _ in children))
            for child in children:
                child.join()
    return 2 * min(seconds[1]) / min(seconds[2])


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def figures(folder: Path, cases: int, workers: int, executor: str) -> Sequence[tuple[str, str]]:
    """(what, value) of everything."""
    import xarray as xr

    import worldsim
    from worldsim.plugins import registry

    _ = registry().tables
    imported = peak_megabytes()
    file, out = folder / "batch.yaml", folder / "many"
    file.write_text(json.dumps(document(cases)), encoding="utf-8")
    planning = command("plan", file, "--out", out)
    many = batch(out, cases, workers, executor)
    peak = peak_megabytes()
    results = worldsim.open_results(out)
    status = command("status", out)
    resume = command("run", file, "--out", out, "--workers", workers, "--no-report")
    compacting = command("compact", out)
    opening = min(timed(lambda: xr.open_datatree(out, engine="worldsim"))[1] for _ in range(5))
    one = batch(folder / "one", max(10, cases // 5), 1, executor)
    local = [] if executor == "local" else [batch(folder / "local", cases, workers, "local")]
    sync = fsync_seconds(folder)
    return [
        ("cases, workers, executor", f"{cases:,}, {workers}, {executor}"),
        ("worldsim plan", f"{planning:.2f} s"),
        ("first receipt", f"{many['start']:.1f} s"),
        ("processor time of a case", f"{many['case']:.1f} ms"),
        (f"overhead of a case, {workers} workers", f"{many['overhead']:.1f} ms"),
        ("overhead of a case, 1 worker", f"{one['overhead']:.1f} ms"),
        *((f"the same, local, {workers} workers", f"{each['overhead']:.1f} ms") for each in local),
        ("one fsync, and files of a case", f"{1e3 * sync:.1f} ms, {files_of_a_case(results):.1f}"),
        ("worldsim status", f"{status:.2f} s"),
        ("worldsim run again, tables printed", f"{resume:.2f} s"),
        ("worldsim compact", f"{compacting:.1f} s"),
        ("open of the compacted results", f"{1e3 * opening:.0f} ms"),
        ("peak memory of the driver, and after imports", f"{peak:.0f} MB, {imported:.0f} MB"),
        (f"cases per second, {workers} workers and 1", f"{many['rate']:.1f}, {one['rate']:.1f}"),
        (f"scaling from 1 worker to {workers}", f"{many['rate'] / one['rate']:.2f}"),
        ("the machine's own, 2 processes", f"{machine_scaling(folder, min(cases, SCALED)):.2f}"),
    ]


@click.command()
@click.option("--cases", default=10_000, show_default=True, type=click.IntRange(10))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--executor", default="local", show_default=True, type=click.Choice(["local", "dask"]))
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where results go; a temporary folder if not."
)
def main(cases: int, workers: int, executor: str, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = figures(Path(place), cases, workers, executor)
    width = max(len(what) for what, _ in found)
    for what, value in found:
        click.echo(f"{what:{width}}  {value}")


if __name__ == "__main__":
    main()
