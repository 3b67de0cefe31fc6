"""Where cases are computed: in this process, or in supervised children that may die alone."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from worldsim import failures
from worldsim.children import Crew, Died, Returned
from worldsim.events import EventLog
from worldsim.hookspecs import hookimpl
from worldsim.store import Store
from worldsim.worker import own_tail

if TYPE_CHECKING:
    from worldsim.run import Receipt
    from worldsim.scenario import Case, Scenario
    from worldsim.truth import Truths

SCENARIOS = 64
"""How many scenarios a worker keeps as they were read."""

SAY_SECONDS = 1.0
"""Shortest time between two words of one worker about the fit it is at."""

GRACE = 5.0
"""Seconds that a case under way still has when a run is cancelled."""


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


@dataclass(frozen=True)
class Progress:
    """What a worker is at: it has just begun ``label``, or says ``text`` of it.

    ``worker`` is any short name that stays the same from case to case.
    """

    worker: str
    label: str
    text: str = ""


Watch = Callable[[Progress], None]
Say = Callable[[str], None]


def unwatched(progress: Progress) -> None:
    """For those who do not look."""


class Executor(Protocol):
    """Maps tasks to receipts. ``worldsim.run(..., executor=...)`` takes anything that has these methods."""

    def run(self, tasks: Sequence[Task], watch: Watch = unwatched) -> Generator[Receipt]:
        """One receipt for each task, in any order, as they end; a generator.

        ``compute(task)`` does the work, in any process that has the plugins and the results folder, one at
        a time in each, since a case draws from torch's default generator. It returns a receipt whatever the
        case does; what ends its process instead, or takes too long, is reported by ``failed``. A task may
        be computed twice, by two workers or after a loss: results are written whole, and the second writes
        the same. ``watch`` may be called, from the thread that iterates, when a worker begins a case or
        tells how far it is. Closing the generator abandons what is under way.
        """

    def cancel(self) -> None:
        """Begin nothing more, and let the generator end within 5 s; may be called by a signal's handler.

        What is then under way may be finished or abandoned. A task that was not finished has no receipt.
        """

    def close(self) -> None:
        """Give back what was taken for longer than one ``run``; nothing is under way."""


def compute(
    task: Task,
    say: Say | None = None,
    log: Callable[[], str] | None = None,
    scenario: Scenario | None = None,
    truths: Truths | None = None,
) -> Receipt:
    """One task, in whatever process this is: the worker loads plugins and reads the scenario itself.

    ``say`` is told how far a fit is; ``log`` gives the end of what this process has written in this case;
    ``scenario`` is the task's where it has been read before, and ``truths`` what its cases before have
    simulated.
    """
    from worldsim.run import run_case
    from worldsim.scenario import Case

    begun = time.process_time()
    scenario = scenario or read_scenario(task)
    case, store = Case(scenario, task.model, task.seed, task.device, task.dtype), Store(Path(task.root))
    if task.key and case.key != task.key:
        return failed(task, changed_code(case))
    with _watched(case, say):
        return run_case(case, store, task.train, log, begun, truths)


def changed_code(case: Case) -> str:
    """Why this process does not compute a case whose key the plan has otherwise."""
    versions = (" ".join(filter(None, parts)) for parts in case.meaning["plugins"])
    return (
        f"the code of worldsim or of a plugin changed since the plan was made, or is another on "
        f"{platform.node()}, which has worldsim {case.meaning['worldsim']} and {', '.join(versions)}: "
        "install the same versions everywhere, and run again"
    )


def read_scenario(task: Task) -> Scenario:
    """The scenario of a task, which many tasks share."""
    files = tuple(map(Path, task.plugins))
    return _read(json.dumps(dict(task.document)), task.scenario, files, os.environ.get("WORLDSIM_PLUGINS"))


@lru_cache(SCENARIOS)
def _read(document: str, name: str, files: tuple[Path, ...], only: str | None) -> Scenario:
    """The scenario, read once for its many cases. ``only`` restricts the plugins, as ``registry`` sees."""
    from worldsim.plugins import registry
    from worldsim.reading import from_document

    return from_document(json.loads(document), name, registry(files))


class FitWatcher:
    """An observer: says how far the fit in this process is."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.said = 0.0

    @hookimpl
    def worldsim_fit_progress(self, case: Any, step: int, losses: Mapping[str, float]) -> None:
        if time.monotonic() - self.said < SAY_SECONDS:
            return
        self.said = time.monotonic()
        shown = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self.say(f"step {step} of {case.spec.fit.steps}, {shown}")


@contextmanager
def _watched(case: Any, say: Say | None) -> Generator[None]:
    if say is None:
        yield
        return
    watcher, manager = FitWatcher(say), case.scenario.registry.manager
    manager.register(watcher)
    try:
        yield
    finally:
        manager.unregister(watcher)


def failed(task: Task, message: str, kind: str = "exception", seconds: float = 0.0, **more: Any) -> Receipt:
    """Keep why a task has no result, as ``failures`` has it, and say so."""
    from worldsim.run import Receipt

    failures.keep(Store(Path(task.root)), task.key, task.label, kind, message, seconds=seconds, **more)
    return Receipt(task.key, task.label, "failed", seconds, message, kind)


