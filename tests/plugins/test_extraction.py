"""The metric ``extraction`` on models whose automaton is known by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldsim import NotMeasurable
from worldsim_kernels.hidden_markov import exact_block_entropies, stationary_law
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics.extraction import Extraction
from worldsim_plugins.metrics.machine_statistics import excess_entropy
from worldsim_plugins.systems.automaton import Automaton

LATTICE = Automaton(preset="lattice")


def walks(system, n=200, length=31, seed=0):
    generator, times = torch.Generator().manual_seed(seed), torch.arange(length, dtype=torch.float64)
    return system.simulate(system.sample(n, generator), times, None, generator)


def scores(model, system=LATTICE, **settings):
    truth = walks(system, 4)
    return Extraction(system, **settings).score(truth, truth, model)


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


GOLDEN = Automaton(transitions={"A": {"1": "A", "0": "B"}, "B": {"1": "A"}})
EVEN = Automaton(transitions={"A": {"0": "A", "1": "B"}, "B": {"1": "A"}})
RRXOR = Automaton(
    transitions={
        "S": {"0": "A", "1": "B"},
        "A": {"0": "alike", "1": "unlike"},
        "B": {"0": "unlike", "1": "alike"},
        "alike": {"0": "S"},
        "unlike": {"1": "S"},
    }
)
"""Two random bits, and whether they differ."""


def expected(system, length):
    """Entropy rate and complexity of the states after 1 .. length - 1 steps from the initial one, in bits."""
    table = Extraction(system).true.tolist()
    law, share = np.eye(len(table))[0], np.zeros(len(table))
    for _ in range(length - 1):
        after = np.zeros_like(law)
        for state, row in enumerate(table):
            legal = [there for there in row if there >= 0]
            for there in legal:
                after[there] += law[state] / len(legal)
        law, share = after, share + after / (length - 1)
    choices = [sum(there >= 0 for there in row) for row in table]
    return float(share @ np.log2(choices)), float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize(("system", "complexity"), [(GOLDEN, 0.918296), (EVEN, 0.918296), (RRXOR, 2.251629)])
def test_the_excess_entropy_is_that_of_the_exact_machine(system, complexity):
    """0.251629 bit of the golden mean (Crutchfield and Feldman 2003); words of 12 tell all but little of how
    the even process is synchronised, and of RRXOR what its matrices say."""
    true = Extraction(system).true
    legal = (true >= 0).double()
    law = legal / legal.sum(1, keepdim=True)
    matrices = torch.zeros(2, len(true), len(true), dtype=torch.float64)
    for state, token in (true >= 0).nonzero().tolist():
        matrices[token, state, true[state, token]] = law[state, token]
    shares = stationary_law(matrices)
    found = excess_entropy(true, law * shares[:, None])
    exact = exact_block_entropies(matrices, 12)[-1] - 12 * 2 / 3
    assert found == pytest.approx(float(exact), abs=1e-9)
    assert found < complexity
    if system is GOLDEN:
        assert found == pytest.approx(0.251629, abs=1e-6)
    if system is EVEN:
        assert found == pytest.approx(0.918296, abs=0.03)
    never = excess_entropy(torch.tensor([[0, -1], [-1, 1]]), torch.eye(2, dtype=torch.float64))
    assert math.isnan(never)


@pytest.mark.parametrize(("system", "complexity"), [(GOLDEN, 0.918296), (EVEN, 0.918296), (RRXOR, 2.251629)])
def test_samples_have_the_entropies_of_their_epsilon_machine(system, complexity):
    """Crutchfield and Feldman 2003. Of the third, blocks of 12 see 0.70 bit a token and 4.1 bit of memory."""
    truth, other = walks(system, 400), walks(system, 400, seed=1)
    found = Extraction(system).score(truth, other, system)
    exact = expected(system, 31)
    assert exact == pytest.approx((2 / 3, complexity), abs=0.02)  # walks begin in one state
    for name, right in zip(("entropy_rate", "complexity"), exact):
        for end in ("", "_truth"):
            one = found[f"machine_{name}{end}"]
            # Where all states are visited as often, what is left of the error is of second order.
            assert abs(one.value - right) < 3 * (one.interval[1] - one.interval[0]) / 2 / 1.96 + 1e-4
        error = found[f"machine_{name}_error"]
        assert 0 <= error.floor <= found[f"machine_{name}_error_floor_q95"].value
        assert error.value <= 1.5 * found[f"machine_{name}_error_floor_q95"].value
    excess = found["machine_excess_entropy_error"]
    assert excess.value <= 1.5 * found["machine_excess_entropy_error_floor_q95"].value
    assert found["machine_refused"].value == 0
    if system is RRXOR:
        assert expected(system, 3001)[1] == pytest.approx(complexity, abs=1e-6)


def test_a_coin_has_no_memory_and_a_full_bit_of_chance():
    class Coin:
        def next_token(self, tokens):
            return torch.full((len(tokens), 2), 0.5, dtype=torch.float64)

    truth = walks(GOLDEN, 400)
    coins = truth.replace(
        states=torch.randint(2, truth.states.shape, generator=torch.Generator().manual_seed(5))
    )
    found = Extraction(GOLDEN).score(truth, coins, Coin())
    assert found["machine_complexity"].value == 0
    assert found["machine_entropy_rate"].value == pytest.approx(1, abs=1e-3)
    assert found["machine_excess_entropy"].value == pytest.approx(0, abs=1e-9)
    for name in ("entropy_rate", "complexity", "excess_entropy"):
        assert found[f"machine_{name}_error"].value > 3 * found[f"machine_{name}_error_floor_q95"].value


def test_tokens_that_the_learned_automaton_refuses_are_counted():
    truth = walks(GOLDEN, 4, 11)
    states = truth.states.clone()
    states[0] = GOLDEN.alphabet.index("0")  # illegal from the second one on
    found = Extraction(GOLDEN).score(truth, truth.replace(states=states), GOLDEN)
    assert found["machine_refused"].value == 10 / 40
    with_context = truth.replace(times=truth.times + 3)
    lost = Extraction(GOLDEN).score(with_context, with_context, GOLDEN)["machine_complexity_error"]
    assert "from their first token on" in lost.reason
    cut = scores(Counting(), most=12)["machine_entropy_rate_error"]
    assert "cut off" in cut.reason
