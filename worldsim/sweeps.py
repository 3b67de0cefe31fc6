"""Sweeps: one scenario file for the product of the values of some of its parameters.

``sweep`` has the shape of the file itself, with a list of values where one value would stand. What is swept
of a model, or of ``fit`` for all of them, gives models of one scenario; of ``system`` or ``data``, scenarios
whose truth is their own. Each is written out as it would be by hand, so that it has the same keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from worldsim.errors import Problem, did_you_mean
from worldsim.strict_yaml import Document
from worldsim.yaml_nodes import Location, dotted

SWEPT = ("models", "system", "data", "fit")
"""The parts of a scenario whose parameters can be swept."""
MOST = 100_000
"""Models, times scenarios, that one file may stand for."""
LONGEST_WORD = 32


@dataclass(frozen=True)
class Axis:
    """One swept parameter: the ``path`` to it, and where its ``values`` are written."""

    path: Location
    values: Sequence[Any]
    loc: Location


@dataclass(frozen=True)
class World:
    """The scenario of one value of each axis of ``system`` and ``data``, with every model written out.

    suffix   of the scenario's name: "[mass=2.0]", or "" where nothing is swept
    origins  place in ``data`` -> place in the file of what was put there
    bases    label of a model -> its label in the file
    """

    suffix: str
    data: Mapping[str, Any]
    origins: Mapping[Location, Location] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)

    def written(self, loc: Location) -> Location:
        """Where in the file the value at ``loc`` is written."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self.origins:
                return self.origins[loc[:length]] + loc[length:]
        if loc[:1] == ("models",) and len(loc) > 1 and loc[1] in self.bases:
            return ("models", self.bases[str(loc[1])], *loc[2:])
        return loc


def expand(document: Document) -> tuple[list[World], list[Problem]]:
    """The worlds that a file stands for, and what is wrong with its ``sweep``.

    Where something is, there is one world, as if nothing were swept.
    """
    data = {key: value for key, value in document.data.items() if key != "sweep"}
    if "sweep" not in document.data:
        return [World("", data)], []
    sweep = _Sweep(document, data)
    worlds = sweep.worlds()
    return (worlds, []) if not sweep.problems else ([World("", data)], sweep.problems)