class InProcess:
    """One case after another, here: for debugging, and for a handful of cases."""

    def run(self, tasks: Sequence[Task], watch: Watch = unwatched) -> Generator[Receipt]:
        from worldsim.truth import Truths

        truths = Truths()

        def say(text: str) -> None:
            watch(Progress("here", task.label, text))

        for task in tasks:
            watch(Progress("here", task.label))
            yield compute(task, say, truths=truths)

    def cancel(self) -> None:
        """Abandon the case under way, which this thread is in: KeyboardInterrupt is raised in it."""
        raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing is held."""


class Local:
    """Spawned children, each with one thread: a hang, a crash, a leak or a kill costs that case alone.

    ``timeout`` in seconds and ``memory`` in bytes limit each case; None is no limit. What counts as memory is
    the resident set of its child, looked at every 0.05 s. Children end with the process that started them;
    on Linux with its thread. Raises WorldsimError for a limit of memory where there is no /proc.
    """

    def __init__(self, workers: int, timeout: float | None = None, memory: int | None = None) -> None:
        self.workers = workers
        self.timeout = timeout
        self.memory = memory
        self.crew: Crew | None = None
        self.cancelled = False

    def run(self, tasks: Sequence[Task], watch: Watch = unwatched) -> Generator[Receipt]:
        if not tasks or self.cancelled:
            return
        prepare = partial(Supervised, tasks[0].plugins)
        self.crew = Crew(min(self.workers, len(tasks)), prepare, self.timeout, self.memory, divided)

        def seen(number: int, task: Task, text: str) -> None:
            watch(Progress(str(number + 1), task.label, text))

        with closing(self.crew.map(tasks, seen)) as outcomes:
            for outcome in outcomes:
                yield received(outcome)

    def cancel(self) -> None:
        self.cancelled = True
        if self.crew is not None:
            self.crew.stop(GRACE)

    def close(self) -> None:
        """Children live no longer than one ``run``."""


def received(outcome: Returned | Died, host: str = "") -> Receipt:
    """The receipt of the task ``outcome.item``. A death, on ``host``, is kept as a failure; what a case that
    did not fail has written is printed."""
    if isinstance(outcome, Died):
        told = vars(outcome).copy()
        return failed(told.pop("item"), host=host, **told)
    receipt: Receipt = outcome.value
    if receipt.status != "failed":  # of one that failed it is kept with the failure
        with suppress(BrokenPipeError):  # the reader of what cases say has gone; they go on
            print(outcome.log, end="", flush=True)
    return receipt


def divided(task: Task) -> tuple[Mapping[str, Any], Task]:
    """The document, which the tasks of a scenario share, and the rest."""
    return task.document, replace(task, document={})


class Supervised:
    """What a child of ``Local`` does; made when it has imported what every case needs, so that no case's time
    is spent on it."""

    def __init__(self, plugins: Sequence[str]) -> None:
        import torch

        import worldsim.run
        from worldsim.plugins import registry
        from worldsim.truth import Truths

        torch.set_num_threads(1)
        _ = registry(tuple(map(Path, plugins))).tables, worldsim.run
        self.document: Mapping[str, Any] | None = None
        self.scenario: Scenario | None = None
        self.truths = Truths()

    def __call__(self, document: Mapping[str, Any], task: Task, say: Say) -> Receipt:
        if document is not self.document:
            self.document, self.scenario = document, read_scenario(replace(task, document=document))
        return compute(task, say, own_tail, self.scenario, self.truths)


def carry_out(
    executor: Executor,
    tasks: Sequence[Task],
    root: Path,
    on_receipt: Callable[[Receipt], None] | None = None,
    on_progress: Watch | None = None,
) -> None:
    """Map ``tasks`` over ``executor``, and tell the callbacks and ``events.jsonl`` what happens."""
    if not tasks:
        return
    with EventLog(root) as events:
        counts: dict[str, int] = {}

        def watch(progress: Progress) -> None:
            if not progress.text:
                events.write("case_started", label=progress.label, worker=progress.worker)
            if on_progress:
                on_progress(progress)

        events.write("run_started", cases=len(tasks), executor=type(executor).__name__, command=sys.argv)
        try:
            with closing(executor.run(tasks, watch)) as receipts:
                for receipt in receipts:
                    counts[receipt.status] = counts.get(receipt.status, 0) + 1
                    events.write("case_finished", **told(receipt))
                    if on_receipt:
                        on_receipt(receipt)
        finally:
            left = len(tasks) - sum(counts.values())
            events.write("run_stopped" if left else "run_finished", left=left, **counts)


def told(receipt: Receipt) -> dict[str, Any]:
    """A receipt as an event has it."""
    plain = {name: value for name, value in vars(receipt).items() if value != ""}
    return plain | {"seconds": round(receipt.seconds, 4), "cpu_seconds": round(receipt.cpu_seconds, 4)}
