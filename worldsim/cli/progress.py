"""Progress of a batch: what is done and what each worker is at, drawn on a terminal; a line now and then in a
log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from worldsim.cli.terminal import speak_to_nobody

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars

    from worldsim.executors import Progress
    from worldsim.run import Receipt

LINE_SECONDS = 5.0
"""Shortest time between two lines of a log about cases that ended: a batch has 100,000."""

SILENT_SECONDS = 60.0
"""Longest time without a line."""

ROWS = 16
"""Workers shown by name on a terminal."""

WINDOW_SECONDS = 3600.0
"""How far back the estimate of what is left looks."""


class Display(Protocol):
    """What is told of a batch while it goes on."""

    def finished(self, receipt: Receipt) -> None: ...

    def working(self, progress: Progress) -> None: ...


class Lines:
    """For logs: failures at once, and how far all is every few seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.counts: dict[str, int] = {}
        self.last = self.now = ""
        self.begun = self.spoke = time.monotonic()
        self.told = -1
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._speak, daemon=True)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def finished(self, receipt: Receipt) -> None:
        self.counts[receipt.status] = self.counts.get(receipt.status, 0) + 1
        self.last = f"{receipt.label} ({receipt.seconds:.1f} s)"
        if receipt.message:
            tell(complaint(receipt))

    def working(self, progress: Progress) -> None:
        self.now = " ".join(filter(None, (progress.label, progress.text)))

    def line(self) -> str:
        spent = time.monotonic() - self.begun
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        left = f", {duration(spent / self.count * (self.total - self.count))} left" if self.count else ""
        at = f"; last {self.last}" if self.last else f"; at {self.now}" if self.now else ""
        if self.count == self.total:
            left = ""
        return f"[{self.count}/{self.total}] {counts or 'none done'}, {duration(spent)}{left}{at}"

    def say(self) -> None:
        self.told, self.spoke = self.count, time.monotonic()
        tell(self.line())

    def _speak(self) -> None:
        while not self.over.wait(LINE_SECONDS):
            if self.count > self.told or time.monotonic() - self.spoke >= SILENT_SECONDS:
                self.say()

    def __enter__(self) -> Lines:
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        self.thread.join()
        if self.count > self.told and self.count:
            self.say()


def tell(line: str) -> None:
    """A batch goes on when the reader of its log has gone, as after ``| head``."""
    try:
        click.echo(line)
    except BrokenPipeError:
        speak_to_nobody()


class Rows:
    """For terminals: one bar for all cases, and a row for what each worker is at."""

    def __init__(self, total: int, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.bars: Bars = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=WINDOW_SECONDS,
        )
        self.task = self.bars.add_task("cases", total=total, failed=0)
        self.failed = 0
        self.workers: dict[str, tuple[str, str, float]] = {}

    def finished(self, receipt: Receipt) -> None:
        self.failed += receipt.status == "failed"
        if receipt.message:
            self.console.print(complaint(receipt), markup=False, highlight=False, style="red")
        self.bars.update(self.task, advance=1, failed=self.failed)

    def working(self, progress: Progress) -> None:
        label, _, since = self.workers.get(progress.worker, ("", "", 0.0))
        if not progress.text or label != progress.label:
            since = time.monotonic()
        self.workers[progress.worker] = (progress.label, progress.text, since)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [
            Text(f"  {worker:>3}  {label}  {duration(time.monotonic() - since)}  {text}", overflow="ellipsis")
            for worker, (label, text, since) in sorted(self.workers.items(), key=lambda row: row[0].zfill(8))
        ]
        more = [Text(f"       and {len(rows) - ROWS} more")] if len(rows) > ROWS else []
        return Group(self.bars, *rows[:ROWS], *more)


def complaint(receipt: Receipt) -> str:
    """What is wrong with a case: that it failed, or that its forecasts are not finite."""
    return f"{'failed' if receipt.status == 'failed' else 'warning'}: {receipt.label}: {receipt.message}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``5 h 12 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


@contextmanager
def progress(total: int) -> Iterator[Display]:
    """What to tell of a batch of ``total`` cases, while it goes on."""
    if not sys.stdout.isatty():
        with Lines(total) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.live import Live

    rows = Rows(total, Console())
    with Live(rows, console=rows.console, transient=True, refresh_per_second=4):
        yield rows
