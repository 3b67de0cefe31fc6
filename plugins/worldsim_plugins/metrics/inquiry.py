"""Prefixes of an automaton's language, and what a next-token model says after each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim import NotMeasurable
from worldsim_plugins.metrics.model_failure import blaming_the_model
from worldsim_plugins.metrics.myhill_nerode import (
    NextToken,
    all_prefixes,
    count_words,
    language,
    nerode_classes,
    sampled_prefixes,
    step_laws,
    suffix_tree,
)

ENUMERATED = 1024  # beyond this many prefixes they are sampled: the suffix tree is a hundredfold larger still


@dataclass(frozen=True)
class Prefixes:
    """Valid prefixes of one length: ``tokens [n, length]``, the ``state [n]`` and ``classes [n]`` they
    end in; ``complete`` when they are all there are."""

    tokens: Tensor
    state: Tensor
    classes: Tensor
    complete: bool


@dataclass(frozen=True)
class Answers:
    """What a model says after each prefix: its ``language [n, word]``, the ``laws`` of the next k tokens
    (a list of ``[n, A^k + 1]``) and the law of the very next token, ``first [n, token]``."""

    language: Tensor
    laws: list[Tensor]
    first: Tensor


def gather_prefixes(
    transitions: Tensor, initial: int, horizon: int, length: int, pairs: int, generator: torch.Generator
) -> Prefixes:
    """All valid prefixes of ``length`` when there are few, else about ``pairs`` same-class pairs' worth."""
    classes = nerode_classes(transitions, horizon)
    complete = float(count_words(transitions, initial, length)[length].sum()) <= ENUMERATED
    if complete:
        tokens, state = all_prefixes(transitions, initial, length)
    else:
        # Of two prefixes none can be left out, so that the chance in their one pair would not be seen.
        each = max(3, round((pairs / (int(classes.max()) + 1)) ** 0.5))
        tokens, state = sampled_prefixes(transitions, initial, length, classes, each, generator)
    return Prefixes(tokens, state, classes[state], complete)


def mixed_length(transitions: Tensor, initial: int, horizon: int, length: int) -> int | None:
    """The smallest length above ``length`` at which a class can be reached that ``length`` also reaches."""
    classes = nerode_classes(transitions, horizon)
    counts = count_words(transitions, initial, length + len(transitions))
    here = set(classes[counts[length] > 0].tolist())
    for longer in range(length + 1, len(counts)):
        if here & set(classes[counts[longer] > 0].tolist()):
            return longer
    return None


def answers(next_token: NextToken, prefixes: Prefixes, size: int, horizon: int, epsilon: float) -> Answers:
    """Ask ``next_token`` after every prefix and every word that may follow it."""
    tree = suffix_tree(next_token, prefixes.tokens, size, horizon)
    return Answers(language(tree, epsilon), step_laws(tree), tree[0][:, 0])


def forced(legality: NextToken, size: int) -> NextToken:
    """The law of a walk whose tokens are forced, each as likely, and which stops at the first that is
    refused: what a model takes to be possible, apart from what its policy prefers."""
    return lambda tokens: legality(tokens).double() / size


@dataclass(frozen=True)
class Inquiry:
    """One set of prefixes, with what the model and (where it has a law) the truth say after them."""

    prefixes: Prefixes
    given: Answers
    truth: Answers | None


def inquire(
    transitions: Tensor,
    initial: int,
    next_token: NextToken,
    truth: NextToken | None,
    *,
    horizon: int,
    epsilon: float,
    length: int,
    pairs: int,
    generator: torch.Generator,
) -> Inquiry:
    """Gather prefixes of ``length`` and ask.

    Raises NotMeasurable when there are too many words to enumerate, ModelFailed when the model fails.
    """
    size = transitions.shape[1]
    prefixes = gather_prefixes(transitions, initial, horizon, length, pairs, generator)
    if size**horizon > 1e6 or len(prefixes.tokens) * size**horizon > 3e7:
        raise NotMeasurable(
            f"{len(prefixes.tokens)} prefixes x {size}^{horizon} words are too many to enumerate "
            f"(a million words, thirty million in all): reduce horizon or pairs, or use sampled_coherence"
        )
    right = None if truth is None else answers(truth, prefixes, size, horizon, epsilon)
    with blaming_the_model():
        given = answers(next_token, prefixes, size, horizon, epsilon)
    return Inquiry(prefixes, given, right)
