"""Myhill-Nerode coherence by sampling, as published and corrected side by side, for any size of alphabet.

As published (Vafa, Chen, Rambachan, Kleinberg and Mullainathan 2024), with its conventions: a state drawn
uniformly and two prefixes of one and the same length; words drawn after the first with probabilities cut off
at epsilon, accepted after the second where every token is above it; one direction; an empty boundary has
precision and recall 1; the true boundary is made of words of up to five tokens, some tokens left out of it.
What the released code does differently from the paper is listed in the documentation ("Coherence").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import NotMeasurable, Score, Trajectory, hookimpl
from worldsim.protocols import HasAutomaton, HasLegality, HasNextToken, HasTokenLaws, Metric, Model, System
from worldsim_plugins.metrics import known_coherence
from worldsim_plugins.metrics.coherence_in_words import of_tokens
from worldsim_plugins.metrics.coherence_nulls import OVER_TOKENS
from worldsim_plugins.metrics.comparison import within
from worldsim_plugins.metrics.continuous_coherence import ranking, weighted_ranking
from worldsim_plugins.metrics.inquiry import forced
from worldsim_plugins.metrics.intervals import bootstrap, jackknife, widened
from worldsim_plugins.metrics.minimisation import minimise
from worldsim_plugins.metrics.model_failure import ModelFailed, blaming_the_model
from worldsim_plugins.metrics.myhill_nerode import NextToken, law_after, laws_along
from worldsim_plugins.metrics.prefix_trials import Trials, prefix_trials
from worldsim_plugins.metrics.sampled_words import (
    Asked,
    compressed,
    recalled,
    sampled_variation,
    separated,
)

FIRST = ("coherence_auc", "distinction_recall_found")
"""What is read first: no law that ignores what came before reaches the truth's value."""


