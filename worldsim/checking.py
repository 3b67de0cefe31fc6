"""Whether what a scenario file asks for fits together: its parts, its world and the worlds of its splits.

``reading`` has made a scenario of the file; here its parts are built, and asked what they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from worldsim.errors import WorldsimError
from worldsim.mechanisms import missing_mechanisms, undefined
from worldsim.params import Component, ParamErrors, component
from worldsim.plugins import Registry
from worldsim.scenario import LABEL, Composition, ConstraintUse, ModelSpec, Scenario
from worldsim.yaml_nodes import Location


class Report(Protocol):
    """Takes a problem: where in the file, what is wrong, and what to do."""

    def __call__(self, loc: Location, message: str, hint: str = "") -> None: ...


class Checks:
    """Reports every problem to ``problem``, and raises nothing."""

    def __init__(self, plugins: Registry, problem: Report) -> None:
        self.plugins = plugins
        self.problem = problem
        self.places: dict[str, Location] = {}
        """Where in the file the models are asked for that ``composed`` has made."""

    def composed(self, scenario: Scenario, under: Sequence[ConstraintUse]) -> Scenario:
        """``scenario`` with each of its models once more under each constraint of ``under``, where there is
        such a model; why there is none is kept otherwise."""
        models, compositions = dict(scenario.models), {}
        for index, use in enumerate(under):
            word = f"{use.component.name.rpartition('/')[2]}.{use.held.word}"
            for base, spec in scenario.models.items():
                label, why = f"{base}.{word}", self.lacking(spec, use, scenario)
                if label in models or label in compositions:
                    self.problem(
                        ("under", index), f"there is a model {label!r} already", "take one of them out"
                    )
                elif not LABEL.fullmatch(label):
                    self.problem(
                        ("models", base), f"{label!r} cannot label a model", "give it a shorter label"
                    )
                elif spec.uses:
                    hint = "write them into under, or take under out"
                    self.problem(("models", base), "constraints of a model beside 'under'", hint)
                else:
                    compositions[label] = Composition(base, use, why)
                    self.places[label] = ("under", index)
                    if not why:
                        models[label] = replace(spec, uses=(use,))
        return replace(scenario, models=models, compositions=compositions)

    def lacking(self, model: ModelSpec, use: ConstraintUse, scenario: Scenario) -> str:
        """Why ``model`` cannot be held to a constraint so (as far as its builder tells), or ""."""
        builder = self.plugins.builder("model", model.component.name)
        lacks = missing_mechanisms(builder, use.held.mechanisms) if isinstance(builder, type) else []
        try:
            system = scenario.system.build(self.plugins)
            constraint = use.component.build(self.plugins, system=system)
        except (Exception, SystemExit):
            return ", ".join(lacks)  # that it cannot be built is told with its place
        why = undefined(constraint, use.held, builder, tuple(model.component.params))
        return ", ".join([*lacks, *([why] if why else [])])

    def splits(self, scenario: Scenario) -> None:
        """Each split's own system parameters, checked as the system's are."""
        base = scenario.document["system"]
        base = {"name": base} if isinstance(base, str) else base
        for name, split in scenario.data.splits.items():
            if "name" in split.system:
                self.problem(("data", "splits", name, "system", "name"), "a split cannot change the system",
                             "write another scenario")  # fmt: skip
                continue
            try:
                component("system", {**base, **split.system}, self.plugins)
            except ParamErrors as errors:
                for at, message, hint in errors.errors:
                    self.problem(("data", "splits", name, "system", *at), message, hint)

    def with_available_baselines(self, scenario: Scenario, system: Any) -> Scenario:
        """Baselines that this system cannot have: an error where they were asked for, left out otherwise."""
        from worldsim.baselines import unavailable

        smallest = min(scenario.data.splits[name].trajectories for name in scenario.scored_splits)
        reasons = {name: unavailable(name, system, smallest) for name in scenario.baselines}
        for index, (name, reason) in enumerate(reasons.items()):
            if reason and "baselines" in scenario.document:
                self.problem(("baselines", index), f"{name!r} cannot be used: {reason}")
        return replace(scenario, baselines=tuple(name for name, reason in reasons.items() if not reason))

    def capabilities(self, scenario: Scenario) -> Any:
        """What components say they need of the system (``needs``), before anything is computed."""
        system = self.built(("system",), scenario.system)
        if system is None:
            return None
        parts: list[tuple[Location, Component]] = [
            *((("constraints", i), part) for i, part in enumerate(scenario.constraints)),
            *((("metrics", i), spec.component) for i, spec in enumerate(scenario.metrics)),
        ]
        for label, model in scenario.models.items():
            if label in self.places:
                parts.append((self.places[label], model.uses[0].component))
                continue
            parts.append((("models", label), model.component))
            parts += [(("models", label, "constraints", i), u.component) for i, u in enumerate(model.uses)]
        for loc, part in dict(parts).items():
            self.part(loc, part, scenario.system.name, system)
        for label, model in scenario.models.items():
            if label in self.places:
                continue
            self.mechanisms(label, model, scenario)
            self.inputs(label, model, scenario, system)
        for split, other in scenario.split_systems.items():
            if other != scenario.system:
                self.other_world(split, other, scenario)
        return system

    def other_world(self, split: str, world: Component, scenario: Scenario) -> None:
        """Whether the system of a split can be built, and what is scored there can be built for it."""
        loc = ("data", "splits", split, "system")
        system = self.built(loc, world)
        if system is None:
            return
        parts = [use.component for model in scenario.models.values() for use in model.uses]
        if split in scenario.scored_splits:
            parts += scenario.constraints
            parts += [spec.component for spec in scenario.metrics if split in (spec.splits or [split])]
        for part in parts:
            self.part(loc, part, scenario.system.name, system)

    def part(self, loc: Location, part: Component, name: str, system: Any) -> None:
        """What one component needs of the system, and whether it can be built for it."""
        from worldsim import protocols

        needs = getattr(self.plugins.builder(part.noun, part.name), "needs", ())
        missing = [need for need in needs if not isinstance(system, getattr(protocols, need))]
        for need in missing:
            about = (getattr(protocols, need).__doc__ or "").split("\n")[0]
            self.problem(loc, f"{part.name!r} needs a system with {need}; {name!r} is none", about)
        if not missing and part.noun in ("constraint", "metric"):
            self.built(loc, part, system=system)

    def built(self, loc: Location, part: Component, **given: Any) -> Any:
        """What a component builds; None, and a problem, where it does not. A plugin may raise what it likes,
        and would otherwise end the run of every scenario, by ``sys.exit(0)`` even as if all were done."""
        try:
            return part.build(self.plugins, **given)
        except (ValueError, TypeError, ImportError, WorldsimError) as error:
            self.problem(loc, str(error))
        except (Exception, SystemExit) as error:
            provider = self.plugins.provider(part.noun, part.name)
            message = f"{part.name!r} of {provider} raised {type(error).__name__}: {error}"
            self.problem(loc, message, "the fault is in the plugin, or in a value that it does not refuse")
        return None

    def inputs(self, label: str, model: ModelSpec, scenario: Scenario, system: Any) -> None:
        """Whether a model takes the actions, and has the frames of context, that it says it needs."""
        from worldsim.protocols import HasActions

        name, loc = model.component.name, ("models", label)
        builder = self.plugins.builder("model", name)
        if not getattr(builder, "driven", True) and isinstance(system, HasActions):
            world = scenario.system.name
            self.problem(loc, f"{name!r} takes no actions, and {world!r} is driven", "take a model that does")
        reads = getattr(builder, "reads", None)
        frames, given = model.component.params[reads] if reads else 1, scenario.data.context
        if frames > given:
            self.problem(
                loc,
                f"{name!r} reads {frames} frames before a forecast, and data.context is {given}",
                f"raise data.context, or lower {reads} of the model",
            )

    def mechanisms(self, label: str, model: ModelSpec, scenario: Scenario) -> None:
        """Whether a model can be held to its constraints as it is asked to (where builders are classes)."""
        for index, use in enumerate(model.uses):
            lacks = self.lacking(model, use, scenario)
            if lacks:
                loc = ("models", label, "constraints", index)
                self.problem(loc, f"{model.component.name!r} cannot be held to it by {lacks}")
