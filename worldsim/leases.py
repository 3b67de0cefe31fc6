"""Leases: a file that says who is at a case. Advisory: nothing waits for one, and no result depends on it.

leases/<key>   host and process; touched every few seconds for as long as the case is computed
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "leases"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


@contextmanager
def lease(root: Path, key: str) -> Iterator[None]:
    """Say that this process is at the case ``key``. What goes wrong with saying so harms no case."""
    path, ended = root / FOLDER / key, threading.Event()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    except OSError:
        yield
        return
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(OSError):
            path.unlink()


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def live(root: Path) -> Iterator[str]:
    """The cases that somebody is at, as far as one can tell."""
    try:
        found = list(os.scandir(root / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return
    for each in found:
        with suppress(OSError, ValueError):
            host, pid = Path(each.path).read_text(encoding="utf-8").split()
            fresh = abs(time.time() - each.stat().st_mtime) < STALE_SECONDS
            if fresh and (host != socket.gethostname() or _alive(int(pid))):
                yield each.name


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