class SampledCoherence:
    """As published: compression_precision, distinction_precision, distinction_recall, next_token_validity.

    Corrected: compression_both (words drawn after either prefix), ``*_mixed`` (prefixes of two lengths),
    distinction_precision_found and distinction_recall_found (pairs with an empty boundary left out, and
    counted in n_empty and n_empty_truth), and coherence_auc, by the total variation of the laws of words,
    which needs no epsilon. ``fidelity`` is the mean total variation of the law of the next token from the
    truth's, over the split's words. ``*_legality``: the same of what a model takes to be legal, where it says
    so: its policy is none of its knowledge.

    A trial that fails makes the whole score not measurable. Raises ValueError for a system that is no
    automaton, NotMeasurable for a model without a law of the next token.
    """

    explain = staticmethod(of_tokens)
    met_by: Mapping[str, str] = OVER_TOKENS
    ground_truths = classmethod(known_coherence.of_sampled_coherence)

    def __init__(
        self,
        system: System,
        *,
        pairs: Annotated[int, Field(ge=20, le=100_000, description="trials of each sort")] = 200,
        prefix_lengths: Annotated[
            tuple[int, int], Field(description="shortest and longest prefix, each length as likely")
        ] = (4, 12),
        suffixes: Annotated[int, Field(ge=1, le=1000, description="words drawn to test compression")] = 30,
        distinction_suffixes: Annotated[
            int, Field(ge=1, le=1000, description="words drawn to find the model's boundary")
        ] = 5,
        suffix_length: Annotated[int, Field(ge=1, le=1000, description="tokens of a drawn word")] = 20,
        boundary_length: Annotated[
            int, Field(ge=1, le=20, description="longest words of the true boundary")
        ] = 5,
        boundary_without: Annotated[
            list[str] | None, Field(description="tokens left out of the true boundary, such as end")
        ] = None,
        epsilon: Annotated[
            float, Field(gt=0, lt=1, description="a token is accepted above this probability")
        ] = 0.01,
        resamples: Annotated[
            int, Field(ge=20, le=10_000, description="bootstrap resamples of the AUC's interval")
        ] = 200,
        seed: Annotated[int, Field(ge=0, description="draws states, prefixes and words")] = 0,
    ) -> None:
        if not isinstance(system, HasAutomaton):
            raise ValueError(f"sampled_coherence needs an automaton, {type(system).__name__} is none")
        if not 1 <= prefix_lengths[0] <= prefix_lengths[1] <= 500:
            raise ValueError(f"prefix_lengths: {list(prefix_lengths)}: give 1 <= shortest <= longest <= 500")
        unknown = [name for name in boundary_without or () if name not in system.alphabet]
        if unknown:
            raise ValueError(f"boundary_without: no token {', '.join(unknown)}; there are {system.alphabet}")
        self.system, self.table = system, minimise(system.transitions(), system.initial).transitions
        self.pairs, self.epsilon = pairs, epsilon
        self.lengths = range(prefix_lengths[0], prefix_lengths[1] + 1)
        self.suffixes, self.distinction_suffixes = suffixes, distinction_suffixes
        self.suffix_length, self.boundary_length = suffix_length, boundary_length
        self.tokens = torch.tensor([name not in (boundary_without or ()) for name in system.alphabet])
        self.resamples, self.seed = resamples, seed

    def score(self, truth: Trajectory, prediction: Trajectory, model: Model) -> Mapping[str, Score]:
        """The scores above; validity and fidelity are over the words of ``truth``."""
        if not isinstance(model, HasNextToken):
            raise NotMeasurable(f"{type(model).__name__} gives no law of the next token (next_token)")
        size = len(self.system.alphabet)
        law = self.system.next_token if isinstance(self.system, HasNextToken) else None
        try:
            scores = self.judged(model.next_token, law, self.epsilon, _along(model))
            scores |= self.along(truth, model)
            if isinstance(model, HasLegality):
                told = self.judged(forced(model.legality, size), None, self.epsilon / size)
                scores |= {f"{name}_legality": one for name, one in told.items()}
        except ModelFailed as error:
            names = ("compression_precision", "distinction_precision", "distinction_recall", "coherence_auc")
            nan = float("nan")
            return {
                name: Score(nan, better="higher", n=0, failed=self.pairs, reason=str(error)) for name in names
            }
        return scores

    def judged(
        self, law: NextToken, truth: NextToken | None, epsilon: float, laws: NextToken | None = None
    ) -> dict[str, Score]:
        """Every score of one law but its validity."""
        scores: dict[str, Score] = {}
        far: tuple[Tensor, Tensor | None] | None = None
        for mixed, suffix in ((False, ""), (True, "_mixed")):
            trials = prefix_trials(self.table, self.lengths, self.pairs, mixed, self.generator(0, mixed))
            if trials is None:
                continue
            asked = Asked(law, self.table.shape[1], epsilon, self.generator(2, mixed), laws)
            with blaming_the_model():
                told = self.told(asked, *trials)
            scores |= {f"{name}{suffix}": score for name, score in self.summed(told).items()}
            right: dict[str, Tensor] = {}
            if truth is not None:
                right = self.apart(replace(asked, law=truth, laws=_along(self.system)), *trials)
            far = far or (told["far"], right.get("far"))
            if len(far[0]):
                floor = ranking(right["near"], far[1]) if far[1] is not None else None
                scores[f"coherence_auc{suffix}"] = self.auc(told["near"], far[0], floor)
        return dict(sorted(scores.items(), key=lambda one: not one[0].startswith(FIRST)))

    def told(self, asked: Asked, same: Trials, other: Trials) -> dict[str, Tensor]:
        """What every trial says; NaN where it says nothing."""
        count, length = self.suffixes, self.suffix_length
        forth, back = (compressed(asked, *each.prefixes, count, length) for each in (same, same.turned()))
        table, count, longest = self.table, self.distinction_suffixes, self.suffix_length
        return {
            "forth": forth.double(),
            "both": (forth & back).double(),
            "precision": separated(asked, table, other.states, other.prefixes, count, longest),
            "recall": recalled(asked, table, other.states, other.prefixes, self.boundary_length, self.tokens),
            **self.apart(asked, same, other),
        }

    def apart(self, asked: Asked, same: Trials, other: Trials) -> dict[str, Tensor]:
        """Total variations of the laws of words, as long as the true boundary's."""
        which = {"near": same, "far": other}
        return {
            name: sampled_variation(asked, *trials.prefixes, self.suffixes, self.boundary_length)
            for name, trials in which.items()
        }

    def summed(self, told: Mapping[str, Tensor]) -> dict[str, Score]:
        precision, recall = told["precision"], told["recall"]
        means = {
            "compression_precision": told["forth"],
            "compression_both": told["both"],
            "distinction_precision": precision.nan_to_num(1.0),
            "distinction_recall": recall.nan_to_num(1.0),
            "distinction_precision_found": precision[~precision.isnan()],
            "distinction_recall_found": recall[~recall.isnan()],
            "n_empty": precision.isnan().double(),
            "n_empty_truth": recall.isnan().double(),
        }
        return {name: _mean(name, values) for name, values in means.items()}

    def auc(self, near: Tensor, far: Tensor, floor: float | None) -> Score:
        def resampled(times: Tensor) -> dict[str, Tensor]:
            return {"": weighted_ranking(near, far, times[:, : len(near)], times[:, len(near) :])}

        value = ranking(near, far)
        interval = bootstrap(resampled, len(near) + len(far), self.resamples, self.generator(4))[""]
        interval = widened(value, interval, min(len(near), len(far)))
        return Score(value, better="higher", floor=floor, interval=interval, n=len(near) + len(far))

    def along(self, truth: Trajectory, model: HasNextToken) -> dict[str, Score]:
        """Over the words of ``truth``: the share of prefixes whose most probable next token is legal, and the
        mean total variation of the law of the next token from the truth's."""
        words, reached, size = truth.states[:, 0].clamp(min=0), within(truth), self.table.shape[1]
        with blaming_the_model():
            laws = _laws(model, words, size)
        state, legal = torch.zeros(len(words), dtype=torch.int64), []
        for at in range(words.shape[1]):
            legal.append(self.table[state, laws[:, at].argmax(1)] >= 0)
            state = torch.where(reached[:, at], self.table[state, words[:, at]], state)

        def over_words(each: Tensor) -> Tensor:
            return (each * reached).sum(1) / reached.sum(1).double()

        found = {"next_token_validity": _mean("next_token_validity", over_words(torch.stack(legal, 1)))}
        if isinstance(self.system, HasNextToken):
            apart = (laws - _laws(self.system, words, size)).abs().sum(2) / 2
            found["fidelity"] = _mean("fidelity", over_words(apart))
        return found

    def generator(self, *stream: int) -> torch.Generator:
        number = self.seed
        for part in stream:
            number = number * 1009 + int(part)
        return torch.Generator().manual_seed(number)


