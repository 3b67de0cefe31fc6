"""Minimal automata, and the sizes of boundaries and interiors, against what enumerates them."""

from __future__ import annotations

import pytest
import torch

from worldsim_plugins.metrics.minimisation import minimal_classes, minimise
from worldsim_plugins.metrics.myhill_nerode import (
    automaton_tree,
    boundary_sizes,
    boundary_words,
    first_rejected,
    interior_sizes,
    language,
    nerode_classes,
)
from worldsim_plugins.systems.automaton import Automaton


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(count: int, states: int, tokens: int) -> list[torch.Tensor]:
    rng = generator()
    return [torch.randint(-1, states, (states, tokens), generator=rng) for _ in range(count)]


def same_partition(one: torch.Tensor, other: torch.Tensor) -> bool:
    return len(set(zip(one.tolist(), other.tolist()))) == len(one.unique()) == len(other.unique())


@pytest.mark.parametrize("states", [1, 2, 5, 12])
def test_hopcroft_and_moore_find_the_same_classes(states):
    for table in tables(40, states, 2):
        assert same_partition(minimal_classes(table), nerode_classes(table, depth=states))


def test_a_long_chain_needs_no_round_for_each_state():
    """State i has one word of each length up to n - 1 - i, so that all n are different, and Moore's rounds
    would be n as well."""
    n = 3000
    chain = (torch.arange(n) + 1)[:, None]
    chain[-1] = -1
    assert minimal_classes(chain).tolist() == list(range(n))


def test_copies_of_an_automaton_are_merged_and_its_unreachable_states_left_out():
    table = Automaton(preset="grid_city", rows=4, columns=4).transitions()
    size, rng = len(table), generator(1)
    # Three copies whose edges go to a copy drawn at random, in an order drawn at random, and a lost state.
    copies = torch.cat([table] * 3)
    copies = torch.where(copies < 0, -1, copies + size * torch.randint(3, copies.shape, generator=rng))
    order = torch.randperm(3 * size, generator=rng)
    place = order.argsort()
    shuffled = torch.where(copies < 0, -1, place[copies.clamp(min=0)])[order]
    lost = torch.cat([shuffled, torch.tensor([[0, -1, -1, -1]])])
    found, plain = minimise(lost, int(place[0])), minimise(table, 0)
    assert torch.equal(found.transitions, plain.transitions)
    assert found.initial == 0
    assert len(plain.transitions) == size
    assert torch.equal(found.classes[place[:size]], plain.classes)
    assert found.classes[-1] == -1


def test_a_minimal_automaton_has_the_same_language():
    for table in tables(20, 6, 3):
        found = minimise(table, 0)
        one, two = (
            language(automaton_tree(each, torch.tensor([0]), 5)) for each in (table, found.transitions)
        )
        assert torch.equal(one, two)
        assert torch.equal(minimise(found.transitions, 0).transitions, found.transitions)


@pytest.mark.parametrize("table", tables(6, 5, 3))
def test_boundaries_and_interiors_by_length_are_those_enumerated(table):
    tree = automaton_tree(table, torch.arange(5), 4)
    valid = language(tree)
    minimal = first_rejected(valid, 3)
    start = 0
    for k, (boundary, interior) in enumerate(zip(boundary_sizes(table, 4), interior_sizes(table, 4)), 1):
        words = slice(start, start := start + 3**k)
        part = valid[:, words].double()
        assert torch.equal(interior, part @ part.T)
        assert torch.equal(boundary, part @ minimal[:, words].double().T)


def test_the_words_of_a_boundary_separate_and_none_of_their_prefixes_does():
    table = Automaton(preset="lattice").transitions()
    first, second = torch.tensor([0, 1, 4]), torch.tensor([3, 1, 2])
    owner, found = boundary_words(table, first, second, 5)
    sizes = boundary_sizes(table, 5).sum(0)[first, second]
    assert torch.equal(torch.bincount(owner, minlength=3).double(), sizes)
    for pair, word in zip(owner, found):
        one, two = int(first[pair]), int(second[pair])
        letters = [a for a in word.tolist() if a >= 0]
        for token in letters[:-1]:
            one, two = int(table[one, token]), int(table[two, token])
            assert one >= 0
            assert two >= 0
        assert table[one, letters[-1]] >= 0
        assert table[two, letters[-1]] < 0
    with pytest.raises(ValueError, match="shorter boundary"):
        boundary_words(table, first, second, 5, most=10)


@pytest.mark.parametrize(("people", "states", "statements"), [(2, 3, 6), (3, 19, 21), (4, 221, 52)])
def test_every_state_of_the_seating_puzzle_is_a_class_told_by_one_statement(people, states, statements):
    system = Automaton(preset="seating", people=people)
    table = system.transitions()
    assert len(system.alphabet) == statements
    assert len(table) == states
    assert int(minimal_classes(table).max()) + 1 == states
    assert int(nerode_classes(table, 1).max()) + 1 == states


def test_routes_end_at_their_goal_alone():
    system = Automaton(preset="routes", rows=3, columns=3, closed=0.2, seed=1)
    city = Automaton(preset="grid_city", rows=3, columns=3, closed=0.2, seed=1)
    table, end = system.transitions(), system.alphabet.index("end")
    assert len(table) == 1 + 9 + 81 + 1
    assert system.alphabet[:5] == (*city.alphabet, "end")
    ends = [name for name, legal in zip(system.state_names, table[:, end] >= 0) if legal]
    assert ends == [f"{r},{c} to {r},{c}" for r in range(3) for c in range(3)] + ["done"]
    edges = int((city.transitions() >= 0).sum())
    assert int((table[:, :4] >= 0).sum()) == 9 * edges
    assert int(minimal_classes(table).max()) + 1 == len(table)
