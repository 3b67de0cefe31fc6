"""JSON Schema (draft-07, which editors read) of scenario files, from the plugins that are installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldsim.component_schema import json_schema
from worldsim.mechanisms import COVARIANCES, GRADIENTS, MECHANISMS
from worldsim.plugins import Registry
from worldsim.reading import BASELINE_NAMES, REQUIRED
from worldsim.scenario import IDENTIFIER, LABEL, DataSettings, FitSettings, Published, Section
from worldsim.sweeps import SWEPT

Schema = dict[str, Any]


def scenario_schema(plugins: Registry) -> Schema:
    """The schema of a scenario file; ``worldsim validate`` checks more than a schema can say."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "worldsim scenario",
        "type": "object",
        "properties": _properties(),
        "required": list(REQUIRED),
        "additionalProperties": False,
        "definitions": {
            **_components(plugins),
            **_section("data", DataSettings),
            **_section("fit", FitSettings),
            **_section("published", Published),
        },
    }


def _properties() -> Schema:
    return {
        "about": {"type": "string", "minLength": 1, "description": "the question that the scenario answers"},
        "system": _refer("system", "the true world"),
        "data": _refer("data", "what the truth is sampled at"),
        "models": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{LABEL.pattern}$"},
            "additionalProperties": {"$ref": "#/definitions/scenario_model"},
            "description": "label -> the model that is trained and scored",
        },
        "under": _list_of("constraint_use", "every model once more under each of these constraints"),
        "metrics": _list_of("scenario_metric", "what is scored", least=1),
        "constraints": _list_of("constraint", "constraints whose residual is scored for every model"),
        "baselines": {
            "type": "array",
            "items": {"enum": list(BASELINE_NAMES)},
            "uniqueItems": True,
            "description": "what every score is printed beside",
        },
        "fit": _refer("fit", "how models are trained"),
        "draws": _integer(1, 10_000, "futures drawn for each context"),
        "seeds": {
            "type": "array",
            "items": _integer(0, 2**31 - 1, "a seed"),
            "minItems": 1,
            "uniqueItems": True,
            "description": "every model is built and trained once for each seed",
        },
        "master_seed": _integer(0, 2**63 - 1, "the seed that the world's own draws come from"),
        "published": _list_of("published", "published numbers that are printed beside ours"),
        "sweep": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"enum": list(SWEPT)},
            "description": "the shape of the file, with a list of values where one would stand; every "
            "combination is a model or, for system and data, a scenario of its own",
        },
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": f"^{IDENTIFIER.pattern}$"},
            "uniqueItems": True,
            "description": "words that a run can be narrowed to",
        },
    }


def _components(plugins: Registry) -> Schema:
    """Components by noun, and those that take further keys where they stand in a scenario."""
    plain: Schema = json_schema(plugins)["definitions"]
    uses: Schema = {"type": "array", "items": {"$ref": "#/definitions/constraint_use"}}
    splits: Schema = {"type": "array", "items": {"type": "string"}, "description": "scored on these alone"}
    further: dict[str, tuple[str, Schema]] = {
        "scenario_model": ("model", {"constraints": uses, "fit": {"$ref": "#/definitions/fit"}}),
        "scenario_metric": ("metric", {"splits": splits}),
        "constraint_use": ("constraint", _HELD_BY),
    }
    widened = {
        name: json_schema(plugins, {noun: extra})["definitions"][noun]
        for name, (noun, extra) in further.items()
    }
    return {**plain, **widened}


_HELD_BY: Schema = {
    "mechanisms": {
        "type": "array",
        "items": {"enum": list(MECHANISMS)},
        "default": ["projection"],
        "description": "how the model is held to the constraint",
    },
    "weight": {"type": "number", "minimum": 0, "default": 1.0, "description": "of the training penalty"},
    "gradients": {
        "enum": list(GRADIENTS),
        "default": GRADIENTS[0],
        "description": "how the penalty's gradient joins the model's own: along what lowers both, or summed",
    },
    "noise": {
        "type": "number",
        "minimum": 0,
        "default": 0.0,
        "description": "of guidance: standard deviation of the residual that is let be; 0 corrects it wholly",
    },
    "covariance": {
        "enum": list(COVARIANCES),
        "default": COVARIANCES[0],
        "description": "metric of guidance; posterior is the covariance of the estimate's error, exact for a "
        "normal law and a linear constraint, and dear",
    },
}


def _section(name: str, kind: type[Section]) -> Schema:
    """A part of the file and the parts inside it, under draft-07's ``definitions``."""
    schema = kind.model_json_schema(ref_template="#/definitions/{model}")
    inner: Mapping[str, Any] = schema.pop("$defs", {})
    return {name: schema, **inner}


def _refer(name: str, description: str) -> Schema:
    # Draft-07 ignores what stands beside a $ref.
    return {"allOf": [{"$ref": f"#/definitions/{name}"}], "description": description}


def _list_of(name: str, description: str, least: int = 0) -> Schema:
    items = {"$ref": f"#/definitions/{name}"}
    return {"type": "array", "items": items, "minItems": least, "description": description}


def _integer(low: int, high: int, description: str) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}
