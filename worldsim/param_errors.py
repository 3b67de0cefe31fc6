"""pydantic's errors, in words for someone who writes YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, Union

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from worldsim.errors import did_you_mean
from worldsim.signatures import bare, type_text

Location: TypeAlias = tuple[str | int, ...]
Explained: TypeAlias = tuple[Location, str, str]
"""(location, message, hint)"""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of 64 bits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
}
_LENGTHS = {
    "too_short": "needs at least {min_length} values, found {actual_length}",
    "too_long": "takes at most {max_length} values, found {actual_length}",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[Explained]:
    """Every error of a validation against ``model`` as (location, message, hint)."""
    told: dict[Location, Explained] = {}
    for loc, message, hint in _explained(error, model):
        told.setdefault(loc, (loc, message, hint))
    return list(told.values())


def _explained(error: ValidationError, model: type[BaseModel]) -> Iterator[Explained]:
    for one in error.errors(include_url=False):
        kind, loc, value = one["type"], one["loc"], one["input"]
        if kind == "missing" and isinstance(loc[-1], int):  # one error for each value a short list lacks
            yield loc[:-1], f"too few values: found {len(value)}", _about(model, loc[:-1])
        elif kind == "missing":
            yield loc, f"{loc[-1]!r} is missing", _about(model, loc)
        elif kind == "extra_forbidden":
            yield loc, "unknown key", did_you_mean(str(loc[-1]), _keys(model, loc[:-1]))
        elif _annotation(model, loc[:-1]) is Union:  # one error for each type that was possible
            yield loc[:-1], f"a value of this kind cannot stand here: {shown(value)}", _about(model, loc[:-1])
        else:
            yield loc, _message(one), _advice(kind, value) or _about(model, loc)


def _message(error: Any) -> str:
    kind, value = error["type"], error["input"]
    context = {key: _plain(part) for key, part in error.get("ctx", {}).items()}
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {shown(value)}"
    if kind == "literal_error":
        return f"expected {context['expected']}, found {shown(value)}"
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind].format(**context)}, found {shown(value)}"
    if kind in _LENGTHS:
        return _LENGTHS[kind].format(**context)
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, found {shown(value)}"


def _plain(bound: Any) -> Any:
    """A bound as its author wrote it: pydantic makes 0.0 of 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() and abs(bound) < 1e15 else bound


def shown(value: Any) -> str:
    """A value as its writer would call it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"a string {value[:60]!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else f"the number {value!r}"


def _advice(kind: str, value: Any) -> str:
    """What to write instead, where the value itself tells."""
    if kind in ("int_type", "int_from_float", "float_type") and isinstance(value, (str, float)):
        return _as_number(value, whole=kind != "float_type")
    if kind == "bool_type":
        word = str(value).lower()
        return {"yes": "write true", "on": "write true", "1": "write true"}.get(word) or (
            "write false" if word in ("no", "off", "0") else "write true or false, without quotes"
        )
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f"put it in quotes: '{shown(value).removeprefix('the number ')}'"
    if kind in ("list_type", "tuple_type") and isinstance(value, (bool, int, float, str)):
        return "write a list: [...]"
    if kind == "literal_error" and isinstance(value, bool):
        return "put it in quotes"
    return ""


def _as_number(value: str | float, whole: bool) -> str:
    try:
        number = float(str(value).replace("_", "").replace(",", ""))
    except ValueError:
        return ""
    if not number.is_integer():
        return "" if whole else f"write {number!r}, without quotes"
    return f"write {int(number)}" if abs(number) < 2**63 else ""


def _about(model: type[BaseModel], loc: Location) -> str:
    """The nearest field above ``loc``, as its documentation has it."""
    for end in range(len(loc), 0, -1):
        holder, name = _annotation(model, loc[: end - 1]), loc[end - 1]
        if _is_model(holder) and name in holder.model_fields:
            return _documented(holder.model_fields[name])
    return ""


def _documented(field: FieldInfo) -> str:
    text = type_text(field.rebuild_annotation())
    return f"{text}: {field.description}" if field.description else text


def _keys(model: type[BaseModel], loc: Location) -> list[str]:
    holder = _annotation(model, loc)
    return list(holder.model_fields) if _is_model(holder) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _annotation(annotation: Any, loc: Location) -> Any:
    """The type at ``loc`` below ``annotation``; None where it cannot be followed."""
    for step in loc:
        origin, arguments = bare(annotation)
        if _is_model(origin) and step in origin.model_fields:
            annotation = origin.model_fields[step].annotation
        elif origin in (dict, list, tuple) and arguments:
            annotation = arguments[1 if origin is dict else 0]
        else:
            return None
    return bare(annotation)[0]
