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
from dataclasses import dataclass, field, replace
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

AHEAD = 8
"""Tasks that the scheduler holds for each thread of the cluster: each costs it some kilobytes, and a batch
has 100,000. More are given out when half of them have ended."""

BUNDLE_SECONDS = 0.5
"""Cases that take less go out several to a task of Dask's, which costs milliseconds of its own: as many as
take so long together, going by the last cases of their model, and no more than ``BUNDLE``."""

BUNDLE = 16

TICK = 0.2
"""Seconds between looks at what was asked from outside."""

LOOK_SECONDS = 5.0
"""So often the cluster is asked for its workers."""

ANSWER_SECONDS = 30.0
"""A scheduler that takes longer to say who its workers are is taken for lost."""

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


@dataclass
class Bundle:
    """Cases that went out as one task of Dask's; ``open`` are the numbers of those of which no end was heard,
    and ``begun`` those of which a beginning was."""

    tasks: list[Task]
    future: Future
    begun: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.open = set(range(len(self.tasks)))

    @property
    def left(self) -> list[Task]:
        return [self.tasks[number] for number in sorted(self.open)]


class Batch:
    """The tasks of one run: what waits here, what the cluster has, and what has been heard of it.

    What came ``back`` without an end goes out again alone, and its fate is its own.
    """

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
        self.back: deque[Task] = deque()
        self.seconds: dict[tuple[str, str], float] = {}
        self.pending: dict[str, Bundle] = {}
        self.inbox: SimpleQueue[tuple[str, str, Any]] = SimpleQueue()
        self.threads: dict[str, int] = {}
        self.asked = self.heard = float("-inf")
        self.shown = -1
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
        while (self.waiting or self.back or self.pending) and not cancelled():
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
                    yield from self._end(self.pending[key], more)

    def close(self) -> None:
        """Abandon what is under way, and let the workers' children go."""
        self._leave()
        with suppress(Exception):  # a scheduler that is gone cannot be told
            self.client.close(timeout=GRACE)

    def _submit(self) -> None:
        """Give out more, where the cluster has little left."""
        from worldsim.dask_worker import drive

        window = AHEAD * max(2, sum(self._workers().values()))
        if not (self.back or self.waiting) or len(self.pending) > window // 2:
            return
        bundles: list[list[Task]] = []
        while len(self.pending) + len(bundles) < window and (self.back or self.waiting):
            bundles.append([self.back.popleft()] if self.back else self._bundle())
        keys = [f"{self.name}-{next(self.numbers)}" for _ in bundles]
        sent = [[self._bare(task) for task in tasks] for tasks in bundles]
        futures = self.client.map(drive, [self.name] * len(sent), sent, key=keys, pure=False)
        for key, tasks, future in zip(keys, bundles, futures, strict=True):
            self.pending[key] = Bundle(tasks, future)
            future.add_done_callback(lambda ended, key=key: self.inbox.put((ended.status, key, ended)))

    def _bundle(self) -> list[Task]:
        """The next of those that wait: one, or several that are known to be brief."""
        tasks = [self.waiting.popleft()]
        seconds = self._seconds(tasks[0])
        while self.waiting and len(tasks) < BUNDLE:
            seconds += self._seconds(self.waiting[0])
            if seconds > BUNDLE_SECONDS:
                break
            tasks.append(self.waiting.popleft())
        return tasks

    def _seconds(self, task: Task) -> float:
        """That it may take; of what nothing is known, too long for a bundle."""
        return self.seconds.get((task.scenario, task.model), BUNDLE_SECONDS)

    def _bare(self, task: Task) -> Task:
        """Without the document, where the workers have it."""
        return replace(task, document={}) if task.scenario in self.shared else task

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """An event of the cluster, in Dask's thread."""
        _, told = event
        if told["run"] == self.name:
            self.inbox.put((told["what"], told["key"], told))

    def _take(self, what: str, key: str, more: Any) -> Generator[Receipt]:
        """Words of a worker, or the state of a future that has ended."""
        bundle = self.pending.get(key)
        if bundle is None:
            return
        if what == SAYS:
            bundle.begun.add(more["number"])
            self.watch(Progress(more["child"], bundle.tasks[more["number"]].label, more["text"]))
        elif what == ENDED:
            yield from self._end(bundle, more)
        elif what == "finished":
            del self.pending[key]
            self.back.extend(bundle.left)
        elif what == "error":
            del self.pending[key]
            yield from self._err(bundle, more.exception())
        else:
            raise self._lost()

    def _end(self, bundle: Bundle, told: dict[str, Any]) -> Generator[Receipt]:
        """Of cases that ended one after the other. A worker that was lost may have told of them before."""
        from worldsim.dask_worker import opened

        for number, outcome in enumerate(opened(told["outcomes"]), told["number"]):
            if number not in bundle.open:
                continue
            bundle.open.remove(number)
            task = bundle.tasks[number]
            if number not in bundle.begun:
                self.watch(Progress(told["child"], task.label))
            receipt = received(replace(outcome, item=task), told["host"])
            kind = task.scenario, task.model
            self.seconds[kind] = max(receipt.seconds, self.seconds.get(kind, 0.0) / 2)
            yield receipt

    def _err(self, bundle: Bundle, error: BaseException) -> Generator[Receipt]:
        from distributed import KilledWorker

        from worldsim.dask_worker import Abandoned

        if isinstance(error, KilledWorker) and len(bundle.tasks) == 1:
            times, last = error.allowed_failures + 1, getattr(error.last_worker, "address", error.last_worker)
            message = f"crash: {times} Dask workers ended while they had this case, the last at {last}"
            for task in bundle.left:
                yield failed(task, message, "crash")
        elif isinstance(error, Abandoned | KilledWorker):
            self.back.extend(bundle.left)
        elif isinstance(error, WorldsimError):
            raise error
        else:
            raise ClusterError(
                f"a Dask worker of {self.address} cannot compute cases ({type(error).__name__}: {error})"
            ) from error

    def _workers(self) -> dict[str, int]:
        """address -> threads, of those that the cluster has or had a moment ago."""
        if time.monotonic() - self.asked > LOOK_SECONDS:
            try:
                self.threads = self.client.sync(self.client.scheduler.ncores, callback_timeout=ANSWER_SECONDS)
            except OSError as error:  # one of them is TimeoutError
                raise self._lost() from error
            self.asked = time.monotonic()
        return self.threads

    def _look_at_the_cluster(self) -> None:
        """Tell how many workers there are, when that is all there is to tell."""
        if time.monotonic() - self.heard < LOOK_SECONDS:
            return
        self.heard = time.monotonic()
        if (workers := len(self._workers())) != self.shown:
            self.shown = workers
            waiting = "" if workers else "; waiting for one"
            self.watch(Progress("cluster", "", f"workers of {self.address}: {workers}{waiting}"))

    def _lost(self) -> ClusterError:
        cases = sum(len(bundle.open) for bundle in self.pending.values())
        return ClusterError(
            f"the Dask scheduler at {self.address} is gone, was restarted or does not answer; {cases} cases "
            "were given out. What is finished is kept, and a run on a scheduler that lives goes on from there"
        )

    def _leave(self) -> None:
        """Have the workers abandon the rest; they say so in the time of grace, or are not waited for."""
        if self.left or self.client.status != "running":
            return
        self.left = True
        futures = [bundle.future for bundle in self.pending.values()]

        def leave() -> None:
            with suppress(Exception):  # the scheduler may go while it is told
                self.client.cancel(futures)
                self.client.unregister_worker_plugin(self.name)

        telling = Thread(target=leave, daemon=True)
        telling.start()
        telling.join(GRACE)
