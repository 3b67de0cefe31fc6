"""Inside a supervised child: work on one item after another, write down what is said, leave with the parent.

``children`` holds the other end of the pipe.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TextIO

READY, SAYS, RETURNED, RAISED = "ready", "says", "returned", "raised"
"""What a child sends: each a tuple that begins with one of these."""

TAIL = 4096
"""Bytes of what a case wrote that are kept when it fails."""

DUMP = signal.SIGUSR2
"""Asks a child to write down where it is; it answers also while C code holds the interpreter's lock."""

PR_SET_PDEATHSIG, LINE_BUFFERED = 1, 1

Say = Callable[[str], None]
Work = Callable[[Any, Any, Say], Any]
"""``work(common, own, say)``: an item comes in two parts, and the first only when it is another one."""


def serve(pipe: Connection, log: str, parent: int, prepare: Callable[[], Work]) -> None:
    """Call what ``prepare`` gives for the items that come through ``pipe``, until None comes.

    ``prepare`` is called once, before the first item's clock runs. Standard output and error go to the file
    ``log``.
    """
    leave_with(parent)
    capture(log)
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(threads, "1")
    items: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=listen, args=(pipe, items), daemon=True).start()
    work = prepare()
    pipe.send((READY,))
    common = None
    while (item := items.get()) is not None:
        is_other, given, own = item
        common = given if is_other else common
        answer(pipe, work, common, own)


def answer(pipe: Connection, work: Work, common: Any, own: Any) -> None:
    try:
        value = work(common, own, lambda text: pipe.send((SAYS, text)))
        flush()
        pipe.send((RETURNED, value))
    except BaseException as error:  # a plugin may raise what it likes, and the next case shall run
        flush()
        pipe.send((RAISED, f"{type(error).__name__}: {error}", traceback.format_exc()))


def leave_with(parent: int) -> None:
    """Have the system end this process when its parent is gone, and give it a group of its own.

    Linux ends it when the *thread* that started it ends. The group is what a terminal's Ctrl-C does not reach
    and what the parent kills as a whole.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, left_to_the_parent)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def left_to_the_parent(number: int, frame: Any) -> None:
    """What a scheduler sends to every process of a job: the parent hears it too, and gives a case its time.

    A handler, since programs that a plugin starts would inherit that a signal is ignored.
    """


def listen(pipe: Connection, items: SimpleQueue[Any]) -> None:
    """Pass items on. The end of the pipe is the end of the parent: nobody in this group outlives it."""
    try:
        while (item := pipe.recv()) is not None:
            items.put(item)
        items.put(None)
    except (EOFError, OSError):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    except BaseException:  # an item that cannot be read here: nobody may wait for its outcome
        traceback.print_exc()
        os._exit(1)


def capture(log: str) -> None:
    """Send file descriptors 1 and 2 to the file ``log``, whose name is then free.

    Every line goes out at once, C's too, so that a crash loses none. A crash writes down where it was.
    """
    file = os.open(log, os.O_RDWR | os.O_APPEND)
    os.unlink(log)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = lines_to(1), lines_to(2)
    faulthandler.enable(file=2)
    faulthandler.register(DUMP, file=2, all_threads=True)
    try:
        c = ctypes.CDLL(None)
        c.setvbuf(ctypes.c_void_p.in_dll(c, "stdout"), None, LINE_BUFFERED, 0)
    except (AttributeError, ValueError):
        return  # a C library that calls its stdout something else


def lines_to(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def tail(log: int, start: int = 0) -> str:
    """The last 4 KB of the open file ``log``, from byte ``start`` on at the earliest."""
    first = max(start, os.fstat(log).st_size - TAIL)
    return os.pread(log, TAIL, first).decode("utf-8", "replace")


def own_tail() -> str:
    """What the case under way has written, seen from inside a child."""
    flush()
    return tail(1)
