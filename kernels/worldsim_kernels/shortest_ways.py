"""Shortest ways through a finite automaton."""

from __future__ import annotations

import torch
from torch import Tensor


def shortest_ways(transitions: Tensor, goals: Tensor) -> Tensor:
    """The tokens that bring a goal nearer, ``[state, token]`` bool; none at a goal, or where none is reached.

    transitions  ``[state, token]`` int64, -1 where a token is illegal
    goals        ``[state]`` bool

    Bellman's equation d(q) = 1 + min_a d(q a), d = 0 at the goals, by relaxation (Bellman 1958).
    """
    legal = transitions >= 0
    distance = torch.where(goals, 0.0, torch.inf)
    while True:
        after = torch.where(legal, distance[transitions.clamp(min=0)], torch.inf)
        relaxed = torch.minimum(distance, after.amin(1) + 1)
        if torch.equal(relaxed, distance):
            return legal & (after < distance[:, None])
        distance = relaxed


def ways_to_end(transitions: Tensor, end: int, first: bool) -> Tensor:
    """A policy that goes the shortest way to where the token ``end`` is legal, and then says it,
    ``[state, token]`` bool: every token that brings it nearer, or the ``first`` of them alone. Tokens after
    ``end`` name places to go from and to, and all that are legal are taken."""
    legal = transitions >= 0
    chosen = shortest_ways(transitions, legal[:, end])
    chosen[legal[:, end], end] = True
    if first:
        chosen &= chosen.cumsum(1) == 1
    places = legal[:, end + 1 :].any(1)
    chosen[places] = legal[places]
    return chosen
