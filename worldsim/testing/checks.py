"""Count what was checked, and gather what failed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Count:
    """A number that several can add to."""

    value: int = 0


@dataclass
class Checks:
    """The checks of one plugin; ``about`` gives the same ones under the name of a component."""

    subject: str = ""
    failures: list[str] = field(default_factory=list)
    counted: Count = field(default_factory=Count)

    @property
    def count(self) -> int:
        return self.counted.value

    def about(self, subject: str) -> Checks:
        return replace(self, subject=subject)

    def that(self, holds: bool, expected: str, found: Any = None) -> None:
        """One check. Raises AssertionError saying what was expected and found."""
        self.passed()
        if not holds:
            raise AssertionError(f"expected {expected}" + ("" if found is None else f", found {found}"))

    def passed(self) -> None:
        """Count a check that raises by itself."""
        self.counted.value += 1

    def run(self, check: Callable[..., None], *arguments: Any) -> None:
        """A group of checks; the first that fails ends the group and is kept."""
        try:
            check(self, *arguments)
        except AssertionError as error:
            self.failures.append(f"{self.subject}: {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}:{where.lineno}"
            self.failures.append(
                f"{self.subject}: {check.__name__} met {type(error).__name__}: {error} ({place})"
            )

    @contextmanager
    def leaving_random_state(self, what: str) -> Iterator[None]:
        """``what`` must not touch the global generators of torch, numpy and Python."""
        before = _random_state()
        yield
        self.that(
            _random_state() == before,
            f"{what} to draw from the generator it is given, never from a global one",
        )


def _random_state() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002 - looked at, never used
    numbers = (legacy[1].tobytes(), legacy[2:]) if isinstance(legacy, tuple) else (repr(legacy),)
    return torch.get_rng_state().numpy().tobytes(), numbers, random.getstate()


def same(first: Tensor, second: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    return first.shape == second.shape and torch.equal(first.nan_to_num(nan=7.0), second.nan_to_num(nan=7.0))


def finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
