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
