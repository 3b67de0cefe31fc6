"""The conformance kit: an author's whole first test.

    from worldsim.testing import conformance

    test_conformance = conformance("my-plugin")

It builds every component of the plugin, holds it to its protocol, prints how many checks ran, and fails on
zero. Models, constraints and metrics are tried on two tiny worlds, an oscillator and an automaton; give
``system`` when a component needs another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldsim.plugins import HOOKS, Provider, Registry, registry
from worldsim.testing.backbones import check_backbone
from worldsim.testing.builders import check_builder, checked_component
from worldsim.testing.checks import Checks
from worldsim.testing.models import check_model
from worldsim.testing.scores import check_constraint, check_metric
from worldsim.testing.solvers import check_solver
from worldsim.testing.systems import check_system
from worldsim.testing.worlds import World, tiny_worlds, world_of

Keys = Mapping[str, Any]


def conformance(
    plugin: str,
    *,
    system: str | Keys | None = None,
    step: float | None = None,
    params: Mapping[str, Keys] | None = None,
) -> Callable[[], None]:
    """A test function for a plugin, by its entry point's name.

    system  the world that its models, constraints and metrics are tried on, as a scenario writes it
    step    time between frames; left out: the system's own ``step``, else 1 for automata and 0.1
    params  component name -> keys, for components that cannot be built from their defaults alone
    """

    def test_conformance() -> None:
        count = run_checks(registry(), plugin, system=system, step=step, params=params)
        print(f"{plugin}: {count} checks passed")

    return test_conformance


def run_checks(
    plugins: Registry,
    plugin: str,
    *,
    system: str | Keys | None = None,
    step: float | None = None,
    params: Mapping[str, Keys] | None = None,
) -> int:
    """How many checks a plugin passed. Raises AssertionError with all that failed, or when none ran."""
    checks = Checks()
    provider = _provider(plugins, plugin)
    worlds = tiny_worlds() if system is None else [world_of(system, plugins, step)]
    for noun, table in plugins.tables.items():
        for name, offers in table.items():
            for builder, owner in offers:
                if owner == provider:
                    data = {
                        "name": f"{owner.distribution}:{owner.name}/{name}",
                        **(params or {}).get(name, {}),
                    }
                    _check(checks.about(f"{noun} {name!r}"), noun, data, builder, plugins, worlds, step)
    _check_suites(checks, plugins, provider)
    if checks.failures:
        raise AssertionError("\n".join(checks.failures))
    if not checks.count:
        hooks = ", ".join([*HOOKS.values(), "worldsim_scenarios"])
        raise AssertionError(f"{provider} provides nothing that can be checked; the hooks are {hooks}")
    return checks.count


def _provider(plugins: Registry, plugin: str) -> Provider:
    """The plugin, loaded whole; AssertionError says what broke, or what there is."""
    broken = [str(part) for part in plugins.broken if part.provider.name == plugin]
    _ = plugins.tables
    broken = broken or [str(part) for part in plugins.broken if part.provider.name == plugin]
    if broken:
        raise AssertionError("\n".join(broken))
    found = [provider for provider in plugins.providers if provider.name == plugin]
    if len(found) != 1:
        known = ", ".join(sorted(provider.name for provider in plugins.providers)) or "none"
        problem = "is not installed" if not found else "is installed more than once"
        raise AssertionError(f"plugin {plugin!r} {problem}; plugins here: {known}")
    return found[0]


def _check(
    checks: Checks,
    noun: str,
    data: Keys,
    builder: Callable[..., Any],
    plugins: Registry,
    worlds: list[World],
    step: float | None,
) -> None:
    checks.run(check_builder, builder)
    part = checked_component(checks, noun, data, plugins)
    if part is None:
        return
    if noun == "system":
        checks.run(check_system, lambda: part.build(plugins), step)
    elif noun == "solver":
        checks.run(check_solver, lambda: part.build(plugins))
    elif noun == "backbone":
        checks.run(check_backbone, lambda: part.build(plugins))
    elif noun == "constraint":
        checks.run(check_constraint, lambda system: part.build(plugins, system=system), worlds)
    elif noun == "metric":
        checks.run(check_metric, lambda system: part.build(plugins, system=system), worlds)
    else:
        scaling = getattr(builder, "scaling", "component")
        checks.run(check_model, lambda **given: part.build(plugins, **given), scaling, worlds)


def _check_suites(checks: Checks, plugins: Registry, provider: Provider) -> None:
    """Every scenario that the plugin brings is valid."""
    from worldsim.errors import ScenarioError
    from worldsim.reading import from_document
    from worldsim.strict_yaml import read

    for implementation in plugins.manager.hook.worldsim_scenarios.get_hookimpls():
        if implementation.plugin_name != str(provider):
            continue
        folder = Path(str(implementation.function()))
        files = sorted(folder.glob("*/*.yaml"))
        checks.that(
            bool(files), "worldsim_scenarios: a folder of suites, each a folder of .yaml files", folder
        )
        for file in files:
            try:
                from_document(read(file).data, file.stem, plugins)
                checks.passed()
            except ScenarioError as error:
                checks.failures.append(f"{file}: {error}")
