"""Cases on the workers of a Dask cluster, each of which drives children that may die alone.

Nothing but tasks goes out, and nothing but receipts comes back; results go to the disk that all workers
see. Receipts come as events and not as results of Dask's: a result dies with the worker that holds it, and
has to be fetched from there. That a case may be computed twice is what makes this sound: one that Dask calls
finished, and of which nothing was heard, is given out again.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from worldsim.errors import ClusterError, WorldsimError
from worldsim.executors import GRACE, Progress, Task, Watch, failed, received, unwatched

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.deploy import Cluster

    from worldsim.run import Receipt

WINDOW = 1000
"""Most cases that the scheduler holds at a time: each costs it some kilobytes, and a batch has 100,000."""

CHUNK = 250
"""Cases that are submitted together."""

TICK = 0.2
"""Seconds between looks at what was asked from outside."""

SILENT_SECONDS = 5.0
"""After so long without a word the cluster is asked how many workers it has."""

SHARED = 4
"""Tasks that share a document before it is sent once to each worker, and not with each task."""

CONNECT_SECONDS = 8.0

SAYS, ENDED = "says", "ended"
"""What is heard of a case that is under way, beside the states of Dask's futures."""


class Dask:
    """Cases on a Dask cluster: ``where`` is its address, a Client, a Cluster, or what starts a Cluster.

    What is started here is closed by ``close``; a cluster that was given is left as it is. ``timeout`` and
    ``memory`` limit each case as with ``Local``. Workers need the installation that this process has, and
    the results folder under the same path. Raises WorldsimError where Dask is not installed, and, from
    ``run``, ClusterError when the scheduler cannot be reached or is lost.
    """

    def __init__(
        self,
        where: str | Client | Cluster | Callable[[], Cluster],
        timeout: float | None = None,
        memory: int | None = None,
    ) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise WorldsimError(
                "this needs Dask distributed, which is not installed: pip install 'worldsim[dask]'"
            ) from error
        self.where = where
        self.timeout = timeout
        self.memory = memory
        self.started: Cluster | None = None
        self.cancelled = False

    def run(self, tasks: Sequence[Task], watch: Watch = unwatched) -> Generator[Receipt]:
        if not tasks or self.cancelled:
            return
        with closing(Batch(self._connected(), tasks, watch, self.timeout, self.memory)) as batch:
            yield from batch.receipts(lambda: self.cancelled)

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        if self.started is not None:
            with suppress(Exception):  # of what is broken nothing can be given back
                self.started.close(timeout=GRACE)
            self.started = None

    def _connected(self) -> Client:
        """A client of our own: its events are nobody else's, and it is closed after each run."""
        from distributed import Client

        where: Any = self.where
        if isinstance(where, Client):
            where, more = where.scheduler.address, {"security": where.security}
        else:
            more = {}
        if callable(where):
            where = self.started = self.started or begun(where)
        try:
            return Client(where, set_as_default=False, timeout=CONNECT_SECONDS, name="worldsim", **more)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {where} ({error or type(error).__name__}): is it running, and "
                "may this machine reach it?"
            ) from error


def begun(start: Callable[[], Cluster]) -> Cluster:
    try:
        return start()
    except WorldsimError:
        raise
    except Exception as error:
        raise ClusterError(f"no Dask cluster could be started: {type(error).__name__}: {error}") from error


