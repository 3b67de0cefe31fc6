"""A corpus of broken scenario files: each problem is told at the right line and key, with what to do.

A file opens with one comment line for each problem it must be refused for::

    # expect: LINE KEY words of the message or the hint
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worldsim import load
from worldsim.errors import ScenarioError
from worldsim.plugins import registry
from worldsim.reading import scenarios_of
from worldsim.strict_yaml import Document, parse

FILES = sorted((Path(__file__).parent / "broken").glob("*.yaml"))


def expected(file: Path) -> list[tuple[int, str, str]]:
    lines = re.findall(r"^# expect: (\d+) (\S+) (.+)$", file.read_text("utf-8"), flags=re.MULTILINE)
    return [(int(line), key, words) for line, key, words in lines]


def test_the_corpus_is_there():
    assert len(FILES) >= 40
    assert all(expected(file) for file in FILES)


@pytest.mark.trial(14, 15, 18)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_broken_scenario_is_refused_with_place_and_advice(file):
    with pytest.raises(ScenarioError) as caught:
        load(file)
    problems = caught.value.problems
    assert sorted((p.line, p.key) for p in problems) == sorted(place[:2] for place in expected(file))
    for line, key, words in expected(file):
        (problem,) = [p for p in problems if (p.line, p.key) == (line, key)]
        assert words in f"{problem.message}; {problem.hint}"
        assert problem.file == file
        assert f"{file}:{line}:{problem.column}: {key}: " in str(caught.value)


VALID = """\
about: Does a learned pendulum keep its energy?
system: {name: pendulum, energy: [0.2, 1.5]}
data:
  step: 0.1
  splits:
    train: {trajectories: 8, horizon: 3.0}
    test: {trajectories: 4, horizon: 9.0, system: {mass: 2.0}}
models:
  hamiltonian: {name: hamiltonian, width: 16, solver: {name: rk4, step: 0.1}, fit: {steps: 3}}
  flow: {name: flow, constraints: [{name: energy, mechanisms: [projection], weight: 0.1}]}
fit: {steps: 10, batch: 8}
constraints: [energy]
metrics: [rollout, {name: invariants}]
baselines: [truth, persistence]
draws: 1
seeds: [0, 1]
published:
  - {model: flow, quantity: error, value: 0.1, spread: 0.01, source: S, score: nrmse, note: at T = 1}
"""
ODD = (None, True, -1, 0, 0.5, 1e300, 2**62, "", "x", "a/b", [], [[]], [None], {}, {"name": []}, {"a": {}})


def locations(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in entries:
        yield (*loc, key)
        yield from locations(child, (*loc, key))


def with_value(data: Any, loc: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(data)
    holder = changed
    for step in loc[:-1]:
        holder = holder[step]
    holder[loc[-1]] = value
    return changed


@pytest.mark.trial(14)
def test_no_odd_value_anywhere_ends_in_a_traceback():
    document = parse(VALID, Path("valid.yaml"))
    plugins = registry()
    assert len(scenarios_of(document, plugins)[0].cases()) == 6
    refused = accepted = 0
    for loc in locations(document.data):
        for odd in ODD:
            changed = Document(document.path, with_value(document.data, loc, odd), document.root)
            try:
                scenarios_of(changed, plugins)
                accepted += 1
            except ScenarioError:
                refused += 1
    assert refused > 5 * accepted
