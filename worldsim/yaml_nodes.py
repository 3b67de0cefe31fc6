"""From parser events to nodes: what is refused is refused while events arrive, so a bomb never grows."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from worldsim.errors import Problem, did_you_mean
from worldsim.yaml_scalars import CONTROL, Scalar, meaning, scalar

MAX_DEPTH = 64
MAX_NODES = 200_000
MAX_ALIASES = 100
MAX_PROBLEMS = 100
MAX_SHOWN = 12

Location: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = tuple[int, int]
Kind: TypeAlias = Literal["scalar", "sequence", "mapping"]

_TOO_MUCH = "a scenario is a page of text: keep data elsewhere"


@dataclass(slots=True)
class Node:
    """One value: where it begins, and its entries by key or index, each with the place of its key.

    ``count`` is the number of values in it with aliases written out, ``height`` its depth.
    """

    place: Place
    kind: Kind
    scalar: Scalar = None
    entries: dict[str | int, tuple[Place, Node]] = field(default_factory=dict)
    count: int = 1
    height: int = 1

    def plain(self) -> Any:
        if self.kind == "scalar":
            return self.scalar
        if self.kind == "sequence":
            return [child.plain() for _, child in self.entries.values()]
        return {key: child.plain() for key, (_, child) in self.entries.items()}


_NO_ENTRIES: dict[str | int, tuple[Place, Node]] = {}  # one for all scalars: a file may hold 200 000


class Enough(Exception):
    """Reading further would cost much or say nothing new."""


def dotted(loc: Location) -> str:
    """``("models", "flow", "constraints", 0)`` as ``models.flow.constraints[0]``; cut where very deep."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc[:MAX_SHOWN])
    return (text.removeprefix(".") or "(file)") + ("..." if len(loc) > MAX_SHOWN else "")


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen. ``key`` is None while a mapping awaits its next key."""

    node: Node
    anchor: str | None
    before: int
    key: str | None = None
    key_place: Place = (1, 1)
    wanted: bool = True

    @property
    def step(self) -> str | int | None:
        return len(self.node.entries) if self.node.kind == "sequence" else self.key


class Composer:
    """Builds nodes from parser events; gathers problems instead of stopping at the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}  # None while the anchored value is still open
        self._count = self._aliases = self._documents = 0

    @property
    def location(self) -> Location:
        """Where in the document the next event belongs."""
        return tuple(within.step for within in self._open if within.step is not None)

    def take(self, event: yaml.Event) -> None:
        """One event. Raises Enough when a limit is passed."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._start(event, "mapping")
        elif isinstance(event, yaml.SequenceStartEvent):
            self._start(event, "sequence")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._end()

    def report(self, place: Place, message: str, hint: str) -> None:
        """Keep a problem with the value being read. Raises Enough when there are very many."""
        self.problems.append(Problem(self.path, *place, dotted(self.location), message, hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise Enough

    def _stop(self, place: Place, message: str, hint: str) -> None:
        self.report(place, message, hint)
        raise Enough

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            self._stop(
                _place(event), "more than one document", "one file holds one scenario: split it at '---'"
            )

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, kind: Kind) -> None:
        place = _place(event)
        self._check(event)
        if self._at_key():
            self._set_key(place, None, f"a {kind} cannot be a key", "write a plain word as the key")
            self._open[-1].key = None  # the key ends when this mapping or list does
        self._open.append(_Open(Node(place, kind), event.anchor, self._count))
        self._count += 1
        if event.anchor:
            self._anchors[event.anchor] = None

    def _end(self) -> None:
        done = self._open.pop()
        done.node.count = self._count - done.before
        self._attach(done.node, done.anchor)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place, plain = _place(event), event.implicit[0]
        self._check(event)
        self._count += 1
        if CONTROL.search(event.value):
            self.report(place, "a control character", "write the text without escapes such as '\\0'")
        if self._at_key():
            self._key(place, event.value, plain)
        else:
            value = self._value(place, event.value) if plain else event.value
            self._attach(Node(place, "scalar", value, _NO_ENTRIES), event.anchor)

    def _value(self, place: Place, text: str) -> Scalar:
        try:
            return scalar(text)
        except ValueError as error:
            self.report(
                place, str(error), "write a finite number that 64 bits hold, or quote it if it is text"
            )
            return None

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = _place(event)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._stop(place, f"more than {MAX_ALIASES} aliases", "write the values out")
        node = self._anchored(place, event.anchor or "")
        self._check(event, node.count, node.height)
        self._count += node.count
        if self._at_key():
            self._set_key(place, None, "an alias cannot be a key", "write the key out")
        else:
            self._attach(node, None)

    def _anchored(self, place: Place, name: str) -> Node:
        node = self._anchors.get(name)
        if node is None and name in self._anchors:
            self.report(place, f"alias '*{name}' stands inside its own value", "write the value out")
        elif node is None:
            hint = did_you_mean(name, self._anchors)
            self.report(place, f"alias '*{name}' has no anchor '&{name}' above it", hint)
        return node or Node(place, "scalar")

    def _key(self, place: Place, text: str, plain: bool) -> None:
        kind = meaning(text) if plain else "text"
        if plain and text == "<<":
            self._set_key(place, text, "merge keys are not read", "write the merged keys out, one by one")
        elif kind == "empty" and not text:
            self._set_key(place, None, "a key is missing before the colon", "write a word before the colon")
        elif kind != "text":
            self._set_key(place, text, f"a key must be text, this is {kind}", f"put it in quotes: '{text}'")
        elif plain and re.match(r"\w+:\S", text):
            word, _, rest = text.partition(":")
            self._set_key(place, text, "no space after the colon", f"write '{word}: {rest}'")
        else:
            self._set_key(place, unicodedata.normalize("NFC", text))

    def _set_key(self, place: Place, key: str | None, message: str = "", hint: str = "") -> None:
        """What follows is the value of ``key``; it is dropped when something is wrong with the key."""
        within = self._open[-1]
        within.key, within.key_place = "(key)" if key is None else key, place
        if not message and within.key in within.node.entries:
            line = within.node.entries[within.key][0][0]
            message, hint = f"given twice, first on line {line}", "keep one of the two"
        within.wanted = not message
        if message:
            self.report(place, message, hint)

    def _at_key(self) -> bool:
        return bool(self._open) and self._open[-1].node.kind == "mapping" and self._open[-1].key is None

    def _attach(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        within = self._open[-1]
        entries = within.node.entries
        within.node.height = max(within.node.height, node.height + 1)
        if within.node.kind == "sequence":
            entries[len(entries)] = (node.place, node)
        elif within.key is None:  # a mapping or list that stood as a key has ended
            within.key = "(key)"
        else:
            if within.wanted:
                entries[within.key] = (within.key_place, node)
            within.key = None

    def _check(self, event: yaml.Event, count: int = 1, height: int = 1) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            message = f"tag {shown} is not read: scenario files are data"
            self.report(_place(event), message, "remove the tag and write the plain value")
        if len(self._open) + height > MAX_DEPTH:
            self._stop(_place(event), f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        if self._count + count > MAX_NODES:
            written_out = ", aliases written out" if self._aliases else ""
            self._stop(_place(event), f"more than {MAX_NODES} values{written_out}", _TOO_MUCH)


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
