"""Read a scenario file as plain data: YAML 1.2 scalars, and every problem with its line and column.

PyYAML's parser gives the events; what they mean is decided here. Its own constructors read ``1e-3`` as
text, ``no`` as false and ``012`` as ten, keep the last of two equal keys without a word, and build
Python objects from tags.
"""

from __future__ import annotations

import codecs
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from worldsim.errors import Problem, ScenarioError, did_you_mean
from worldsim.yaml_nodes import MAX_PROBLEMS, Composer, Enough, Location, Node, Place, dotted
from worldsim.yaml_scalars import CONTROL, LINE_BREAK
from worldsim.yaml_syntax import explain, line_of

MAX_BYTES = 4 * 2**20

# libyaml where PyYAML was built with it, else the same parser in Python, some twenty times slower.
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TOO_LONG = f"longer than {MAX_BYTES // 2**20} MiB"
_KEEP_ELSEWHERE = "a scenario is a page of text: keep data elsewhere"


@dataclass(frozen=True)
class Document:
    """A scenario file as plain data, with the places it was read from."""

    path: Path
    data: dict[str, Any]
    root: Node = field(repr=False, compare=False)

    def place(self, loc: Location) -> Place:
        """1-based (line, column) of the key, or list item, at ``loc``; of its nearest parent if absent."""
        place, node = self.root.place, self.root
        for step in loc:
            if step not in node.entries:
                break
            place, node = node.entries[step]
        return place

    def problem(self, loc: Location, message: str, hint: str = "") -> Problem:
        """A problem with the value at ``loc``, ready to be raised in a ScenarioError."""
        return Problem(self.path, *self.place(loc), dotted(loc), message, hint)


def read(path: Path) -> Document:
    """The document in the file at ``path``. Raises ScenarioError with every problem found.

    A folder, a device, a FIFO, a file beyond 4 MiB and anything but UTF-8 are refused.
    """
    return parse(_decoded(_content(path), path), path)


def parse(text: str, path: Path) -> Document:
    """The document in ``text``; ``path`` is what its problems name. Raises ScenarioError."""
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        _refuse(path, _TOO_LONG, _KEEP_ELSEWHERE)
    _check_characters(text, path)
    composer = Composer(path)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            composer.take(event)
    except Enough:
        pass
    except yaml.MarkedYAMLError as error:
        composer.problems.append(_syntax_problem(composer, error, text))
    if composer.problems:
        raise ScenarioError(composer.problems)
    root = _mapping(composer.root, path)
    return Document(path, root.plain(), root)


def _syntax_problem(composer: Composer, error: yaml.MarkedYAMLError, text: str) -> Problem:
    place, message, hint = explain(error, text)
    loc = composer.location
    # The parser reads ahead: the key on the offending line may not have arrived as an event yet.
    word = re.match(r"[\s-]*(\w+)\s*:", line_of(text, place[0]))
    if word and word[1] not in loc:
        loc = (*loc, word[1])
    return Problem(composer.path, *place, dotted(loc), message, hint)


def _mapping(root: Node | None, path: Path) -> Node:
    if root is None or (root.kind == "scalar" and root.scalar is None):
        _refuse(path, "the file is empty", "write at least about, system, data, models, metrics and seeds")
    if root.kind != "mapping":
        _refuse(path, "the top of the file is not 'key: value' lines", "begin with 'about: ...'", root.place)
    return root


def _check_characters(text: str, path: Path) -> None:
    if not CONTROL.search(text):
        return
    problems: list[Problem] = []
    for number, line in enumerate(LINE_BREAK.split(text), start=1):
        if len(problems) == MAX_PROBLEMS:
            break
        if found := CONTROL.search(line):
            char = found.group()
            name = unicodedata.name(char, "a control character").lower()
            message = f"character U+{ord(char):04X} ({name}) is not allowed"
            hint = "this is not a text file" if char == "\0" else "delete it; editors may not show it"
            problems.append(Problem(path, number, found.start() + 1, dotted(()), message, hint))
    raise ScenarioError(problems)


def _content(path: Path) -> bytes:
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            _refuse(path, "this is a folder", "name a .yaml file in it")
        if not stat.S_ISREG(about.st_mode):
            _refuse(path, "this is not a regular file", "name a .yaml file")
        if about.st_size > MAX_BYTES:
            _refuse(path, _TOO_LONG, _KEEP_ELSEWHERE)
        return path.read_bytes()
    except FileNotFoundError:
        _refuse(path, "there is no such file", _near_files(path))
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        _refuse(path, f"the file cannot be read: {reason}", "check the path and its permissions")


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    return did_you_mean(path.name, [file.name for file in path.parent.glob("*.yaml")])


def _decoded(raw: bytes, path: Path) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        _refuse(path, "the file is UTF-16 or UTF-32", "save it as UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = LINE_BREAK.split(raw[: error.start].decode("utf-8"))
        place = (len(before), len(before[-1]) + 1)
        _refuse(path, f"byte 0x{raw[error.start]:02X} is not UTF-8", "save the file as UTF-8", place)


def _refuse(path: Path, message: str, hint: str, place: Place = (1, 1)) -> NoReturn:
    raise ScenarioError([Problem(path, *place, dotted(()), message, hint)])
