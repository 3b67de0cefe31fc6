"""Dask clusters that a run starts for itself: on this machine, or of SLURM jobs."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldsim.errors import ClusterError, WorldsimError

LOOPBACK = "127.0.0.1"

# Without the last three, what Dask observes of itself took 8 % of a core of two workers that did nothing.
SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-ttl": None,  # a busy machine is no dead worker
    "distributed.scheduler.worker-saturation": 1.0,  # who waits for a worker is not blamed for its end
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}

DIRECTIVE = re.compile(r"[a-z][a-z0-9-]*")


def local_cluster(workers: int, gpus: Sequence[str] = ()) -> Any:
    """Worker processes of one thread each, which nobody but this machine reaches, without a dashboard.

    With ``gpus``, names as in CUDA_VISIBLE_DEVICES, each worker and its child see one of them, in turn: the
    variable has to be there before torch is imported.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    here = {"host": LOOPBACK, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    alone = {
        **here,
        "nthreads": 1,
        "memory_limit": 0,
        "preload": ["worldsim.dask_worker"],
        "silence_logs": logging.ERROR,
    }
    specs = {}
    for number in range(workers):
        env = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        specs[number] = {"cls": Nanny, "options": {**alone, "env": env}}
    with dask.config.set(SETTINGS):
        scheduler = {"cls": Scheduler, "options": {**here, "port": 0}}
        return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.ERROR)


def visible_gpus() -> list[str]:
    """The GPUs that a process started here sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def slurm_cluster(directives: Mapping[str, str], workers: int) -> Any:
    """A scheduler in this process, and ``workers`` SLURM jobs of one Dask worker with one thread each.

    ``directives`` are options of sbatch by their long names. Raises WorldsimError where dask-jobqueue is not
    installed, and ClusterError where there is no sbatch to give jobs to.
    """
    if workers and shutil.which("sbatch") is None:
        raise ClusterError("--slurm needs sbatch, which this machine does not have: run from a login node")
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise WorldsimError(
            "--slurm needs dask-jobqueue, which is not installed: pip install 'worldsim[dask]'"
        ) from error
    import dask

    more = dict(directives)
    named = {"queue": more.pop("partition", None), "account": more.pop("account", None)}
    memory, cpus = more.pop("mem", None), more.pop("cpus-per-task", "1")
    with dask.config.set(SETTINGS):
        cluster = SLURMCluster(
            **{name: value for name, value in named.items() if value},
            cores=1,
            processes=1,
            job_cpu=int(cpus),
            memory=memory or "1 GB",  # it asks for one; without --mem the job has SLURM's own default
            job_mem=memory,
            job_directives_skip=[] if memory else ["--mem"],
            walltime=more.pop("time", "01:00:00"),
            worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
            job_extra_directives=[f"--{name}={value}" for name, value in more.items()],
            scheduler_options={"dashboard": False},
        )
    cluster.scale(workers)
    return cluster


def directives_of(text: str) -> dict[str, str]:
    """``partition=gpu,gpus=1,time=2:00:00`` as a mapping. Raises ValueError with what is wrong."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (DIRECTIVE.fullmatch(name) and equals and value) or any(c.isspace() for c in value):
            raise ValueError(f"{part.strip()!r} is no option of sbatch as NAME=VALUE, such as partition=gpu")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    if not found.get("cpus-per-task", "1").isdecimal():
        raise ValueError(f"cpus-per-task={found['cpus-per-task']} is no number")
    return found


def scheduler_in(file: Path) -> str:
    """The address in a scheduler file. Raises ValueError where there is none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no scheduler file, as dask scheduler --scheduler-file writes one"
        ) from error
