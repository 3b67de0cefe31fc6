"""Myhill-Nerode coherence: does a model treat equivalent histories alike, and tell the others apart?

After Vafa, Chen, Rambachan, Kleinberg and Mullainathan (2024), with both directions, pairs of different
lengths, empty boundaries and failures reported, and a threshold-free separation beside the thresholds. Over
tokens it is exact; over continuous states the same two questions are asked of pairs of histories that the
system builds, with a distance between predictions in the place of accepted words. Fidelity stands beside
coherence, since a wrong but self-consistent world is coherent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import (
    HasActions,
    HasAlikeHistories,
    HasAutomaton,
    HasEquivalentHistories,
    HasNextToken,
    Model,
    System,
)
from worldsim_plugins.metrics import known_coherence
from worldsim_plugins.metrics.coherence_in_words import of_states, of_tokens
from worldsim_plugins.metrics.coherence_nulls import OVER_STATES, OVER_TOKENS
from worldsim_plugins.metrics.continuous_coherence import (
    HIGHER,
    better,
    distances,
    scores_of,
    threshold,
)
from worldsim_plugins.metrics.history_pairs import Answers, Setting, answers, couples, spread
from worldsim_plugins.metrics.model_failure import ModelFailed
from worldsim_plugins.metrics.observed import observer
from worldsim_plugins.metrics.pair_distances import Comparison, Told, comparisons
from worldsim_plugins.metrics.token_coherence import TokenSetting, over_tokens

SHUFFLED = "shuffled"


class Coherence:
    """Coherence of a model with the equivalences of its world.

    Over tokens (a system that is an automaton, a model with a next-token law):

    compression_precision  the model separates two prefixes of one state by no word of length <= horizon
    compression_both       the same in both directions
    distinction_precision  share of the words by which the model separates two states that truly do; 1 if none
    distinction_precision_found  the same among the pairs that it separates at all
    distinction_recall     share of the words that truly separate two states by which the model does
    n_empty                share of distinct pairs whose precision is that vacuous 1
    coherence_auc          P(delta_E < delta_U) + 1/2 P(=), delta the total variation of the K-step laws
    fidelity               total variation of the model's K-step law from the truth's
    horizon_error          mean |log(k_m / k_W)|, k the first length at which a distinct pair separates
    next_token_validity    share of legal tokens among the most probable ones

    with ``*_mixed`` for pairs of prefixes of different lengths, ``*_on_policy`` over states as the truth
    visits them, ``*_legality`` of what the model takes to be legal apart from its policy (where it says so),
    and ``coverage`` for the share of states that prefixes of this length reach. States are drawn uniformly,
    prefixes uniformly within a state.

    Over continuous states (a system with equivalent histories): ``compression``, ``distinction_precision``,
    ``distinction_recall``, ``n_empty``, ``coherence_auc``, ``fidelity``, ``horizon_error``, their
    ``threshold``, and D(t) of every pair as ``divergence_equivalent`` and ``divergence_distinct``. Distances
    are in units of the truth's spread. Several kinds are pooled, and ``*_<kind>`` has each alone.

    Raises ValueError on a system with neither, NotMeasurable for a model over tokens without a law. A model
    that raises, or whose answers are not finite for any pair, is not measurable: no trial is dropped.
    """

    @staticmethod
    def explain(scores: Mapping[str, float], truth: Mapping[str, float]) -> Sequence[str]:
        """What the scores say of a model; over tokens or over states."""
        told = of_tokens if "compression_both" in scores else of_states
        return told(scores, truth)

    ground_truths = classmethod(known_coherence.of_coherence)

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
        distinct: Annotated[
            list[str] | None,
            Field(
                min_length=1,
                description="distinct pairs: shuffled (any two states), and kinds that the system builds "
                "alike in what is seen last; shuffled when left out",
            ),
        ] = None,
        observable: Annotated[
            str | None,
            Field(description="what is compared: a component or an observable; the state when left out"),
        ] = None,
        tests: Annotated[
            int, Field(ge=1, le=1000, description="sequences of actions that each pair is tested under")
        ] = 1,
        divergence: Annotated[
            Literal["auto", "nrmse", "energy", "sinkhorn"],
            Field(description="between predictive laws; auto: nrmse for one draw, else energy"),
        ] = "auto",
        resamples: Annotated[
            int,
            Field(ge=20, le=10_000, description="bootstrap resamples of the 95 % interval; over tokens none"),
        ] = 500,
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
        self.tests = tests
        self.divergence = divergence
        self.distinct = tuple(dict.fromkeys(distinct or [SHUFFLED]))
        offered = system.history_kinds if isinstance(system, HasEquivalentHistories) else ()
        self.kinds = _known("kinds", kinds or offered, offered, system)
        self.met_by: Mapping[str, str] = OVER_TOKENS if isinstance(system, HasAutomaton) else OVER_STATES
        if isinstance(system, HasAutomaton):
            return
        if not offered:
            raise ValueError(
                f"{type(system).__name__} is no automaton and builds no equivalent histories: there is "
                "nothing that a model should treat alike; choose another metric, or a system that has them"
            )
        alike = system.alike_kinds if isinstance(system, HasAlikeHistories) else ()
        _known("distinct", self.distinct, (SHUFFLED, *alike), system)
        if tests > 1 and not isinstance(system, HasActions):
            raise ValueError(f"tests: {type(system).__name__} takes no actions, so there is one test alone")
        if divergence == "nrmse" and draws > 1:
            raise ValueError("divergence: nrmse compares one draw; take energy or sinkhorn, or draws: 1")
        self.observe = observer(system, observable)

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above; ``truth`` gives the time step and the spread, ``prediction`` is not looked at."""
        if isinstance(self.system, HasAutomaton):
            if not isinstance(model, HasNextToken):
                raise NotMeasurable(f"{type(model).__name__} gives no law of the next token (next_token)")
            asked = (self.horizon, self.epsilon, self.prefix_length, self.pairs, self.seed)
            return over_tokens(self.system, model, truth, TokenSetting(*asked))
        setting = _setting(self, truth)
        try:
            found, alike = self.ask(model, setting)
        except ModelFailed as error:
            nan, count = float("nan"), self.pairs * len(self.kinds)
            names = (*HIGHER, "fidelity", "horizon_error")
            return {
                name: Score(nan, better=better(name), n=0, failed=count, reason=str(error)) for name in names
            }
        return self.compare(found, alike, spread(truth, self.observe), setting)

    def ask(self, model: Model, setting: Setting) -> tuple[dict[str, Answers], dict[str, Answers]]:
        """Futures after the pairs of each kind of equivalent and of alike histories."""
        system, n, past = self.system, setting.pairs, setting.past()
        found, alike = {}, {}
        for stream, kind in enumerate(self.kinds):
            pairs = system.equivalent_histories(kind, n, past, setting.generator(stream, 0))  # type: ignore[attr-defined]
            found[kind] = answers(system, model, pairs, couples(n)[1], self.observe, stream, setting)
        for stream, kind in enumerate((k for k in self.distinct if k != SHUFFLED), len(self.kinds)):
            pairs = system.alike_histories(kind, n, past, setting.generator(stream, 0))  # type: ignore[attr-defined]
            alike[kind] = answers(system, model, pairs, torch.arange(n), self.observe, stream, setting)
        return found, alike

    def compare(
        self, found: dict[str, Answers], alike: dict[str, Answers], scale: Tensor, setting: Setting
    ) -> Mapping[str, Score]:
        """All kinds together, and where there are several each kind alone."""

        shuffled = SHUFFLED in self.distinct
        told = [
            {kind: Told.of(each, scale, self.divergence) for kind, each in which.items()}
            for which in (found, alike)
        ]
        parts = comparisons(*told, shuffled)
        second = [{kind: each.ideal() for kind, each in which.items()} for which in told]
        known = all(each is not None for which in second for each in which.values())
        ideal: Mapping[str, Comparison] = comparisons(*second, shuffled) if known else {}
        same = [kind for kind, each in found.items() for _ in each.cluster]
        other = [*(same if shuffled else []), *(kind for kind, each in alike.items() for _ in each.cluster)]
        scores: dict[str, Score] = {}
        for kind, part in parts.items():
            if kind and len(parts) == 2:
                break  # a single kind is all of them
            eta = threshold(part.equivalent, self.epsilon, self.draws)
            each = scores_of(part, ideal.get(kind), eta=eta, resamples=self.resamples, setting=setting)
            each["threshold"] = Score(eta, better="", n=len(part.equivalent.cluster))
            if kind in alike:
                del each["compression"]  # it says nothing of distinct pairs
            scores |= {f"{name}_{kind}" if kind else name: one for name, one in each.items()}
        if not parts[""].failed:
            scores |= distances(parts[""], setting, same, other)
        return scores


def _known(key: str, names: Sequence[str], offered: Sequence[str], system: System) -> tuple[str, ...]:
    """``names`` without repeats; ValueError tells those that the system does not build."""
    unknown = [name for name in names if name not in offered]
    if unknown:
        allowed = ", ".join(offered) or "none on this system"
        raise ValueError(
            f"{key}: {', '.join(unknown)} not built by {type(system).__name__}; allowed: {allowed}"
        )
    return tuple(dict.fromkeys(names))


def _setting(metric: Coherence, truth: Trajectory) -> Setting:
    if len(truth.times) < 2:
        raise NotMeasurable("the truth has a single frame, so there is no time step")
    step = float(truth.times[1] - truth.times[0])
    return Setting(
        step,
        float(truth.times[0]),
        metric.history,
        metric.horizon,
        metric.pairs,
        metric.draws,
        metric.tests,
        metric.seed,
    )


@hookimpl
def worldsim_metrics():
    return {"coherence": Coherence}
