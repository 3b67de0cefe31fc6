"""Where cases are computed: in this process, or in supervised children that may die alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pebble import ProcessExpired, ProcessPool

from worldsim.store import Store

if TYPE_CHECKING:
    from worldsim.run import Receipt


@dataclass(frozen=True)
class Task:
    """A case as plain data: what a worker gets. ``train`` false scores what is kept, and trains nothing."""

    document: Mapping[str, Any]
    scenario: str
    model: str
    seed: int
    device: str
    dtype: str
    root: str
    plugins: tuple[str, ...]
    key: str = field(compare=False, default="")
    train: bool = True

    @property
    def label(self) -> str:
        return f"{self.scenario}/{self.model}/{self.seed}"


def compute(task: Task) -> Receipt:
    """One task, in whatever process this is: the worker loads plugins and reads the scenario itself."""
    from worldsim.plugins import registry
    from worldsim.reading import from_document
    from worldsim.run import run_case
    from worldsim.scenario import Case

    plugins = registry(tuple(map(Path, task.plugins)))
    scenario = from_document(task.document, task.scenario, plugins)
    case, store = Case(scenario, task.model, task.seed, task.device, task.dtype), Store(Path(task.root))
    if task.key and case.key != task.key:
        return failed(task, "the code of a plugin changed since the plan was made; run again")
    return run_case(case, store, task.train)


def failed(task: Task, message: str) -> Receipt:
    """Keep why a task has no result, and say so."""
    from worldsim.run import Receipt

    Store(Path(task.root)).keep_failure(task.key, {"label": task.label, "message": message})
    return Receipt(task.key, task.label, "failed", 0.0, message)


class Executor(Protocol):
    """Maps tasks to receipts, in any order; every task gives exactly one."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """Compute ``tasks``; a task whose process dies or hangs gives a failed receipt."""


class InProcess:
    """One case after another, here: for debugging, and for a handful of cases."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Receipt]:
        yield from map(compute, tasks)


class Local:
    """Spawned children (Pebble): a hang, a crash or a kill costs that case alone.

    ``timeout`` is in seconds for one case; None lets it take as long as it takes.
    """

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        self.workers = workers
        self.timeout = timeout

    def run(self, tasks: Sequence[Task]) -> Iterator[Receipt]:
        if not tasks:
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPool(max_workers=min(self.workers, len(tasks)), context=context) as pool:
            futures: dict[Future[Receipt], Task] = {
                pool.schedule(compute, args=[task], timeout=self.timeout): task for task in tasks
            }
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    yield future.result() if error is None else failed(futures[future], self._reason(error))
            except BaseException:
                pool.stop()  # type: ignore[no-untyped-call]
                raise

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"timeout: the case took more than {self.timeout:g} s"
        if isinstance(error, ProcessExpired):
            return f"crash: the worker process died with exit code {error.exitcode}"
        return f"{type(error).__name__}: {error}"
