"""The walk on a finite automaton, and the exact facts about languages that coherence rests on."""

from __future__ import annotations

import pytest
import torch

from worldsim.baselines import Truth
from worldsim.protocols import HasAutomaton, HasNextToken
from worldsim_plugins.metrics.myhill_nerode import (
    all_prefixes,
    boundary_sizes,
    count_words,
    nerode_classes,
    sampled_prefixes,
    step_laws,
    suffix_tree,
)
from worldsim_plugins.systems.automaton import Automaton

LIGHT = {
    "red": {"wait": "red", "go": "green"},
    "green": {"wait": "green", "warn": "amber"},
    "amber": {"stop": "red"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64)


def walk(system: Automaton, n: int = 50, time: int = 30):
    return system.simulate(system.sample(n, generator()), steps(time), None, generator())


@pytest.mark.parametrize(
    "system", [Automaton(preset="lattice"), Automaton(preset="grid_city"), Automaton(transitions=LIGHT)]
)
def test_a_walk_obeys_its_table(system):
    assert isinstance(system, HasAutomaton)
    assert isinstance(system, HasNextToken)
    truth = walk(system)
    tokens, states = truth.states[:, 0], truth.observables["automaton_state"][:, 0]
    assert truth.states.shape == (50, 1, 30)
    assert truth.states.dtype == torch.int64
    before = torch.cat([torch.full((50, 1), system.initial), states[:, :-1]], 1)
    assert torch.equal(system.transitions()[before, tokens], states)
    assert (states >= 0).all()


def test_every_legal_token_is_as_likely():
    system = Automaton(preset="lattice")
    tokens = walk(system, 3000, 1).states[:, 0, 0]
    assert system.alphabet == ("L", "0", "R")
    assert not (tokens == 0).any()
    assert abs((tokens == 1).double().mean() - 0.5) < 0.03
    law = system.next_token(torch.tensor([[2], [0]]))
    torch.testing.assert_close(law, torch.tensor([[1 / 3] * 3, [0.0] * 3], dtype=torch.float64))
    torch.testing.assert_close(
        system.next_token(torch.zeros(1, 0, dtype=torch.int64)), torch.tensor([[0, 0.5, 0.5]]).double()
    )


def test_a_start_fixes_the_walk_whatever_times_are_asked_for():
    system = Automaton(preset="grid_city")
    start = system.sample(7, generator(3))
    long = system.simulate(start, steps(40), None, generator(1))
    short = system.simulate(start, steps(9), None, generator(2))
    late = system.simulate(start, steps(40)[[4, 20]], None, generator(2))
    assert torch.equal(long.states[:, :, :9], short.states)
    assert torch.equal(long.states[:, :, [4, 20]], late.states)


def test_the_city_is_strongly_connected_and_depends_on_its_seed():
    tables = [Automaton(preset="grid_city", rows=4, columns=6, seed=seed).transitions() for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    edges = (tables[0] >= 0).sum()
    assert edges < 2 * (4 * 5 + 3 * 6)
    reach = torch.eye(24, dtype=torch.float64)
    source, token = torch.nonzero(tables[0] >= 0, as_tuple=True)
    step = torch.eye(24, dtype=torch.float64)
    step[source, tables[0][source, token]] = 1
    for _ in range(24):
        reach = (reach @ step).clamp(max=1)
    assert (reach > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"preset": "lattice", "transitions": LIGHT}, "exactly one"),
        ({"transitions": {}}, "empty"),
        ({"transitions": {"a": {"x": "b"}}}, "not a state"),
        ({"transitions": {"a": {"x": "b"}, "b": {}}}, "dead"),
        ({"transitions": {"a": {"x": "a"}, "b": {"x": "a"}}}, "unreachable"),
        ({"transitions": LIGHT, "initial": "blue"}, "'blue' is not a state"),
    ],
)
def test_a_wrong_table_is_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        Automaton(**arguments)


@pytest.mark.parametrize("times", [[0.0, 0.5], [1.0, 1.0], [-1.0, 0.0], []])
def test_times_must_be_whole_steps(times):
    system = Automaton(preset="lattice")
    with pytest.raises(ValueError, match="whole numbers"):
        system.simulate(
            system.sample(2, generator()), torch.tensor(times, dtype=torch.float64), None, generator()
        )


def test_nerode_classes_of_the_lattice_by_depth():
    def counts(states, depths):
        table = Automaton(preset="lattice", states=states).transitions()
        return [int(nerode_classes(table, depth).max()) + 1 for depth in depths]

    assert counts(5, range(4)) == [1, 3, 5, 5]
    assert counts(9, range(6)) == [1, 3, 5, 7, 9, 9]
    assert counts(9, [None]) == [9]


def test_refinement_merges_states_with_one_language():
    table = torch.tensor([[1, 2], [0, -1], [0, -1]])
    assert nerode_classes(table).unique().numel() == 2
    assert nerode_classes(table)[1] == nerode_classes(table)[2]


def test_boundary_sizes_of_the_lattice():
    expected = [
        [0, 5, 12, 15, 5],
        [17, 0, 13, 20, 16],
        [17, 20, 0, 20, 17],
        [16, 20, 13, 0, 17],
        [5, 15, 12, 5, 0],
    ]
    assert boundary_sizes(Automaton(preset="lattice").transitions(), 5).sum(0).tolist() == expected


