"""A checksum inside the file that it is of.

The last value of the file's JSON is ``"sha256"``: the checksum of the whole file with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import re

BLANK = "0" * 64
"""What stands in the place of a checksum while it is computed."""

END = re.compile(rb'": "([^"]{64})"\}+\s*\Z')
TAIL = 128


def sealed(data: bytes) -> bytes:
    """``data``, which ends with ``"sha256": BLANK``, with its own checksum there."""
    found = END.search(data, max(0, len(data) - TAIL))
    assert found is not None
    return data[: found.start(1)] + hashlib.sha256(data).hexdigest().encode() + data[found.end(1) :]


def is_whole(data: bytes) -> bool | None:
    """Whether ``data`` is what was sealed; None when it has no checksum."""
    found = END.search(data, max(0, len(data) - TAIL))
    if found is None:
        return None
    sum_of = hashlib.sha256(memoryview(data)[: found.start(1)])
    sum_of.update(BLANK.encode())
    sum_of.update(memoryview(data)[found.end(1) :])
    return sum_of.hexdigest().encode() == found[1]
