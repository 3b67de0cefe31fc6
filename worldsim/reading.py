"""Read a scenario file: everything that is wrong with it, at once, each at its line and column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worldsim.checking import Checks
from worldsim.errors import Problem, ScenarioError, WorldsimError, did_you_mean
from worldsim.mechanisms import COVARIANCES, GRADIENTS, MECHANISMS, Held
from worldsim.params import Component, ParamErrors, component, explain
from worldsim.plugins import Registry, registry
from worldsim.scenario import (
    IDENTIFIER,
    LABEL,
    ConstraintUse,
    DataSettings,
    FitSettings,
    MetricSpec,
    ModelSpec,
    Published,
    Scenario,
)
from worldsim.strict_yaml import Document, read
from worldsim.sweeps import World, expand
from worldsim.yaml_nodes import Location, Node

BASELINE_NAMES = ("truth", "persistence", "climatology", "constant", "shuffled", "uniform", "memoriser")
STANDARD_BASELINES = ["truth", "persistence", "climatology", "constant", "shuffled"]
MAX_FRAMES = 10_000_000
HELD_BY = ("mechanisms", "weight", "noise", "covariance", "gradients")
"""The keys beside a constraint's own that say how a model is held to it."""


def load(path: str | Path, *, plugins: Sequence[str | Path] = ()) -> Scenario:
    """Read one scenario file. Raises ScenarioError with all its problems, and WorldsimError where it sweeps
    over the system or the data and so stands for several scenarios."""
    return _single(load_all(path, plugins=plugins), path)


def load_all(path: str | Path, *, plugins: Sequence[str | Path] = ()) -> list[Scenario]:
    """The scenarios of one file: one, or as many as its sweep over the system and the data makes.

    Raises ScenarioError with all its problems.
    """
    path = Path(path)
    return scenarios_of(read(path), registry(tuple(map(Path, plugins))))


def from_document(document: Mapping[str, Any], name: str, plugins: Registry) -> Scenario:
    """The scenario of plain data (in a worker, or built in Python). Raises as ``load`` does."""
    place = Path(f"{name}.yaml")
    return _single(scenarios_of(Document(place, dict(document), Node((1, 1), "mapping")), plugins), name)


def scenarios_of(document: Document, plugins: Registry) -> list[Scenario]:
    """The scenarios of a document. Raises as ``load_all`` does."""
    worlds, problems = expand(document)
    found: list[Scenario] = []
    wrong: list[Problem] = []
    for world in worlds:
        try:
            found.append(Reader(document, plugins, world, problems).scenario())
        except ScenarioError as error:
            wrong += error.problems
    if wrong:
        raise ScenarioError(tuple(dict.fromkeys(wrong)))
    return found


def _single(scenarios: list[Scenario], what: str | Path) -> Scenario:
    if len(scenarios) > 1:
        names = ", ".join(scenario.name for scenario in scenarios[:3]) + ", ..." * (len(scenarios) > 3)
        raise WorldsimError(
            f"{what} sweeps over its system or data and stands for {len(scenarios)} scenarios "
            f"({names}): worldsim.load_all reads them all"
        )
    return scenarios[0]


TOP = (
    "about", "system", "data", "models", "metrics", "constraints", "baselines", "fit", "draws", "seeds",
    "master_seed", "published", "under", "sweep", "tags",
)  # fmt: skip
REQUIRED = ("about", "system", "data", "models", "metrics", "seeds")


