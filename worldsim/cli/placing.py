"""Where a run computes its cases: in this process, in children, or on a Dask cluster."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worldsim.cli.terminal import MemorySize

if TYPE_CHECKING:
    from worldsim.executors import Executor


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Place:
    """What the options say, by their names."""

    executor_name: str
    workers: int | None
    timeout: float | None
    memory: int | None
    address: str | None
    scheduler_file: Path | None
    slurm: str | None

    @property
    def is_here(self) -> bool:
        """Whether models live on this machine's devices."""
        return self._cluster is None

    @property
    def _cluster(self) -> str | None:
        """The option that names a cluster; None where there is none."""
        named = {"--address": self.address, "--scheduler-file": self.scheduler_file, "--slurm": self.slurm}
        given = [option for option, value in named.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} each name a cluster: give one of them")
        return given[0] if given else None

    def executor(self, device: str) -> Executor:
        """Raises UsageError for options that do not go together, and WorldsimError without Dask."""
        if self.executor_name == "dask":
            return self._dask(device)
        if self._cluster:
            raise click.UsageError(f"{self._cluster} needs --executor dask")
        from worldsim.executors import InProcess, Local

        workers = cores() if self.workers is None else self.workers
        for option, limit in (("--timeout", self.timeout), ("--memory", self.memory)):
            if limit is not None and workers == 0:
                raise click.UsageError(f"{option} needs child processes: give --workers 1 or more")
        return Local(workers, self.timeout, self.memory) if workers else InProcess()

    def _dask(self, device: str) -> Executor:
        from worldsim.dask_clusters import (
            directives_of,
            local_cluster,
            scheduler_in,
            slurm_cluster,
            visible_gpus,
        )
        from worldsim.dask_executor import Dask

        where: Any
        cluster = self._cluster
        if cluster in ("--address", "--scheduler-file") and self.workers is not None:
            raise click.UsageError(f"{cluster} names a cluster that has its own workers: leave --workers out")
        if self.workers == 0:
            raise click.UsageError("--executor dask needs --workers 1 or more")
        try:
            if self.address is not None:
                where = self.address
            elif self.scheduler_file is not None:
                where = scheduler_in(self.scheduler_file)
            elif self.slurm is not None:
                if self.workers is None:
                    raise click.UsageError("--slurm needs --workers N, the number of jobs of one worker each")
                where = functools.partial(slurm_cluster, directives_of(self.slurm), self.workers)
            else:
                gpus = visible_gpus() if device == "cuda" else []
                where = functools.partial(local_cluster, self.workers or len(gpus) or cores(), gpus)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"'{cluster}'") from error
        dask = Dask(where, self.timeout, self.memory)
        logging.getLogger("distributed.client").setLevel(
            logging.CRITICAL
        )  # what it says, the run says shorter
        return dask


OPTIONS = (
    click.option(
        "--executor",
        "executor_name",
        default="local",
        show_default=True,
        type=click.Choice(["local", "dask"]),
        help="Child processes of this one, or the workers of a Dask cluster: one on this machine, unless an "
        "option names another.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Child processes, 0 for none, or Dask workers; all cores if left out.",
    ),
    click.option("--address", metavar="URL", help="The scheduler of a Dask cluster: tcp://host:8786."),
    click.option(
        "--scheduler-file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file in which a Dask scheduler has written its address.",
    ),
    click.option(
        "--slurm",
        metavar="LIST",
        help="Start --workers SLURM jobs of one Dask worker each, with these options of sbatch: "
        "'partition=gpu,gpus=1,time=2:00:00'.",
    ),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds a case may take."),
    click.option(
        "--memory", type=MemorySize(), metavar="SIZE", help="What a case's process may hold, such as 4GB."
    ),
)


def placing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where cases are computed; the command gets them as ``place``."""

    @functools.wraps(command)
    def placed(*args: Any, **options: Any) -> Any:
        place = Place(**{each.name: options.pop(each.name) for each in fields(Place)})
        return command(*args, place=place, **options)

    for option in reversed(OPTIONS):
        placed = option(placed)
    return placed
