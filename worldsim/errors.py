"""What worldsim raises. Every message says what is wrong, where, what was allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class WorldsimError(Exception):
    """Base of everything worldsim raises on purpose; the command line prints it without a traceback."""


class PluginError(WorldsimError):
    """A plugin could not be loaded, or broke its contract; the message names plugin and version."""


class ComponentNotFound(WorldsimError):
    """A name was looked up that no loaded plugin provides."""


class NotMeasurable(WorldsimError):
    """A score cannot be measured on this system or sample; it is reported so, never as a number."""


class NotFinite(WorldsimError, ValueError):
    """Numbers became NaN or infinite; ``where`` says in which split, of how many trajectories, and when."""

    def __init__(self, message: str, where: Mapping[str, Mapping[str, int]] | None = None) -> None:
        super().__init__(message)
        self.where = dict(where or {})


class DeviceError(WorldsimError):
    """The device or dtype asked for is absent from this machine."""


class ClusterError(WorldsimError):
    """A cluster cannot be reached, was lost, or has workers that cannot do what is asked of them."""


class ResultError(WorldsimError):
    """A kept result is missing, corrupt or of another layout."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a scenario file, at a place a reader can go to."""

    file: Path
    line: int
    column: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"\n    {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.key}: {self.message}{hint}"


class ScenarioError(WorldsimError):
    """Everything wrong with a scenario file, all at once, each with file, line and column."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([*map(str, self.problems), count]))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known words, or all of them when none is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(word) for word in near) + "?"
    return "allowed: " + (", ".join(known) if known else "nothing")