class Reader:
    """Turns a document into a Scenario, gathering problems instead of stopping at the first."""

    def __init__(
        self, document: Document, plugins: Registry, world: World, problems: Iterable[Problem] = ()
    ) -> None:
        self.document = document
        self.world = world
        self.data = world.data
        self.plugins = plugins
        self.problems: list[Problem] = list(problems)

    def problem(self, loc: Location, message: str, hint: str = "") -> None:
        self.problems.append(self.document.problem(self.world.written(loc), message, hint))

    def scenario(self) -> Scenario:
        name = f"{self.document.path.stem}{self.world.suffix}"
        if not LABEL.fullmatch(name):
            self.problem(
                (), f"the file's name {name!r} cannot name a scenario", "use letters, digits, . _ and -"
            )
        for key in self.data:
            if key not in TOP:
                self.problem((key,), "unknown key", did_you_mean(str(key), TOP))
        for key in REQUIRED:
            if key not in self.data:
                self.problem((), f"{key!r} is missing", f"every scenario needs {', '.join(REQUIRED)}")
        about = self.text("about")
        system = self.component("system", ("system",), self.data["system"]) if "system" in self.data else None
        data = self.section(DataSettings, ("data",)) if "data" in self.data else None
        if data is not None:
            self.check_data(data)
        fit = self.section(FitSettings, ("fit",)) or FitSettings()
        models = self.models(fit)
        under = self.uses(("under",), self.data.get("under", []))
        metrics = self.metrics(data)
        constraints = self.components("constraint", "constraints")
        baselines = self.baselines()
        draws = self.integer("draws", 1, 1, 10_000)
        master = self.integer("master_seed", 0, 0, 2**63 - 1)
        seeds = self.seeds()
        published = self.published(data)
        tags = self.tags()
        self.stop_if_wrong()
        assert system is not None
        assert data is not None
        scenario = Scenario(
            name, about, system, data, models, tuple(metrics), tuple(constraints), tuple(baselines),
            draws, tuple(seeds), self.data, self.plugins, self.document.path, master,
            tuple(published), tags=tags,
        )  # fmt: skip
        checks = Checks(self.plugins, self.problem)
        scenario = checks.composed(scenario, under)
        self.stop_if_wrong()
        checks.splits(scenario)
        self.stop_if_wrong()
        system = checks.capabilities(scenario)
        self.stop_if_wrong()
        scenario = checks.with_available_baselines(scenario, system)
        self.stop_if_wrong()
        return scenario

    def stop_if_wrong(self) -> None:
        if self.problems:
            raise ScenarioError(tuple(dict.fromkeys(self.problems)))

    def text(self, key: str) -> str:
        value = self.data.get(key, "")
        if key in self.data and not (isinstance(value, str) and value.strip()):
            self.problem(
                (key,), f"expected a sentence, found {value!r}", "say which question the scenario answers"
            )
        return str(value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.problem(
                (key,), f"expected an integer from {low} to {high}, found {value!r}", f"default: {default}"
            )
            return default
        return value

    def seeds(self) -> list[int]:
        value = self.data.get("seeds", [])
        if not isinstance(value, list) or ("seeds" in self.data and not value):
            self.problem(
                ("seeds",), f"expected a list of integers, found {value!r}", "for example seeds: [0, 1, 2]"
            )
            return []
        seen: set[int] = set()
        for index, seed in enumerate(value):
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                self.problem(("seeds", index), f"expected an integer from 0 to 2147483647, found {seed!r}",
                             "for example seeds: [0, 1, 2]")  # fmt: skip
            elif seed in seen:
                self.problem(("seeds", index), f"seed {seed} is listed twice", "take one of them out")
            else:
                seen.add(seed)
        return [seed for seed in value if isinstance(seed, int)]

    def tags(self) -> tuple[str, ...]:
        value = self.data.get("tags", [])
        if not isinstance(value, list):
            self.problem(("tags",), f"expected a list of words, found {value!r}", "for example tags: [slow]")
            return ()
        for index, tag in enumerate(value):
            if not isinstance(tag, str) or not IDENTIFIER.fullmatch(tag):
                self.problem(("tags", index), f"{tag!r} cannot be a tag", "use letters, digits, . _ and -")
            elif tag in value[:index]:
                self.problem(("tags", index), f"{tag!r} is listed twice", "take one of them out")
        return tuple(map(str, value))

    def section(self, kind: type[Any], loc: Location, default: Mapping[str, Any] | None = None) -> Any:
        value: Any = self.data
        for key in loc:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None and loc[0] not in self.data:
            return None
        return self.section_of(kind, loc, value, default)

    def section_of(
        self, kind: type[Any], loc: Location, value: Any, default: Mapping[str, Any] | None = None
    ) -> Any:
        if not isinstance(value, Mapping):
            self.problem(loc, f"expected a mapping, found {value!r}", f"keys: {', '.join(kind.model_fields)}")
            return None
        try:
            return kind.model_validate({**(default or {}), **value})
        except ValidationError as error:
            for at, message, hint in explain(error, kind):
                self.problem((*loc, *at), message, hint)
            return None

    def component(self, noun: str, loc: Location, value: Any) -> Component | None:
        try:
            return component(noun, value, self.plugins)
        except ParamErrors as errors:
            for at, message, hint in errors.errors:
                self.problem((*loc, *at), message, hint)
            return None

    def components(self, noun: str, key: str) -> list[Component]:
        value = self.data.get(key, [])
        if not isinstance(value, list):
            self.problem((key,), f"expected a list, found {value!r}", f"for example {key}: [{{name: ...}}]")
            return []
        found = [self.component(noun, (key, index), item) for index, item in enumerate(value)]
        return [part for part in found if part is not None]

    def metrics(self, data: DataSettings | None) -> list[MetricSpec]:
        value = self.data.get("metrics", [])
        if not isinstance(value, list) or ("metrics" in self.data and not value):
            self.problem(
                ("metrics",), f"expected a list of metrics, found {value!r}", "for example metrics: [rollout]"
            )
            return []
        specs = []
        for index, item in enumerate(value):
            splits: Any = []
            if isinstance(item, Mapping) and "splits" in item:
                splits = item["splits"]
                item = {key: part for key, part in item.items() if key != "splits"}
                known = [] if data is None else [n for n in data.splits if n not in ("train", "validation")]
                wrong = [s for s in splits if s not in known] if isinstance(splits, list) else [splits]
                for word in wrong:
                    self.problem(
                        ("metrics", index, "splits"), f"no scored split {word!r}", f"allowed: {known}"
                    )
                splits = [] if wrong else splits
            part = self.component("metric", ("metrics", index), item)
            if part is not None:
                specs.append(MetricSpec(part, tuple(splits)))
        return specs

    def models(self, fit: FitSettings) -> dict[str, ModelSpec]:
        value = self.data.get("models", {})
        if not isinstance(value, Mapping) or ("models" in self.data and not value):
            self.problem(("models",), f"expected a mapping of labels to models, found {value!r}",
                         "for example models: {ours: {name: neural_ode}}")  # fmt: skip
            return {}
        found = {label: self.model(label, item, fit) for label, item in value.items()}
        return {label: spec for label, spec in found.items() if spec is not None}

    def model(self, label: str, item: Any, fit: FitSettings) -> ModelSpec | None:
        loc: Location = ("models", label)
        if not LABEL.fullmatch(label) or label in BASELINE_NAMES:
            self.problem(
                loc,
                f"{label!r} cannot label a model",
                "use letters, digits, . _ and -; not a baseline's name",
            )
        if isinstance(item, str):
            item = {"name": item}
        if not isinstance(item, Mapping):
            self.problem(
                loc, f"expected a model, found {item!r}", "for example {name: neural_ode, width: 64}"
            )
            return None
        rest = {key: value for key, value in item.items() if key not in ("constraints", "fit")}
        part = self.component("model", loc, rest)
        own = fit
        if "fit" in item:
            own = self.section(FitSettings, (*loc, "fit"), fit.model_dump()) or fit
        uses = self.uses((*loc, "constraints"), item.get("constraints", []))
        return None if part is None else ModelSpec(part, uses, own)

    def uses(self, loc: Location, value: Any) -> tuple[ConstraintUse, ...]:
        if not isinstance(value, list):
            self.problem(
                loc, f"expected a list of constraints, found {value!r}", "for example [{name: energy}]"
            )
            return ()
        found = [self.use((*loc, index), item) for index, item in enumerate(value)]
        return tuple(use for use in found if use is not None)

    def use(self, loc: Location, item: Any) -> ConstraintUse | None:
        item = {"name": item} if isinstance(item, str) else item
        if not isinstance(item, Mapping):
            self.problem(loc, f"expected a constraint, found {item!r}", "for example {name: energy}")
            return None
        rest = {key: value for key, value in item.items() if key not in HELD_BY}
        before, mechanisms = len(self.problems), item.get("mechanisms", ["projection"])
        wrong = (
            [m for m in mechanisms if m not in MECHANISMS] if isinstance(mechanisms, list) else [mechanisms]
        )
        for word in wrong:
            self.problem(
                (*loc, "mechanisms"), f"unknown mechanism {word!r}", did_you_mean(str(word), MECHANISMS)
            )
        for key, default in (("weight", 1.0), ("noise", 0.0)):
            value = item.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                self.problem(
                    (*loc, key), f"expected a number >= 0, found {value!r}", f"for example {key}: 0.1"
                )
        for key, allowed in (("covariance", COVARIANCES), ("gradients", GRADIENTS)):
            value = item.get(key, allowed[0])
            if value not in allowed:
                self.problem((*loc, key), f"unknown {key} {value!r}", did_you_mean(str(value), allowed))
        part = self.component("constraint", loc, rest)
        if part is None or len(self.problems) > before:
            return None
        held = {key: item[key] for key in HELD_BY if key in item} | {"mechanisms": tuple(mechanisms)}
        held |= {key: float(held[key]) for key in ("weight", "noise") if key in held}  # 1 and 1.0 are one key
        return ConstraintUse(part, Held(**held))

    def baselines(self) -> list[str]:
        value = self.data.get("baselines", STANDARD_BASELINES)
        if not isinstance(value, list):
            self.problem(
                ("baselines",), f"expected a list, found {value!r}", f"allowed: {', '.join(BASELINE_NAMES)}"
            )
            return []
        for index, name in enumerate(value):
            if name not in BASELINE_NAMES:
                hint = did_you_mean(str(name), BASELINE_NAMES)
                self.problem(("baselines", index), f"there is no baseline {name!r}", hint)
            elif name in value[:index]:
                self.problem(("baselines", index), f"{name!r} is listed twice", "take one of them out")
        return value

    def published(self, data: DataSettings | None) -> list[Published]:
        value = self.data.get("published", [])
        if not isinstance(value, list):
            hint = "for example published: [{model: ours, quantity: ..., value: 0.1, source: ...}]"
            self.problem(("published",), f"expected a list, found {value!r}", hint)
            return []
        labels = self.data.get("models", {})
        found = [self.section_of(Published, ("published", index), item) for index, item in enumerate(value)]
        for index, one in enumerate(found):
            if one is None:
                continue
            if isinstance(labels, Mapping) and one.model not in labels:
                hint = did_you_mean(one.model, [str(label) for label in labels])
                self.problem(("published", index, "model"), f"no model is labelled {one.model!r}", hint)
            if data is not None and one.split not in data.splits:
                hint = did_you_mean(one.split, data.splits)
                self.problem(("published", index, "split"), f"there is no split {one.split!r}", hint)
        return [one for one in found if one is not None]

    def check_data(self, data: DataSettings) -> None:
        for name in ("train", "test"):
            if name not in data.splits:
                self.problem(
                    ("data", "splits"), f"the split {name!r} is missing", "train and test are required"
                )
        for name, split in data.splits.items():
            loc = ("data", "splits", name)
            frames = min(split.horizon / data.step, 2.0 * MAX_FRAMES)
            if not IDENTIFIER.fullmatch(name):
                self.problem(loc, f"{name!r} cannot name a split", "use letters, digits, . _ and -")
            if round(frames) < data.context:
                self.problem((*loc, "horizon"), f"a horizon of {split.horizon} leaves no frame to forecast",
                             f"use more than context * step = {data.context * data.step}")  # fmt: skip
            elif frames > MAX_FRAMES:
                self.problem(
                    (*loc, "horizon"),
                    f"more than {MAX_FRAMES} frames",
                    "use a shorter horizon or a longer data.step",
                )
            elif abs(frames - round(frames)) > 1e-6 * max(frames, 1):
                near = f"the nearest is {round(frames) * data.step:g}"
                self.problem(
                    (*loc, "horizon"), f"{split.horizon} is not a multiple of data.step = {data.step}", near
                )
