"""A scenario: one question about one true system, and the cases that answer it.

``Scenario.cases`` gives the units of work; a case's key says what it means. ``reading`` makes a scenario
of a YAML file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worldsim import __version__
from worldsim.mechanisms import Held
from worldsim.params import Component, component
from worldsim.plugins import Provider, Registry

SCHEMA_VERSION = 1
Number = Annotated[float, Field(allow_inf_nan=False)]
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = re.compile(IDENTIFIER.pattern + r"(\[[A-Za-z0-9._=,+-]{1,128}\][A-Za-z0-9._-]{0,63})?")
"""A name, and what was swept to make it: ``flow[width=64,depth=2]``."""


class Section(BaseModel):
    """Part of a scenario file: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SplitSettings(Section):
    """One split of the data."""

    trajectories: int = Field(gt=0, le=1_000_000, description="how many trajectories")
    horizon: Number = Field(gt=0, description="length in the system's unit of time")
    noise: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="standard deviation of measurement noise on 'states' or on a named observable",
    )
    system: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the system that differ in this split"
    )


class DataSettings(Section):
    """What the truth is sampled at."""

    step: Number = Field(gt=0, description="time between frames, in the system's unit of time")
    context: int = Field(default=1, ge=1, description="frames given to a model before it forecasts")
    block: int = Field(
        default=32, ge=1, le=4096, description="trajectories computed together; part of a case's key"
    )
    splits: dict[str, SplitSettings] = Field(
        description="train, test, and optionally validation; any other name is scored out of distribution"
    )


class FitSettings(Section):
    """How a model is trained."""

    steps: int = Field(default=2000, ge=0, le=10_000_000, description="optimiser steps: the budget")
    batch: int = Field(default=64, gt=0, le=1_000_000, description="windows in a mini-batch")
    window: int | None = Field(
        default=None, ge=2, description="frames in a window; null for whole trajectories"
    )
    learning_rate: Number = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="how the learning rate falls"
    )
    weight_decay: Number = Field(default=0.0, ge=0, description="decoupled weight decay")
    clip: Number = Field(default=1.0, ge=0, description="largest norm of the gradient; 0 for no clipping")
    ema: Number = Field(
        default=0.0, ge=0, lt=1, description="decay of the exponential moving average of the weights"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many checks without improvement"
    )
    validate_every: int = Field(default=100, ge=1, description="steps between checks on the validation split")
    checkpoint_every: int = Field(
        default=1000, ge=1, description="steps between checkpoints of a fit under way"
    )

    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="processes that share the rows of each batch (extra train); on GPUs, one each",
    )

    def learning_rate_at(self, step: int) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))


class Published(Section):
    """A number that somebody has published, to be printed beside ours."""

    model: str = Field(description="label of the model of this scenario that it is set beside")
    quantity: str = Field(min_length=1, description="what was measured there, and on what")
    value: Number = Field(description="the published number")
    spread: Number | None = Field(default=None, ge=0, description="its published standard deviation or error")
    source: str = Field(min_length=1, description="author, year, and the table or figure")
    score: str | None = Field(
        default=None, description="which of our scores measures the same quantity; null when none does"
    )
    split: str = Field(default="test", description="the split of that score")
    note: str = Field(default="", description="in what the two differ, or what the published one hides")


@dataclass(frozen=True)
class ConstraintUse:
    """A constraint a model is held to, and how."""

    component: Component
    held: Held


@dataclass(frozen=True)
class ModelSpec:
    """A model of a scenario, with its own constraints and fit."""

    component: Component
    uses: tuple[ConstraintUse, ...]
    fit: FitSettings


@dataclass(frozen=True)
class Composition:
    """A model of ``under``: another one of the scenario, held to one constraint.

    ``undefined`` says why there is no such model, "" where there is.
    """

    base: str
    use: ConstraintUse
    undefined: str = ""


@dataclass(frozen=True)
class MetricSpec:
    """A metric of a scenario, and the splits it is computed on (all scored ones when empty)."""

    component: Component
    splits: tuple[str, ...]


