"""Plugins are isolated from each other, attributed, and looked up by name."""

import types
from pathlib import Path

import pytest

from worldsim.errors import ComponentNotFound
from worldsim.plugins import Provider, Registry, registry

THIRD_PARTY = Path(__file__).parent / "third_party"
WORLD = """
from worldsim import hookimpl

class World:
    "A system in name."

@hookimpl
def worldsim_systems():
    return {"world": World}
"""


def module(source, name="fake"):
    made = types.ModuleType(name)
    exec(source, vars(made))
    return made


def hook(name, body):
    return f"from worldsim import hookimpl\n@hookimpl\ndef {name}:\n    {body}\n"


@pytest.fixture
def plugins():
    return Registry()


def add(plugins, name, source, distribution="some-package", version="1.0"):
    plugins.add(Provider(name, distribution, version, "fake"), lambda: module(source, name))


def test_a_component_knows_its_provider(plugins):
    add(plugins, "one", WORLD, version="2.5")
    noun, builder, provider = plugins.find("system", "world")
    assert noun == "system"
    assert builder.__name__ == "World"
    assert str(provider) == "one (some-package 2.5)"
    assert plugins.broken == []


@pytest.mark.trial(4, 9)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def (:", "SyntaxError"),
        (
            hook("worldsim_sistems()", "return {}"),
            "unknown hook 'worldsim_sistems'; did you mean 'worldsim_systems'",
        ),
        (hook("worldsim_case_started(kase)", "return None"), "'kase'"),
        (
            hook("worldsim_systems()", "return ['world']"),
            "must return a mapping of names to builders, it returned list",
        ),
        (hook("worldsim_systems()", "yield {'a': dict}"), "it returned generator"),
        (hook("worldsim_systems()", "return {'a': 3}"), "'a' -> 3 is not a name and a builder"),
        (hook("worldsim_systems()", "raise KeyError('x')"), "worldsim_systems raised KeyError"),
    ],
)
def test_a_broken_plugin_is_named_and_harms_nothing(plugins, source, reason):
    add(plugins, "first", WORLD)
    add(plugins, "broken", source)
    add(plugins, "last", WORLD.replace('"world"', '"other"'))
    assert plugins.names("system") == ["other", "world"]
    (broken,) = plugins.broken
    assert str(broken).startswith("broken (some-package 1.0): ")
    assert reason in str(broken)


@pytest.mark.trial(4, 9)
def test_a_good_hook_of_a_plugin_survives_its_bad_one(plugins):
    add(plugins, "half", WORLD + hook("worldsim_metrics()", "raise RuntimeError('half')"))
    assert plugins.names("system") == ["world"]
    assert plugins.names("metric") == []
    assert len(plugins.broken) == 1


@pytest.mark.trial(9)
def test_a_clash_names_both_and_the_full_name_works(plugins):
    add(plugins, "one", WORLD, version="1.1")
    add(plugins, "two", WORLD, distribution="other-package", version="2.2")
    with pytest.raises(ComponentNotFound) as caught:
        plugins.find("system", "world")
    message = str(caught.value)
    assert "one (some-package 1.1) and two (other-package 2.2)" in message
    assert "'one/world' or 'two/world'" in message
    assert plugins.provider("system", "two/world").version == "2.2"
    assert [(noun, name) for noun, name, _ in plugins.clashes] == [("system", "world")]


@pytest.mark.trial(9)
def test_entry_points_of_one_name_are_told_apart_by_distribution(plugins):
    add(plugins, "same", WORLD)
    add(plugins, "same", WORLD, distribution="other-package")
    with pytest.raises(ComponentNotFound, match="some-package:same/world"):
        plugins.find("system", "same/world")
    assert plugins.provider("system", "other-package:same/world").distribution == "other-package"


@pytest.mark.trial(9)
def test_a_second_plugin_of_one_name_leaves_the_first_alone(plugins):
    add(plugins, "same", WORLD)
    add(plugins, "same", WORLD.replace('"world"', '"other"'))
    assert plugins.names("system") == ["world"]
    assert "same name" in str(plugins.broken[0])


@pytest.mark.trial(9)
def test_a_missing_name_says_what_is_near_and_what_broke(plugins):
    add(plugins, "one", WORLD)
    add(plugins, "broken", "raise RuntimeError('no luck')")
    with pytest.raises(ComponentNotFound) as caught:
        plugins.find("system", "wordl")
    assert "did you mean 'world'?" in str(caught.value)
    assert "plugins that failed to load: broken (some-package 1.0): RuntimeError: no luck" in str(
        caught.value
    )


def test_a_model_is_a_dynamics_or_a_generator(plugins):
    add(plugins, "one", WORLD.replace("worldsim_systems", "worldsim_generators"))
    assert plugins.names("model") == ["world"]
    assert plugins.find("model", "world")[0] == "generator"
    with pytest.raises(ComponentNotFound):
        plugins.find("dynamics", "world")


@pytest.mark.trial(4)
def test_an_observer_that_raises_only_warns(plugins):
    add(plugins, "loud", hook("worldsim_case_started(case)", "raise ValueError(case)"))
    add(plugins, "quiet", hook("worldsim_case_started(case)", "case.append('seen')"))
    seen = []
    with pytest.warns(
        UserWarning, match=r"loud \(some-package 1.0\): worldsim_case_started raised ValueError"
    ):
        plugins.notify("worldsim_case_started", case=seen)
    assert seen == ["seen"]


def test_an_observer_may_take_fewer_arguments(plugins):
    add(
        plugins,
        "brief",
        hook("worldsim_fit_progress(step)", "steps.append(step)").replace("\n@", "\nsteps = []\n@"),
    )
    plugins.notify("worldsim_fit_progress", case=None, step=7, losses={})
    assert plugins.manager.get_plugin("brief (some-package 1.0)").steps == [7]


def test_suites_come_from_folders_and_a_bad_one_is_named_once(plugins, tmp_path):
    (tmp_path / "suite").mkdir()
    add(plugins, "good", hook("worldsim_scenarios()", f"return {str(tmp_path)!r}"))
    add(plugins, "bad", hook("worldsim_scenarios()", "return None"))
    for _ in range(2):
        assert plugins.scenario_folders() == {"suite": tmp_path / "suite"}
    (broken,) = plugins.broken
    assert "must return a folder that is there, it returned None" in str(broken)


def test_a_file_is_a_plugin_without_packaging():
    file = THIRD_PARTY / "spring_world" / "spring_world.py"
    found = registry((file, file))
    assert found.provider("system", "spring").distribution == "file"
    assert found.provider("system", "spring").cache_version.startswith("+")
    assert found.broken == []
    assert "spring" not in registry().names("system")


def test_a_file_that_is_not_there_is_named():
    (broken,) = registry((Path("nowhere.py"),)).broken
    assert "nowhere.py is not a file" in str(broken)


def test_the_registry_is_loaded_once():
    assert registry() is registry()


def test_the_environment_can_leave_plugins_out(monkeypatch):
    monkeypatch.setenv("WORLDSIM_PLUGINS", "none")
    assert registry().providers == []
    with pytest.raises(ComponentNotFound, match="WORLDSIM_PLUGINS=none leaves out"):
        registry().find("system", "pendulum")
    monkeypatch.setenv("WORLDSIM_PLUGINS", "pendulum, energy")
    assert [provider.name for provider in registry().providers] == ["energy", "pendulum"]
