"""Why a case has no result, or one that is not finite: a typed document for each, ``failures/<key>.json``.

kind       timeout, crash, oom, exception or nonfinite
message    one line for people
attempts   how often this case has failed so far
host       where it happened
seconds    how long the case had run
exit_code  of the process that died, signal: the name of what ended it
traceback  of an exception; of a hang, where the process was
log        the end of what the case wrote
where      of what is not finite: for each split, how many trajectories, of how many, and the first frame

``nonfinite`` beside a result means that its rollouts are not finite: it is kept, scored and flagged.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from worldsim.errors import NotFinite
from worldsim.store import Store

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("timeout", "crash", "oom", "exception", "nonfinite")


def keep(
    store: Store,
    key: str,
    label: str,
    kind: str,
    message: str,
    *,
    seconds: float = 0.0,
    log: str = "",
    traceback: str = "",
    exit_code: int | None = None,
    signal: str = "",
    where: Mapping[str, Any] | None = None,
    host: str = "",
) -> None:
    """Keep one document; what there was of the same case gives the number of attempts. ``host`` is this
    machine where none is given."""
    assert kind in KINDS
    document = {
        "key": key, "label": label, "kind": kind, "message": message, "attempts": attempts(store, key) + 1,
        "host": host or platform.node(), "seconds": round(seconds, 3), "exit_code": exit_code,
        "signal": signal, "traceback": traceback, "log": log, "where": dict(where or {}),
    }  # fmt: skip
    store.keep_failure(key, document)


def attempts(store: Store, key: str) -> int:
    """How often a case has failed, as far as it is known."""
    try:
        return int((store.open_failure(key) or {}).get("attempts", 0))
    except (ValueError, TypeError):
        return 0  # a torn document, or another's


def kind_of(error: BaseException) -> str:
    """The kind of a case that ended by ``error``, or by what this was raised from."""
    causes = list(chain(error))
    if any(is_want_of_memory(cause) for cause in causes):
        return "oom"
    if any(isinstance(cause, NotFinite) for cause in causes):
        return "nonfinite"
    return "crash" if isinstance(error, SystemExit) else "exception"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_want_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's error of a GPU, and the RuntimeError that torch raises for a CPU's memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def not_finite(groups: Mapping[str, xr.Dataset]) -> dict[str, dict[str, int]]:
    """Split -> trajectories, of, first_frame of the forecasts that are not finite.

    ``first_frame`` counts from the last frame that was given, which is 0. Frames after a ragged end of the
    truth do not count.
    """
    import numpy as np

    found = {}
    for split, group in groups.items():
        states = group["state"].values
        if states.dtype.kind != "f":
            continue
        bad = ~np.isfinite(states).reshape(*states.shape[:3], -1).all(3)  # [trajectory, draw, time]
        if "length" in group:
            bad &= np.arange(bad.shape[2]) < group["length"].values[:, None, None]
        if bad.any():
            found[split] = {
                "trajectories": int(bad.any((1, 2)).sum()),
                "of": len(bad),
                "first_frame": int(bad.any((0, 1)).argmax()),
            }
    return found


def in_words(where: Mapping[str, Mapping[str, int]]) -> str:
    """What ``not_finite`` found, for people."""
    parts = [
        f"{split}: {found['trajectories']} of {found['of']} trajectories, first at frame "
        f"{found['first_frame']}"
        for split, found in where.items()
    ]
    return "nonfinite: forecasts are not finite (" + "; ".join(parts) + ")"


def flag(store: Store, key: str) -> str:
    """What is not finite in a result that is kept, in words; "" where nothing is."""
    try:
        kept = store.open_failure(key) or {}
    except ValueError:
        return ""
    return str(kept["message"]) if kept.get("kind") == "nonfinite" and store.has_run(key) else ""
