"""Random numbers from coordinates: what a number is for decides it, never the order it was drawn in."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _word(part: int | str) -> int:
    if isinstance(part, int):
        return part
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little")


def derive(master: int, *coordinates: int | str) -> int:
    """A 63-bit seed for these coordinates (numpy ``SeedSequence`` with them as the spawn key)."""
    sequence = np.random.SeedSequence(master, spawn_key=tuple(map(_word, coordinates)))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(master: int, *coordinates: int | str) -> torch.Generator:
    """A CPU generator for these coordinates; noise is drawn on the CPU and then moved."""
    return torch.Generator().manual_seed(derive(master, *coordinates))


@contextmanager
def forked(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's, numpy's and Python's default generators seeded inside, and put back as they were after."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved, to be restored
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - a plugin may use it; ours never do
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