class _Sweep:
    """Reads ``sweep`` and gathers what is wrong with it."""

    def __init__(self, document: Document, data: Mapping[str, Any]) -> None:
        self.document = document
        self.data = data
        self.problems: list[Problem] = []
        models = data.get("models")
        self.models: Mapping[str, Any] = models if isinstance(models, Mapping) else {}
        self.axes = self.read(document.data["sweep"])

    def problem(self, loc: Location, message: str, hint: str = "") -> None:
        self.problems.append(self.document.problem(loc, message, hint))

    def read(self, value: Any) -> list[Axis]:
        loc: Location = ("sweep",)
        if not isinstance(value, Mapping) or not value:
            hint = "for example sweep: {models: {flow: {width: [32, 64]}}}"
            self.problem(loc, f"expected a mapping of {', '.join(SWEPT)}, found {value!r}", hint)
            return []
        axes: list[Axis] = []
        for key, part in value.items():
            if key not in SWEPT:
                self.problem((*loc, key), "this cannot be swept", did_you_mean(str(key), SWEPT))
            elif key == "models" and isinstance(part, Mapping) and part:
                axes += [axis for label, item in part.items() for axis in self.of_model(label, item)]
            elif key in ("models", "fit") and not isinstance(part, Mapping):
                self.expected((*loc, key), part)
            else:
                axes += self.below((*loc, key), (key,), part)
        return axes

    def of_model(self, label: str, item: Any) -> list[Axis]:
        loc: Location = ("sweep", "models", label)
        if label not in self.models:
            self.problem(loc, f"no model is labelled {label!r}", did_you_mean(str(label), self.models))
            return []
        if not isinstance(item, Mapping):
            self.expected(loc, item)
            return []
        return list(self.below(loc, ("models", label), item))

    def below(self, loc: Location, path: Location, value: Any) -> Iterator[Axis]:
        """The axes of ``value``: a list is the values of one, a mapping leads to more."""
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                yield from self.below((*loc, key), (*path, key), inner)
        elif isinstance(value, list) and value:
            seen: list[str] = []
            for index, each in enumerate(value):
                text = json.dumps(each, sort_keys=True, default=str)
                if text in seen:
                    self.problem((*loc, index), f"{each!r} is listed twice", "take one of them out")
                seen.append(text)
            yield Axis(path, value, loc)
        else:
            self.expected(loc, value)

    def expected(self, loc: Location, value: Any) -> None:
        found = "nothing" if value in (None, [], {}) else repr(value)
        hint = "write it as in the file, with a list where one value would stand: width: [32, 64]"
        self.problem(loc, f"expected lists of values, found {found}", hint)

    def worlds(self) -> list[World]:
        around = [axis for axis in self.axes if axis.path[0] in ("system", "data")]
        many = _count(around) * sum(_count(self.axes_of(label)) for label in self.models)
        if many > MOST:
            self.problem(("sweep",), f"{many} models are more than {MOST}", "sweep over fewer values at once")
        if self.problems:
            return []
        models, origins, bases = self.written_out()
        found = []
        for combination in _combinations(around):
            data: Mapping[str, Any] = {**self.data, "models": models} if self.models else self.data
            data, places = self.with_values(data, combination, ())
            found.append(World(suffix(combination), data, {**origins, **places}, bases))
        return found

    def written_out(self) -> tuple[dict[str, Any], dict[Location, Location], dict[str, str]]:
        """Every model at every combination of its values, where these are written, and the labels it had."""
        models: dict[str, Any] = {}
        origins: dict[Location, Location] = {}
        bases: dict[str, str] = {}
        for base, item in self.models.items():
            for combination in _combinations(self.axes_of(base)):
                label = f"{base}{suffix(combination)}"
                models[label], places = self.with_values(item, combination, ("models", label))
                origins |= places
                bases[label] = base
        return models, origins, bases

    def axes_of(self, label: str) -> list[Axis]:
        """The axes of one model, with paths that begin at the model."""
        own = [Axis(a.path[2:], a.values, a.loc) for a in self.axes if a.path[:2] == ("models", label)]
        taken = {axis.path for axis in own}
        return own + [axis for axis in self.axes if axis.path[0] == "fit" and axis.path not in taken]

    def with_values(
        self, tree: Any, combination: Sequence[tuple[Axis, int, str, str]], at: Location
    ) -> tuple[Any, dict[Location, Location]]:
        """``tree`` with one value of each axis in it, and where each is written."""
        places: dict[Location, Location] = {}
        for axis, index, _, _ in combination:
            try:
                tree = _put(tree, axis.path, axis.values[index])
            except TypeError:
                self.problem(
                    axis.loc, f"{dotted(axis.loc[1:-1])} has no keys of its own", "sweep over the whole of it"
                )
                return tree, places
            places[(*at, *axis.path)] = (*axis.loc, index)
        return tree, places


def _put(tree: Any, path: Location, value: Any) -> Any:
    """A copy of ``tree`` with ``value`` at ``path``; a component's name alone stands for the component.

    Raises TypeError where the path leads through something that has no keys.
    """
    if not path:
        return value
    tree = {"name": tree} if isinstance(tree, str) else tree or {}
    if not isinstance(tree, Mapping):
        raise TypeError
    return {**tree, path[0]: _put(tree.get(path[0]), path[1:], value)}


def _count(axes: Sequence[Axis]) -> int:
    return math.prod(len(axis.values) for axis in axes)


def _combinations(axes: Sequence[Axis]) -> Iterator[tuple[tuple[Axis, int, str, str], ...]]:
    """One value of each axis at a time: (axis, index of the value, name of the axis, word for the value)."""
    names = _names([axis.path for axis in axes])
    lines = [
        [(axis, index, name, word) for index, word in enumerate(_words(axis.values))]
        for axis, name in zip(axes, names, strict=True)
    ]
    return product(*lines)


def suffix(combination: Sequence[tuple[Axis, int, str, str]]) -> str:
    """``[width=64,depth=2]``: safe in the name of a file and in HTML."""
    inner = ",".join(f"{name}={word}" for _, _, name, word in combination)
    return f"[{inner}]" if inner else ""


def _names(paths: Sequence[Location]) -> list[str]:
    """The last key of each path, and as many before it as tell it from the others."""

    def name(path: Location, length: int) -> str:
        return ".".join(_clean(str(step)) for step in path[-length:])

    found = []
    for path in paths:
        length = 1
        while length < len(path) and sum(name(p, length) == name(path, length) for p in paths) > 1:
            length += 1
        found.append(name(path, length))
    return found


def _words(values: Sequence[Any]) -> list[str]:
    """A word for each value; those that would be the same are numbered."""
    words = [_word(value) for value in values]
    return [f"{word}.{index}" if words.count(word) > 1 else word for index, word in enumerate(words)]


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("name", "-")
    if isinstance(value, list):
        return _clean("_".join(map(_word, value)))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _clean(str(value))


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:LONGEST_WORD] or "-"
