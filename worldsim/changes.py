"""What differs between two key documents, in the words of a scenario file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "nothing"
SPLITS = "data.splits."


@dataclass(frozen=True)
class Change:
    """``model.width`` was ``old`` and is ``new``."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path} {self.old} -> {self.new}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every difference, in the order of the new document. One that all splits share, or several plugins, is
    told once."""
    before, after = flat(old), flat(new)
    paths = [*after, *(path for path in before if path not in after)]
    pairs = [(path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in paths]
    found = [Change(*pair) for pair in pairs if pair[1] != pair[2]]
    return _plugins_once(_splits_once(found, len(new.get("splits", ()))))


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value of a key document."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if key == "plugins":
            found |= {f"plugins.{name}": " ".join(map(str, rest)).strip() for name, *rest in value}
        elif key == "splits":
            for split, (system, settings) in value.items():
                found |= dict(_leaves(f"{SPLITS}{split}.system", system))
                found |= dict(_leaves(f"{SPLITS}{split}", settings))
        else:
            found |= dict(_leaves(key, value))
    return found


def _leaves(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and {"noun", "name", "plugin", "params"} == set(value):
        yield path, value["name"]  # a component: its own name, then its parameters
        value = value["params"]
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}[{index}]", item)
    else:
        yield path, value


def _splits_once(found: list[Change], splits: int) -> list[Change]:
    """``system.mass`` for what has changed alike in every split."""
    shared: dict[tuple[str, str, str], list[Change]] = {}
    for change in found:
        if change.path.startswith(SPLITS):
            rest = change.path.removeprefix(SPLITS).partition(".")[2]
            shared.setdefault((rest, str(change.old), str(change.new)), []).append(change)
    told: list[Change] = []
    for change in found:
        rest = change.path.removeprefix(SPLITS).partition(".")[2]
        alike = shared.get((rest, str(change.old), str(change.new)), [])
        if not change.path.startswith(SPLITS) or len(alike) < splits or splits < 2:
            told.append(change)
        elif alike[0] is change:
            told.append(Change(rest, change.old, change.new))
    return told


def _plugins_once(found: list[Change]) -> list[Change]:
    """``plugins a, b`` for those that went from one version to another together."""
    told = [change for change in found if not change.path.startswith("plugins.")]
    together: dict[tuple[Any, Any], list[str]] = {}
    for change in found:
        if change.path.startswith("plugins."):
            together.setdefault((change.old, change.new), []).append(change.path.removeprefix("plugins."))
    return told + [
        Change(f"plugin{'s' if len(names) > 1 else ''} {', '.join(names)}", old, new)
        for (old, new), names in together.items()
    ]
