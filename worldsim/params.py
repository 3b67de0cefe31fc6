"""From what a scenario writes about a component to a validated one; every error is told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from worldsim.components import Component as Component
from worldsim.components import Lookup
from worldsim.errors import ComponentNotFound, PluginError, WorldsimError
from worldsim.param_errors import Explained, Location, shown
from worldsim.param_errors import explain as explain
from worldsim.signatures import describe as describe
from worldsim.signatures import given as given
from worldsim.signatures import keywords, label
from worldsim.strict_model import model as model

GIVEN_TO: dict[str, tuple[str, ...]] = {
    "dynamics": ("system", "truth"),
    "generator": ("system", "truth"),
    "constraint": ("system",),
    "metric": ("system",),
}
"""Noun -> what worldsim gives its builders by position; nothing to those not listed."""


class ParamErrors(WorldsimError):
    """Everything wrong with a component as written: ``errors`` holds (location, message, hint)."""

    def __init__(self, errors: Sequence[Explained]) -> None:
        self.errors = list(errors)
        lines = [f"{'.'.join(map(str, loc))}: {message}; {hint}" for loc, message, hint in errors]
        super().__init__("\n".join(line.strip(":; ") for line in lines))


def component(noun: str, data: Any, registry: Lookup, loc: Location = ()) -> Component:
    """The component that ``data``, a name or ``{name: ..., key: value}``, stands for.

    Raises ParamErrors with every error, located below ``loc``; PluginError when its builder is unusable.
    """
    reader = _Reader(registry)
    part = reader.component(noun, data, loc)
    if part is None or reader.errors:
        raise ParamErrors(reader.errors)
    return part


class _Reader:
    """Reads a component and those nested in it, and gathers errors."""

    def __init__(self, registry: Lookup) -> None:
        self.registry = registry
        self.errors: list[Explained] = []

    def component(self, noun: str, data: Any, loc: Location) -> Component | None:
        if isinstance(data, str):
            return self.named(noun, data, {}, loc, loc)
        if isinstance(data, Mapping) and isinstance(data.get("name"), str):
            keys = {key: value for key, value in data.items() if key != "name"}
            return self.named(noun, data["name"], keys, loc, (*loc, "name"))
        known = "one of " + (", ".join(self.registry.names(noun)) or "none: no plugin provides any")
        if not isinstance(data, Mapping):
            message = f"expected a {noun}, found {shown(data)}"
            self.errors.append((loc, message, f"write {{name: ...}} with {known}"))
        elif "name" not in data:
            self.errors.append((loc, "'name' is missing", f"say which {noun}: {known}"))
        else:
            message = f"expected the name of a {noun}, found {shown(data['name'])}"
            self.errors.append(((*loc, "name"), message, known))
        return None

    def named(
        self, noun: str, name: str, keys: Mapping[str, Any], loc: Location, name_loc: Location
    ) -> Component | None:
        try:
            noun, builder, provider = self.registry.find(noun, name)
        except ComponentNotFound as error:
            message, _, hint = str(error).partition("; ")
            self.errors.append((name_loc, message, hint))
            return None
        _check_given(noun, builder)
        before = len(self.errors)
        values = self.nested(builder, keys, loc)
        checked = self.checked(builder, values, loc)
        if checked is None or len(self.errors) > before:
            return None
        params = {parameter.name: getattr(checked, parameter.name) for parameter in keywords(builder)}
        return Component(noun, self.shortest(noun, name, provider), str(provider.name), params)

    def nested(self, builder: Callable[..., Any], keys: Mapping[str, Any], loc: Location) -> dict[str, Any]:
        """``keys`` with components in place of what is written for them; None for those that failed."""
        values = dict(keys)
        for parameter in keywords(builder):
            written = keys.get(parameter.name)
            if parameter.noun and written is not None:
                values[parameter.name] = self.component(parameter.noun, written, (*loc, parameter.name))
        return values

    def checked(
        self, builder: Callable[..., Any], values: Mapping[str, Any], loc: Location
    ) -> BaseModel | None:
        strict = model(builder)
        told = {at[: len(loc) + 1] for at, _, _ in self.errors}
        try:
            return strict.model_validate(values)
        except ValidationError as error:
            explained = [((*loc, *at), message, hint) for at, message, hint in explain(error, strict)]
            # A nested component that failed is None here; that is not a second error.
            self.errors += [one for one in explained if one[0][: len(loc) + 1] not in told]
            return None

    def shortest(self, noun: str, name: str, provider: Any) -> str:
        """The bare name where it finds the same component, so that both spellings mean the same."""
        bare = name.rpartition("/")[2]
        try:
            return bare if self.registry.find(noun, bare)[2] == provider else name
        except ComponentNotFound:
            return name


def _check_given(noun: str, builder: Callable[..., Any]) -> None:
    allowed = GIVEN_TO.get(noun, ())
    for name in given(builder):
        if name not in allowed:
            gets = " and ".join(map(repr, allowed)) or "nothing"
            raise PluginError(f"builder {label(builder)} asks for {name!r}; a {noun} is given {gets}")
