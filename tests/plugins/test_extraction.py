"""The metric ``extraction`` on models whose automaton is known by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics.extraction import Extraction
from worldsim_plugins.systems.automaton import Automaton

LATTICE = Automaton(preset="lattice")


def scores(model, system=LATTICE, **settings):
    return Extraction(system, **settings).score(None, None, model)


def believed(belief, **settings):
    return scores(BelievedAutomaton(LATTICE, belief=belief, **settings))


def values(found, *names):
    return tuple(found[name].value for name in names)


EDGES = ("edges_right", "edges_wrong", "edges_missing")
STATES = ("states_merged", "states_split", "states_unreached", "states_learned", "states_true")


def test_the_truth_is_its_own_automaton():
    found = scores(LATTICE)
    assert values(found, *EDGES) == (1.0, 0.0, 0.0)
    assert values(found, *STATES) == (0, 0, 0, 5, 5)
    assert found["finished"].value == 1
    length = found["counterexample_length"]
    assert math.isnan(length.value)
    assert (
        length.reason
        == f"none found among {int(found['words_asked'].value):,} words and the tokens after them"
    )
    assert found["automaton_states"].value.sum(0).tolist() == [1] * 5
    np.testing.assert_array_equal(found["automaton_true"].value, found["automaton_right"].value)
    assert found["automaton_true"].value.shape == (13, 2)
    assert found["automaton_wrong"].value.shape == found["automaton_missing"].value.shape == (0, 2)
    assert found["automaton_true"].coords["edge"] == ["0", "R", *("L", "0", "R") * 3, "L", "0"]
    assert found["automaton_states"].coords["true_state"] == ["0", "1", "2", "3", "4"]
    assert found["automaton_states"].coords["state"] == ["", "R", "R R", "R R R", "R R R R"]


def test_who_believes_in_four_positions_has_no_fifth():
    """Refuses the way to the fifth, so that 10 of 11 edges of the four states are right."""
    found = believed("states", states=4)
    assert values(found, *EDGES) == (10 / 11, 0.0, 1 / 11)
    assert values(found, *STATES) == (0, 0, 1, 4, 5)
    assert found["counterexample_length"].value == 4
    np.testing.assert_array_equal(found["automaton_missing"].value, [[3, np.nan]])
    assert found["automaton_missing"].coords["edge"] == ["R"]


def test_who_believes_in_six_positions_takes_a_step_too_many():
    found = believed("states", states=6)
    assert values(found, *EDGES) == (13 / 14, 1 / 14, 0.0)
    assert values(found, *STATES) == (0, 0, 0, 6, 5)
    assert found["counterexample_length"].value == 5
    np.testing.assert_array_equal(found["automaton_wrong"].value, [[4, 5]])


def test_elapsed_time_splits_every_state():
    """At the odd one of each two "0" is missing: 13 edges are right of the even ones and 8 of the odd."""
    found = believed("odd_refusal")
    assert values(found, *EDGES) == (21 / 26, 0.0, 5 / 26)
    assert values(found, *STATES) == (0, 5, 0, 10, 5)
    assert found["counterexample_length"].value == 2
    stands = found["automaton_states"].value
    assert stands.sum(1).tolist() == [1] * 10
    for state, there in found["automaton_missing"].value.astype(int):
        assert (stands[state] == stands[there]).all()  # "0" stays


def test_knowing_nothing_merges_all():
    found = believed("uniform")
    assert values(found, *EDGES) == (13 / 15, 2 / 15, 0.0)
    assert values(found, *STATES) == (1, 0, 0, 1, 5)
    assert found["counterexample_length"].value == 1
    # An edge that is wrong for one of the states that a learned one stands for is wrong.
    assert found["automaton_right"].coords["edge"] == ["0"]
    assert found["automaton_wrong"].coords["edge"] == ["L", "R"]


def test_refusing_all_misses_what_is_legal_at_once():
    found = believed("reject_all")
    assert values(found, *EDGES) == (0.0, 0.0, 1.0)
    assert values(found, *STATES) == (0, 0, 4, 1, 5)
    # Staying would lead to a state that there is, a step to one that there is not.
    np.testing.assert_array_equal(found["automaton_missing"].value, [[0, 0], [0, np.nan]])


class Counting:
    """Behaves as no automaton: after n tokens it accepts the tokens that the digits of n squared name."""

    def next_token(self, tokens):
        n = tokens.shape[1]
        law = torch.tensor([[float(bool(n * n // 3**a % 3)) for a in range(3)]], dtype=torch.float64)
        law[0, 1] += 1.0
        return (law / law.sum()).expand(len(tokens), 3)


def test_states_without_end_are_cut_off_and_said_to_be():
    found = scores(Counting(), most=12)
    assert (found["finished"].value, found["states_learned"].value) == (0, 12)
    assert found["counterexample_length"].value == 1
    assert np.isnan(found["automaton_wrong"].value).any() or np.isnan(found["automaton_right"].value).any()
    few = scores(Counting(), questions=100)
    assert few["finished"].value == 0
    assert few["words_asked"].value < 2000


def test_worlds_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match="41 tokens are more than 32"):
        Extraction(Automaton(preset="routes", rows=6, columns=6))
    with pytest.raises(ValueError, match="the true automaton has 200 states, so that no learned one of 100"):
        Extraction(Automaton(preset="lattice", states=200))
    with pytest.raises(ValueError, match="needs an automaton"):
        Extraction(object())


def test_models_without_a_law_and_models_that_fail():
    with pytest.raises(NotMeasurable, match="no law of the next token"):
        scores(object())

    class Broken:
        def next_token(self, tokens):
            raise RuntimeError("out of order")

    found = scores(Broken())
    assert found["edges_right"].failed == 1
    assert "out of order" in found["edges_missing"].reason
    assert math.isnan(found["edges_wrong"].value)


def test_routes_of_a_little_city_are_learned():
    city = Automaton(preset="routes", rows=2, columns=2)
    found = scores(city, city)
    assert values(found, *EDGES) == (1.0, 0.0, 0.0)
    assert found["states_learned"].value == found["states_true"].value == 22
