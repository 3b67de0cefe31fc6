"""The minimal automaton of a prefix-closed language, in O(m log n) for m transitions of n states.

Two states are equivalent when the same words are valid from both (Nerode 1958). Hopcroft's (1971) rule, to
go on with the smaller half of whatever is split, in the form of Valmari (2012) for automata with few
transitions: states and transitions are both kept as partitions whose blocks are split in place, and a block
of transitions with one token into one block of states splits the states they come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Partition:
    """Blocks of 0 .. n - 1 as slices of one array; marked members stand first in their block."""

    def __init__(self, labels: list[int]) -> None:
        count = max(labels, default=-1) + 1
        self.members = sorted(range(len(labels)), key=labels.__getitem__)
        self.place = [0] * len(labels)
        for at, member in enumerate(self.members):
            self.place[member] = at
        self.block = list(labels)
        sizes = [0] * count
        for label in labels:
            sizes[label] += 1
        self.start, self.end, at = [], [], 0
        for size in sizes:
            self.start.append(at)
            at += size
            self.end.append(at)
        self.marked = [0] * count
        self.touched: list[int] = []

    def of(self, block: int) -> list[int]:
        return self.members[self.start[block] : self.end[block]]

    def mark(self, member: int) -> None:
        """``member`` must not be marked already."""
        block = self.block[member]
        here, there = self.place[member], self.start[block] + self.marked[block]
        other = self.members[there]
        self.members[here], self.members[there] = other, member
        self.place[other], self.place[member] = here, there
        if not self.marked[block]:
            self.touched.append(block)
        self.marked[block] += 1

    def split(self) -> list[int]:
        """Part the marked from the unmarked in every touched block; the new blocks, the smaller parts."""
        made = []
        for block in self.touched:
            middle = self.start[block] + self.marked[block]
            self.marked[block] = 0
            if middle == self.end[block]:
                continue
            if middle - self.start[block] <= self.end[block] - middle:
                low, high, self.start[block] = self.start[block], middle, middle
            else:
                low, high, self.end[block] = middle, self.end[block], middle
            new = len(self.start)
            self.start.append(low)
            self.end.append(high)
            self.marked.append(0)
            for member in self.members[low:high]:
                self.block[member] = new
            made.append(new)
        self.touched = []
        return made


def coarsest(source: list[int], token: list[int], target: list[int], states: int) -> list[int]:
    """Block of each state in the coarsest partition in which states of one block have the same tokens, into
    the same blocks; the transitions are given by source, token and target."""
    blocks = Partition([0] * states)
    known: dict[int, int] = {}
    cords = Partition([known.setdefault(a, len(known)) for a in token])
    incoming: list[list[int]] = [[] for _ in range(states)]
    for edge, there in enumerate(target):
        incoming[there].append(edge)
    done, cord = 1, 0  # the first block of states need not be looked at: transitions start as parted by it
    while cord < len(cords.start):
        for edge in cords.of(cord):
            blocks.mark(source[edge])
        blocks.split()
        cord += 1
        while done < len(blocks.start):
            for state in blocks.of(done):
                for edge in incoming[state]:
                    cords.mark(edge)
            cords.split()
            done += 1
    return blocks.block


@dataclass(frozen=True)
class Minimal:
    """``transitions [class, token]`` with -1 where illegal, the ``initial`` class, and the class of every
    state of the automaton it was made from (-1 where unreachable)."""

    transitions: Tensor
    initial: int
    classes: Tensor


def minimal_classes(transitions: Tensor) -> Tensor:
    """Class of each state of ``transitions [state, token]``, ``[state]`` int64, numbered as they appear."""
    source, token = torch.nonzero(transitions >= 0, as_tuple=True)
    target = transitions[source, token]
    found = coarsest(source.tolist(), token.tolist(), target.tolist(), len(transitions))
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(block, len(number)) for block in found], dtype=torch.int64)


def minimise(transitions: Tensor, initial: int) -> Minimal:
    """The smallest automaton with the language of ``transitions [state, token]`` from ``initial``.

    Its classes are numbered as a breadth-first search from the initial one meets them, so that the automata
    of one language are equal entry by entry.
    """
    classes = minimal_classes(transitions)
    one = torch.full((int(classes.max()) + 1,), -1)
    one[classes.flip(0)] = torch.arange(len(classes)).flip(0)
    merged = transitions[one]
    table = torch.where(merged < 0, -1, classes[merged.clamp(min=0)]).tolist()
    order = {int(classes[initial]): 0}
    queue = list(order)
    for here in queue:
        for there in table[here]:
            if there >= 0 and there not in order:
                order[there] = len(order)
                queue.append(there)
    named = [[order[t] if t >= 0 else -1 for t in table[here]] for here in queue]
    new = torch.full((len(one),), -1)
    new[torch.tensor(queue)] = torch.arange(len(queue))
    reached = torch.zeros(len(transitions), dtype=torch.bool)
    reached[initial], frontier = True, [initial]
    rows = transitions.tolist()
    while frontier:
        for there in rows[frontier.pop()]:
            if there >= 0 and not reached[there]:
                reached[there] = True
                frontier.append(there)
    return Minimal(torch.tensor(named), 0, torch.where(reached, new[classes], -1))
