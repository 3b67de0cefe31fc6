"""Myhill-Nerode coherence: does a model treat equivalent histories alike, and tell the others apart?

After Vafa, Chen, Rambachan, Kleinberg and Mullainathan (2024), with both directions, pairs of different
lengths, empty boundaries and failures reported, and a threshold-free separation beside the thresholds. Over
tokens it is exact; over continuous states the same two questions are asked of pairs of histories that the
system builds, with a distance between predictions in the place of accepted words. Fidelity stands beside
coherence, since a wrong but self-consistent world is coherent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isnan
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasEquivalentHistories, HasNextToken, Model, System
from worldsim_plugins.metrics.automaton_coherence import cluster_interval, coherence_tables, headline
from worldsim_plugins.metrics.continuous_coherence import Comparison, scores_of
from worldsim_plugins.metrics.history_pairs import (
    Futures,
    Setting,
    derangement,
    divergence,
    divergences,
    paired_futures,
    spread,
)
from worldsim_plugins.metrics.inquiry import inquire, mixed_length
from worldsim_plugins.metrics.model_failure import ModelFailed

TOKEN_SCORES = (
    "compression_precision",
    "distinction_precision",
    "distinction_recall",
    "coherence_auc",
    "fidelity",
    "horizon_error",
    "next_token_validity",
)
HISTORY_SCORES = (
    "compression",
    "distinction_precision",
    "distinction_recall",
    "coherence_auc",
    "fidelity",
    "horizon_error",
)
LOWER = ("fidelity", "horizon_error")
DESCRIPTIONS = ("n_empty", "n_empty_mixed")


class Coherence:
    """Coherence of a model with the equivalences of its world.

    Over tokens (a system that is an automaton, a model with a next-token law):

    compression_precision  the model separates two prefixes of one state by no word of length <= horizon
    compression_both       the same in both directions
    distinction_precision  share of the words by which the model separates two states that truly do; 1 if none
    distinction_recall     share of the words that truly separate two states by which the model does
    n_empty                share of distinct pairs whose precision is that vacuous 1
    coherence_auc          P(delta_E < delta_U) + 1/2 P(=), delta the total variation of the K-step laws
    fidelity               total variation of the model's K-step law from the truth's
    horizon_error          mean |log(k_m / k_W)|, k the first length at which a distinct pair separates
    next_token_validity    share of legal tokens among the most probable ones

    with ``*_mixed`` for pairs of prefixes of different lengths and ``coverage`` for the share of states that
    prefixes of this length reach. States are drawn uniformly, prefixes uniformly within a state.

    Over continuous states (a system with equivalent histories): ``compression``, ``distinction_precision``,
    ``distinction_recall``, ``n_empty``, ``coherence_auc``, ``fidelity``, ``horizon_error``, their
    ``threshold``, and D(t) of every pair as ``divergence_equivalent`` and ``divergence_distinct``. Distances
    are in units of the truth's spread. Several kinds are pooled, and ``*_<kind>`` has each alone.

    A system with neither, and a model over tokens without a law, raise NotMeasurable. A model that raises or
    whose answers are not finite is counted in ``failed``, never dropped.
    """

    def __init__(
        self,
        system: System,
        *,
        horizon: Annotated[
            int,
            Field(
                ge=1, le=10_000, description="longest test: words of this many tokens, or this many frames"
            ),
        ] = 5,
        epsilon: Annotated[
            float,
            Field(
                gt=0,
                lt=1,
                description="a token is accepted above this probability; predictions differ above this "
                "distance (total variation, or spreads of the truth; at least the sampling floor of draws)",
            ),
        ] = 0.01,
        prefix_length: Annotated[int, Field(ge=1, le=200, description="tokens before the tested words")] = 6,
        pairs: Annotated[
            int,
            Field(
                ge=20,
                le=100_000,
                description="equivalent pairs per kind; over tokens, where prefixes are sampled",
            ),
        ] = 256,
        history: Annotated[
            int, Field(ge=2, le=10_000, description="frames of the longer history of a pair")
        ] = 8,
        draws: Annotated[
            int,
            Field(
                ge=1, le=10_000, description="futures drawn per history; more than 1 for stochastic worlds"
            ),
        ] = 1,
        kinds: Annotated[
            list[str] | None,
            Field(min_length=1, description="kinds of equivalent histories; all when left out"),
        ] = None,
        resamples: Annotated[
            int, Field(ge=20, le=10_000, description="bootstrap resamples of the 95 % interval")
        ] = 200,
        seed: Annotated[int, Field(ge=0, description="draws the pairs, their futures and the bootstrap")] = 0,
    ) -> None:
        self.system = system
        self.horizon = horizon
        self.epsilon = epsilon
        self.prefix_length = prefix_length
        self.pairs = pairs
        self.history = history
        self.draws = draws
        self.resamples = resamples
        self.seed = seed
        self.kinds = _known_kinds(system, kinds)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above; ``truth`` gives the time step and the spread, ``prediction`` is not looked at."""
        setting = _setting(self, truth)
        if isinstance(self.system, HasAutomaton):
            if not isinstance(model, HasNextToken):
                raise NotMeasurable(f"{type(model).__name__} gives no law of the next token (next_token)")
            return self._over_tokens(self.system, model, setting)
        if isinstance(self.system, HasEquivalentHistories) and self.kinds:
            return self._over_histories(self.system, truth, model, setting)
        raise NotMeasurable(
            f"{type(self.system).__name__} is no automaton and builds no equivalent histories: "
            f"there is nothing that the model should treat alike"
        )

    def _over_tokens(self, system: Any, model: HasNextToken, setting: Setting) -> Mapping[str, Score]:
        table, initial = system.transitions(), system.initial
        settings = {"horizon": self.horizon, "epsilon": self.epsilon, "pairs": self.pairs}
        law = system.next_token if isinstance(system, HasNextToken) else None
        ask = partial(inquire, table, initial, model.next_token, law, **settings)
        longer = mixed_length(table, initial, self.horizon, self.prefix_length)
        try:
            same = ask(length=self.prefix_length, generator=setting.generator(0))
            mixed = None if longer is None else ask(length=longer, generator=setting.generator(1))
        except ModelFailed as error:
            return _all_failed(TOKEN_SCORES, error, 1)
        tables = coherence_tables(table, self.horizon, self.epsilon, same, mixed)
        exact = same.prefixes.complete and (mixed is None or mixed.prefixes.complete)
        n = len(same.prefixes.tokens)
        scores = {name: self._token_score(name, tables[name], n, exact, setting) for name in sorted(tables)}
        reached = same.prefixes.classes.unique().numel() / tables["coherence_auc"].shape[0]
        return {**scores, "coverage": Score(reached, better="", n=n)}

    def _token_score(self, name: str, table: Tensor, n: int, exact: bool, setting: Setting) -> Score:
        value, better = headline(table), _better(name)
        if isnan(value):
            reason = "no two prefixes of this length make such a pair; change prefix_length"
            return Score(value, better=better, n=0, reason=reason)
        floor = float(better == "higher") if better else None
        interval = None if exact else cluster_interval(table, self.resamples, setting.generator(2))
        return Score(value, better=better, floor=floor, interval=interval, n=n)

    def _over_histories(
        self, system: HasEquivalentHistories, truth: Trajectory, model: Model, setting: Setting
    ) -> Mapping[str, Score]:
        scale = spread(truth)
        found: dict[str, tuple[Futures, Futures | None, Futures | None]] = {}
        try:
            for stream, kind in enumerate(self.kinds):
                found[kind] = paired_futures(system, model, kind, stream, setting)
        except ModelFailed as error:
            return _all_failed(HISTORY_SCORES, error, self.pairs * len(self.kinds))
        compare = partial(_compare, scale=scale, setting=setting)
        parts = {kind: compare(guess, right) for kind, (guess, right, _) in found.items()}
        ideal = {
            kind: compare(again, right) for kind, (_, right, again) in found.items() if again is not None
        }
        labels = [kind for kind, part in parts.items() for _ in range(len(part.model.failed))]
        score = partial(scores_of, epsilon=self.epsilon, resamples=self.resamples, setting=setting)
        floor = Comparison.joined(list(ideal.values())) if ideal else None
        scores = score(Comparison.joined(list(parts.values())), labels=labels, floor=floor)
        for kind, part in parts.items() if len(parts) > 1 else ():
            alone = score(part, labels=None, floor=ideal.get(kind))
            scores |= {f"{name}_{kind}": one for name, one in alone.items()}
        return scores


