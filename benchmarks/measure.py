"""How the benchmarks measure: turns on one clock, the machine's limits, memory in a forked child, fits."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
TIE = 1e-6
"""The relative error up to which a faster matmul still counts as float32."""


def seconds(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def take_turns(calls: Mapping[Any, Call], budget: float, least: int = 3, most: int = 40) -> dict[Any, float]:
    """The least seconds of each call over rounds in which they take turns.

    Every round runs each call once, so that a busy minute of the machine meets all of them; the first
    only warms up, except a call of more than a second. A call leaves when it has had ``least`` rounds and
    spent ``budget`` seconds, at the latest after ``most`` rounds.
    """
    best = {name: took if (took := seconds(call)) > 1 else math.inf for name, call in calls.items()}
    spent = dict.fromkeys(calls, 0.0)
    for done in range(most):
        active = [name for name in calls if done < least or spent[name] < budget]
        for name in active:
            took = seconds(calls[name])
            best[name], spent[name] = min(best[name], took), spent[name] + took
        if not active:
            break
    return best


def error(found: Tensor, true: Tensor) -> float:
    """RMS(found - true) / RMS(true), in float64."""
    return float((found.double() - true).norm() / true.norm())


def fit(lengths: Sequence[int], spent: Sequence[float]) -> tuple[float, float]:
    """The exponent p of seconds ~ length^p by least squares on logarithms, and its standard error.

    Both are NaN below two points; the error is NaN at two.
    """
    if len(lengths) < 2:
        return math.nan, math.nan
    x, y = [math.log(each) for each in lengths], [math.log(each) for each in spent]
    slope, intercept = statistics.linear_regression(x, y)
    if len(x) == 2:
        return slope, math.nan
    left = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y))
    spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
    return slope, math.sqrt(left / (len(x) - 2) / spread)


# The limits ---------------------------------------------------------------------------------------------


def limits(size: int = 2048) -> dict[str, Any]:
    """What one thread of this machine can do: GFLOP/s of a float32 matmul, GB/s of a copy in memory.

    torch's switch to "bf16" sends float32 matmuls to oneDNN. On processors with AMX they then really are
    bfloat16, on others they stay float32 and only get faster: it is used where the error says the latter.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    true = a.double() @ b.double()
    best, path, off = math.inf, "", math.nan
    for precision in ("none", "bf16"):
        with _precision(precision) as there:
            if not there:
                continue
            wrong = error(a @ b, true)
            took = min(seconds(lambda: a @ b) for _ in range(3))
        if wrong < TIE and took < best:
            best, off = took, wrong
            path = "oneDNN" if precision == "bf16" else "torch's default"
    source = torch.zeros(2**26)
    target = torch.zeros(2**26)
    copied = min(seconds(lambda: target.copy_(source)) for _ in range(5))
    return {
        "gflops": 2 * size**3 / best / 1e9,
        "matmul": path,
        "matmul_error": off,
        "gbytes": 2 * source.nbytes / copied / 1e9,
    }


@contextmanager
def _precision(wanted: str) -> Iterator[bool]:
    """torch's precision of float32 matmuls in oneDNN; False where this torch cannot set it."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    if before is None:
        yield wanted == "none"
        return
    matmul.fp32_precision = wanted
    try:
        yield True
    finally:
        matmul.fp32_precision = before


def load_warning() -> str:
    """A line when other programs kept the processors busy in the last minute, else ""."""
    load = os.getloadavg()[0]
    if load <= 1.2:
        return ""
    return f"WARNING: the load average is {load:.1f}; other programs run, and these times are too long."


def available_bytes() -> float:
    """Memory that this machine can still give; infinity where it does not say."""
    return _proc("/proc/meminfo", "MemAvailable")


def keep_freed_memory(keep: bool) -> bool:
    """Have malloc keep what is freed, or go back to its defaults; False where it is not glibc's.

    By default glibc returns large blocks to the system at once, and a new one costs half a millisecond a
    megabyte or less, depending on the system, for its pages to be mapped and zeroed: more than a scan itself.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    try:
        mallopt, malloc_trim = ctypes.CDLL(None).mallopt, ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    malloc_trim(0)
    trimming, mappings = (-1, 0) if keep else (2**17, 2**16)
    return bool(mallopt(M_TRIM_THRESHOLD, trimming) and mallopt(M_MMAP_MAX, mappings))


# Children -----------------------------------------------------------------------------------------------


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in a forked child; None where it died.

    A fork of a process that has computed nothing yet is as fresh as a new interpreter, without the two
    seconds that one takes to import torch.
    """
    return in_children([(function, *arguments)])[0]


def in_children(calls: list[tuple[Any, ...]]) -> list[Any]:
    """The same for several children at once."""
    fork = multiprocessing.get_context("fork")
    running = []
    for function, *arguments in calls:
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=_send, args=(there, function, arguments))
        child.start()
        there.close()
        running.append((here, child))
    found = []
    for here, child in running:
        try:
            found.append(here.recv())
        except EOFError:
            found.append(None)
        child.join()
    return found


def _send(pipe: Any, function: Callable[..., Any], arguments: list[Any]) -> None:
    torch.set_num_threads(1)
    pipe.send(function(*arguments))


def peak_bytes(call: Call) -> float:
    """How much the resident memory of this process rose at its highest during the call.

    That is VmHWM, set back to the present (``/proc/self/clear_refs``) after the allocator's free pages were
    returned, less the resident memory then. NaN where the system cannot tell.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = _proc("/proc/self/status", "VmRSS")
        kept = call()
        after = _proc("/proc/self/status", "VmHWM")
    except (OSError, AttributeError):
        return math.nan
    del kept
    return after - before


def _proc(path: str, key: str) -> float:
    try:
        with open(path) as file:
            line = next(line for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return math.inf if key == "MemAvailable" else math.nan
    return 1024.0 * float(line.split()[1])
