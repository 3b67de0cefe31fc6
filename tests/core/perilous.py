"""What a worker may meet, in a module that imports nothing heavy: its children start in a moment."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time


def prepared():
    return work


def dies():
    print("cannot begin")
    os._exit(3)


def work(common, item, say):
    what, *more = item
    return globals()[what](say, *more, **({"common": common} if what == "whose" else {}))


def whose(say, number, common):
    """Whether the common part is the object of the item before."""
    before, LAST[0] = LAST[0], common
    return common["name"], common is before


LAST = [None]


def double(say, number):
    say(f"doubling {number}")
    return 2 * number


def speak(say, text):
    ctypes.CDLL(None).puts(text.encode())
    print("and", text, file=sys.stderr)
    return os.getpid()


def raises(say):
    print("about to raise")
    raise KeyboardInterrupt("a plugin's own")


def leaves(say, code):
    print("about to leave")
    os._exit(code)


def aborts(say):
    os.abort()


def reads_nowhere(say):
    ctypes.string_at(0)


def killed(say):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_in_c(say):
    """Holds the interpreter's lock and never gives it back."""
    print("hanging")
    ctypes.PyDLL(None).sleep(600)


def sleeps(say, mark):
    write(mark, str(os.getpid()))
    time.sleep(600)


def has_a_process(say, mark):
    """Starts a process of its own, tells both, and sleeps."""
    child = subprocess.Popen(["sleep", "600"])
    write(mark, f"{os.getpid()} {child.pid}")
    time.sleep(600)


def write(mark, text):
    """At once, so that nobody reads half of it."""
    with open(mark + ".part", "w") as file:
        file.write(text)
    os.replace(mark + ".part", mark)


def fills(say, megabytes):
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1)) * 2**20 * megabytes)
        time.sleep(0.01)


def hoards(say, megabytes, kept=[]):  # noqa: B006  (what a careless plugin does)
    kept.append(b"x" * (2**20 * megabytes))
    return os.getpid()


def unpicklable(say):
    return threading.Lock()
