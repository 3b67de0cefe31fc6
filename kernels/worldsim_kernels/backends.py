"""Which implementation of a kernel runs, and why.

``reference``  the recurrence or definition itself, in float64 if its input is; differentiable to any order
``torch``      tensor operations, chunked where that is faster; runs wherever torch does
``native``     C on a CPU, compiled at first use (see ``native``)
``triton``     Triton on a GPU

The first of ``ORDER`` that does not refuse a call runs it; ``reference`` runs only when it is asked for.
``backend="torch"`` in a call, or ``with use("torch"):`` around it, asks for one: it then runs, or the call
fails with its reason. ``explain`` tells what would happen.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from worldsim_kernels import native

ORDER = ("native", "triton", "torch", "reference")
KERNELS: Mapping[str, str] = {
    "state_scan": "scan",
    "affine_scan": "affine",
    "selective_scan": "selective",
    "attend": "attention",
    "grouped_matmul": "experts",
    "rms_norm": "rows",
    "swiglu": "rows",
    "modulate": "rows",
    "token_shift": "rows",
    "sinkhorn": "transport",
    "nbody": "solve.nbody",
}
"""Kernels with more than one implementation -> their module, which has each as ``BACKENDS[name]``."""

Verifier = Callable[..., str | None]


class _Requested(threading.local):
    """What ``use`` asks for in this thread. A ContextVar would break ``torch.compile(fullgraph=True)``."""

    name = ""


_requested = _Requested()


@dataclass(frozen=True)
class Backends:
    """The implementations of one kernel.

    source    the name of its C file, None when it has none
    refuses   backend -> a function of the call's arguments that returns why it cannot run them, or None.
              The backends named here, and ``torch`` and ``reference``, are those that exist.
    """

    name: str
    source: str | None = None
    refuses: Mapping[str, Verifier] | None = None

    def choose(self, wanted: str, **arguments: Any) -> str:
        """The backend that runs this call: ``wanted`` if it is not "", else the first that does not refuse.

        Raises ValueError when ``wanted`` is unknown or refuses.
        """
        if wanted:
            reason = self.reason(wanted, **arguments)
            if reason is not None:
                raise ValueError(f"{self.name}: backend {wanted!r} cannot run this call: {reason}")
            return wanted
        # An interpreted Triton kernel is for tests: it never runs unless it is asked for.
        by_itself = [each for each in ORDER if each != "triton" or _device(arguments) == "cuda"]
        return next(each for each in by_itself if self.reason(each, **arguments) is None)

    def reason(self, backend: str, **arguments: Any) -> str | None:
        """Why ``backend`` cannot run the call with these arguments; None when it can."""
        if backend not in ORDER:
            return f"there is no such backend; there are {', '.join(ORDER)}"
        verifier = (self.refuses or {}).get(backend)
        if backend in ("native", "triton"):
            if verifier is None:
                return f"{self.name} has no {backend} form"
            general = self._native(arguments) if backend == "native" else _triton(arguments)
            if general is not None:
                return general
        return None if verifier is None else verifier(**arguments)

    def _native(self, arguments: Mapping[str, Any]) -> str | None:
        device = _device(arguments)
        return f"it runs on a CPU, the tensors are on {device}" if device != "cpu" else self.missing_native()

    def missing_native(self) -> str | None:
        return f"{self.name} has no native form" if self.source is None else native.why_not(self.source)


def _triton(arguments: Mapping[str, Any]) -> str | None:
    missing = missing_triton()
    if missing is not None:
        return missing
    device = _device(arguments)
    return None if device == "cuda" or interpreted() else f"it runs on a GPU, the tensors are on {device}"


@cache
def missing_triton() -> str | None:
    """Why Triton cannot be used at all, without importing it."""
    return None if find_spec("triton") else "the package triton is not installed"


def interpreted() -> bool:
    """Whether Triton's interpreter is on, so that its kernels run on a CPU too (slowly, for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _device(arguments: Mapping[str, Any]) -> str:
    found = next((x for x in arguments.values() if isinstance(x, Tensor)), None)
    return "cpu" if found is None else found.device.type


def requested(backend: str | None) -> str:
    """The backend that a call asks for: its own argument, else the innermost ``use``, else ""."""
    return _requested.name if backend is None else backend


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Ask for ``backend`` in all kernels called inside, in this thread; their backward keeps it.

    Raises ValueError for an unknown name.
    """
    if backend not in ORDER:
        raise ValueError(f"there is no backend {backend!r}; there are {', '.join(ORDER)}")
    before, _requested.name = _requested.name, backend
    try:
        yield
    finally:
        _requested.name = before


@dataclass(frozen=True)
class Explanation:
    """``chosen``, and for every backend why it was not (None for those that could have run)."""

    kernel: str
    chosen: str
    reasons: Mapping[str, str | None]

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.chosen}"]
        for name, reason in self.reasons.items():
            if name != self.chosen:
                lines.append(f"  not {name}: {reason or 'it can run this, but comes later in the order'}")
        return "\n".join(lines)


def backends_of(kernel: str) -> Backends:
    """The implementations of the kernel of this name. Raises ValueError when there is none."""
    if kernel not in KERNELS:
        raise ValueError(f"there is no kernel {kernel!r}; there are {', '.join(KERNELS)}")
    found: Backends = import_module(f"worldsim_kernels.{KERNELS[kernel]}").BACKENDS[kernel]
    return found


def explain(kernel: str, **arguments: Any) -> Explanation:
    """Which backend would run ``kernel`` with these (keyword) arguments, and why not the others.

    >>> explain("state_scan", q=q, k=k, v=v)

    Without arguments it answers for float32 tensors on the CPU. Raises ValueError for an unknown kernel, or
    when ``use`` asks for a backend that refuses.
    """
    found = backends_of(kernel)
    reasons = {name: found.reason(name, **arguments) for name in ORDER}
    return Explanation(kernel, found.choose(requested(None), **arguments), reasons)