class Batch:
    """The tasks of one run: what waits here, what the cluster has, and what has been heard of it."""

    def __init__(
        self, client: Client, tasks: Sequence[Task], watch: Watch, timeout: float | None, memory: int | None
    ) -> None:
        from worldsim.dask_worker import TOPIC, Driver

        self.client = client
        self.address = client.scheduler.address
        self.watch = watch
        self.name = f"worldsim-{uuid.uuid4().hex}"
        self.numbers = count()
        self.waiting = deque(replace(task, root=str(Path(task.root).resolve())) for task in tasks)
        self.pending: dict[str, tuple[Task, Future]] = {}
        self.inbox: SimpleQueue[tuple[str, str, Any]] = SimpleQueue()
        self.told: dict[str, dict[str, Any]] = {}
        self.begun: set[str] = set()
        self.workers = self.heard = -1.0
        self.left = False
        uses = Counter(task.scenario for task in tasks)
        self.shared = {task.scenario: task.document for task in tasks if uses[task.scenario] >= SHARED}
        driver = Driver(self.name, tasks[0].plugins, self.shared, timeout, memory)
        client.subscribe_topic(TOPIC, self._hear)
        try:
            client.register_plugin(driver, name=self.name)
        except Exception as error:
            self.close()
            raise ClusterError(
                f"the Dask workers of {self.address} cannot compute cases ({type(error).__name__}: {error}): "
                "they need the installation that this process has"
            ) from error

    def receipts(self, cancelled: Callable[[], bool]) -> Generator[Receipt]:
        """One for each task, or until ``cancelled``; then of what still ends in its time of grace."""
        while (self.waiting or self.pending) and not cancelled():
            if self.waiting and len(self.pending) <= WINDOW - CHUNK:
                self._submit()
            try:
                what, key, more = self.inbox.get(timeout=TICK)
            except Empty:
                self._look_at_the_cluster()
                continue
            self.heard = time.monotonic()
            yield from self._take(what, key, more)
        if cancelled():
            self._leave()
            while not self.inbox.empty():
                what, key, more = self.inbox.get()
                if what == ENDED and key in self.pending:
                    self.told[key] = more
            for key, told in self.told.items():
                yield receipt_of(self.pending[key][0], told)

    def close(self) -> None:
        """Abandon what is under way, and let the workers' children go."""
        self._leave()
        with suppress(Exception):  # a scheduler that is gone cannot be told
            self.client.close(timeout=GRACE)

    def _submit(self) -> None:
        from worldsim.dask_worker import drive

        tasks = [self.waiting.popleft() for _ in range(min(CHUNK, len(self.waiting)))]
        keys = [f"{self.name}-{next(self.numbers)}" for _ in tasks]
        sent = [replace(task, document={}) if task.scenario in self.shared else task for task in tasks]
        futures = self.client.map(drive, [self.name] * len(sent), sent, key=keys, pure=False)
        for key, task, future in zip(keys, tasks, futures, strict=True):
            self.pending[key] = task, future
            future.add_done_callback(lambda ended, key=key: self.inbox.put((ended.status, key, ended)))

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """An event of the cluster, in Dask's thread."""
        _, told = event
        if told["run"] == self.name:
            self.inbox.put((told["what"], told["key"], told))

    def _take(self, what: str, key: str, more: Any) -> Generator[Receipt]:
        """Words of a worker, or the state of a future that has ended."""
        if key not in self.pending:
            return
        task, _ = self.pending[key]
        if what == SAYS:
            self.begun.add(key)
            self.watch(Progress(more["child"], task.label, more["text"]))
        elif what == ENDED:
            if key not in self.begun:
                self.watch(Progress(more["child"], task.label))
            self.begun.discard(key)
            self.told[key] = more
        elif what == "finished":
            del self.pending[key]
            if key in self.told:
                yield receipt_of(task, self.told.pop(key))
            else:
                self.waiting.appendleft(task)
        elif what == "error":
            del self.pending[key]
            yield from self._err(task, more.exception())
        else:
            raise self._lost()

    def _err(self, task: Task, error: BaseException) -> Generator[Receipt]:
        from distributed import KilledWorker

        from worldsim.dask_worker import Abandoned

        if isinstance(error, Abandoned):
            self.waiting.appendleft(task)
        elif isinstance(error, KilledWorker):
            times, last = error.allowed_failures + 1, getattr(error.last_worker, "address", error.last_worker)
            message = f"crash: {times} Dask workers ended while they had this case, the last at {last}"
            yield failed(task, message, "crash")
        elif isinstance(error, WorldsimError):
            raise error
        else:
            raise ClusterError(
                f"a Dask worker of {self.address} cannot compute cases ({type(error).__name__}: {error})"
            ) from error

    def _look_at_the_cluster(self) -> None:
        """Tell how many workers there are, when that is all there is to tell."""
        if time.monotonic() - self.heard < SILENT_SECONDS:
            return
        self.heard = time.monotonic()
        try:
            workers = len(self.client.scheduler_info()["workers"])
        except OSError as error:
            raise self._lost() from error
        if workers != self.workers:
            self.workers = workers
            waiting = "" if workers else "; waiting for one"
            self.watch(Progress("cluster", "", f"workers of {self.address}: {workers}{waiting}"))

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"the Dask scheduler at {self.address} is gone or was restarted, with {len(self.pending)} cases "
            "given out; what is finished is kept, and a run on a scheduler that lives goes on from there"
        )

    def _leave(self) -> None:
        """Have the workers abandon the rest; they say so in the time of grace, or are not waited for."""
        if self.left or self.client.status != "running":
            return
        self.left = True
        futures = [future for _, future in self.pending.values()]

        def leave() -> None:
            with suppress(Exception):  # the scheduler may go while it is told
                self.client.cancel(futures)
                self.client.unregister_worker_plugin(self.name)

        telling = Thread(target=leave, daemon=True)
        telling.start()
        telling.join(GRACE)


def receipt_of(task: Task, told: dict[str, Any]) -> Receipt:
    from worldsim.dask_worker import opened

    return received(opened(told["outcome"], task), told["host"])
