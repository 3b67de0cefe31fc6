"""What happens while cases run: a line of JSON for each event, appended to ``events.jsonl``.

Each line is written by one call, so that several runs may share the file. A run that was killed may leave
half a line at its end, and readers pass over what is no JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

EVENTS = "events.jsonl"


class EventLog:
    """The log of one run: ``write`` an event at a time.

    It raises nothing after it has been opened: a run does not fail for its log. What a disk has no room for
    is missing.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.file = os.open(root / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self.run = f"{platform.node()}-{os.getpid()}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}"
        self.torn = self._ends_torn()

    def _ends_torn(self) -> bool:
        size = os.fstat(self.file).st_size
        return size > 0 and os.pread(self.file, 1, size - 1) != b"\n"

    def write(self, event: str, **told: Any) -> None:
        """``told`` is plain data; the time is UTC."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": now, "run": self.run, "event": event, **told}).encode() + b"\n"
        if self.torn:
            line = b"\n" + line
        self.torn = True
        with contextlib.suppress(OSError):
            self.torn = os.write(self.file, line) < len(line)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.file)


def read_events(root: Path) -> Iterator[dict[str, Any]]:
    """Every whole event of every run into this folder, in the order in which they were written."""
    path = Path(root) / EVENTS
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
