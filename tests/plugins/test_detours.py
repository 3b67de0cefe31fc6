"""Walks that are led off their way, by models of which it is known how far they get."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics.detours import Detours
from worldsim_plugins.systems.automaton import Automaton

LATTICE = Automaton(preset="lattice")
CITY = Automaton(preset="routes", rows=3, columns=3, closed=0.1, seed=1)
LEFT, STAY, RIGHT = range(3)


class Fixed:
    """Goes by ``order``, the tokens from the most to the least likely, at even and at odd times."""

    def __init__(self, even, odd=None):
        self.orders = even, odd or even

    def next_token(self, tokens):
        law = torch.zeros(3, dtype=torch.float64)
        for rank, token in enumerate(self.orders[tokens.shape[1] % 2]):
            law[token] = (0.6, 0.3, 0.1)[rank]
        return law.expand(len(tokens), 3)


def scores(model, system=LATTICE, **settings):
    return Detours(system, **settings).score(None, None, model)


def exact(model, length, probability, adversarial):
    """Share of walks on the lattice from 0 on which the model makes no illegal choice, by recursion."""
    table = LATTICE.transitions().tolist()
    chance = [1.0, 0.0, 0.0, 0.0, 0.0]
    for time in range(length):
        order, after = model.orders[time % 2], [0.0] * 5
        for state, part in enumerate(chance):
            legal = [token for token in order if table[state][token] >= 0]
            if table[state][order[0]] >= 0:
                after[table[state][order[0]]] += (1 - probability) * part
            for token in legal[-1:] if adversarial else legal:
                after[table[state][token]] += probability * part / (1 if adversarial else len(legal))
        chance = after
    return sum(chance)


RIGHTWARDS = Fixed((RIGHT, STAY, LEFT))
TIMED = Fixed((RIGHT, STAY, LEFT), (LEFT, STAY, RIGHT))


@pytest.mark.parametrize("model", [RIGHTWARDS, TIMED])
def test_the_share_is_that_of_the_exact_recursion(model):
    found = scores(model, given=0, length=6, walks=2000, probabilities=[0.0, 0.2, 0.6])
    for kind in ("random", "adversarial"):
        for percent in (20, 60):
            one = found[f"valid_{kind}_{percent}"]
            right = exact(model, 6, percent / 100, kind == "adversarial")
            assert abs(one.value - right) < 3 * (right * (1 - right) / 2000) ** 0.5 + 1e-12
            assert one.interval[0] <= one.value <= one.interval[1]
            assert one.floor == 1.0
    assert found["valid_undisturbed"].value == exact(model, 6, 0.0, False)


def test_who_goes_by_the_clock_is_right_until_it_is_led_off():
    found = scores(TIMED, given=0, length=30, probabilities=[0.0, 0.5])
    assert found["valid_undisturbed"].value == 1.0
    assert found["valid_undisturbed"].interval == pytest.approx((0.05 ** (1 / 100), 1.0))
    assert found["valid_random_50"].interval[1] < 0.5
    assert found["valid_adversarial_50"].interval[1] < 0.5


@pytest.mark.parametrize("belief", ["true", "odd_refusal"])
def test_who_knows_the_state_is_never_led_astray(belief):
    found = scores(BelievedAutomaton(LATTICE, belief=belief), walks=20, length=30)
    assert {one.value for name, one in found.items() if not one.dims} == {1.0}
    assert "legal_undisturbed" not in found


def test_who_accepts_nothing_makes_no_choice():
    found = scores(BelievedAutomaton(LATTICE, belief="reject_all"), walks=20, probabilities=[0.0])
    assert found["valid_undisturbed"].value == 0.0


def test_routes_must_end_and_the_floor_is_what_the_true_law_does():
    """Who goes the shortest way comes back to it; the true law walks at random, and may not end in time."""
    found = scores(BelievedAutomaton(CITY, belief="shortest_path"), CITY, probabilities=[0.0, 0.1, 0.5])
    for name in ("valid_undisturbed", "valid_random_10", "valid_random_50", "legal_adversarial_50"):
        assert found[name].value == 1.0
    own = scores(CITY, CITY, probabilities=[0.0, 0.1, 0.5])
    for name in ("undisturbed", "random_10", "adversarial_50"):
        assert own[f"valid_{name}"].value == own[f"valid_{name}"].floor
        assert own[f"legal_{name}"].value == own[f"legal_{name}"].floor == 1.0
    assert 0 < own["valid_undisturbed"].value < 1
    short = scores(BelievedAutomaton(CITY, belief="shortest_path"), CITY, probabilities=[0.0], length=1)
    # In one token only those end that are where they want to be.
    at_the_goal = (Detours(CITY).starts() - 5).diff(dim=1)[:, 0] == 0
    assert short["valid_undisturbed"].value == float(at_the_goal.double().mean())


def test_the_curves_are_the_shares():
    found = scores(RIGHTWARDS, given=0, length=4, probabilities=[0.5, 0.0, 0.005])
    curve = found["valid_random"]
    assert (curve.dims, curve.coords["probability"]) == (("probability",), [0.0, 0.005, 0.5])
    names = ("valid_undisturbed", "valid_random_0_5", "valid_random_50")
    assert curve.value.tolist() == [found[name].value for name in names]
    assert found["valid_random_low"].value.tolist() == [found[name].interval[0] for name in names]
    assert found["valid_adversarial"].value[0] == 1.0


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, two, other = (scores(TIMED, given=0, walks=50, seed=seed)["valid_random_10"] for seed in (0, 0, 1))
    assert one == two
    assert one.value != other.value
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_asked_says_so():
    with pytest.raises(NotMeasurable, match="no law of the next token"):
        scores(object())
    with pytest.raises(ValueError, match="needs an automaton"):
        Detours(object())
    with pytest.raises(NotMeasurable, match="most walks end within 60 tokens"):
        scores(CITY, CITY, given=60)

    class Broken:
        def next_token(self, tokens):
            raise RuntimeError("out of order")

    lost = scores(Broken())["valid_random_10"]
    assert (lost.failed, math.isnan(lost.value)) == (100, True)
    assert "out of order" in lost.reason
