"""Pairs of prefixes to ask a model over tokens about: of one state, and of two, of one length or of two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim import NotMeasurable
from worldsim_plugins.metrics.myhill_nerode import Backwards, count_words, prefixes_to

ABSENT = -2
"""Stands before the first token of a prefix that is shorter than others of its table."""


@dataclass(frozen=True)
class Trials:
    """Pairs of prefixes: their two ``states`` ``[n]`` and ``prefixes`` ``[n, longest]``, which end at the
    right and have ABSENT before them."""

    states: tuple[Tensor, Tensor]
    prefixes: tuple[Tensor, Tensor]

    def turned(self) -> Trials:
        return Trials(self.states[::-1], self.prefixes[::-1])


def prefix_trials(
    table: Tensor, lengths: range, n: int, mixed: bool, rng: torch.Generator
) -> tuple[Trials, Trials] | None:
    """``n`` pairs of prefixes of one state of the minimal ``table`` and as many of two; where ``mixed`` the
    second is of another length (None where no state has prefixes of two lengths).

    Raises NotMeasurable where no length has two prefixes of one state.
    """
    counts = count_words(table, 0, lengths[-1])
    offered = [
        (one, two)
        for one in lengths
        for two in (lengths if mixed else [one])
        if (one != two) == mixed and _states(counts, one, two).any()
    ]
    if not offered and not mixed:
        raise NotMeasurable("no state has two prefixes of one of these lengths; change prefix_lengths")
    if not offered:
        return None
    drawn = torch.randint(len(offered), (n,), generator=rng)
    times = torch.bincount(drawn, minlength=len(offered)).tolist()
    back = Backwards.of(table)
    parts = [_drawn(back, counts, *pair, count, rng) for pair, count in zip(offered, times) if count]
    same, other = ([part[which] for part in parts] for which in (0, 1))
    return _joined(same, lengths[-1]), _joined(other, lengths[-1])


def _joined(parts: list[Trials], longest: int) -> Trials:
    def padded(side: int) -> Tensor:
        return torch.cat([pad(part.prefixes[side], longest) for part in parts])

    states = [torch.cat([part.states[side] for part in parts]) for side in (0, 1)]
    return Trials((states[0], states[1]), (padded(0), padded(1)))


def pad(prefixes: Tensor, longest: int) -> Tensor:
    """``prefixes [n, length]`` as ``[n, longest]``."""
    return torch.nn.functional.pad(prefixes, (longest - prefixes.shape[1], 0), value=ABSENT)


def by_length(prefixes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each length of ``prefixes [n, longest]``, and these without what is ABSENT."""
    absent = (prefixes == ABSENT).sum(1)
    for number in absent.unique().tolist():
        rows = (absent == number).nonzero()[:, 0]
        yield rows, prefixes[rows, number:]


def _drawn(
    back: Backwards, counts: Tensor, one: int, two: int, n: int, rng: torch.Generator
) -> tuple[Trials, Trials]:
    """``n`` pairs of prefixes of lengths ``one`` and ``two``, of one state and of two."""

    def to(states: Tensor, length: int) -> Tensor:
        return prefixes_to(back, counts[: length + 1], states, rng)

    chance = _states(counts, one, two).double()
    state = torch.multinomial(chance, n, replacement=True, generator=rng)
    first, second = to(state, one), to(state, two)
    while one == two and len(equal := (first == second).all(1).nonzero()[:, 0]):
        second[equal] = to(state[equal], two)
    left, right = _two_states(counts[one] > 0, counts[two] > 0, n, rng)
    return Trials((state, state), (first, second)), Trials((left, right), (to(left, one), to(right, two)))


def _two_states(one: Tensor, two: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` pairs of a state of ``one [state]`` bool and a different one of ``two``; none where there is
    none."""
    left = torch.multinomial(one.double(), n, replacement=True, generator=rng)
    others = two.nonzero()[:, 0]
    if len(others) == 1:
        left = left[left != others]
    right = others[torch.randint(len(others), (len(left),), generator=rng)]
    while len(equal := (left == right).nonzero()[:, 0]):
        right[equal] = others[torch.randint(len(others), (len(equal),), generator=rng)]
    return left, right


def _states(counts: Tensor, one: int, two: int) -> Tensor:
    """The states with distinct prefixes of both lengths."""
    enough = 2 if one == two else 1
    return (counts[one] >= enough) & (counts[two] >= enough)
