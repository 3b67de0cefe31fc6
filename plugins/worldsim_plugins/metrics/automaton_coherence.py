"""Coherence of a next-token model with an automaton, class by class (after Vafa et al. 2024).

Prefixes are grouped by the class of the state that they end in: states from which the same words of length
<= horizon are valid. Every score is a *block table*: ``[class]`` for pairs of prefixes of one class,
``[class, class]`` for ordered pairs of different ones, ``[class, class, class]`` for a comparison of the two.
Its headline is the mean over classes drawn uniformly, and within a class over independent uniform draws of
two prefixes, with replacement. Where all prefixes are enumerated this is the exact population value; where
they are sampled, a drawn prefix is not paired with itself, which keeps the mean unbiased for that value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.inquiry import Answers, Inquiry, Prefixes
from worldsim_plugins.metrics.intervals import Interval, bootstrap
from worldsim_plugins.metrics.myhill_nerode import (
    automaton_tree,
    first_rejected,
    language,
    nerode_classes,
    total_variation,
)


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

    def blocks(self, value: Tensor) -> Tensor:
        """Mean of ``value [i, j]`` over the pairs of each class pair, ``[class, class]``; NaN where none."""
        weights = self.weights() * torch.isfinite(value)
        total = self._sum(torch.where(torch.isfinite(value), value, 0.0) * weights)
        return total / self._sum(weights)

    def _sum(self, value: Tensor) -> Tensor:
        rows = torch.nn.functional.one_hot(self.first.classes, self.number).double()
        columns = torch.nn.functional.one_hot(self.second.classes, self.number).double()
        return rows.T @ value @ columns


def boundary_tables(
    transitions: Tensor, pairing: Pairing, one: Answers, two: Answers, horizon: int
) -> dict[str, Tensor]:
    """The published scores, and what they leave unsaid.

    compression_precision  [class]         the model separates two prefixes of one class by no word
    compression_both       [class]         the same in both directions
    distinction_precision  [class, class]  share of the model's boundary that is truly separating, 1 if empty
    distinction_recall     [class, class]  share of the true boundary that the model separates
    distinction_precision_found  the same among the pairs that the model separates at all
    n_empty                [class, class]  share of pairs whose precision is the vacuous 1
    """
    size = transitions.shape[1]
    rejected = first_rejected(two.language, size).float()
    found = one.language.float() @ rejected.T
    back = first_rejected(one.language, size).float() @ two.language.float().T
    right, recalled = _truth_overlap(transitions, pairing, one, two, horizon, rejected)
    precision = torch.where(found > 0, right / found.clamp(min=1), 1.0)
    return {
        "compression_precision": pairing.blocks((found == 0).double()).diagonal(),
        "compression_both": pairing.blocks(((found == 0) & (back == 0)).double()).diagonal(),
        "distinction_precision": pairing.blocks(precision.double()),
        "distinction_precision_found": pairing.blocks(torch.where(found > 0, precision, torch.nan).double()),
        "distinction_recall": pairing.blocks(recalled.double()),
        "n_empty": pairing.blocks((found == 0).double()),
    }


def _truth_overlap(
    transitions: Tensor, pairing: Pairing, one: Answers, two: Answers, horizon: int, rejected: Tensor
) -> tuple[Tensor, Tensor]:
    """Per pair: size of the model's boundary that truly separates, and recall of the true boundary."""
    states, classes = _one_state_each(transitions, horizon)
    valid = language(automaton_tree(transitions, states, horizon))
    minimal = first_rejected(valid, transitions.shape[1])
    accepts = one.language.float()
    denies = (~two.language).float()
    right = torch.zeros(len(accepts), len(denies))
    recalled = torch.full_like(right, torch.nan)
    for i in classes:
        row = (pairing.first.classes == i).nonzero()[:, 0]
        for j in classes:
            column = (pairing.second.classes == j).nonzero()[:, 0]
            if i == j or not len(row) or not len(column):
                continue
            at = (row[:, None], column[None, :])
            separates = (valid[i] & ~valid[j]).float()
            right[at] = (accepts[row] * separates) @ rejected[column].T
            truth = (valid[i] & minimal[j]).float()
            recalled[at] = (accepts[row] * truth) @ denies[column].T / truth.sum()
    return right, recalled


def _one_state_each(transitions: Tensor, horizon: int) -> tuple[Tensor, list[int]]:
    classes = nerode_classes(transitions, horizon)
    names = list(range(int(classes.max()) + 1))
    return torch.stack([(classes == c).nonzero()[0, 0] for c in names]), names


@dataclass(frozen=True)
class Distances:
    """How far a model's laws are apart over a pairing: total variation ``[i, j, k]`` of the k-step laws."""

    pairing: Pairing
    value: Tensor


