"""Coherence by sampled words against its exact values, and the ceiling of a policy that knows the map."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from worldsim import NotMeasurable
from worldsim.protocols import HasTokenLaws
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics.policies import policy_scores
from worldsim_plugins.metrics.sampled_coherence import SampledCoherence
from worldsim_plugins.metrics.sampled_words import Asked, sampled_variation
from worldsim_plugins.systems.automaton import Automaton

LATTICE = Automaton(preset="lattice")
SMALL = {"pairs": 20, "prefix_lengths": (4, 6), "suffixes": 8, "suffix_length": 6}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(system, model, **options):
    times = torch.arange(12, dtype=torch.float64)
    truth = system.simulate(system.sample(16, generator()), times, None, generator())
    return SampledCoherence(system, **options).score(truth, truth, model)


def within_three_errors(score, expected, spread=0.5):
    """``spread`` bounds the standard deviation of a trial between 0 and 1."""
    return abs(score.value - expected) < 3 * spread / score.n**0.5


@pytest.mark.parametrize(
    ("belief", "states", "precision", "recall"),
    [("true", 5, 1, 1), ("states", 4, 0.713636, 0.703254), ("states", 6, 0.746338, 0.5)],
)
def test_sampled_values_are_the_exact_ones(belief, states, precision, recall):
    """The true boundary is listed, so recall is unbiased; a model's boundary drawn by fifty words is near
    all of it; drawn words can only miss what compression fails on."""
    model = BelievedAutomaton(LATTICE, belief=belief, states=states)
    sizes = {"pairs": 200, "suffix_length": 5, "suffixes": 10, "distinction_suffixes": 50}
    scores = scored(LATTICE, model, prefix_lengths=(6, 6), **sizes)
    assert within_three_errors(scores["distinction_recall"], recall)
    assert within_three_errors(scores["distinction_precision"], precision)
    if belief == "true":
        for name, score in scores.items():
            if score.better:
                assert score.value == score.interval[1] == float(score.better == "higher"), name
        assert scores["distinction_recall"].interval[0] == pytest.approx(0.05 ** (1 / 200))
    else:
        expected = 0.947179 if states == 4 else 1.0
        assert (
            scores["compression_precision"].value >= expected - 3 * (expected * (1 - expected) / 200) ** 0.5
        )
        assert scores["compression_both"].value <= scores["compression_precision"].value


def test_elapsed_time_is_seen_by_prefixes_of_two_lengths_alone():
    model = BelievedAutomaton(LATTICE, belief="odd_refusal")
    scores = scored(LATTICE, model, prefix_lengths=(6, 7), pairs=60, suffix_length=5)
    assert scores["compression_both"].value == 1.0
    assert scores["compression_both_mixed"].value == 0.0
    assert scores["coherence_auc"].value > 0.95
    assert scores["coherence_auc_mixed"].value < 0.5


def test_knowing_nothing_is_vacuous_and_says_so():
    for law in (torch.full((3,), 1 / 3), torch.eye(3)[1]):
        model = SimpleNamespace(next_token=lambda tokens, law=law: law.expand(len(tokens), -1))
        scores = scored(LATTICE, model, **SMALL)
        assert scores["compression_both"].value == 1.0
        assert scores["distinction_precision"].value == 1.0
        assert scores["n_empty"].value == 1.0
        assert math.isnan(scores["distinction_precision_found"].value)
        assert scores["distinction_recall"].value == 0.0
        assert scores["coherence_auc"].value == scores["coherence_auc_mixed"].value == 0.5
        assert scores["coherence_auc"].floor == 1.0


def test_below_epsilon_everywhere_is_zero_by_convention_alone():
    """A uniform law over 1 / epsilon tokens or more accepts none, and epsilon sampling draws one still."""
    model = SimpleNamespace(next_token=lambda tokens: torch.full((len(tokens), 3), 1 / 3))
    scores = scored(LATTICE, model, epsilon=0.4, **SMALL)
    assert scores["compression_precision"].value == 0.0
    assert scores["coherence_auc"].value == 0.5


def test_a_model_that_fails_is_counted_and_one_without_a_law_is_refused():
    broken = SimpleNamespace(next_token=lambda tokens: torch.full((len(tokens), 3), torch.nan))
    scores = scored(LATTICE, broken)
    assert math.isnan(scores["coherence_auc"].value)
    assert scores["coherence_auc"].failed == 200
    with pytest.raises(NotMeasurable, match="next_token"):
        scored(LATTICE, SimpleNamespace())
    for options, message in [
        ({"prefix_lengths": (5, 4)}, "shortest"),
        ({"boundary_without": ["end"]}, "no token end"),
    ]:
        with pytest.raises(ValueError, match=message):
            SampledCoherence(LATTICE, **options)
    with pytest.raises(ValueError, match="automaton"):
        SampledCoherence(SimpleNamespace())


def test_the_variation_of_two_laws_by_their_words():
    """Bernoulli(1/2) against Bernoulli(p), one token: TV = |p - 1/2|; of two tokens by enumeration."""

    def law(tokens):
        p = torch.where(tokens[:, 0] == 1, 0.8, 0.5)
        return torch.stack([1 - p, p], 1)

    asked = Asked(law, 2, 0.01, generator())
    zero, one = torch.zeros(400, 1, dtype=torch.int64), torch.ones(400, 1, dtype=torch.int64)
    for length, exact in ((1, 0.3), (2, 0.39)):
        found = sampled_variation(asked, zero, one, 20, length)
        assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / 20
    assert (sampled_variation(asked, one, one, 5, 3) == 0).all()


def test_a_policy_by_recursion_is_the_policy_by_enumeration():
    """Against sets of words, on a small city."""
    table = Automaton(preset="grid_city", rows=3, columns=3, seed=2).transitions()
    accepted = (table >= 0) & (torch.rand(table.shape, generator=generator(4)) < 0.7)
    found = policy_scores(table, accepted, 3, 3)

    def boundary(allowed, i, j):
        words, queue = set(), [((), i, j)]
        while queue:
            word, one, two = queue.pop()
            for a in allowed[one].nonzero()[:, 0].tolist():
                longer = (*word, a)
                if not allowed[two, a]:
                    words.add(longer)
                elif len(longer) < 3:
                    queue.append((longer, int(table[one, a]), int(table[two, a])))
        return words

    def accepts(allowed, state, word):
        for a in word:
            if state < 0 or not allowed[state, a]:
                return False
            state = int(table[state, a])
        return True

    legal = table >= 0
    for i in range(9):
        for j in range(9):
            true, mine = boundary(legal, i, j), boundary(accepted, i, j)
            hit = [w for w in true if accepts(accepted, i, w) and not accepts(accepted, j, w)]
            right = [w for w in mine if accepts(legal, i, w) and not accepts(legal, j, w)]
            recall, precision = (found[f"distinction_{name}"][i, j] for name in ("recall", "precision"))
            assert math.isnan(recall) if not true else recall == pytest.approx(len(hit) / len(true))
            assert math.isnan(precision) if not mine else precision == pytest.approx(len(right) / len(mine))
    with pytest.raises(ValueError, match="legal"):
        policy_scores(table, torch.ones_like(legal), 3, 3)


def test_shortest_ways_know_the_map_and_score_low_by_the_policy():
    """The oracle of routes: compression 1 exactly, distinction at the exact ceiling, and 1 where tokens are
    forced."""
    system = Automaton(preset="routes", rows=3, columns=3, closed=0.2, one_way=0.2, seed=1)
    model = BelievedAutomaton(system, belief="shortest_path")
    end = system.alphabet.index("end")
    tokens = torch.arange(len(system.alphabet)) != end
    places = [i for i, name in enumerate(system.state_names) if " to " in name]
    exact = policy_scores(system.transitions(), model.chosen, 5, 10, tokens)
    pairs = torch.ones(len(places), len(places)).fill_diagonal_(0).bool()
    scores = scored(
        system,
        model,
        pairs=100,
        prefix_lengths=(10, 11),
        suffix_length=10,
        suffixes=5,
        boundary_without=["end"],
        distinction_suffixes=5,
    )
    assert scores["compression_precision"].value == scores["compression_both_mixed"].value == 1.0
    expected = {}
    for name, table in exact.items():
        expected[name] = float(table[places][:, places][pairs].nan_to_num(1.0).mean())
        assert within_three_errors(scores[name], expected[name]), name
    assert expected["distinction_recall"] < 0.5
    assert expected["distinction_precision"] < 0.9
    for name in ("distinction_recall", "distinction_precision", "compression_both"):
        assert scores[f"{name}_legality"].value == 1.0


def test_laws_along_a_word_are_those_after_its_prefixes():
    """One pass or many, and prefixes of two lengths in one table, give the same scores."""
    system = Automaton(preset="lattice")
    alone = SimpleNamespace(next_token=system.next_token)
    assert isinstance(system, HasTokenLaws)
    assert not isinstance(alone, HasTokenLaws)
    together, apart = (scored(system, model, **SMALL) for model in (system, alone))
    assert {name: score.value for name, score in together.items()} == pytest.approx(
        {name: score.value for name, score in apart.items()}, nan_ok=True
    )


def test_fidelity_is_the_distance_of_the_next_token_from_the_truth():
    """A uniform law is (3 - k) / 3 from one that is uniform over k of 3 tokens."""
    model = SimpleNamespace(next_token=lambda tokens: torch.full((len(tokens), 3), 1 / 3))
    times = torch.arange(12, dtype=torch.float64)
    truth = LATTICE.simulate(LATTICE.sample(64, generator()), times, None, generator())
    here = LATTICE.token_laws(truth.states[:, 0])[:, :-1]
    expected = float(((3 - (here > 0).sum(2)) / 3.0).mean())
    found = SampledCoherence(LATTICE, **SMALL).score(truth, truth, model)["fidelity"]
    assert found.value == pytest.approx(expected)
    assert found.better == "lower"
