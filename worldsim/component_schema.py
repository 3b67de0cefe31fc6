"""JSON Schema (draft-07, which editors read) of every component the loaded plugins offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worldsim.components import Lookup
from worldsim.errors import ComponentNotFound, PluginError
from worldsim.signatures import NOUN_OF, REQUIRED, keywords
from worldsim.strict_model import model, summary

Extra = Mapping[str, Mapping[str, Any]]


def json_schema(registry: Lookup, extra: Extra | None = None) -> dict[str, Any]:
    """``{"definitions": {noun: ...}}``; refer to ``#/definitions/system`` and its like.

    Each noun is one of its components by constant name, or a bare name where nothing is required.
    ``extra`` adds properties that a noun takes wherever it stands in a scenario, e.g.
    ``{"constraint": {"weight": {"type": "number"}}}``. A component whose builder cannot be read, or whose
    name two plugins provide, is left out.
    """
    more = extra or {}
    return {"definitions": {noun: _noun(noun, registry, more.get(noun, {})) for noun in NOUN_OF.values()}}


def _noun(noun: str, registry: Lookup, extra: Mapping[str, Any]) -> dict[str, Any]:
    entries, bare = [], []
    for name in registry.names(noun):
        try:
            _, builder, _ = registry.find(noun, name)
            entries.append(_entry(name, builder, extra))
        except (PluginError, ComponentNotFound):
            continue
        if all(parameter.default is not REQUIRED for parameter in keywords(builder)):
            bare.append(name)
    return {"oneOf": entries + ([{"enum": bare}] if bare else [])}


def _entry(name: str, builder: Callable[..., Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    schema = _draft_07(model(builder).model_json_schema())
    properties = schema.get("properties", {})
    return {
        "type": "object",
        "title": name,
        "description": summary(builder),
        "properties": {"name": {"const": name}, **properties, **extra},
        "required": ["name", *schema.get("required", [])],
        "additionalProperties": False,
    }


def _draft_07(schema: Any) -> Any:
    """Tuples and references as draft-07 has them; generated titles say nothing and are dropped."""
    if isinstance(schema, Mapping):
        kept = {key: _draft_07(value) for key, value in schema.items() if not _is_title(key, value)}
        if "prefixItems" in kept:
            kept["items"] = kept.pop("prefixItems")
        if isinstance(kept.get("component"), str):
            kept["$ref"] = f"#/definitions/{kept.pop('component')}"
        return kept
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [_draft_07(item) for item in schema]
    return schema


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)
