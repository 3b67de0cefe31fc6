"""A component as a scenario means it, between the YAML that names it and the thing that is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

from worldsim.errors import PluginError
from worldsim.signatures import given, label


class Lookup(Protocol):
    """Where components are looked up: the registry of plugins."""

    def names(self, noun: str) -> list[str]:
        """Every component name of a noun."""

    def find(self, noun: str, name: str) -> tuple[str, Callable[..., Any], Any]:
        """(noun, builder, provider). Raises ComponentNotFound; its message ends in "; " and a hint."""


@dataclass(frozen=True)
class Component:
    """Validated, every default written out, not yet built.

    ``name`` finds it in the registry; ``plugin`` is the plugin that provides it; ``params`` may hold
    components.
    """

    noun: str
    name: str
    plugin: str
    params: Mapping[str, Any]

    def canonical(self) -> dict[str, Any]:
        """What it means as JSON, the same however it was written: for hashing."""
        name = self.name.rpartition("/")[2]
        return {"noun": self.noun, "name": name, "plugin": self.plugin, "params": _canonical(self.params)}

    def build(self, registry: Lookup, **given_values: Any) -> Any:
        """The thing itself: nested components first, then this one with the positional values it asks for.

        Raises PluginError when it asks for what was not given, and whatever its builder raises.
        """
        _, builder, _ = registry.find(self.noun, self.name)
        wanted = given(builder)
        if missing := [name for name in wanted if name not in given_values]:
            raise PluginError(f"builder {label(builder)} asks for {missing[0]!r}, which is not at hand here")
        params = {name: _built(value, registry, given_values) for name, value in self.params.items()}
        return builder(*(given_values[name] for name in wanted), **params)


def _built(value: Any, registry: Lookup, given_values: Mapping[str, Any]) -> Any:
    if isinstance(value, Component):
        return value.build(registry, **given_values)
    return deepcopy(value)  # a builder may keep and change what it is given


def _canonical(value: Any) -> Any:
    if isinstance(value, Component):
        return value.canonical()
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value  # -0.0 and 0.0 mean the same
