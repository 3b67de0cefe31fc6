"""The inductive-bias probe and the bisimulation metric in their exact cases, and automata learned from models
whose automaton is known."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.metrics.automaton_extraction import OPEN, correspondence, learn
from worldsim_plugins.metrics.bias_probe import inductive_bias, probe
from worldsim_plugins.metrics.bisimulation import bisimulation
from worldsim_plugins.metrics.minimisation import minimal_classes, minimise
from worldsim_plugins.systems.automaton import Automaton

STATES = torch.arange(60) % 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def biased(learner, sets=300, alike=None):
    labels = probe(learner, STATES, sets=sets, examples=60, generator=seeded(1))
    return inductive_bias(labels, STATES, alike)


def by(number):
    """A learner that gives inputs of one ``number [input]`` the label it saw, and 0 where it saw none."""

    def learner(rows, labels):
        table = torch.zeros(int(number.max()) + 1, dtype=torch.int64)
        table[number[rows]] = labels
        return table[number]

    return learner


def test_who_knows_the_state_has_one_and_one():
    found = biased(by(STATES))
    assert found.same == 1.0
    assert abs(found.different - 1) < 3 * found.standard_error[1] + 0.01  # a state may stay unseen


def test_a_constant_has_one_and_nought():
    found = biased(lambda rows, labels: torch.zeros(60, dtype=torch.int64))
    assert (found.same, found.different) == (1.0, 0.0)


def test_a_coin_has_nought_and_one():
    chance = seeded(2)
    found = biased(lambda rows, labels: torch.randint(2, (60,), generator=chance))
    assert abs(found.same) < 3 * found.standard_error[0]
    assert abs(found.different - 1) < 3 * found.standard_error[1]


def test_who_tracks_legality_alone_is_told_by_the_split():
    """Six states, of which pairs have the same next tokens: these are never told apart, the others are."""
    legality = STATES // 2
    found = biased(by(legality), alike=legality)
    assert found.different_alike == 0.0
    assert abs(found.different_unlike - 1) < 0.1
    assert found.same == 1.0
    assert math.isnan(biased(by(STATES), sets=2).different_alike)


def test_a_learner_must_answer_for_every_input():
    with pytest.raises(ValueError, match="0 or 1 for each of 60"):
        probe(lambda rows, labels: torch.zeros(3), STATES, sets=1, generator=seeded())


@pytest.mark.parametrize(
    "system", [Automaton(preset="lattice"), Automaton(preset="grid_city", rows=3, columns=3, seed=3)]
)
def test_the_truth_teaches_the_minimal_automaton(system):
    found = learn(system.next_token, len(system.alphabet), walks=50, generator=seeded())
    true = minimise(system.transitions(), system.initial)
    assert found.finished
    assert torch.equal(minimise(found.transitions, 0).transitions, true.transitions)
    assert len(found.transitions) == len(true.transitions) == len(found.access)
    same = correspondence(found.transitions, true.transitions)
    assert same.counterexample is None
    assert not same.merged
    assert not same.split
    assert {kind for *_, kind in same.edges} == {"right"}


@pytest.mark.parametrize(("states", "kind"), [(4, "missing"), (6, "wrong")])
def test_a_belief_in_too_few_or_too_many_positions(states, kind):
    """Who believes in four refuses the fourth step to the right, who believes in six takes a fifth."""
    system = Automaton(preset="lattice")
    model = BelievedAutomaton(system, belief="states", states=states)
    found = learn(model.next_token, 3, walks=50, generator=seeded())
    beside = correspondence(found.transitions, minimise(system.transitions(), 0).transitions)
    assert len(found.transitions) == states
    assert beside.counterexample == (2,) * min(states, 5)
    assert {kind for *_, kind in beside.edges} == {"right", kind}
    assert [edge for edge in beside.edges if edge[3] == "missing"] == [(3, 3, 2, "missing")] * (states == 4)


def test_elapsed_time_is_a_split():
    """The true state with "0" refused at odd times is ten states, two for each true one."""
    system = Automaton(preset="lattice")
    found = learn(BelievedAutomaton(system, belief="odd_refusal").next_token, 3, generator=seeded())
    beside = correspondence(found.transitions, minimise(system.transitions(), 0).transitions)
    assert len(found.transitions) == 10
    assert set(beside.split) == set(range(5))
    assert all(len(states) == 2 for states in beside.split.values())
    assert not beside.merged
    assert beside.counterexample == (1, 1)  # stay, and stay again


def test_knowing_nothing_is_one_state_that_stands_for_all():
    system = Automaton(preset="lattice")
    found = learn(BelievedAutomaton(system, belief="uniform").next_token, 3, generator=seeded())
    assert found.transitions.tolist() == [[0, 0, 0]]
    beside = correspondence(found.transitions, minimise(system.transitions(), 0).transitions)
    assert beside.merged == {0: (0, 1, 2, 3, 4)}
    assert beside.counterexample == (0,)


def test_an_automaton_that_is_too_large_says_that_it_is_not_finished():
    found = learn(Automaton(preset="lattice", states=9).next_token, 3, most=4, generator=seeded())
    assert not found.finished
    assert len(found.transitions) == 4
    assert found.transitions.tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, OPEN]]
    beside = correspondence(
        found.transitions, minimise(Automaton(preset="lattice", states=9).transitions(), 0).transitions
    )
    assert {kind for *_, kind in beside.edges} == {"right"}


def process(states: int, actions: int = 2, seed: int = 0):
    """Rewards ``[state, action]`` and laws ``[state, action, state]`` at random."""
    rewards = torch.rand(states, actions, generator=seeded(seed), dtype=torch.float64)
    laws = torch.rand(states, actions, states, generator=seeded(seed + 1), dtype=torch.float64)
    return rewards, laws / laws.sum(2, keepdim=True)


def test_duplicate_states_are_at_no_distance_and_those_never_left_at_that_of_their_rewards():
    rewards, laws = process(4)
    twice = torch.cat([laws, laws], 2) / 2
    distance = bisimulation(torch.cat([rewards] * 2), torch.cat([twice] * 2), 0.8)
    assert float(distance[torch.arange(4), torch.arange(4) + 4].max()) < 1e-9
    torch.testing.assert_close(distance[:4, :4], bisimulation(rewards, laws, 0.8), rtol=0, atol=1e-8)
    stay = torch.eye(2, dtype=torch.float64)[:, None]
    for discount in (0.0, 0.5, 0.9):
        distance = bisimulation(torch.tensor([[0.2], [1.5]]).double(), stay, discount)
        assert float(distance[0, 1]) == pytest.approx(1.3, abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_what_can_be_gained_differs_by_no_more_than_the_distance_of_bisimulation(seed):
    (rewards, laws), discount = process(5, seed=seed), 0.7
    value = torch.zeros(5, dtype=torch.float64)
    for _ in range(200):
        value = (rewards + discount * laws @ value).amax(1)
    gained = (1 - discount) * (value[:, None] - value).abs()
    distance = bisimulation(rewards, laws, discount)
    assert bool((gained <= distance + 1e-9).all())
    assert float(gained.max()) > 0.1 * float(distance.max())
    # A metric: symmetric, 0 at home, and no way round is shorter.
    assert torch.equal(distance, distance.T)
    assert bool((distance[:, None] <= distance[:, :, None] + distance[None] + 1e-9).all())


def test_states_of_one_language_are_those_that_bisimulation_does_not_part():
    """The reward says which token is legal; an illegal one ends in a state where none is."""
    table = torch.tensor([[1, 2], [0, -1], [0, -1], [3, -1]])
    legal = torch.cat([table >= 0, torch.zeros(1, 2, dtype=torch.bool)])
    laws = torch.nn.functional.one_hot(torch.where(table < 0, 4, table), 5)
    laws = torch.cat([laws, torch.tensor([0, 0, 0, 0, 1]).expand(1, 2, 5)])
    distance, classes = bisimulation(legal, laws, 0.5), minimal_classes(table)
    assert torch.equal(distance[:4, :4] < 1e-8, classes[:, None] == classes)


def test_what_is_no_decision_process_is_refused():
    rewards, laws = process(3)
    for call, message in (
        (lambda: bisimulation(rewards[0], laws, 0.5), "expected \\[state, action\\]"),
        (lambda: bisimulation(rewards, 2 * laws, 0.5), "sums to 1"),
        (lambda: bisimulation(rewards, laws, 1.0), "below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
