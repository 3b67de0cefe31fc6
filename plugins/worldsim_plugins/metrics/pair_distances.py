"""Distances between the futures of pairs of histories, by kind: equivalent pairs against distinct ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.divergences import Law
from worldsim_plugins.metrics.history_pairs import Answers, Futures, couples

Both = tuple[Law, Law]
"""The laws after the first and after the second history of each pair."""


@dataclass(frozen=True)
class Told:
    """Answers as laws, made once and compared often: by the model, by the truth, and by the truth again."""

    model: Both
    truth: Both | None
    again: Both | None
    failed: Tensor
    cluster: Tensor

    @staticmethod
    def of(answers: Answers, scale: Tensor, kind: str) -> Told:
        def both(futures: Futures) -> Both:
            return Law.of(futures.first, scale, kind), Law.of(futures.second, scale, kind)

        truth, again = (None if each is None else both(each) for each in (answers.truth, answers.again))
        return Told(both(answers.model), truth, again, answers.model.failed(), answers.cluster)

    def ideal(self) -> Told | None:
        """The truth's second answer as if a model had given it: what is scored then is the floor."""
        if self.again is None:
            return None
        return Told(self.again, self.truth, None, torch.zeros_like(self.failed), self.cluster)


@dataclass(frozen=True)
class Pairs:
    """Distances D ``[pair, test, time]`` between the futures of pairs of histories.

    model, truth  within a pair, by the model and by the truth (None where that is not known)
    own, other    of the model after the first history from the truth after the first, and after the second
                  (of distinct pairs alone)
    failed        ``[pair]`` a future of the model is not finite
    cluster       ``[pair]`` what is independent of the rest
    """

    model: Tensor
    truth: Tensor | None
    own: Tensor | None
    other: Tensor | None
    failed: Tensor
    cluster: Tensor

    @staticmethod
    def joined(parts: list[Pairs]) -> Pairs:
        """The pairs of several kinds, one after the other; kinds are independent."""
        firsts, count = [], 0
        for part in parts:
            firsts.append(count)
            count += int(part.cluster.max()) + 1
        cluster = torch.cat([part.cluster + first for part, first in zip(parts, firsts)])
        fields = [[getattr(p, name) for p in parts] for name in ("model", "truth", "own", "other", "failed")]
        return Pairs(*(None if any(f is None for f in each) else torch.cat(each) for each in fields), cluster)  # type: ignore[misc]


def compared(told: Told, *, distinct: bool, partner: Tensor | None = None) -> Pairs:
    """Distances within pairs, or where ``partner`` is given of row i's first history from row partner[i]'s
    second."""
    (first, second), failed = _partnered(told.model, partner), told.failed
    failed = failed if partner is None else failed | failed[partner]
    found = first.apart(second)
    if told.truth is None:
        return Pairs(found, None, None, None, failed, told.cluster)
    right, wrong = _partnered(told.truth, partner)
    near, far = (first.apart(right), first.apart(wrong)) if distinct else (None, None)
    return Pairs(found, right.apart(wrong), near, far, failed, told.cluster)


def _partnered(both: Both, partner: Tensor | None) -> Both:
    return both if partner is None else (both[0], both[1].rows(partner))


@dataclass(frozen=True)
class Comparison:
    """Equivalent pairs against distinct ones. Where ``shared``, the first distinct pairs are couples of the
    equivalent ones' states, row by row in the same clusters."""

    equivalent: Pairs
    distinct: Pairs
    shared: bool

    @property
    def failed(self) -> int:
        """How many of the pairs have a future that is not finite."""
        built = self.distinct.failed[len(self.equivalent.failed) if self.shared else 0 :]
        return int(self.equivalent.failed.sum()) + int(built.sum())


def comparisons(
    found: Mapping[str, Told], alike: Mapping[str, Told], shuffled: bool
) -> dict[str, Comparison]:
    """By kind, "" for all of them: every kind of equivalent pairs against the distinct ones (its own, where
    they are ``shuffled``), and all equivalent pairs against every kind built alike."""
    same = {name: compared(each, distinct=False) for name, each in found.items()}
    built = {name: compared(each, distinct=True) for name, each in alike.items()}
    drawn = {}
    if shuffled:
        partner = {name: couples(len(each.cluster))[0] for name, each in found.items()}
        drawn = {name: compared(each, distinct=True, partner=partner[name]) for name, each in found.items()}
    every = Pairs.joined([*drawn.values(), *built.values()])
    everyone = Pairs.joined(list(same.values()))
    return {
        "": Comparison(everyone, every, shuffled),
        **{name: Comparison(each, drawn.get(name, every), shuffled) for name, each in same.items()},
        **{name: Comparison(everyone, each, False) for name, each in built.items()},
    }