def digest(document: Any) -> str:
    """Hash of canonical JSON; NaN and infinities are refused."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Scenario:
    """A validated, defaulted scenario file."""

    name: str
    about: str
    system: Component
    data: DataSettings
    models: Mapping[str, ModelSpec]
    metrics: tuple[MetricSpec, ...]
    constraints: tuple[Component, ...]
    baselines: tuple[str, ...]
    draws: int
    seeds: tuple[int, ...]
    document: Mapping[str, Any] = field(repr=False)
    registry: Registry = field(repr=False, compare=False)
    file: Path = field(default=Path("<data>"), compare=False)
    master_seed: int = 0
    published: tuple[Published, ...] = ()
    compositions: Mapping[str, Composition] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @cached_property
    def split_systems(self) -> dict[str, Component]:
        """The system of each split, with the split's own parameters."""
        base = self.document["system"]
        base = {"name": base} if isinstance(base, str) else base
        return {
            name: component("system", {**base, **settings.system}, self.registry)
            for name, settings in self.data.splits.items()
        }

    def composition_words(self) -> dict[str, dict[str, Any]]:
        """The compositions as plain data."""
        return {
            label: {
                "base": one.base, "constraint": one.use.component.name.rpartition("/")[2],
                "mechanisms": list(one.use.held.mechanisms), "word": one.use.held.word,
                "measure": one.use.held.measure, "undefined": one.undefined,
            }
            for label, one in self.compositions.items()
        }  # fmt: skip

    @property
    def world(self) -> str:
        """What the truth's seeds hang on: the system, not the file's name or its models."""
        return digest(self.system.canonical())

    @property
    def scored_splits(self) -> tuple[str, ...]:
        return tuple(name for name in self.data.splits if name not in ("train", "validation"))

    def cases(self, *, device: str = "cpu", dtype: str = "float32") -> list[Case]:
        """Every model at every seed, then every baseline once."""
        trained = [Case(self, name, seed, device, dtype) for name in self.models for seed in self.seeds]
        return trained + [Case(self, name, 0, device, dtype) for name in self.baselines]

    @cached_property
    def scored(self) -> tuple[tuple[Component, tuple[str, ...], str], ...]:
        """Each metric, and each constraint whose residual is scored: with its splits and its key."""
        parts = [(spec.component, spec.splits or self.scored_splits) for spec in self.metrics]
        parts += [(component, self.scored_splits) for component in self.constraints]
        return tuple((part, splits, self._metric_key(part, splits)) for part, splits in parts)

    def _metric_key(self, part: Component, splits: Sequence[str]) -> str:
        versions = _versions(part_providers(part, self.registry))
        return digest([part.canonical(), list(splits), versions, __version__])

    @cached_property
    def meanings(self) -> dict[str, dict[str, Any]]:
        """Model -> what the key documents of all its seeds share, as far as it was asked for."""
        return {}

    @cached_property
    def splits_meaning(self) -> dict[str, Any]:
        return {
            name: [
                self.split_systems[name].canonical(),
                settings.model_dump(mode="json", exclude={"system"}),
            ]
            for name, settings in self.data.splits.items()
        }

    def providers(self) -> Iterator[Provider]:
        """The plugins whose code decides this scenario's trajectories."""
        parts = [self.system, *(spec.component for spec in self.models.values())]
        for part in parts:
            yield from part_providers(part, self.registry)


def part_providers(part: Component, plugins: Registry) -> Iterator[Provider]:
    """The plugin of a component and of every component nested in it."""
    yield plugins.provider(part.noun, part.name)
    for value in part.params.values():
        if isinstance(value, Component):
            yield from part_providers(value, plugins)


@dataclass(frozen=True)
class Case:
    """The unit of work: scenario x model x seed."""

    scenario: Scenario
    model: str
    seed: int
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"{self.scenario.name}/{self.model}/{self.seed}"

    @property
    def is_baseline(self) -> bool:
        return self.model not in self.scenario.models

    @property
    def is_learned(self) -> bool:
        """Whether it is fitted to data; a model says with ``trainable = False`` that it is not."""
        if self.is_baseline:
            return False
        builder = self.scenario.registry.builder("model", self.spec.component.name)
        return bool(getattr(builder, "trainable", True))

    @property
    def spec(self) -> ModelSpec:
        return self.scenario.models[self.model]

    @cached_property
    def key(self) -> str:
        """Hash of what the trajectories of this case mean: no names, comments, metrics or paths."""
        return digest(self.meaning)

    @cached_property
    def fit_key(self) -> str:
        """Hash of what its weights mean: nothing that only the scored splits or the sampling say."""
        meaning = {**self.meaning, **self._shared["fit"], "kind": "fit"}
        del meaning["draws"]
        return digest(meaning)

    @property
    def uses(self) -> tuple[ConstraintUse, ...]:
        """The constraints that the model is held to."""
        return () if self.is_baseline else self.spec.uses

    def _plugins(self, uses: Sequence[ConstraintUse]) -> list[list[str]]:
        """The plugins of the systems, of the model and of ``uses``."""
        scenario = self.scenario
        parts = [*scenario.split_systems.values(), *([] if self.is_baseline else [self.spec.component])]
        parts += [use.component for use in uses]
        return _versions(p for part in parts for p in part_providers(part, scenario.registry))

    @property
    def _shared(self) -> dict[str, Any]:
        """``all`` that every seed of the model means, and what a ``fit`` means instead of some of it."""
        known = self.scenario.meanings
        if self.model not in known:
            known[self.model] = {"all": self._meaning(), "fit": self._fit_meaning()}
        return known[self.model]

    def _fit_meaning(self) -> dict[str, Any]:
        splits = self.scenario.splits_meaning
        shaping = [use for use in self.uses if {"penalty", "structure"} & set(use.held.mechanisms)]
        return {
            "splits": {name: splits[name] for name in splits if name in ("train", "validation")},
            "uses": list(map(_meant, shaping)),
            "plugins": self._plugins(shaping),
        }

    @property
    def meaning(self) -> dict[str, Any]:
        """The key document; it is kept in the result, so that a later key scheme can be migrated."""
        own = {"seed": self.seed, "device": self.device.partition(":")[0], "dtype": self.dtype}
        return {**self._shared["all"], **own}

    def _meaning(self) -> dict[str, Any]:
        scenario, spec = self.scenario, None if self.is_baseline else self.spec
        return {
            "schema": SCHEMA_VERSION,
            "worldsim": __version__,
            "master_seed": scenario.master_seed,
            "data": scenario.data.model_dump(mode="json", exclude={"splits"}),
            "splits": scenario.splits_meaning,
            "model": spec.component.canonical() if spec else {"baseline": self.model},
            "uses": list(map(_meant, self.uses)),
            "fit": spec.fit.model_dump(mode="json") if spec else None,
            "draws": scenario.draws,
            "plugins": self._plugins(self.uses),
        }


def _versions(providers: Iterable[Provider]) -> list[list[str]]:
    return sorted([p.name, p.distribution, p.version, p.cache_version] for p in set(providers))


def _meant(use: ConstraintUse) -> dict[str, Any]:
    """A use in a key document."""
    held = {**asdict(use.held), "mechanisms": list(use.held.mechanisms)}
    return {"constraint": use.component.canonical(), "held": held}
