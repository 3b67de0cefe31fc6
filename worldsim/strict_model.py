"""From a builder's signature to a strict pydantic model of its YAML keys."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, InstanceOf, Strict, ValidationError, WithJsonSchema, create_model

from worldsim.components import Component
from worldsim.errors import PluginError
from worldsim.param_errors import explain
from worldsim.signatures import NOUN_OF, REQUIRED, Parameter, keywords, label, unwrap

_STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    frozen=True,
    allow_inf_nan=False,
    validate_default=True,
    protected_namespaces=(),
)


@functools.cache
def model(builder: Callable[..., Any]) -> type[BaseModel]:
    """The strict model of a builder's keyword-only parameters.

    Integers are taken for numbers and lists for tuples; nothing else is converted, and no number may be
    NaN or infinite. Raises PluginError when the signature cannot be used.
    """
    parameters = keywords(builder)
    if taken := [p.name for p in parameters if hasattr(BaseModel, p.name)]:
        raise PluginError(f"builder {label(builder)} has a parameter {taken[0]!r}; give it another name")
    fields: dict[str, Any] = {
        p.name: (_field(p.annotation), ... if p.default is REQUIRED else p.default) for p in parameters
    }
    name = label(builder).rpartition(".")[2]
    try:
        made: type[BaseModel] = create_model(name, __config__=_STRICT, __doc__=summary(builder), **fields)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"builder {label(builder)} has annotations that do not work: {error}") from error
    _check_defaults(builder, parameters, made)
    return made


def summary(builder: Callable[..., Any]) -> str:
    """The first paragraph of a builder's docstring, on one line."""
    inner = builder.func if isinstance(builder, functools.partial) else builder
    return " ".join((inspect.getdoc(inner) or "").partition("\n\n")[0].split())


def _check_defaults(
    builder: Callable[..., Any], parameters: Sequence[Parameter], made: type[BaseModel]
) -> None:
    required = {p.name for p in parameters if p.default is REQUIRED}
    try:
        made.model_validate({})
    except ValidationError as error:
        for loc, message, _ in explain(error, made):
            if loc[0] not in required:
                problem = f"builder {label(builder)}: the default of {loc[0]!r} breaks its own annotation"
                raise PluginError(f"{problem}: {message}") from error
    except TypeError as error:  # a bound on a type that has none
        raise PluginError(f"builder {label(builder)} has annotations that do not work: {error}") from error


def _field(annotation: Any) -> Any:
    """The annotation as pydantic should see it: a component where a protocol stands, a list for a tuple."""
    if metadata := getattr(annotation, "__metadata__", ()):
        return Annotated[(_field(annotation.__origin__), *metadata)]
    origin, arguments = unwrap(annotation)
    if isinstance(origin, type) and origin in NOUN_OF:
        # pydantic refuses a "$ref" to what it did not define itself.
        return Annotated[InstanceOf[Component], WithJsonSchema({"component": NOUN_OF[origin]})]
    if origin is Literal or not arguments:
        return annotation
    if origin is Union:
        return _choice(annotation, [a for a in arguments if a is not type(None)])
    inner = tuple(a if a is ... else _field(a) for a in arguments)
    return Annotated[tuple.__class_getitem__(inner), Strict(False)] if origin is tuple else origin[inner]


def _choice(annotation: Any, others: list[Any]) -> Any:
    return _field(others[0]) | None if len(others) == 1 else annotation
