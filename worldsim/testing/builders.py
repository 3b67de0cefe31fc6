"""Checks of a builder: what worldsim can read from its signature and docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from worldsim.params import Component, ParamErrors, component, describe, model
from worldsim.plugins import Registry
from worldsim.testing.checks import Checks


def check_builder(checks: Checks, builder: Callable[..., Any]) -> None:
    """A docstring, a signature that is a schema, and a description of every parameter."""
    model(builder)
    checks.that(bool(inspect.getdoc(builder)), "a docstring that says what it is, with shapes and units")
    for parameter in describe(builder):
        hint = f'{parameter.name}: Annotated[..., Field(description="...")]'
        checks.that(
            bool(parameter.description), f"a description of {parameter.name!r}", f"none; write {hint}"
        )


def checked_component(
    checks: Checks, noun: str, data: Mapping[str, Any], plugins: Registry
) -> Component | None:
    """The component from its defaults and the given keys; None when they are refused."""
    try:
        part = component(noun, data, plugins)
    except ParamErrors as error:
        hint = "give what has no default as params={name: {key: value}}"
        checks.failures.append(f"{checks.subject}: {error}; {hint}")
        return None
    checks.that(part.canonical() == component(noun, data, plugins).canonical(), "one canonical form")
    return part
