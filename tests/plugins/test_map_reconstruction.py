"""Maps drawn from walks whose map is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.metrics.map_reconstruction import MapReconstruction
from worldsim_plugins.metrics.reconstructed_map import ReconstructedMap, Streets
from worldsim_plugins.systems.automaton import Automaton

CITY = Automaton(preset="grid_city", rows=4, columns=4, closed=0.2, one_way=0.2, seed=2)
N, E, S, W = range(4)


def walks(system, n=100, length=40, seed=0):
    generator, times = torch.Generator().manual_seed(seed), torch.arange(length, dtype=torch.float64)
    return system.simulate(system.sample(n, generator), times, None, generator)


def without_street(system, here, token):
    """The city in which the street that leads by ``token`` from ``here`` is open the other way alone."""
    table = {
        name: {a: system.state_names[there] for a, there in zip(system.alphabet, row) if there >= 0}
        for name, row in zip(system.state_names, system.transitions().tolist())
    }
    there = table[here].pop(token)
    return Automaton(transitions=table, initial=system.state_names[system.initial]), there


def test_true_walks_draw_the_true_map():
    truth = walks(CITY)
    found = MapReconstruction(CITY).score(truth, walks(CITY, seed=1).replace(states=truth.states), None)
    for name in ("walks_failed", "edges_new", "error_rate", "edges_new_control"):
        assert found[name].value == 0
    edges = int((CITY.transitions() >= 0).sum())
    assert (found["edges_used"].value, found["edges_unused"].value) == (edges, 0)
    assert "no way had to be added" in found["new_hops"].reason
    assert found["map_true"].value.shape == found["map_right"].value.shape == (edges, 2)
    assert found["map_states"].coords["true_state"] == list(CITY.state_names)


def test_walks_against_a_one_way_street_draw_that_way_and_no_other():
    """Who believes that a street is open both ways adds the way that there is not, to where the street leads.
    What the first of them goes on to do says where that is, so that one comes first who goes on for long."""
    believed = Automaton(preset="grid_city", rows=4, columns=4, closed=0.0, one_way=0.0)
    world, there = without_street(believed, "1,1", "E")
    relabel = torch.tensor([world.alphabet.index(a) for a in believed.alphabet])
    truth, pool = walks(world, n=200), walks(believed, n=600)
    (first, _), (pool_first, at) = (
        (each.observables["automaton_state"][:, 0, 0], each.observables["automaton_state"][:, 0])
        for each in (truth, pool)
    )
    wrong = (at[:, :-1] == believed.state_names.index("1,1")) & (pool.states[:, 0, 1:] == E)
    pool_order = wrong.long().argmax(1).masked_fill(~wrong.any(1), 99).argsort(stable=True)
    takes = {state: iter(pool_order[pool_first[pool_order] == state].tolist()) for state in {*first.tolist()}}
    guess = pool.rows(torch.tensor([next(takes[state]) for state in first.tolist()]))
    guess = guess.replace(states=relabel[guess.states])
    found = MapReconstruction(world).score(truth, guess, None)
    names = found["map_states"].coords["true_state"]
    new = found["map_wrong"]
    drawn = [(names[int(a)], token, names[int(b)]) for (a, b), token in zip(new.value, new.coords["edge"])]
    assert drawn == [("1,1", "E", there)]
    assert (found["edges_new"].value, found["new_hops"].value, found["walks_failed"].value) == (1, 1, 0)
    assert found["error_rate"].value > 0


RING = torch.tensor([[1, -1], [2, -1], [3, 5], [4, -1], [0, -1], [0, 3]])
"""Five crossings in a ring with one token round it, and a sixth beside it: 2 -1-> 5, 5 -0-> 0, 5 -1-> 3."""


def test_a_new_way_goes_where_most_of_the_rest_can_be_walked():
    streets = Streets(RING, [0, 1])
    assert streets.crossing == [0, 1, 2, 3, 4, 5]
    found = ReconstructedMap(streets, reach=5, degree=2, end=None)
    found.add(0, [1, 1, 0, 0])  # from 0: illegal, then a 1 that only 2 and 5 know
    assert found.new == {(0, 1): 5}  # two hops to 2 and one to 5, both can walk 1 0 0
    assert (found.failed, found.steps, found.illegal) == (0, 4, 1)
    assert found.used == {(5, 1), (3, 0), (4, 0)}
    found.add(0, [1, 1])  # along the new way, which is no truer now
    assert (len(found.new), found.illegal) == (1, 2)
    near = ReconstructedMap(streets, reach=1, degree=2, end=None)
    near.add(4, [1, 1, 0, 0])  # neighbours of 4 are 3 and 0, which know no 1, so the second step adds too
    assert set(near.new) == {(4, 1), (near.new[4, 1], 1)}


def test_a_walk_is_given_up_where_nothing_may_be_added():
    streets = Streets(RING, [0, 1])
    full = ReconstructedMap(streets, reach=5, degree=1, end=None)
    full.add(0, [0, 1, 0])
    assert (full.failed, full.new, full.used, full.illegal, full.steps) == (1, {}, {(0, 0)}, 1, 2)
    added = ReconstructedMap(streets, reach=5, degree=2, end=None)
    added.add(0, [0, 1, 0])
    assert (added.failed, len(added.new)) == (0, 1)


ROUTES = Automaton(preset="routes", rows=3, columns=3, closed=0.0, one_way=0.0)


def route(*tokens):
    return [ROUTES.alphabet.index(token) for token in tokens]


def test_routes_share_one_map_wherever_they_go():
    metric = MapReconstruction(ROUTES)
    assert len(metric.streets.ways) == 9
    assert sorted(metric.names) == sorted(f"{r},{c}" for r in range(3) for c in range(3))
    start = ROUTES.initial

    def drawn(*tokens):
        found = metric.drawn([start], [route(*tokens)])
        return found.failed, len(found.new), len(found.used)

    assert drawn("@0,0", "@0,2", "E", "E", "end", "end") == (0, 0, 2)
    assert drawn("@0,0", "@0,2", "E", "end") == (1, 0, 1)  # not there yet
    assert drawn("@0,0", "@0,2", "N", "end") == (1, 1, 0)  # no way is added for an end
    assert drawn("@0,0", "E") == (1, 0, 0)  # it has not said where to
    assert drawn("@0,0", "@0,2", "E", "@0,1") == (1, 0, 1)  # a place is no move


def test_a_route_that_flies_to_its_goal_may_end_there():
    metric = MapReconstruction(ROUTES, reach=4)
    found = metric.drawn(
        [ROUTES.initial], [route("@0,0", "@0,2", "N", "E", "E", "S", "S", "W", "W", "N", "N")]
    )
    here = metric.names.index("0,0")
    assert (here, N) in {(v, ROUTES.alphabet[a] == "N" and N) for v, a in found.new}
    assert found.failed == 0


def test_the_control_is_true_walks_that_are_told_wrongly():
    """At the model's own rate; a corrupted step leads on to where the true one does."""
    truth = walks(CITY, n=60)
    generator = torch.Generator().manual_seed(4)
    lost = torch.randint(4, truth.states.shape, generator=generator)
    found = MapReconstruction(CITY).score(truth, truth.replace(states=lost), None)
    assert found["error_rate"].value > 0.3
    assert found["edges_new"].value > 10
    metric = MapReconstruction(CITY)
    (start, *_), tokens = (
        truth.observables["automaton_state"][:, 0, 0].tolist(),
        truth.states[0, 0, 1:].tolist(),
    )
    assert metric.corrupted(start, tokens, [None] * 39) == tokens
    wrong = metric.corrupted(start, tokens, [0.5] * 39)
    state = start
    for said, token in zip(wrong, tokens):
        row = CITY.transitions()[state]
        assert row[said] < 0 or (said == token and (row >= 0).all())
        state = int(row[token])
    control = metric.copies([start] * 60, truth.states[:, 0, 1:], 0.02)
    assert len(control) == 20
    rates = [copy.illegal / copy.steps for copy in control]
    assert 0.01 < np.mean(rates) < 0.1
    calm = metric.copies([start] * 60, truth.states[:, 0, 1:], 0.0)
    assert {(len(copy.new), copy.failed) for copy in calm} == {(0, 0)}


def test_what_cannot_be_drawn_says_so():
    with pytest.raises(ValueError, match="needs an automaton"):
        MapReconstruction(object())
    with pytest.raises(ValueError, match="no token up; there are N, E, S, W"):
        MapReconstruction(CITY, moves=["up"])
    truth = walks(CITY, n=4)
    with pytest.raises(NotMeasurable, match="does not carry its states"):
        MapReconstruction(CITY).score(truth.replace(observables={}), truth, None)
    with pytest.raises(NotMeasurable, match="longer horizon"):
        MapReconstruction(CITY).score(truth.span(0, 1), truth.span(0, 1), None)
    assert not math.isnan(MapReconstruction(CITY).score(truth, truth, None)["edges_new"].value)