def _along(model: object) -> NextToken | None:
    return model.token_laws if isinstance(model, HasTokenLaws) else None


def _laws(model: HasNextToken, words: Tensor, size: int) -> Tensor:
    """The law before each token of ``words [n, length]``, ``[n, length, size]``."""
    if isinstance(model, HasTokenLaws):
        return laws_along(model.token_laws, words[:, :-1], size, words.shape[1])
    return torch.stack([law_after(model.next_token, words[:, :at], size) for at in range(words.shape[1])], 1)


def _mean(name: str, values: Tensor) -> Score:
    n, which = len(values), better(name)
    if not n:
        return Score(float("nan"), better=which, n=0, reason="every boundary is empty")
    value = float(values.mean())
    interval = None if n < 2 else jackknife(value, [(value - values) / (n - 1)], share=True)
    if which != "lower":  # a distance of exactly 0 is no count of trials
        interval = widened(value, interval, n)
    floor = {"higher": 1.0, "lower": 0.0}.get(which)
    return Score(value, better=which, floor=floor, interval=interval, n=n)


def better(name: str) -> Literal["lower", "higher", ""]:
    return "" if name.startswith("n_empty") else "lower" if name == "fidelity" else "higher"


@hookimpl
def worldsim_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"sampled_coherence": SampledCoherence}
