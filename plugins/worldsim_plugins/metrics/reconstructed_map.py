"""A map drawn from walks: the true crossings, the true ways that walks take, and ways that there are not.

After Vafa, Chen, Rambachan, Kleinberg and Mullainathan (2024): a walk is followed along true ways; where
there is none for a step, a way with that step's name is added, to the crossing from which most of what
follows can be walked, among those that are near. Distances are in ways along true streets, since crossings
need not have places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from worldsim_plugins.metrics.minimisation import minimal_classes

UNKNOWN = -1


class Streets:
    """The crossings of an automaton ``transitions [state, token]``, and the ``moves`` between them.

    States from which the same moves are possible, and lead to the like, are one crossing, whatever else is
    possible there: of the routes through a city, wherever they go. ``crossing [state]`` is -1 for states that
    no move leads from or to; ``ways [crossing][token]`` are -1 where there is none.
    """

    def __init__(self, transitions: Tensor, moves: Sequence[int]) -> None:
        kept = torch.full_like(transitions, UNKNOWN)
        kept[:, list(moves)] = transitions[:, list(moves)]
        classes, going = minimal_classes(kept), (kept >= 0).any(1)
        going[kept[kept >= 0]] = True
        number: dict[int, int] = {}
        for group in classes[going].tolist():
            number.setdefault(group, len(number))
        self.crossing = [number.get(group, UNKNOWN) for group in classes.tolist()]
        self.ways = [[UNKNOWN] * transitions.shape[1] for _ in number]
        for state, row in enumerate(kept.tolist()):
            for token, there in enumerate(row):
                if there >= 0:
                    self.ways[self.crossing[state]][token] = self.crossing[there]
        self.transitions, self.moves = transitions.tolist(), frozenset(moves)

    @property
    def edges(self) -> list[tuple[int, int, int]]:
        """(from, token, to)."""
        return [(v, a, u) for v, row in enumerate(self.ways) for a, u in enumerate(row) if u != UNKNOWN]

    def hops(self) -> np.ndarray:
        """Ways between each two crossings, whichever way they may be gone, ``[crossing, crossing]``."""
        joined = np.zeros((len(self.ways),) * 2)
        for here, _, there in self.edges:
            joined[here, there] = 1
        return np.asarray(shortest_path(joined, directed=False, unweighted=True))

    def goal(self, state: int, end: int | None) -> int | None:
        """The crossing at which ``end`` is legal for who is at ``state``, None where there is none."""
        seen, frontier = {state}, [state]
        while end is not None and frontier:
            here = frontier.pop()
            if self.transitions[here][end] >= 0:
                return self.crossing[here]
            fresh = {self.transitions[here][move] for move in self.moves} - seen - {UNKNOWN}
            seen |= fresh
            frontier += fresh
        return None


class ReconstructedMap:
    """What walks make of ``streets``: ``new`` ways {(from, token): to}, true ones ``used``, how many walks
    were ``failed``, and of all ``steps`` how many were ``illegal`` in truth.

    A new way leads at most ``reach`` hops far, from a crossing that has fewer than ``degree`` ways out.
    """

    def __init__(self, streets: Streets, reach: int, degree: int, end: int | None) -> None:
        self.streets, self.degree, self.end = streets, degree, end
        hops = streets.hops()
        self.near = [
            sorted(
                (int(u) for u in np.nonzero((row > 0) & (row <= reach))[0]),
                key=lambda u, row=row: (row[u], u),
            )
            for row in hops
        ]
        self.hops = hops
        self.ways = [list(row) for row in streets.ways]
        self.new: dict[tuple[int, int], int] = {}
        self.used: set[tuple[int, int]] = set()
        self.failed = self.steps = self.illegal = 0

    def add(self, state: int, tokens: Sequence[int]) -> None:
        """Follow one walk of ``tokens`` from a true ``state``."""
        streets, here, goal = self.streets, self.streets.crossing[state], None
        for at, token in enumerate(tokens):
            self.steps += 1
            if token not in streets.moves:
                after = streets.transitions[state][token] if state != UNKNOWN else UNKNOWN
                if token == self.end and (after >= 0 or (state == UNKNOWN and here == goal)):
                    return
                if after < 0:
                    self._give_up()
                    return
                state, here = after, streets.crossing[after]
                continue
            if goal is None and state != UNKNOWN:
                goal = streets.goal(state, self.end)
            if here == UNKNOWN or (self.ways[here][token] == UNKNOWN and not self._build(here, tokens[at:])):
                self._give_up()
                return
            if (here, token) in self.new:
                self.illegal, state = self.illegal + 1, UNKNOWN
            else:
                self.used.add((here, token))
                state = streets.transitions[state][token] if state != UNKNOWN else UNKNOWN
            here = self.ways[here][token]

    def _give_up(self) -> None:
        self.failed, self.illegal = self.failed + 1, self.illegal + 1

    def _build(self, here: int, tokens: Sequence[int]) -> bool:
        """Add the way named ``tokens[0]`` from ``here`` that lets most of the others be walked."""
        if sum(there != UNKNOWN for there in self.ways[here]) >= self.degree or not self.near[here]:
            return False
        # The nearest of those that let as many be walked: max keeps the first.
        there = max(self.near[here], key=lambda u: self._walkable(u, tokens[1:]))
        self.ways[here][tokens[0]] = self.new[here, tokens[0]] = there
        return True

    def _walkable(self, here: int, tokens: Sequence[int]) -> int:
        for count, token in enumerate(tokens):
            here = self.ways[here][token]
            if here == UNKNOWN:
                return count
        return len(tokens)
