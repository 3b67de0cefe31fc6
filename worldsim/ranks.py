"""Several processes that fit one model: each computes the loss of its share of the rows of every batch.

Lightning Fabric (extra ``train``) joins them and averages their gradients (DistributedDataParallel, over gloo
on CPUs and NCCL on GPUs). The process that was asked for the fit is rank 0. The others are started by it
with the case as plain data, build the same model and the same truth by themselves, and end with it: when one
dies, the next exchange of gradients fails in all.

A batch of 2 B rows shared by two processes gives the loss and the gradient of one process with 2 B rows, up
to rounding, where a loss is a mean over rows and draws nothing. What a loss draws, each rank draws for
itself.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worldsim.errors import WorldsimError
from worldsim.protocols import Trajectory

if TYPE_CHECKING:
    from worldsim.scenario import Case
    from worldsim.store import Store

READY = "ready\n"
"""What a rank says when it has built everything and is about to join."""
LONGEST = timedelta(minutes=10)
"""How long one rank waits for another in one exchange."""
PATIENCE = 120.0
"""Seconds that the others have to end after rank 0 has."""


@dataclass
class Ranks:
    """This process among those that fit one model."""

    rank: int
    count: int
    fabric: Any
    model: Any = None

    def share(self, batch: Trajectory) -> Trajectory:
        """Every ``count``-th row of ``batch``, from row ``rank`` on. Raises WorldsimError unless they are
        equally many for each."""
        if len(batch) % self.count:
            raise WorldsimError(
                f"{len(batch)} rows cannot be shared by {self.count} processes: make fit.batch a multiple of "
                "fit.processes, and no larger than the training data"
            )
        return batch.rows(slice(self.rank, None, self.count))

    def take(self, model: nn.Module) -> None:
        """Have the gradients of ``loss`` averaged over the ranks; the first one's weights are everyone's."""
        self.model = self.fabric.setup_module(model, move_to_device=False)
        self.model.mark_forward_method("loss")

    def loss(self, batch: Trajectory) -> Tensor:
        """The model's loss of this rank's share of ``batch``."""
        loss: Tensor = self.model.loss(self.share(batch))
        return loss

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over the ranks, the same to the bit in each."""
        mean: Tensor = self.fabric.all_reduce(value.detach().clone(), reduce_op="mean")
        return mean


def document_of(case: Case, store: Store) -> dict[str, Any]:
    """A case as plain data."""
    files = [p.file for p in case.scenario.registry.providers if p.distribution == "file"]
    return {
        "document": dict(case.scenario.document), "scenario": case.scenario.name, "model": case.model,
        "seed": case.seed, "device": case.device, "dtype": case.dtype, "root": str(store.root),
        "plugins": files, "key": case.key,
    }  # fmt: skip


@contextmanager
def ranks_of(case: Case, store: Store) -> Iterator[Ranks | None]:
    """Rank 0 of a case whose ``fit.processes`` are several, the others being under way; None for one.

    Raises WorldsimError without Lightning Fabric, and when another rank ended in an error: before it joined,
    or at the end.
    """
    count = case.spec.fit.processes
    if count == 1:
        yield None
        return
    _fabric()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    task = json.dumps(document_of(case, store))
    others = [_started(task, rank, count, port) for rank in range(1, count)]
    try:
        for rank, process in enumerate(others, 1):
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                code = process.wait(PATIENCE)
                raise WorldsimError(f"rank {rank} of the fit ended with exit code {code} before it joined")
        with joined(0, count, port, case.device) as ranks:
            yield ranks
        for rank, process in enumerate(others, 1):
            if process.wait(PATIENCE):
                raise WorldsimError(f"rank {rank} of the fit ended with exit code {process.returncode}")
    finally:
        for process in others:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _started(task: str, rank: int, count: int, port: int) -> subprocess.Popen[str]:
    """Rank ``rank``, with its case in its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worldsim.rank", str(rank), str(count), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert process.stdin is not None
    process.stdin.write(task)
    process.stdin.close()
    return process


@contextmanager
def joined(rank: int, count: int, port: int, device: str) -> Iterator[Ranks]:
    """Wait for all ranks on this machine, and be one of them."""
    fabric_module = _fabric()
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    told = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
    }  # fmt: skip
    with environment(told):
        fabric = fabric_module.Fabric(
            accelerator="cuda" if device.startswith("cuda") else "cpu",
            devices=count,
            strategy=DDPStrategy(
                find_unused_parameters=True, cluster_environment=LightningEnvironment(), timeout=LONGEST
            ),
        )
        fabric.launch()
        ranks = Ranks(rank, count, fabric)
        try:
            yield ranks
            fabric.barrier()  # who leaves first would take from the others what is still on its way to them
        finally:
            # A reducer that is the last to hold its process group ends it under the interpreter's lock, and
            # waits for a thread that wants the lock: so the reducer goes first.
            ranks.model = None
            gc.collect()
            torch.distributed.destroy_process_group()


@contextmanager
def environment(told: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are as they were afterwards."""
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _fabric() -> Any:
    try:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        import lightning_fabric
    except ImportError as error:
        raise WorldsimError(
            "fit.processes above 1 needs Lightning Fabric, which is not installed: pip install "
            "'worldsim[train]', or leave it out"
        ) from error
    return lightning_fabric
