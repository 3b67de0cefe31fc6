"""Sentences on coherence: each fault is told of who has it, and of nobody else."""

from __future__ import annotations

import pytest
import torch

from worldsim.protocols import HasExplanation
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.generators.elapsed_time import ElapsedTime
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.metrics.sampled_coherence import SampledCoherence
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.pendulum import Pendulum

LATTICE = Automaton(preset="lattice")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def means(metric, system, model, step=1.0):
    times = step * torch.arange(12, dtype=torch.float64)
    truth = system.simulate(system.sample(16, generator()), times, None, generator())
    scores = metric.score(truth, truth, model)
    return {n: float(s.value) for n, s in scores.items() if not s.reason and not s.dims}


@pytest.mark.parametrize("kind", [Coherence, SampledCoherence])
@pytest.mark.parametrize(
    ("belief", "said", "unsaid"),
    [
        ("true", "No fault", "two states to it"),
        ("uniform", "It tells no two states apart.", "two states to it"),
        ("odd_refusal", "the number of tokens so far counts", "truly do"),
        ("states", "it knows 50 %", "counts for it"),
    ],
)
def test_faults_of_known_beliefs(kind, belief, said, unsaid):
    options = (
        {"pairs": 40, "suffixes": 10, "prefix_lengths": (6, 7), "suffix_length": 5}
        if kind is SampledCoherence
        else {}
    )
    metric = kind(LATTICE, **options)
    found = [means(metric, LATTICE, BelievedAutomaton(LATTICE, belief=b, states=6)) for b in ("true", belief)]
    if belief == "states" and kind is SampledCoherence:
        said = "Of the words that tell two states apart it knows"
    text = " ".join(kind.explain(found[1], found[0]))
    assert isinstance(kind, HasExplanation)
    assert said in text or (belief == "true" and "legal after 100 %" in text and "apart" not in text)
    assert unsaid not in text


def test_a_policy_is_held_to_what_a_policy_shows():
    system = Automaton(preset="routes", rows=3, columns=3, policy="shortest_path")
    metric = SampledCoherence(system, pairs=40, prefix_lengths=(3, 4), suffix_length=6)
    true = means(metric, system, system)
    assert true["distinction_recall_found"] < 0.9
    assert "apart it knows" not in " ".join(SampledCoherence.explain(true, true))
    blind = {**true, "distinction_recall_found": 0.0}
    assert "(who knows the map and goes this way shows" in " ".join(SampledCoherence.explain(blind, true))


def test_faults_of_models_of_states():
    system = Pendulum()
    metric = Coherence(system, kinds=["window_shift", "mirror"], horizon=20, pairs=40)
    truth = means(metric, system, ElapsedTime(system, frames=8), 0.1)
    assert Coherence.explain(truth, truth) == ["No fault was found by these pairs."]
    cheat = " ".join(Coherence.explain(means(metric, system, ElapsedTime(system), 0.1), truth))
    assert "by how long they are (window shift 100 % of pairs)" in cheat
    still = {**truth, "fidelity": 1.3}
    assert Coherence.explain(still, truth) == [
        "It is coherent, in a world of its own: its futures are 1.3 spreads from the true ones."
    ]
    assert "one state: mirror 30 %, window shift 2 % of pairs" in " ".join(
        Coherence.explain({**truth, "compression_mirror": 0.7, "compression_window_shift": 0.98}, truth)
    )
