"""Progress of a batch: a bar with an estimate on a terminal, one plain line for each case otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from worldsim.hookspecs import hookimpl

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from worldsim.plugins import Registry
    from worldsim.run import Receipt

QUIET_SECONDS = 20.0
"""Shortest time between two lines about a fit under way: neither silence nor spam."""


class Lines:
    """For logs."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.spoke = time.monotonic()

    def finished(self, receipt: Receipt) -> None:
        self.count += 1
        self.spoke = time.monotonic()
        reason = f": {receipt.message}" if receipt.message else ""
        click.echo(
            f"[{self.count}/{self.total}] {receipt.status} {receipt.label} ({receipt.seconds:.1f} s){reason}"
        )

    def fitting(self, text: str) -> None:
        if time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            click.echo(text)


class Bar:
    """For terminals."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress = progress
        self.task = task
        self.failed = 0

    def finished(self, receipt: Receipt) -> None:
        if receipt.status == "failed":
            self.failed += 1
            self.progress.console.print(
                f"failed {receipt.label}: {receipt.message}", markup=False, style="red"
            )
        self.progress.update(self.task, advance=1, failed=self.failed, now=receipt.label)

    def fitting(self, text: str) -> None:
        self.progress.update(self.task, now=text)


class FitWatcher:
    """An observer: tells a display how far the fit in this process is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @hookimpl
    def worldsim_fit_progress(self, case: Any, step: int, losses: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self.say(f"{case.label}: step {step} of {case.spec.fit.steps}, {shown}")


@contextmanager
def progress(total: int, plugins: Registry) -> Iterator[Callable[[Receipt], None]]:
    """Give what is to be called with each receipt."""
    with _display(total) as display:
        watcher = FitWatcher(display.fitting)
        plugins.manager.register(watcher, name="progress")
        try:
            yield display.finished
        finally:
            plugins.manager.unregister(watcher)


@contextmanager
def _display(total: int) -> Iterator[Bar | Lines]:
    if not sys.stdout.isatty():
        yield Lines(total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    with Progress(*columns, transient=True) as shown:
        yield Bar(shown, shown.add_task("cases", total=total, failed=0, now=""))
