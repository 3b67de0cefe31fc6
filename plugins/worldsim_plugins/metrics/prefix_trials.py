"""Pairs of prefixes to ask a model over tokens about: of one state, and of two, of one length or of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim import NotMeasurable
from worldsim_plugins.metrics.myhill_nerode import count_words, prefixes_to


@dataclass(frozen=True)
class Trials:
    """Pairs of prefixes of two lengths: their ``states`` and ``prefixes``, ``[n]`` and ``[n, length]``."""

    states: tuple[Tensor, Tensor]
    prefixes: tuple[Tensor, Tensor]

    def turned(self) -> Trials:
        return Trials(self.states[::-1], self.prefixes[::-1])


def prefix_trials(
    table: Tensor, lengths: range, n: int, mixed: bool, rng: torch.Generator
) -> list[tuple[Trials, Trials]]:
    """``n`` pairs of prefixes of one state of the minimal ``table`` and as many of two, by length; where
    ``mixed`` the second is of another length (none where no state has prefixes of two lengths).

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
        return []
    drawn = torch.randint(len(offered), (n,), generator=rng)
    times = torch.bincount(drawn, minlength=len(offered)).tolist()
    return [_drawn(table, counts, *pair, count, rng) for pair, count in zip(offered, times) if count]


def _drawn(
    table: Tensor, counts: Tensor, one: int, two: int, n: int, rng: torch.Generator
) -> tuple[Trials, Trials]:
    """``n`` pairs of prefixes of lengths ``one`` and ``two``, of one state and of two."""

    def to(states: Tensor, length: int) -> Tensor:
        return prefixes_to(table, counts[: length + 1], states, rng)

    chance = _states(counts, one, two).double()
    state = torch.multinomial(chance, n, replacement=True, generator=rng)
    first, second = to(state, one), to(state, two)
    while one == two and len(equal := (first == second).all(1).nonzero()[:, 0]):
        second[equal] = to(state[equal], two)
    left = torch.multinomial((counts[one] > 0).double(), n, replacement=True, generator=rng)
    others = (counts[two] > 0).double().repeat(n, 1).scatter(1, left[:, None], 0.0)
    left, others = left[others.any(1)], others[others.any(1)]
    right = torch.multinomial(others, 1, generator=rng)[:, 0] if len(left) else left
    other = Trials((left, right), (to(left, one), to(right, two)))
    return Trials((state, state), (first, second)), other


def _states(counts: Tensor, one: int, two: int) -> Tensor:
    """The states with distinct prefixes of both lengths."""
    enough = 2 if one == two else 1
    return (counts[one] >= enough) & (counts[two] >= enough)
