"""What an unquoted word means: the YAML 1.2 core schema, and the characters text may hold."""

from __future__ import annotations

import re
from math import isinf
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

# C0, DEL and C1 controls, line breaks that editors do not count, text-direction overrides, surrogates.
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
LINE_BREAK = re.compile("\r\n|\r|\n")

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def scalar(text: str) -> Scalar:
    """What unquoted ``text`` means. ``no``, ``1:30`` and ``2020-01-01`` are text; ``012`` is twelve.

    Raises ValueError for a number that neither 64 bits nor a finite float can hold.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return _float(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("not a finite number")
    return text


def _integer(text: str) -> int:
    # Python refuses to convert very long digit strings; none of them fits in 64 bits anyway.
    value = int(text, 0 if text[:2] in ("0x", "0o") else 10) if len(text) <= 100 else 2**63
    if not -(2**63) <= value < 2**63:
        raise ValueError("a whole number beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise ValueError("not a finite number: too large for a 64-bit float")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise ValueError("too small for a 64-bit float: it would be read as 0")
    return value


def meaning(text: str) -> str:
    """What kind of thing unquoted ``text`` is, in words; "text" for text."""
    if text in _WORDS:
        return "empty" if _WORDS[text] is None else "true or false"
    try:
        return "text" if isinstance(scalar(text), str) else "a number"
    except ValueError:
        return "a number"
