"""Truths that cases share: each is simulated once, is everyone's own, and takes no more room than it may."""

import pytest
import torch

import worldsim
from tests.core.test_run import DOCUMENT, decoded, scenario
from worldsim import truth
from worldsim.scenario import Case
from worldsim.truth import Truths, simulate_split


@pytest.fixture
def simulated(monkeypatch):
    """(split, seed) of every simulation."""
    seen = []

    def counted(case, split, system):
        seen.append((split, truth.seed_of(case, split)))
        return simulate_split(case, split, system)

    monkeypatch.setattr(truth, "simulate_split", counted)
    return seen


def cases(**changes):
    asked = scenario(models={"ode": DOCUMENT["models"]["ode"]}, **changes)
    return {seed: Case(asked, "ode", seed, "cpu", "float32") for seed in asked.seeds}


def test_a_batch_simulates_every_truth_once_and_has_the_same_bits(simulated, tmp_path, monkeypatch):
    worldsim.run(scenario(), out=tmp_path / "shared")
    assert sorted(simulated) == [
        ("longer", -1), ("test", -1), ("train", 0), ("train", 1), ("validation", 0), ("validation", 1),
    ]  # fmt: skip
    monkeypatch.setattr(truth, "LARGEST", 0)
    worldsim.run(scenario(), out=tmp_path / "apart")
    assert len(simulated) == 6 + 4 * (2 * 2 + 5)
    apart = decoded(tmp_path / "apart")
    assert apart
    for name, tree in decoded(tmp_path / "shared").items():
        assert tree.identical(apart[name])


def test_what_a_case_does_to_its_truth_the_next_does_not_see():
    truths, case = Truths(), cases()[0]
    system = case.scenario.system.build(case.scenario.registry)
    first = truths.split(case, "train", system)
    first.states.zero_()
    again = truths.split(case, "train", system)
    assert torch.equal(again.states, simulate_split(case, "train", system).states)
    again.states.zero_()
    assert bool(truths.split(case, "train", system).states.any())


def test_what_was_used_last_stays(simulated, monkeypatch):
    of = cases(seeds=[0, 1, 2])
    truths, system = Truths(), of[0].scenario.system.build(of[0].scenario.registry)
    size = truth.bytes_of(truths.split(of[0], "train", system))
    monkeypatch.setattr(truth, "LARGEST", 2 * size)
    for seed in (1, 0, 2, 0, 1):
        truths.split(of[seed], "train", system)
    assert simulated == [("train", seed) for seed in (0, 1, 2, 1)]
    monkeypatch.setattr(truth, "LARGEST", size - 1)
    truths.split(of[1], "train", system)
    truths.split(of[1], "train", system)
    assert len(simulated) == 5, "one that was there is given, and not kept again"
    assert truths.bytes == sum(map(truth.bytes_of, truths.kept.values()))


def test_another_scenario_has_truths_of_its_own(simulated):
    truths = Truths()
    for energy in ([0.5, 1.0], [1.0, 1.5], [0.5, 1.0]):
        case = cases(system={"name": "pendulum", "energy": energy})[0]
        truths.split(case, "train", case.scenario.system.build(case.scenario.registry))
    assert len(simulated) == 3
