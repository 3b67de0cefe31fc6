"""Coherence of a next-token model with an automaton, class by class (after Vafa et al. 2024).

Prefixes are grouped by the class of the state that they end in: states from which the same words of length
<= horizon are valid. Every score is a *block table*: ``[class]`` for pairs of prefixes of one class,
``[class, class]`` for ordered pairs of different ones, ``[class, class, class]`` for a comparison of the two.
Its headline is the mean over classes drawn uniformly, and within a class over independent uniform draws of
two prefixes, with replacement. Where all prefixes are enumerated this is the exact population value; where
they are sampled, a drawn prefix is not paired with itself, which keeps the mean unbiased for that value. The
tables themselves, and what each prefix has to do with them, are in ``class_tables``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.class_tables import ClassTable, Pairing, PairTable, RankTable, Table
from worldsim_plugins.metrics.inquiry import Answers, Inquiry, Prefixes
from worldsim_plugins.metrics.myhill_nerode import (
    automaton_tree,
    first_rejected,
    language,
    nerode_classes,
    total_variation,
)


def boundary_tables(
    transitions: Tensor, pairing: Pairing, one: Answers, two: Answers, horizon: int
) -> dict[str, Table]:
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
    own, other = (
        {
            "compression_precision": found == 0,
            "compression_both": (found == 0) & (back == 0),
        },
        {
            "distinction_precision": precision,
            "distinction_precision_found": torch.where(found > 0, precision, torch.nan),
            "distinction_recall": recalled,
            "n_empty": found == 0,
        },
    )
    return {name: PairTable(pairing, value.double(), True) for name, value in own.items()} | {
        name: PairTable(pairing, value.double(), False) for name, value in other.items()
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


def separation_table(near: Distances, far: Distances) -> RankTable:
    """P(d_E < d_U) + 1/2 P(d_E = d_U), ``[class, class, class]``: E the pairs of one class in ``near``, U the
    pairs of two classes in ``far``, d the distance at the longest horizon."""
    parts = (PairTable(each.pairing, each.value[..., -1], own) for each, own in ((near, True), (far, False)))
    return RankTable(*parts)


def separation_horizon(distances: Tensor, threshold: float) -> Tensor:
    """First k = 1 .. K at which ``distances [..., k]`` exceeds ``threshold``; K + 1 where it never does."""
    over = distances > threshold
    first = over.double().argmax(-1) + 1
    return torch.where(over.any(-1), first, distances.shape[-1] + 1)


def horizon_error(found: Distances, right: Distances, threshold: float) -> PairTable:
    """``[class, class]``: mean |log(k_m / k_W)|, k the first length at which the k-step laws differ by more
    than ``threshold`` (one past the horizon where they never do)."""
    k_model = separation_horizon(found.value, threshold).double()
    k_world = separation_horizon(right.value, threshold)
    return PairTable(found.pairing, (k_model / k_world).log().abs(), False)


def fidelity(prefixes: Prefixes, given: Answers, truth: Answers, number: int) -> ClassTable:
    """``[class]``: mean total variation of the model's law of the longest words from the truth's."""
    return ClassTable(prefixes, (given.laws[-1] - truth.laws[-1]).abs().sum(1) / 2, number)


def validity_table(transitions: Tensor, prefixes: Prefixes, given: Answers, number: int) -> ClassTable:
    """``[class]``: share of legal tokens among the most probable ones; 0 where all have probability 0."""
    best = given.first.amax(1, keepdim=True)
    chosen = ((given.first == best) & (best > 0)).double()
    legal = (transitions[prefixes.state] >= 0).double()
    return ClassTable(prefixes, (chosen * legal).sum(1) / chosen.sum(1).clamp(min=1), number)


def coherence_tables(
    transitions: Tensor, horizon: int, epsilon: float, same: Inquiry, longer: Inquiry | None
) -> dict[str, Table]:
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
