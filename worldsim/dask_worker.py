"""On a Dask worker: drive children that may die alone, and say what becomes of their cases.

``dask_executor`` is the other end. This process imports neither torch nor xarray; its children do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from worldsim.children import Crew, Died, Returned
from worldsim.dask_executor import ENDED, SAYS
from worldsim.errors import ClusterError
from worldsim.executors import Supervised, Task, divided
from worldsim.worker import Say

TOPIC = "worldsim"
"""What is said of cases, as events of Dask: mappings with the name of the ``run``, ``what``, the ``key`` and
more."""

IDLE_SECONDS = 10.0
"""How long a child stays without work. Nobody tells a worker that a run whose client was killed is over."""

BRIEF_SECONDS = 0.5
"""After a case that took less than this the next one's beginning is told together with its end: each event
costs the scheduler and the client a message. The ends of brief ones are told together, about so often."""

GRACE = 4.0
"""Seconds that a case still has when its run is cancelled; the client waits a little longer."""

DISTRIBUTIONS = ("worldsim", "torch")
"""What decides the bits of a case, and has to be the same everywhere."""


class Abandoned(Exception):
    """A case was neither finished nor did it fail: its worker was told to leave it."""


def dask_setup(worker: Worker) -> None:
    """What Dask calls in a worker that preloads this module, as those of a run's own cluster do: a terminal's
    Ctrl-C is for the run, which stops them in order."""
    os.setpgrp()


def versions() -> dict[str, str]:
    """Of ``DISTRIBUTIONS``, as they are installed here."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def drive(run: str, tasks: list[Task]) -> None:
    """The task that Dask knows: have a child of this worker compute these cases, one after the other."""
    worker = get_worker()
    driver = worker.plugins[run]
    assert isinstance(driver, Driver)
    driver.drive(str(worker.get_current_task()), tasks)


@dataclass
class Job:
    """Cases that this worker has been given together; ``crew`` is whose child is at them."""

    key: str
    tasks: list[Task]
    crew: Crew | None = None
    answer: Future[None] = field(default_factory=Future)


