"""What a file from a stranger may say: checked before anything is believed, or memory is given to it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from worldsim.errors import ResultError
from worldsim.files import content

KEY = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What may name a split."""
SCENARIO = re.compile(NAME.pattern + r"(\[[A-Za-z0-9._=,+-]{1,128}\])?")
"""What may name a scenario: where it is one of a sweep, with what was swept."""
DEVICE = re.compile(r"cpu|cuda(:\d{1,4})?")
LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
"""What may label a model: text that is shown, escaped where it is, and names no file."""

MEND = "move it aside with worldsim verify --delete, and run the scenarios again"

LARGE_EXPONENT = re.compile(rb"[eE]\+?\d{3}")
MAX_TEXT = 64 * 2**20
"""Bytes of a file of scores, or of the lock."""
MAX_PLAN = 1024 * 2**20
"""Bytes of a plan: some millions of cases."""

COUNTS = ("n", "failed")
NUMBERS = {int, float, type(None)}
"""Types of a number in JSON; null is one that is not finite."""
WORDS = ("better", "units", "reason", "met_by")


def plain_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON mapping of finite numbers; ResultError for anything else."""
    try:
        finite = _finite if LARGE_EXPONENT.search(data) else None
        found = json.loads(data, parse_constant=_refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else error
        raise ResultError(f"{path} is not whole ({reason})") from None
    if not isinstance(found, dict):
        raise ResultError(f"{path} is no mapping but a {type(found).__name__}")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(text)
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def plan_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a scenario's plan says of the scenario, and of each case. Raises ResultError."""
    lines = numbered(path)
    number, first = next(lines)
    try:
        head = _plan_head(plain_json(first, path))
    except ResultError as error:
        raise _placed(error, path, number) from None
    cases = []
    for number, line in lines:
        try:
            cases.append(_plan_case(plain_json(line, path)))
        except ResultError as error:
            raise _placed(error, path, number) from None
    return head, cases


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a plan that are not blank. Raises ResultError where there is none."""
    lines = enumerate(content(path, MAX_PLAN).splitlines(), start=1)
    found = ((number, line) for number, line in lines if line.strip())
    first = next(found, None)
    if first is None:
        raise ResultError(f"{path} is empty; {MEND}")
    yield first
    yield from found


def _placed(error: ResultError, path: Path, number: int) -> ResultError:
    return ResultError(f"{path}:{number}: {str(error).removeprefix(f'{path} ')}; {MEND}")


def _plan_head(head: dict[str, Any]) -> dict[str, Any]:
    _check(head, {"scenario": SCENARIO})
    for field in ("document", "compositions", "environment"):
        if not isinstance(head.get(field), dict):
            raise ResultError(f"{field} is {head.get(field)!r:.80}, expected a mapping")
    if not isinstance(head["document"].get("about"), str):
        raise ResultError("the scenario says nothing about itself")
    if head.get("metrics") is None and head.get("device") is None:  # a plan of no cases
        return {**head, "device": "cpu", "dtype": "float32", "metrics": {}}
    _check(head, {"device": DEVICE, "dtype": NAME})
    _check_metrics(head)
    return head


def _plan_case(line: dict[str, Any]) -> dict[str, Any]:
    _check(line, {"key": KEY, "model": LABEL})
    seed = line.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ResultError(f"seed is {seed!r:.80}, expected a whole number from 0")
    for field in ("baseline", "learned"):
        if type(line.get(field, True)) is not bool:
            raise ResultError(f"{field} is {line[field]!r:.80}, expected true or false")
    before = line.get("before", [])
    if not isinstance(before, list) or not all(map(_is_key, before)):
        raise ResultError(f"before is {before!r:.80}, expected keys of 32 hexadecimal digits")
    return line


def _check(line: dict[str, Any], rules: Mapping[str, re.Pattern[str]]) -> None:
    for field, rule in rules.items():
        value = line.get(field)
        if not isinstance(value, str) or not rule.fullmatch(value):
            raise ResultError(f"{field} is {value!r:.80}, expected {rule.pattern}")


def _check_metrics(line: dict[str, Any]) -> None:
    metrics = line.get("metrics")
    if not isinstance(metrics, dict) or not all(map(_is_key, metrics.values())):
        raise ResultError(f"metrics is {metrics!r:.80}, expected name: key of 32 hexadecimal digits")


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and KEY.fullmatch(value) is not None


def check_scores(document: Mapping[str, Any], path: Path) -> None:
    """Raises ResultError unless ``document`` is split -> name -> score as ``score.to_document`` writes it."""
    for split, scores in document.items():
        if not NAME.fullmatch(split) or not isinstance(scores, dict):
            raise ResultError(f"{path}: {split!r:.80} is no split with scores")
        for name, entry in scores.items():
            wrong = _wrong(entry)
            if wrong:
                raise ResultError(f"{path}: {split}/{name:.80}: {wrong}")


def _wrong(entry: Any) -> str:
    """What is wrong with one score, "" when nothing is."""
    if not isinstance(entry, dict):
        return "a score is a mapping"
    if not all(type(entry.get(key)) is int and entry[key] >= 0 for key in COUNTS):
        return f"{' and '.join(COUNTS)} are whole numbers"
    if not all(isinstance(entry.get(key, ""), str) for key in WORDS):
        return f"{', '.join(WORDS)} are text"
    floor, interval = entry.get("floor"), entry.get("interval")
    if not _is_number(floor):
        return "floor is a number or null"
    if interval is not None and not (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    ):
        return "interval is two numbers or null"
    dims = entry.get("dims")
    if not isinstance(dims, list) or not all(isinstance(dim, str) for dim in dims):
        return "dims are names"
    shape = _shape(entry.get("value"))
    if shape is None or (len(shape) != len(dims) and 0 not in shape):
        return f"value is not an array over {dims!r:.80}"
    coords = entry.get("coords")
    if not isinstance(coords, dict) or not all(isinstance(value, list | str) for value in coords.values()):
        return "coords are lists"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in NUMBERS


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers; None when they are ragged or hold anything else."""
    if not isinstance(value, list):
        return () if _is_number(value) else None
    if {type(item) for item in value} <= NUMBERS:
        return (len(value),)
    shapes = {_shape(item) for item in value}
    inner = shapes.pop()
    return None if shapes or inner is None else (len(value), *inner)
