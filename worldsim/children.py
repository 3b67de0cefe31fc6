"""Supervised children: a hang, a crash, a leak or a kill costs the item it happened to, and nothing else.

On the standard library's spawned processes, a pipe and ``connection.wait``. Pebble, which was here before,
notices ``os._exit(0)`` only when the item's time is up, and never without a limit of time (both measured,
Pebble 5.2); and its one pipe for all children says neither which of them is at what nor what it wrote.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any

from worldsim.errors import WorldsimError
from worldsim.worker import DUMP, RAISED, READY, RETURNED, SAYS, Work, serve, tail

TICK = 0.05
"""Seconds between looks at clocks and memory."""

START_SECONDS = 600.0
"""How long a child may take to be ready: imports on a busy network disk are slow."""

START_DEATHS = 3
"""Children that die one after the other before they are ready: the fault is not an item's."""

LEAVE_SECONDS = 5.0
"""How long a child without work may take to end by itself."""

LOG_BYTES = 16 * 2**20
"""A case that writes more than this loses its older lines: a log must not fill the disk."""


@dataclass(frozen=True)
class Returned:
    """What ``work`` gave for ``item``, and the end of what it wrote meanwhile."""

    item: Any
    value: Any
    log: str


@dataclass(frozen=True)
class Died:
    """Why there is nothing for ``item``; ``kind`` is timeout, oom, crash or exception.

    ``exit_code`` is the process's own, None where a signal ended it or it lives on; ``signal`` is that
    signal's name where nobody here sent it.
    """

    item: Any
    kind: str
    message: str
    seconds: float
    log: str
    exit_code: int | None = None
    signal: str = ""
    traceback: str = ""


Watch = Callable[[int, Any, str], None]
"""Called with the number of a child, its item, and what it says of it ("" as it begins)."""


def undivided(item: Any) -> tuple[Any, Any]:
    """For items that have nothing in common."""
    return None, item


class Crew:
    """Up to ``workers`` children that call ``work(common, own, say)``, where ``work`` is what ``prepare()``,
    called once in each and importable there, has given; ``common, own`` is ``parts(item)``.

    ``common`` is sent only when it is another object than that of the child's last item. ``timeout`` in
    seconds and ``memory`` in bytes of the resident set, of the whole child, limit each item. Children leave
    at the end of each ``map``; ``lasting`` ones stay for the next, until ``close``. Raises WorldsimError
    where memory cannot be watched.
    """

    def __init__(
        self,
        workers: int,
        prepare: Callable[[], Work],
        timeout: float | None = None,
        memory: int | None = None,
        parts: Callable[[Any], tuple[Any, Any]] = undivided,
        lasting: bool = False,
    ) -> None:
        if memory is not None and not Path("/proc/self/statm").exists():
            raise WorldsimError("this system has no /proc, so no limit of memory can be kept; leave it out")
        self.workers = workers
        self.prepare = prepare
        self.parts = parts
        self.timeout = timeout
        self.memory = memory
        self.lasting = lasting
        self.crew: dict[int, Child] = {}
        self.end = float("inf")
        self.deaths = 0

    def stop(self, grace: float) -> None:
        """Begin nothing more, and leave what is under way ``grace`` seconds; may be called by a signal's
        handler."""
        self.end = min(self.end, time.monotonic() + grace)

    def map(self, items: Iterable[Any], watch: Watch) -> Generator[Returned | Died]:
        """One outcome for each item, in the order in which they end. Closing it kills what is under way.

        Raises WorldsimError when children cannot even start.
        """
        waiting = iter(items)
        todo = deque(islice(waiting, self.workers))
        crew = self.crew
        try:
            while self._goes_on(todo, crew):
                self._hire(len(todo), crew)
                for number, child in crew.items():
                    if todo and child.is_idle:
                        watch(number, todo[0], "")
                        child.give(todo[0], *self.parts(todo.popleft()))
                        todo.extend(islice(waiting, 1))
                connection.wait([end for child in crew.values() for end in child.ends], TICK)
                for number in list(crew):
                    yield from self._heard(number, crew, watch)
            if self.end == float("inf") and not self.lasting:
                dismiss(crew.values())
        finally:
            for number, child in list(crew.items()):
                if not (self.lasting and child.is_idle):
                    crew.pop(number).kill()

    def close(self) -> None:
        """Let the children leave that stay between two ``map``; nothing is under way."""
        dismiss(self.crew.values())
        for child in self.crew.values():
            child.kill()
        self.crew.clear()

    def _goes_on(self, todo: deque[Any], crew: dict[int, Child]) -> bool:
        if self.end < float("inf"):
            todo.clear()
        busy = any(child.item is not None for child in crew.values())
        return bool(todo or busy) and time.monotonic() < self.end

    def _hire(self, todo: int, crew: dict[int, Child]) -> None:
        """As many as there is work for. A child that holds on to memory, or died without work, makes room for
        a new one: what was before must not decide the next item's fate."""
        for number, child in list(crew.items()):
            if child.is_idle and (child.holds_on_to(self.memory) or not child.process.is_alive()):
                crew.pop(number).kill()
        free = sum(child.item is None for child in crew.values())
        for number in range(self.workers):
            if number not in crew and free < todo:
                crew[number] = Child(self.prepare)
                free += 1

    def _heard(self, number: int, crew: dict[int, Child], watch: Watch) -> Iterator[Returned | Died]:
        """What a child has sent; then, where it is gone or must go, what became of its item."""
        child = crew[number]
        for message, *more in child.messages():
            item = child.item
            if message == READY:
                self.deaths = 0
                child.rest()
            elif item is None:
                continue  # a thread that an item left behind still speaks
            elif message == SAYS:
                watch(number, item, more[0])
            else:
                log, seconds = tail(child.log), child.seconds
                child.rest()
                if message == RETURNED:
                    yield Returned(item, more[0], log)
                elif message == RAISED:
                    yield Died(item, "exception", more[0], seconds, log, traceback=more[1])
        death = self._death(child)
        if death is None:
            return
        child.kill()
        del crew[number]
        if not child.ready:
            self._refuse_deaths_at_start(death)
        elif child.item is not None:
            yield death

    def _refuse_deaths_at_start(self, death: Died) -> None:
        self.deaths += 1
        if self.deaths >= START_DEATHS:
            raise WorldsimError(
                f"workers end before they can begin ({death.message}). One wrote:\n{death.log}"
            )

    def _death(self, child: Child) -> Died | None:
        """Why a child is gone, or has to go; None where all is well."""
        if child.gone:
            return death(child)
        log = partial(tail, child.log)
        if not child.ready:
            message = f"timeout: a worker was not ready after {START_SECONDS:g} s"
            late = child.seconds > START_SECONDS
            return Died(None, "timeout", message, child.seconds, log()) if late else None
        if child.item is None:
            return None
        if self.timeout and (spent := child.seconds) > self.timeout:
            message = f"timeout: the case took more than {self.timeout:g} s"
            return Died(child.item, "timeout", message, spent, log(), traceback=child.dump())
        if self.memory and (held := child.resident()) > self.memory:
            message = (
                f"oom: the worker held {size(held)} and may hold {size(self.memory)}, of which "
                f"{size(child.fresh)} are its own before the first case"
            )
            return Died(child.item, "oom", message, child.seconds, log())
        return None