def separation_table(near: Distances, far: Distances) -> Tensor:
    """P(d_E < d_U) + 1/2 P(d_E = d_U), ``[class, class, class]``: E the pairs of one class in ``near``, U the
    pairs of two classes in ``far``, d the distance at the longest horizon."""
    pairing, distance = near.pairing, near.value[..., -1]
    apart = far.value[..., -1].contiguous()
    counted = (pairing.weights() > 0) & (pairing.first.classes[:, None] == pairing.second.classes[None, :])
    table = torch.full((pairing.number,) * 3, torch.nan, dtype=torch.float64)
    for c in range(pairing.number):
        within = distance[counted & (pairing.first.classes == c)[:, None]].sort().values
        if len(within):
            rank = torch.searchsorted(within, apart) + torch.searchsorted(within, apart, right=True)
            table[c] = far.pairing.blocks(rank.double() / (2 * len(within)))
    return table


def separation_horizon(distances: Tensor, threshold: float) -> Tensor:
    """First k = 1 .. K at which ``distances [..., k]`` exceeds ``threshold``; K + 1 where it never does."""
    over = distances > threshold
    first = over.double().argmax(-1) + 1
    return torch.where(over.any(-1), first, distances.shape[-1] + 1)


def horizon_error(found: Distances, right: Distances, threshold: float) -> Tensor:
    """``[class, class]``: mean |log(k_m / k_W)|, k the first length at which the k-step laws differ by more
    than ``threshold`` (one past the horizon where they never do)."""
    k_model = separation_horizon(found.value, threshold).double()
    k_world = separation_horizon(right.value, threshold)
    return found.pairing.blocks((k_model / k_world).log().abs())


def fidelity(prefixes: Prefixes, given: Answers, truth: Answers, number: int) -> Tensor:
    """``[class]``: mean total variation of the model's law of the longest words from the truth's."""
    return class_mean(prefixes, (given.laws[-1] - truth.laws[-1]).abs().sum(1) / 2, number)


def validity_table(transitions: Tensor, prefixes: Prefixes, given: Answers, number: int) -> Tensor:
    """``[class]``: share of legal tokens among the most probable ones; 0 where all have probability 0."""
    best = given.first.amax(1, keepdim=True)
    chosen = ((given.first == best) & (best > 0)).double()
    legal = (transitions[prefixes.state] >= 0).double()
    return class_mean(prefixes, (chosen * legal).sum(1) / chosen.sum(1).clamp(min=1), number)


def class_mean(prefixes: Prefixes, value: Tensor, number: int) -> Tensor:
    """Mean of ``value [n]`` over the prefixes of each class, ``[class]``; NaN where there is none."""
    member = torch.nn.functional.one_hot(prefixes.classes, number).double()
    return (value.double() @ member) / member.sum(0)


def headline(table: Tensor, multiplicity: Tensor | None = None) -> float:
    """Mean of a block table over classes drawn uniformly (or by the weights ``multiplicity [class]``).

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


def class_interval(
    table: Tensor, weights: Tensor | None, resamples: int, generator: torch.Generator
) -> Interval | None:
    """95 % bootstrap interval of ``headline``: classes are drawn with replacement, with all their pairs."""
    number = table.shape[0]
    present = torch.isfinite(table).reshape(number, -1).any(1).nonzero()[:, 0]
    own = torch.ones(number) if weights is None else weights

    def resampled(times: Tensor) -> dict[str, Tensor]:
        drawn = torch.zeros(len(times), number, dtype=torch.float64)
        drawn[:, present] = times
        values = [headline(table, own * row) for row in drawn]
        return {"": torch.tensor(values, dtype=torch.float64)}

    return bootstrap(resampled, len(present), resamples, generator)[""]


def coherence_tables(
    transitions: Tensor, horizon: int, epsilon: float, same: Inquiry, longer: Inquiry | None
) -> dict[str, Tensor]:
    """All block tables by score name.

    Both prefixes of a pair come from ``same``; in those named ``*_mixed`` the second comes from ``longer``,
    which catches a model that goes by elapsed time. ``coherence_auc_mixed`` sets pairs of one class and
    different lengths against pairs of different classes and one length.

    coherence_auc        [class, class, class]  P(delta_E < delta_U) + 1/2 P(=), delta = TV of K-step laws
    fidelity             [class]                see ``fidelity``; absent where the truth has no law
    horizon_error        [class, class]         see ``horizon_error``; absent where the truth has no law
    next_token_validity  [class]                see ``validity_table``
    """
    number = int(nerode_classes(transitions, horizon).max()) + 1
    alike = Pairing(same.prefixes, same.prefixes, number)
    near = Distances(alike, total_variation(same.given.laws, same.given.laws))
    tables = boundary_tables(transitions, alike, same.given, same.given, horizon)
    tables["coherence_auc"] = separation_table(near, near)
    tables["next_token_validity"] = validity_table(transitions, same.prefixes, same.given, number)
    if same.truth is not None:
        right = Distances(alike, total_variation(same.truth.laws, same.truth.laws))
        tables["fidelity"] = fidelity(same.prefixes, same.given, same.truth, number)
        tables["horizon_error"] = horizon_error(near, right, epsilon)
    if longer is not None:
        mixed = Pairing(same.prefixes, longer.prefixes, number)
        found = boundary_tables(transitions, mixed, same.given, longer.given, horizon)
        tables |= {f"{name}_mixed": table for name, table in found.items()}
        far = Distances(mixed, total_variation(same.given.laws, longer.given.laws))
        tables["coherence_auc_mixed"] = separation_table(far, near)
    return tables
