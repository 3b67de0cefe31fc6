"""Block tables: a score as a mean over classes of the means within them, and what each prefix does to it.

A drawn prefix has a share in every block of its own class. To know how much chance there is in a score, each
is left out in turn: ``deletions`` gives by how much the score changes then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worldsim_plugins.metrics.inquiry import Prefixes

Deletions = list[tuple[Prefixes, Tensor]]
"""Drawn prefixes, and the change of a headline where each of them is left out, ``[n]``."""


class Table(Protocol):
    """Blocks by class: ``[class]``, ``[class, class]`` or ``[class, class, class]``; NaN where none is."""

    def blocks(self) -> Tensor: ...

    def deletions(self, weights: Tensor | None) -> Deletions: ...


@dataclass(frozen=True)
class Pairing:
    """Ordered pairs of a prefix of ``first`` and one of ``second``, by class."""

    first: Prefixes
    second: Prefixes
    number: int
    """How many classes there are."""

    def weights(self) -> Tensor:
        """1 for a pair that counts, 0 for a sampled prefix paired with itself; ``[i, j]``."""
        weights = torch.ones(len(self.first.tokens), len(self.second.tokens), dtype=torch.float64)
        if self.first is self.second and not self.first.complete:
            weights.fill_diagonal_(0)
        return weights

    def members(self) -> tuple[Tensor, Tensor]:
        """Which class each prefix is of, ``[n, class]`` of 0 and 1."""
        first, second = (
            torch.nn.functional.one_hot(each.classes, self.number).double()
            for each in (self.first, self.second)
        )
        return first, second


@dataclass(frozen=True)
class PairTable:
    """The mean of ``value [i, j]`` over the pairs of each two classes, ``[class, class]``, or where ``own``
    over those of each class, ``[class]``. A pair whose value is NaN says nothing."""

    pairing: Pairing
    value: Tensor
    own: bool

    def counted(self) -> tuple[Tensor, Tensor]:
        """Values, 0 where they do not count, and whether they do, ``[i, j]``."""
        known = self.pairing.weights() * torch.isfinite(self.value)
        return torch.where(known > 0, self.value, 0.0), known

    def blocks(self) -> Tensor:
        rows, columns = self.pairing.members()
        total, count = (rows.T @ each @ columns for each in self.counted())
        table = total / count
        return table.diagonal() if self.own else table

    def deletions(self, weights: Tensor | None) -> Deletions:
        pairing, (rows, columns) = self.pairing, self.pairing.members()
        drawn = {id(each): each for each in (pairing.first, pairing.second) if not each.complete}
        if not drawn:
            return []
        share = _shares(pairing.number, weights, self.own)
        value, known = self.counted()
        sums = [rows.T @ each @ columns for each in (value, known)]
        whole = _mean(*sums, share)
        lost = {id(pairing.first): [each @ columns for each in (value, known)]}
        lost_too = {id(pairing.second): [(rows.T @ each).T for each in (value, known)]}
        found: Deletions = []
        for prefixes in drawn.values():
            change = torch.zeros(len(prefixes.tokens), dtype=torch.float64)
            for c in prefixes.classes.unique().tolist():
                of = (prefixes.classes == c).nonzero()[:, 0]
                left = [each.repeat(len(of), 1, 1) for each in sums]
                for which, row in zip(left, lost.get(id(prefixes), ())):
                    which[:, c] -= row[of]
                for which, column in zip(left, lost_too.get(id(prefixes), ())):
                    which[:, :, c] -= column[of]
                change[of] = _mean(*left, share) - whole
            found.append((prefixes, change))
        return found


def _shares(number: int, weights: Tensor | None, own: bool) -> Tensor:
    """What each block counts, ``[class, class]``."""
    each = torch.ones(number, dtype=torch.float64) if weights is None else weights.double()
    return torch.diag(each) if own else (each[:, None] * each).fill_diagonal_(0)


def _mean(total: Tensor, count: Tensor, share: Tensor) -> Tensor:
    """Of blocks ``[..., class, class]`` given by sums and numbers of pairs; those without a pair left out."""
    there = count > 0.5
    blocks = torch.where(there, total / count.clamp(min=1), 0.0)
    return (blocks * share).sum((-1, -2)) / (there * share).sum((-1, -2))


@dataclass(frozen=True)
class ClassTable:
    """The mean of ``value [n]`` over the prefixes of each class, ``[class]``."""

    prefixes: Prefixes
    value: Tensor
    number: int

    def sums(self) -> tuple[Tensor, Tensor]:
        member = torch.nn.functional.one_hot(self.prefixes.classes, self.number).double()
        return self.value.double() @ member, member.sum(0)

    def blocks(self) -> Tensor:
        total, count = self.sums()
        return total / count

    def deletions(self, weights: Tensor | None) -> Deletions:
        if self.prefixes.complete:
            return []
        (total, count), of = self.sums(), self.prefixes.classes
        each = torch.ones(self.number, dtype=torch.float64) if weights is None else weights.double()
        share = each * (count > 0) / (each * (count > 0)).sum()
        change = (total[of] - self.value) / (count[of] - 1) - total[of] / count[of]
        # Without its only prefix a class is without a mean: nothing is known of its chance.
        return [(self.prefixes, torch.where(count[of] > 1, change * share[of], 0.0))]


@dataclass(frozen=True)
class RankTable:
    """P(E < U) + 1/2 P(E = U), ``[class, class, class]``: E the values within one class in ``near``, U those
    of two classes in ``far``."""

    near: PairTable
    far: PairTable

    def blocks(self) -> Tensor:
        pairing, apart = self.near.pairing, self.far.value.contiguous()
        table = torch.full((pairing.number,) * 3, torch.nan, dtype=torch.float64)
        for c in range(pairing.number):
            within = self.near.value[self.within(c)].sort().values
            if len(within):
                rank = torch.searchsorted(within, apart) + torch.searchsorted(within, apart, right=True)
                table[c] = PairTable(self.far.pairing, rank.double() / (2 * len(within)), False).blocks()
        return table

    def within(self, c: int) -> Tensor:
        """The pairs of class ``c`` that count, ``[i, j]`` bool."""
        first, second = self.near.pairing.first.classes == c, self.near.pairing.second.classes == c
        return (self.near.pairing.weights() > 0) & first[:, None] & second

    def deletions(self, weights: Tensor | None) -> Deletions:
        """To first order: E and U by themselves, each by the mean rank of its values among the others."""
        pairings = (self.near.pairing, self.far.pairing)
        if all(each.first.complete and each.second.complete for each in pairings):
            return []
        near, far = (_weighed(each, weights) for each in (self.near, self.far))
        above = 1 - _below(self.near.value, self.far.value, far)
        below = _below(self.far.value, self.near.value, near)
        parts = ((self.near, above), (self.far, below))
        return [
            each
            for table, value in parts
            for each in PairTable(table.pairing, value, table.own).deletions(weights)
        ]


def _weighed(table: PairTable, weights: Tensor | None) -> Tensor:
    """What each pair counts in a headline, ``[i, j]``."""
    pairing, (rows, columns) = table.pairing, table.pairing.members()
    known = table.counted()[1]
    count = rows.T @ known @ columns
    share = _shares(pairing.number, weights, table.own) * (count > 0) / count.clamp(min=1)
    return known * (rows @ share @ columns.T) / (share * count).sum()


def _below(value: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """P(reference < value) + 1/2 P(=), as ``value``; the reference weighs ``weights``, which sum to 1."""
    order = reference.flatten().argsort()
    total = torch.nn.functional.pad(weights.flatten()[order].cumsum(0), (1, 0))
    ranked, value = reference.flatten()[order], value.contiguous()
    at = (torch.searchsorted(ranked, value, right=right) for right in (False, True))
    return sum(total[each] for each in at) / 2


def headline(table: Tensor, multiplicity: Tensor | None = None) -> float:
    """Mean of blocks over classes drawn uniformly (or by the weights ``multiplicity [class]``).

    Pairs of a class with itself are left out of tables of pairs; so are entries that are NaN. NaN when
    nothing is left.
    """
    weights = (
        torch.ones(table.shape[0], dtype=torch.float64) if multiplicity is None else multiplicity.double()
    )
    share = weights
    if table.ndim >= 2:
        share = (weights[:, None] * weights).fill_diagonal_(0)
    if table.ndim == 3:
        share = weights[:, None, None] * share
    share = share * torch.isfinite(table)
    return float((torch.where(torch.isfinite(table), table, 0.0) * share).sum() / share.sum())
