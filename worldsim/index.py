"""What a results folder holds, seen at one look.

There is no database beside the files that could fall out of step with them. The names in ``runs`` and
``failures`` are listed once, and one question is asked of the file system for each score: for 10,000 cases
that takes a fraction of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worldsim.leases import live

if TYPE_CHECKING:
    from worldsim.plan_files import Entry

STATES = ("done", "unscored", "failed", "missing")
RUN = ".zarr.zip"


@dataclass(frozen=True)
class Index:
    """Keys of what is there. ``running`` is advisory: cases that somebody has said to be at."""

    root: str
    runs: frozenset[str]
    failures: frozenset[str]
    running: frozenset[str]

    def state(self, entry: Entry) -> str:
        """ "done", "failed", "unscored" (rollouts kept, scores not computed yet) or "missing"."""
        kept = entry.key in self.runs
        if kept and not any(self.unscored(entry)):
            return "done"
        if entry.key in self.failures:
            return "failed"
        return "unscored" if kept else "missing"

    def unscored(self, entry: Entry) -> Iterator[str]:
        """The metrics of a case whose scores are not kept."""
        folder = f"{self.root}/scores/{entry.key}/"
        return (name for name, key in entry.metrics.items() if not os.path.exists(f"{folder}{key}.json"))


def look(root: Path) -> Index:
    """The index of the folder as it is now."""
    runs = (name for folder in _names(root / "runs") for name in _names(root / "runs" / folder))
    return Index(
        str(root),
        frozenset(name.removesuffix(RUN) for name in runs if name.endswith(RUN)),
        frozenset(n.removesuffix(".json") for n in _names(root / "failures") if n.endswith(".json")),
        frozenset(live(root)),
    )


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing where there is none."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def failure_kind(document: Mapping[str, object]) -> str:
    """In one word, why a case has no result."""
    return str(document.get("kind") or "exception")