def _compare(futures: Futures, right: Futures | None, *, scale: Tensor, setting: Setting) -> Comparison:
    partner = derangement(len(futures.first), setting.generator(4))
    model = divergences(futures, partner, scale)
    if right is None:
        return Comparison(model, None, None, None)
    return Comparison(
        model,
        divergences(right, partner, scale),
        divergence(futures.first, right.first, scale),
        divergence(futures.first, right.second[partner], scale),
    )


def _known_kinds(system: System, kinds: list[str] | None) -> tuple[str, ...]:
    """The kinds to score; ValueError names those that the system does not build."""
    offered = system.history_kinds if isinstance(system, HasEquivalentHistories) else ()
    unknown = [kind for kind in kinds or () if kind not in offered]
    if unknown:
        allowed = ", ".join(offered) or "none on this system"
        raise ValueError(
            f"kinds: {', '.join(unknown)} not built by {type(system).__name__}; allowed: {allowed}"
        )
    return tuple(dict.fromkeys(kinds)) if kinds else tuple(offered)


def _setting(metric: Coherence, truth: Trajectory) -> Setting:
    if len(truth.times) < 2:
        raise NotMeasurable("the truth has a single frame, so there is no time step")
    step = float(truth.times[1] - truth.times[0])
    return Setting(
        step, float(truth.times[0]), metric.history, metric.horizon, metric.pairs, metric.draws, metric.seed
    )


def _better(name: str) -> Literal["lower", "higher", ""]:
    if name in DESCRIPTIONS:
        return ""
    return "lower" if name in LOWER else "higher"


def _all_failed(names: tuple[str, ...], error: ModelFailed, count: int) -> Mapping[str, Score]:
    nan = float("nan")
    return {name: Score(nan, better=_better(name), n=0, failed=count, reason=str(error)) for name in names}


@hookimpl
def worldsim_metrics():
    return {"coherence": Coherence}