def test_step_laws_are_the_walk_of_the_automaton():
    """A walk with the golden mean's support: the masses of its words add up, at every length."""
    system = Automaton(transitions={"a": {"0": "a", "1": "b"}, "b": {"0": "a"}})
    laws = step_laws(suffix_tree(system.next_token, torch.zeros(1, 0, dtype=torch.int64), 2, 3))
    torch.testing.assert_close(laws[0], torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(laws[1], torch.tensor([[0.25, 0.25, 0.5, 0.0, 0.0]], dtype=torch.float64))
    for law in laws:
        torch.testing.assert_close(law.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_sampled_prefixes_are_uniform_over_those_of_their_class():
    table = Automaton(preset="lattice").transitions()
    every, ends = all_prefixes(table, 0, 4)
    assert torch.equal(torch.bincount(ends).double(), count_words(table, 0, 4)[4])
    drawn, states = sampled_prefixes(table, 0, 4, torch.arange(5), 2000, generator())
    here = torch.zeros(len(drawn), dtype=torch.int64)
    for token in drawn.T:
        here = table[here, token]
        assert (here >= 0).all()
    assert torch.equal(here, states)
    assert torch.equal(torch.bincount(states), torch.full((5,), 2000))
    code = 3 ** torch.arange(3, -1, -1)
    known, counts = (drawn[states == 1] @ code).unique(return_counts=True)
    assert torch.equal(known, (every[ends == 1] @ code).sort().values)
    expected = 2000 / len(known)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_othello_on_four_squares_a_side():
    """Four first moves alike by symmetry; games of 1 to 5 moves by listing them on a board of characters."""
    system = Automaton(preset="othello")
    table = system.transitions()
    assert system.alphabet[-2:] == ("pass", "end")
    assert len(table) == 58_533
    counts = torch.zeros(len(table), dtype=torch.int64)
    counts[system.initial] = 1
    games = []
    for _ in range(5):
        after = torch.zeros_like(counts)
        for way in table[:, :-2].T:  # without a pass
            after.index_add_(0, way[way >= 0], counts[way >= 0])
        counts = after
        games.append(int(counts.sum()))
    assert games == [len(words) for words in othello_by_hand(5)]


def othello_by_hand(length):
    """Words of 1 .. ``length`` moves, the board a dictionary of colours."""
    start = {(1, 2): "b", (2, 1): "b", (1, 1): "w", (2, 2): "w"}
    games = [((), start, "b")]
    for _ in range(length):
        longer = []
        for word, board, colour in games:
            other = "w" if colour == "b" else "b"
            for row in range(4):
                for column in range(4):
                    taken = [] if (row, column) in board else turned(board, row, column, colour, other)
                    if taken:
                        after = {**board, (row, column): colour, **dict.fromkeys(taken, colour)}
                        longer.append(((*word, (row, column)), after, other))
        games = longer
        yield games


def turned(board, row, column, mine, other):
    found = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            run, at = [], (row + down, column + right)
            while board.get(at) == other and (down or right):
                run.append(at)
                at = at[0] + down, at[1] + right
            found += run if board.get(at) == mine else []
    return found


def test_every_third_hidden_bit_is_the_exclusive_or_of_the_two_before():
    system = Automaton(preset="hidden_xor")
    times = torch.arange(12, dtype=torch.float64)
    bits = system.simulate(system.sample(200, generator()), times, None, generator()).states[:, 0]
    first, second, third = bits.reshape(200, 4, 3).unbind(2)
    assert torch.equal(third, first ^ second)
    assert 0.4 < float(first.double().mean()) < 0.6


@pytest.mark.parametrize("policy", ["shortest_path", "shortest_paths"])
def test_a_policy_goes_the_shortest_way_and_noise_strays(policy):
    city = {"preset": "routes", "rows": 4, "columns": 4, "seed": 1}
    system = Automaton(**city, policy=policy)
    times = torch.arange(20, dtype=torch.float64)
    walks = system.simulate(system.sample(64, generator()), times, None, generator())
    end = system.alphabet.index("end")
    assert bool((walks.states == end).any(2).all())
    law = system.next_token(walks.states[:, 0, :2])
    assert (law > 0).sum(1).max() == (1 if policy == "shortest_path" else 2)
    # By breadth-first search over the table: no route takes longer.
    steps = (walks.states == end).int().argmax(2)[:, 0] - 2
    table, start = system.transitions(), walks.observables["automaton_state"][:, 0, 1]
    legal_end = table[:, end] >= 0
    for route, needed in zip(start.tolist(), steps.tolist()):
        frontier, distance = {route}, 0
        while not any(bool(legal_end[state]) for state in frontier):
            frontier = {int(t) for state in frontier for t in table[state] if t >= 0}
            distance += 1
        assert distance == needed
    noisy = Automaton(**city, policy=policy, noise=0.3).next_token(walks.states[:, 0, :2])
    uniform = Automaton(**city).next_token(walks.states[:, 0, :2])
    torch.testing.assert_close(noisy, 0.7 * law + 0.3 * uniform)
    with pytest.raises(ValueError, match="only preset: routes has one"):
        Automaton(preset="lattice", policy=policy)


def test_the_baseline_truth_follows_the_policy():
    system = Automaton(preset="routes", rows=3, columns=3, policy="shortest_path")
    walks = system.simulate(system.sample(8, generator()), torch.arange(9.0).double(), None, generator())
    law = Truth(system, walks).next_token(walks.states[:, 0, :3])
    assert torch.equal(law, system.next_token(walks.states[:, 0, :3]))