class Child:
    """One child, seen from its parent. ``item`` is what it is at, None when nothing."""

    def __init__(self, prepare: Callable[[], Work]) -> None:
        self.log, path = tempfile.mkstemp(prefix="worldsim-", suffix=".log")
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        arguments = (other, path, os.getpid(), prepare)
        self.process = context.Process(target=serve, args=arguments, name="worldsim worker")
        try:
            self.process.start()
        except BaseException:
            os.unlink(path)
            os.close(self.log)
            raise
        other.close()
        assert self.process.pid is not None
        self.pid, self.path = self.process.pid, path
        self.ready = self.gone = False
        self.item: Any = None
        self.common: Any = None
        self.fresh = self.items = 0
        self.begun = time.monotonic()
        self.killed_before = system_kills()

    @property
    def ends(self) -> list[Any]:
        return [self.pipe, self.process.sentinel]

    @property
    def is_idle(self) -> bool:
        return self.ready and self.item is None

    @property
    def seconds(self) -> float:
        """Since the item was given, or the child started."""
        return time.monotonic() - self.begun

    def rest(self) -> None:
        """It has told that it is ready for the next item."""
        if not self.ready:
            self.ready, self.fresh = True, self.resident()
        self.item = None

    def give(self, item: Any, common: Any, own: Any) -> None:
        os.ftruncate(self.log, 0)
        self.item, self.begun, self.killed_before = item, time.monotonic(), system_kills()
        is_other = common is not self.common
        self.common, self.items = common, self.items + 1
        with contextlib.suppress(OSError):  # it died while idle; ``messages`` will find out
            self.pipe.send((is_other, common if is_other else None, own))

    def holds_on_to(self, memory: int | None) -> bool:
        """Whether what it has computed before leaves less than half of ``memory`` for the next item."""
        return bool(memory and self.items and 2 * self.resident() > memory + self.fresh)

    def messages(self) -> Iterator[Any]:
        """All that it has sent; then ``gone`` says whether it has ended."""
        ended = not self.process.is_alive()
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            ended = True
        self.gone = ended
        if os.fstat(self.log).st_size > LOG_BYTES:
            os.ftruncate(self.log, 0)

    def resident(self) -> int:
        """Bytes of its memory that are resident; 0 where that is unknown."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def dump(self) -> str:
        """Where in its code it is."""
        start = os.fstat(self.log).st_size
        with contextlib.suppress(OSError):
            os.kill(self.pid, DUMP)
            time.sleep(2 * TICK)
        return tail(self.log, start)

    def kill(self) -> None:
        """End it, and whatever it has started; for one that has ended already, the latter."""
        if self.log < 0:
            return
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(LEAVE_SECONDS)  # not for ever: a dead disk keeps even what was killed
        self.pipe.close()
        os.close(self.log)
        Path(self.path).unlink(missing_ok=True)  # where it ended before it had opened it
        self.log = -1


def death(child: Child) -> Died:
    """What ended a child that nobody here has killed."""
    child.process.join(LEAVE_SECONDS)  # it may have closed its pipe a moment before
    code = child.process.exitcode
    name, kind = "", "crash"
    if code is None:
        message = "crash: the worker process closed its pipe"
    elif code < 0:
        name = signal_name(-code)
        message = f"crash: the worker process was ended by {name}"
        if name == "SIGKILL" and system_kills() > child.killed_before:
            kind, message = "oom", "oom: the system killed the worker process for want of memory"
    else:
        message = f"crash: the worker process left with exit code {code}"
    exit_code = code if code is not None and code >= 0 else None
    return Died(child.item, kind, message, child.seconds, tail(child.log), exit_code, name)


def dismiss(crew: Iterable[Child]) -> None:
    """Let children without work end by themselves, so that what they registered for their exit is done."""
    crew = list(crew)
    for child in crew:
        with contextlib.suppress(OSError):
            child.pipe.send(None)
    end = time.monotonic() + LEAVE_SECONDS
    for child in crew:
        if child.ready:
            child.process.join(max(0.0, end - time.monotonic()))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def system_kills() -> int:
    """How many processes this system has killed for want of memory since it started; 0 where unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
