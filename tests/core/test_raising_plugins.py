"""A plugin that raises wherever worldsim calls it: its own cases fail with a traceback, no others do."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from worldsim.cli import exit_code
from worldsim.results import open_results

PLUGIN = """
import torch
from torch import nn
from worldsim import Score, Trajectory, hookimpl

PLACE = {place!r}

def come_to(place):
    if place == PLACE:
        raise RuntimeError(f"boom in {{place}}")

class World:
    conserved = ()

    def __init__(self):
        come_to("system")

    def sample(self, n, generator):
        come_to("sample")
        return torch.rand(n, 1, dtype=torch.float64, generator=generator)

    def sample_actions(self, n, times, generator):
        come_to("sample_actions")
        return torch.zeros(n, len(times), 1, dtype=torch.float64)

    def simulate(self, start, times, actions, generator):
        come_to("simulate")
        states = (start * torch.exp(-times))[:, None, :, None]
        return Trajectory(states, times, actions=actions, axes=("component",))

    def observe(self, states):
        come_to("observe")
        return {{"height": states[..., 0]}}

class Guess(nn.Module):
    scaling = "none"

    def __init__(self):
        super().__init__()
        come_to("model")
        self.rate = nn.Parameter(torch.zeros(()))

    def loss(self, truth):
        come_to("loss")
        return (truth.states * self.rate.exp() - truth.states).square().mean()

    def rollout(self, context, times, actions, draws, generator):
        come_to("rollout")
        states = context.states[:, :, -1:].expand(-1, draws, len(times), -1)
        return context.replace(states=states, times=times, actions=None)

class Rule:
    def __init__(self):
        come_to("constraint")

    def residual(self, trajectory):
        come_to("residual")
        return trajectory.states[..., 0]

class Count:
    def __init__(self):
        come_to("metric")

    def score(self, truth, prediction, model):
        come_to("score")
        return {{"count": Score(1.0)}}

@hookimpl
def worldsim_systems():
    come_to("worldsim_systems")
    return {{"world": World}}

@hookimpl
def worldsim_dynamics():
    come_to("worldsim_dynamics")
    return {{"guess": Guess}}

@hookimpl
def worldsim_constraints():
    come_to("worldsim_constraints")
    return {{"rule": Rule}}

@hookimpl
def worldsim_metrics():
    come_to("worldsim_metrics")
    return {{"count_them": Count}}

@hookimpl
def worldsim_case_started(case):
    come_to("worldsim_case_started")

@hookimpl
def worldsim_fit_progress(case, step, losses):
    come_to("worldsim_fit_progress")

@hookimpl
def worldsim_case_finished(case, result):
    come_to("worldsim_case_finished")
"""
SPLIT = {"trajectories": 2, "horizon": 1.0}
SHARED = {
    "data": {"step": 0.5, "splits": {"train": SPLIT, "test": SPLIT}},
    "fit": {"steps": 2, "validate_every": 1},
    "seeds": [0],
}
RAISING = {
    "about": "Where does it raise?", "system": "world", "models": {"guess": "guess"},
    "constraints": ["rule"], "metrics": ["count_them", "rollout"], "baselines": ["persistence"],
}  # fmt: skip
CALM = {
    "about": "Is it left alone?", "system": "pendulum", "models": {"ode": "neural_ode"},
    "metrics": ["rollout"], "baselines": ["truth", "persistence"],
}  # fmt: skip


def run(tmp_path, place):
    """(exit code, results, the plugin's file) of both scenarios, with a plugin that raises in one place."""
    plugin, suite, out = tmp_path / "raising.py", tmp_path / "suite", tmp_path / "out"
    plugin.write_text(PLUGIN.format(place=place), encoding="utf-8")
    suite.mkdir()
    for name, document in (("raising", RAISING), ("calm", CALM)):
        (suite / f"{name}.yaml").write_text(json.dumps({**SHARED, **document}), encoding="utf-8")
    code = exit_code(
        ["run", str(suite), "--out", str(out), "--workers", "0", "--no-report", "--plugin", str(plugin)]
    )
    return code, out


def test_what_raises_nowhere_is_done(tmp_path):
    code, out = run(tmp_path, "nowhere")
    assert code == 0
    results = open_results(Path(out))
    assert Counter(results.status(entry) for entry in results.entries) == {"done": 5}


BOTH, MODEL = {"guess", "persistence"}, {"guess"}
PLACES = {
    "sample": BOTH, "sample_actions": BOTH, "simulate": BOTH, "observe": BOTH, "residual": BOTH,
    "score": BOTH, "model": MODEL, "loss": MODEL, "rollout": MODEL,
}  # fmt: skip
"""Where a case is at work -> the models whose cases fail."""


@pytest.mark.trial(4)
@pytest.mark.parametrize("place", PLACES)
def test_what_raises_at_work_costs_the_cases_that_need_it(tmp_path, place):
    code, out = run(tmp_path, place)
    assert code == 1
    results = open_results(out)
    states = {(entry.scenario, entry.model): results.status(entry) for entry in results.entries}
    failed = {model for (scenario, model), state in states.items() if state == "failed"}
    assert failed == PLACES[place]
    assert {state for (_, model), state in states.items() if model not in failed} <= {"done"}
    assert all(state == "done" for (scenario, _), state in states.items() if scenario == "calm")
    for model in failed:
        document = results.store.open_failure(results.find("raising", model).key)
        assert document["kind"] == "exception"
        assert f"boom in {place}" in document["message"]
        assert "raising.py" in document["traceback"]


@pytest.mark.trial(4)
@pytest.mark.parametrize("place", ["system", "constraint", "metric"])
def test_what_raises_when_it_is_made_is_refused_before_anything_is_computed(tmp_path, place, capsys):
    code, out = run(tmp_path, place)
    assert code == 2
    told = capsys.readouterr().err
    assert re.search(
        rf"raising.yaml:1:\d+: {place}\S* \S+ of raising \(file \S+\) raised RuntimeError: boom in {place}",
        told,
    )
    assert not out.exists()


@pytest.mark.trial(4, 6)
def test_what_leaves_when_it_is_made_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.PLUGIN", PLUGIN.replace("raise RuntimeError(", "raise SystemExit(0 and ")
    )
    code, out = run(tmp_path, "system")
    assert code == 2
    assert "raised SystemExit: 0" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.trial(4)
@pytest.mark.parametrize(
    "place", ["worldsim_systems", "worldsim_dynamics", "worldsim_constraints", "worldsim_metrics"]
)
def test_a_hook_that_raises_is_named_before_anything_is_computed(tmp_path, place, capsys):
    code, out = run(tmp_path, place)
    assert code == 2
    told = capsys.readouterr().err
    assert "raising (file " in told
    assert f"{place} raised RuntimeError: boom in {place}" in told
    assert not out.exists()


@pytest.mark.trial(4)
@pytest.mark.parametrize(
    "place", ["worldsim_case_started", "worldsim_fit_progress", "worldsim_case_finished"]
)
def test_an_observer_that_raises_costs_nothing(tmp_path, place):
    with pytest.warns(UserWarning, match=f"{place} raised RuntimeError: boom in {place}"):
        code, out = run(tmp_path, place)
    assert code == 0
    results = open_results(out)
    assert {results.status(entry) for entry in results.entries} == {"done"}
