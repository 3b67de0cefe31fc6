"""Signals while cases run: once to stop in order, twice to leave at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Ctrl-C, and what schedulers send before they take a machine away."""

SHOW_CURSOR = "\x1b[?25h"


@dataclass
class Asked:
    """The name of the signal that has asked to stop; "" while none has."""

    by: str = ""


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Asked]:
    """Call ``stop`` at the first signal of ``SIGNALS``; at the second leave with 130 at once.

    What runs in children dies with this process, and what is kept is kept whole, so that nothing is lost but
    what was under way.
    """
    asked = Asked()

    def first(number: int, frame: Any) -> None:
        if asked.by:
            leave()
        asked.by = signal.Signals(number).name
        os.write(2, f"\n{asked.by}: stopping, in 10 s at the latest; once more leaves at once\n".encode())
        stop()

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, first) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave() -> None:
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR.encode())  # the display hid it, and cannot bring it back now
    os._exit(130)


def resume_line() -> str:
    """The command that goes on from here: the one that is being run."""
    arguments = click.get_current_context().find_root().obj or sys.argv[1:]
    return shlex.join([*program(), *map(str, arguments)])


def program() -> list[str]:
    """How this program was started."""
    return ["python", "-m", "worldsim"] if sys.argv[0].endswith("__main__.py") else ["worldsim"]
