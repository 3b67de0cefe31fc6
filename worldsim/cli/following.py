"""What ``run`` and ``score`` do while an executor is at work: show how far it is, stop it when asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from worldsim.cli.progress import Display, progress
from worldsim.cli.signals import interruptible, resume_line
from worldsim.errors import ClusterError

if TYPE_CHECKING:
    from worldsim.executors import Executor, Progress
    from worldsim.run import Receipt


@dataclass
class Follower:
    """Counts what has failed, and passes on what happens to the display."""

    display: Display
    count: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)

    def finished(self, receipt: Receipt) -> None:
        self.count += 1
        self.failed += receipt.status == "failed"
        self.display.finished(receipt)

    def working(self, progress: Progress) -> None:
        self.display.working(progress)


@contextmanager
def followed(executor: Executor, total: int) -> Iterator[Follower]:
    """Follow ``total`` cases. A signal that asks to stop ends the command with 130 and says how to go on; so
    does a cluster that is lost, with its own exit code."""
    follower: Follower | None = None
    try:
        with interruptible(executor.cancel) as asked:
            with progress(total) as display:
                follower = Follower(display)
                yield follower
            if asked.by:
                raise KeyboardInterrupt
    except (KeyboardInterrupt, ClusterError):
        done = follower.count if follower else 0
        click.echo(
            f"\n{done} of {total} cases ended. What is finished is kept: the same command goes on from there."
            f"\nto go on: {resume_line()}",
            err=True,
        )
        raise
    finally:
        executor.close()
