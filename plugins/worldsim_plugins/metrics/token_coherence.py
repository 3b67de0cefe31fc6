"""The scores of a model over tokens, each as published and as corrected, with intervals and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import Literal

import torch
from torch import Tensor

from worldsim import Score, Trajectory
from worldsim.protocols import HasAutomaton, HasLegality, HasNextToken
from worldsim_plugins.metrics.automaton_coherence import coherence_tables
from worldsim_plugins.metrics.class_tables import Table, headline
from worldsim_plugins.metrics.inquiry import Inquiry, Prefixes, forced, inquire, mixed_length
from worldsim_plugins.metrics.intervals import Interval, jackknife, widened
from worldsim_plugins.metrics.model_failure import ModelFailed
from worldsim_plugins.metrics.myhill_nerode import NextToken, nerode_classes

NAMES = (
    "compression_precision",
    "distinction_precision",
    "distinction_recall",
    "coherence_auc",
    "fidelity",
    "horizon_error",
    "next_token_validity",
)
LOWER = ("fidelity", "horizon_error")
WEIGHTED = ("compression_both", "distinction_recall", "coherence_auc")
"""Scores that are also averaged over the states as the truth visits them."""
OF_LEGALITY = (*WEIGHTED, "distinction_precision_found", "compression_both_mixed", "coherence_auc_mixed")
"""Scores that are also given of what a model takes to be legal, where it says so."""
NO_PAIR = "no two prefixes of this length make such a pair; change prefix_length"
NO_WORD = "the model separates no pair of states"


@dataclass(frozen=True)
class TokenSetting:
    """See the keys of ``coherence``; ``generator(stream)`` gives random numbers of their own to each use."""

    horizon: int
    epsilon: float
    prefix_length: int
    pairs: int
    seed: int

    def generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + stream)


def over_tokens(
    system: HasAutomaton, model: HasNextToken, truth: Trajectory, setting: TokenSetting
) -> Mapping[str, Score]:
    """Every score by name; ``truth`` weighs the states of the scores ``*_on_policy``."""
    law = system.next_token if isinstance(system, HasNextToken) else None
    try:
        same, mixed = asked(system, model.next_token, law, setting.epsilon, setting)
        tables = coherence_tables(system.transitions(), setting.horizon, setting.epsilon, same, mixed)
        if isinstance(model, HasLegality):
            tables |= legality_tables(system, model, setting)
    except ModelFailed as error:
        nan = float("nan")
        return {name: Score(nan, better=better(name), n=0, failed=1, reason=str(error)) for name in NAMES}
    n = len(same.prefixes.tokens)
    score = partial(token_score, n=n)
    scores = {name: score(name, table) for name, table in sorted(tables.items())}
    visits = visited(system, truth, setting.horizon)
    if visits is not None:
        scores |= {f"{name}_on_policy": score(name, tables[name], weights=visits) for name in WEIGHTED}
    number = int(nerode_classes(system.transitions(), setting.horizon).max()) + 1
    reached = same.prefixes.classes.unique().numel() / number
    return {**scores, "coverage": Score(reached, better="", n=n)}


def asked(
    system: HasAutomaton, model: NextToken, law: NextToken | None, epsilon: float, setting: TokenSetting
) -> tuple[Inquiry, Inquiry | None]:
    """What a law says after prefixes of one length, and of a longer one."""
    table, initial, length = system.transitions(), system.initial, setting.prefix_length
    ask = partial(
        inquire, table, initial, model, law, horizon=setting.horizon, epsilon=epsilon, pairs=setting.pairs
    )
    longer = mixed_length(table, initial, setting.horizon, length)
    same = ask(length=length, generator=setting.generator(0))
    return same, None if longer is None else ask(length=longer, generator=setting.generator(1))


def legality_tables(system: HasAutomaton, model: HasLegality, setting: TokenSetting) -> dict[str, Table]:
    """Tables named ``*_legality``: of tokens that are forced, as likely each, instead of chosen."""
    table, size = system.transitions(), len(system.alphabet)
    answer = forced(model.legality, size)
    same, mixed = asked(system, answer, None, setting.epsilon / size, setting)
    tables = coherence_tables(table, setting.horizon, setting.epsilon, same, mixed)
    return {f"{name}_legality": tables[name] for name in OF_LEGALITY if name in tables}


def token_score(name: str, table: Table, *, n: int, weights: Tensor | None = None) -> Score:
    """The headline of a block table. Its interval is None where every prefix was enumerated."""
    value, which = headline(table.blocks(), weights), better(name)
    if isnan(value):
        found = name.startswith("distinction_precision_found")
        return Score(value, better=which, n=0, reason=NO_WORD if found else NO_PAIR)
    floor = float(which == "higher") if which else None
    share = not name.startswith("horizon_error")
    interval = prefix_interval(value, table, weights, share=share)
    # A comparison of a pair of one state with a pair of two takes four prefixes. What is no share and never
    # varied may be anything.
    if share:
        interval = widened(value, interval, n // 4)
    elif interval is not None and interval[0] == interval[1]:
        interval = None
    return Score(value, better=which, floor=floor, interval=interval, n=n)


def prefix_interval(value: float, table: Table, weights: Tensor | None, *, share: bool) -> Interval | None:
    """95 % interval of a headline over prefixes drawn anew in every class; None where all are there. Classes
    are not drawn: all that can be reached are there."""
    changes: dict[int, Tensor] = {}
    drawn: dict[int, Prefixes] = {}
    for prefixes, change in table.deletions(weights):
        drawn[id(prefixes)] = prefixes
        changes[id(prefixes)] = changes.get(id(prefixes), 0) + change
    if not drawn:
        return None
    strata = [
        changes[key][prefixes.classes == c]
        for key, prefixes in drawn.items()
        for c in prefixes.classes.unique()
    ]
    low, high = jackknife(value, strata, share=share)
    return max(low, 0.0), high


def visited(system: HasAutomaton, truth: Trajectory, horizon: int) -> Tensor | None:
    """How often the truth is in each class, ``[class]``; None where it does not carry its states."""
    states = truth.observables.get("automaton_state")
    if states is None:
        return None
    classes = nerode_classes(system.transitions(), horizon)
    return torch.bincount(classes[states.flatten()], minlength=int(classes.max()) + 1).double()


def better(name: str) -> Literal["lower", "higher", ""]:
    if name.startswith("n_empty"):
        return ""
    return "lower" if name in LOWER else "higher"