class Driver(WorkerPlugin):  # type: ignore[misc]
    """Has a child for each thread of its worker, for the run of this name.

    ``documents`` are scenario name -> document, of those that many tasks share. Children end with the thread
    that started them (on Linux), and Dask may replace its own: so each has a lasting thread here.
    """

    def __init__(
        self,
        name: str,
        plugins: Sequence[str],
        documents: Mapping[str, Mapping[str, Any]],
        timeout: float | None,
        memory: int | None,
    ) -> None:
        self.name = name
        self.plugins = tuple(plugins)
        self.documents = dict(documents)
        self.timeout = timeout
        self.memory = memory
        self.wanted = versions()

    def setup(self, worker: Worker) -> None:
        multiprocessing.current_process().daemon = False  # a nanny's child may have none otherwise
        self.worker = worker
        self.found = versions()
        self.jobs: dict[str, Job] = {}
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        names = [str(worker.name)]
        if (count := worker.state.nthreads) > 1:
            names = [f"{worker.name}.{number}" for number in range(count)]
        self.threads = [threading.Thread(target=self._serve, args=(name,), daemon=True) for name in names]
        for thread in self.threads:
            thread.start()

    async def teardown(self, worker: Worker) -> None:
        for _ in self.threads:
            self.queue.put(None)
        for key in list(self.jobs):
            self.abandon(key)
        for thread in self.threads:
            await asyncio.to_thread(thread.join)

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """Of a task of this worker. One under way is cancelled when nobody waits for it: its client cancelled
        it, or is gone."""
        if finish == "cancelled":
            self.abandon(str(key))

    def abandon(self, key: str) -> None:
        """Leave a job alone: at once when it has not begun, else when a case's time of grace is over."""
        job = self.jobs.get(key)
        if job and not job.answer.cancel() and not job.answer.done() and job.crew:
            job.crew.stop(GRACE)

    def drive(self, key: str, tasks: list[Task]) -> None:
        """Have cases computed; what becomes of them is told as events. Raises Abandoned when some are left,
        and ClusterError where this worker cannot compute them."""
        self._refuse(tasks[0])
        job = Job(key, [self._whole(task) for task in tasks])
        self.jobs[key] = job
        try:
            self.queue.put(job)
            job.answer.result()
        finally:
            del self.jobs[key]

    def _whole(self, task: Task) -> Task:
        """With its document: the same object for all tasks of a scenario, so that a child gets it once."""
        document = self.documents.get(task.scenario)
        return task if document is None else replace(task, document=document)

    def _refuse(self, task: Task) -> None:
        here = f"the Dask worker {self.worker.address} on {platform.node()}"
        if self.found != self.wanted:
            other = [name for name in DISTRIBUTIONS if self.found[name] != self.wanted[name]]
            has, wants = (" and ".join(f"{n} {v[n]}" for n in other) for v in (self.found, self.wanted))
            raise ClusterError(f"{here} has {has}, and this run {wants}: install the same versions on both")
        if not Path(task.root).is_dir():
            raise ClusterError(
                f"{here} does not see the folder {task.root}: results need a disk that every worker sees "
                "under the same path; choose another --out"
            )

    def _crew(self) -> Crew:
        return Crew(1, partial(sealing, self.plugins), self.timeout, self.memory, divided, lasting=True)

    def _serve(self, name: str) -> None:
        """Compute one case after another in a child, until None comes."""
        crew, brief = self._crew(), False
        while True:
            try:
                job = self.queue.get(timeout=IDLE_SECONDS)
            except Empty:
                crew.close()
                continue
            if job is None:
                break
            job.crew = crew
            if job.answer.set_running_or_notify_cancel():
                begun = time.monotonic()
                self._compute(job, crew, name, brief)
                brief = time.monotonic() - begun < BRIEF_SECONDS * len(job.tasks)
            if crew.end < float("inf"):
                crew.close()
                crew = self._crew()
        crew.close()

    def _compute(self, job: Job, crew: Crew, name: str, brief: bool) -> None:
        held: list[Returned | Died] = []
        ended, told = 0, time.monotonic()

        def tell() -> None:
            nonlocal told
            if held:
                outcomes = pickle.dumps([replace(outcome, item=None) for outcome in held])
                more = {"outcomes": outcomes, "host": platform.node()}
                self._tell(job.key, ENDED, child=name, number=ended - len(held), **more)
                held.clear()
            told = time.monotonic()

        def seen(number: int, task: Task, text: str) -> None:
            if text or not brief:
                tell()
                self._tell(job.key, SAYS, child=name, number=ended, text=text)

        try:
            for outcome in crew.map(job.tasks, seen):
                held.append(outcome)
                ended += 1
                if time.monotonic() - told > BRIEF_SECONDS:
                    tell()
            tell()
            if ended == len(job.tasks):
                job.answer.set_result(None)
            else:
                job.answer.set_exception(Abandoned())
        except BaseException as error:  # of children that cannot start, say; its client has to hear
            job.answer.set_exception(error)

    def _tell(self, key: str, what: str, **more: Any) -> None:
        self.worker.log_event(TOPIC, {"run": self.name, "what": what, "key": key, **more})


def sealing(plugins: Sequence[str]) -> Callable[[Any, Any, Say], bytes]:
    """What a child does: as one of ``Local``, but its receipt is sealed, since who opens it imports torch."""
    supervised = Supervised(plugins)
    return lambda document, task, say: pickle.dumps(supervised(document, task, say))


def opened(told: bytes) -> list[Returned | Died]:
    """What became of cases, as a worker has told it; without their items."""
    outcomes: list[Returned | Died] = pickle.loads(told)
    return [
        each if isinstance(each, Died) else replace(each, value=pickle.loads(each.value)) for each in outcomes
    ]
