"""Read a builder's signature: what worldsim gives it, and what a scenario may write.

Positional parameters are given by worldsim by name; keyword-only parameters are YAML keys.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from worldsim import protocols
from worldsim.errors import PluginError

GIVEN = ("system", "truth")
"""What worldsim can give a builder."""

NOUN_OF: dict[Any, str] = {
    protocols.System: "system",
    protocols.Model: "model",
    protocols.Dynamics: "dynamics",
    protocols.Generator: "generator",
    protocols.Constraint: "constraint",
    protocols.Metric: "metric",
    protocols.Solver: "solver",
    protocols.Backbone: "backbone",
}
"""A protocol as an annotation -> the noun whose components may stand there."""

REQUIRED: Any = inspect.Parameter.empty
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "string"}
_ALLOWED = (
    "allowed are bool, int, float, str, Literal, choices of these, list, tuple and dict of these, "
    "`X | None`, and the protocols of worldsim"
)
_BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "multiple_of": "a multiple of {}"}


class Description(NamedTuple):
    """One YAML key in words; ``default`` is empty when the key is required."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter, its annotation evaluated. ``default`` is REQUIRED when there is none."""

    name: str
    annotation: Any
    default: Any

    @property
    def noun(self) -> str | None:
        """The noun, when this parameter is itself a component."""
        origin, _ = bare(self.annotation)
        return NOUN_OF.get(origin) if isinstance(origin, type) else None


def label(builder: Callable[..., Any]) -> str:
    """``package.module.Builder``, for messages."""
    inner = _function(builder)
    owner = builder if inspect.isclass(builder) else inner
    return f"{owner.__module__}.{owner.__qualname__}"


def given(builder: Callable[..., Any]) -> tuple[str, ...]:
    """The names of its positional parameters. Raises PluginError for any that worldsim cannot give."""
    return _read(builder)[0]


