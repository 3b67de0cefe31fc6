"""The same case gives the same bits: one thread, deterministic algorithms, and word of what has none."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Without a workspace of a fixed size cuBLAS may sum in another order; it is read when CUDA starts."""

SAID = re.compile(r"(.+?) does not have a deterministic implementation|Deterministic behavior was enabled")
"""What torch warns of, where it was asked for deterministic algorithms and has none."""


@contextmanager
def deterministic() -> Iterator[set[str]]:
    """One thread, since a sum's bits depend on how many threads share it; torch's deterministic algorithms
    where there is a choice; float32 products in float32. All is as it was afterwards, but for the variable
    ``WORKSPACE``.

    Gives the names of operations that have no deterministic form here; it grows as they are met.
    """
    met: set[str] = set()
    os.environ.setdefault(WORKSPACE, ":4096:8")
    memory: Any = torch.utils.deterministic
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    precision, fill = torch.get_float32_matmul_precision(), memory.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("warn")
    torch.set_float32_matmul_precision("highest")
    memory.fill_uninitialized_memory = False  # a debugging aid, with which torch.empty takes 17 times as long
    try:
        with _heard(met), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            yield met
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        torch.set_float32_matmul_precision(precision)
        memory.fill_uninitialized_memory = fill


@contextmanager
def _heard(met: set[str]) -> Iterator[None]:
    """Collect what torch says of operations without a deterministic form; other warnings are shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=SAID.pattern)
        show = warnings.showwarning

        def heard(message: Warning | str, *rest: Any, **more: Any) -> None:
            said = SAID.match(str(message))
            if said:
                met.add(said[1] or "cuBLAS")
            else:
                show(message, *rest, **more)

        warnings.showwarning = heard
        yield