def keywords(builder: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Its keyword-only parameters. Raises PluginError for one without a usable annotation."""
    return _read(builder)[1]


def describe(builder: Callable[..., Any]) -> list[Description]:
    """Every YAML key of a component, in words."""
    return [
        Description(p.name, type_text(p.annotation), default_text(p), description_of(p.annotation))
        for p in keywords(builder)
    ]


@functools.cache
def _read(builder: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        _refuse(builder, "has no signature that can be read", "give a class or a function written in Python")
    positional = tuple(p.name for p in parameters if _is_given(builder, p))
    written = tuple(_parameter(builder, p) for p in parameters if p.kind is p.KEYWORD_ONLY)
    return positional, written


def _is_given(builder: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        _refuse(builder, f"takes {parameter}, which no scenario can check", "name every parameter")
    if parameter.kind is parameter.KEYWORD_ONLY:
        return False
    if parameter.name not in GIVEN:
        hint = f"write `*` before it to make it a YAML key; positional ones are {' and '.join(GIVEN)}"
        _refuse(builder, f"has a positional parameter {parameter.name!r}", hint)
    return True


def _parameter(builder: Callable[..., Any], parameter: inspect.Parameter) -> Parameter:
    if parameter.name == "name" or parameter.name.startswith("_"):
        _refuse(builder, f"has a parameter {parameter.name!r}", "give it another name: this one is taken")
    if parameter.annotation is parameter.empty:
        hint = f'write `{parameter.name}: Annotated[float, Field(description="...")]`'
        _refuse(builder, f"has no annotation for {parameter.name!r}", hint)
    annotation = _evaluated(builder, parameter)
    if wrong := _unusable(annotation):
        _refuse(builder, f"annotates {parameter.name!r} with {wrong}", _ALLOWED)
    found = Parameter(parameter.name, annotation, parameter.default)
    if found.noun and found.default not in (None, REQUIRED):
        problem = f"has a built {found.noun} as the default of {found.name!r}"
        _refuse(builder, problem, "make the default None and build your own when it is None")
    return found


def _evaluated(builder: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    # Protocols are often imported under TYPE_CHECKING alone; their names are known here.
    names = {**vars(protocols), **_globals(builder)}
    try:
        return eval(parameter.annotation, names)
    except Exception as error:
        problem = f"annotates {parameter.name!r} with {parameter.annotation}, which fails: {error!r}"
        _refuse(builder, problem, "import what it names when the module is imported")


def _function(builder: Callable[..., Any]) -> Any:
    while isinstance(builder, functools.partial):
        builder = builder.func
    if inspect.isclass(builder):
        made_by_new = builder.__init__ is object.__init__
        return inspect.unwrap(builder.__new__ if made_by_new else builder.__init__)
    return inspect.unwrap(builder if hasattr(builder, "__qualname__") else type(builder).__call__)


def _globals(builder: Callable[..., Any]) -> dict[str, Any]:
    inner = _function(builder)
    module = sys.modules.get(getattr(inner, "__module__", ""))
    return getattr(inner, "__globals__", None) or vars(module or types)


def _unusable(annotation: Any) -> str:
    """What in an annotation no scenario can write; empty when all of it can be."""
    inner, arguments = unwrap(annotation)
    if inner in WORDS or inner is Literal or (isinstance(inner, type) and inner in NOUN_OF):
        return ""
    if inner in (list, tuple, dict) and arguments:
        if inner is dict and arguments[0] is not str:
            return f"{annotation}, whose keys are not strings"
        return next(filter(None, (_unusable(a) for a in arguments if a is not ...)), "")
    if inner is Union:
        others = [a for a in arguments if a is not type(None)]
        if len(others) > 1 and not all(a in WORDS for a in others):
            return f"{annotation}, a choice of types"
        return _unusable(others[0])
    return f"{annotation}" if arguments or not isinstance(inner, type) else inner.__name__


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """(origin, arguments) without Annotated; both spellings of a union have the origin Union."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    if origin is types.UnionType:
        origin = Union
    return origin or annotation, get_args(annotation)


def bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """(origin, arguments) without Annotated and without ``| None``."""
    origin, arguments = unwrap(annotation)
    others = [a for a in arguments if a is not type(None)]
    return bare(others[0]) if origin is Union and len(others) == 1 else (origin, arguments)


def type_text(annotation: Any) -> str:
    """An annotation in the words of someone who writes YAML, with its bounds."""
    origin, arguments = unwrap(annotation)
    others = [a for a in arguments if a is not type(None)]
    shape = " or ".join(map(type_text, others)) if origin is Union else _shape(origin, arguments)
    bounds = ", ".join(_bounds(annotation))
    return " ".join(filter(None, [shape, bounds, "or null" if type(None) in arguments else ""]))


def _shape(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is Literal:
        return " or ".join(json.dumps(a) for a in arguments)
    if origin is dict:
        return f"mapping of name to {type_text(arguments[1])}"
    if origin is list or (origin is tuple and ... in arguments):
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(type_text(a) for a in arguments) + "]"
    return WORDS.get(origin) or NOUN_OF.get(origin) or str(getattr(origin, "__name__", origin)).lower()


def _bounds(annotation: Any) -> list[str]:
    marks: list[Any] = []
    for mark in getattr(annotation, "__metadata__", ()):
        marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    shown = [(text, getattr(mark, name, None)) for mark in marks for name, text in _BOUNDS.items()]
    return [text.format(bound) for text, bound in shown if bound is not None]


def description_of(annotation: Any) -> str:
    """What ``Field(description=...)`` says; empty when there is none."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, FieldInfo) and mark.description:
            return mark.description
    origin, arguments = unwrap(annotation)
    return next(filter(None, map(description_of, arguments)), "") if origin is Union else ""


def default_text(parameter: Parameter) -> str:
    """The default as YAML; empty when the key is required."""
    return "" if parameter.default is REQUIRED else json.dumps(parameter.default, ensure_ascii=False)


def _refuse(builder: Callable[..., Any], problem: str, hint: str) -> NoReturn:
    raise PluginError(f"builder {label(builder)} {problem}; {hint}")
