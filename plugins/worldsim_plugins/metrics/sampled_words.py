"""Words drawn from a model instead of all words: what the published estimators of coherence do.

A word is ``[length]`` tokens; the number ``size`` of tokens, which is none, says that the law stopped here
(it gives no token any probability), and so on to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.myhill_nerode import NextToken, boundary_words, law_after


@dataclass(frozen=True)
class Asked:
    """A law over ``size`` tokens, what counts as accepted, and the chance to draw with."""

    law: NextToken
    size: int
    epsilon: float
    generator: torch.Generator

    def continued(self, prefixes: Tensor, count: int, length: int, cutoff: bool) -> Tensor:
        """``count`` words ``[n, count, length]`` drawn after each of ``prefixes [n, l]``.

        With ``cutoff`` tokens below epsilon are never drawn, and where there is no other the most probable
        one is: the epsilon sampling (Hewitt, Manning and Liang 2022) that the published code asks for.
        """
        whole = prefixes.repeat_interleave(count, 0)
        for _ in range(length):
            law = self._with_stop(whole)
            if cutoff:
                best = torch.nn.functional.one_hot(law[:, : self.size].argmax(1), self.size + 1).double()
                kept = torch.where(law >= self.epsilon, law, 0.0)
                kept[:, self.size] = 0.0
                law = torch.where(kept.sum(1, keepdim=True) > 0, kept, best)
            drawn = torch.multinomial(law, 1, generator=self.generator)
            whole = torch.cat([whole, drawn], 1)
        return whole[:, prefixes.shape[1] :].reshape(len(prefixes), count, length)

    def probabilities(self, prefixes: Tensor, words: Tensor) -> Tensor:
        """Of each token of ``words [n, count, length]`` given those before it, ``[n, count, length]``; 1
        where a word has ended (-1, or stopped before)."""
        count, length = words.shape[1:]
        whole = torch.cat([prefixes.repeat_interleave(count, 0), words.flatten(0, 1)], 1)
        found = []
        for at in range(prefixes.shape[1], prefixes.shape[1] + length):
            token = whole[:, at]
            law = self._with_stop(whole[:, :at].clamp(min=0))
            found.append(torch.where(token < 0, 1.0, law.gather(1, token.clamp(min=0)[:, None])[:, 0]))
        return torch.stack(found, 1).reshape(words.shape)

    def _with_stop(self, tokens: Tensor) -> Tensor:
        """The law, and what it leaves over; who has stopped stays so, ``[n, size + 1]``."""
        stopped = (tokens == self.size).any(1)
        law = law_after(self.law, tokens.masked_fill(tokens == self.size, 0), self.size)
        left = (1 - law.sum(1, keepdim=True)).clamp(min=0)
        left = torch.where(left < 1e-12, 0.0, left)
        law = torch.cat([law, left], 1)
        end = torch.nn.functional.one_hot(torch.tensor(self.size), self.size + 1).double()
        return torch.where(stopped[:, None], end, law)


def compressed(asked: Asked, first: Tensor, second: Tensor, count: int, length: int) -> Tensor:
    """Whether every one of ``count`` words drawn after the first prefix is accepted after the second,
    ``[n]`` bool."""
    words = asked.continued(first, count, length, cutoff=True)
    return (asked.probabilities(second, words) > asked.epsilon).flatten(1).all(1)


def separated(
    asked: Asked,
    transitions: Tensor,
    states: tuple[Tensor, Tensor],
    prefixes: tuple[Tensor, Tensor],
    count: int,
    length: int,
) -> Tensor:
    """Distinction precision ``[n]``: of the minimal words by which the model separates the two prefixes,
    among ``count`` drawn after the first, the share that separates the states. NaN where there is none."""
    words = asked.continued(prefixes[0], count, length, cutoff=True)
    refused = asked.probabilities(prefixes[1], words) <= asked.epsilon
    found = torch.full((len(words),), torch.nan, dtype=torch.float64)
    for row, (each, no) in enumerate(zip(words.tolist(), refused.tolist())):
        minimal = {tuple(word[: flags.index(True) + 1]) for word, flags in zip(each, no) if any(flags)}
        if minimal:
            right = [
                valid(transitions, int(states[0][row]), w) and not valid(transitions, int(states[1][row]), w)
                for w in minimal
            ]
            found[row] = sum(right) / len(right)
    return found


def valid(transitions: Tensor, state: int, word: tuple[int, ...]) -> bool:
    """Whether every token of ``word`` is legal from ``state`` on."""
    for token in word:
        if token >= transitions.shape[1] or int(transitions[state, token]) < 0:
            return False
        state = int(transitions[state, token])
    return True


def recalled(
    asked: Asked,
    transitions: Tensor,
    states: tuple[Tensor, Tensor],
    prefixes: tuple[Tensor, Tensor],
    length: int,
    tokens: Tensor | None,
) -> Tensor:
    """Distinction recall ``[n]``: of the true minimal words of up to ``length`` ``tokens`` that separate the
    two states, the share accepted after the first prefix and refused after the second. NaN where there is
    none."""
    owner, words = boundary_words(transitions, *states, length, tokens)
    hit = torch.zeros(len(owner), dtype=torch.bool)
    if len(owner):
        one, two = (
            (asked.probabilities(each[owner], words[:, None]) > asked.epsilon).flatten(1).all(1)
            for each in prefixes
        )
        hit = one & ~two
    number = torch.bincount(owner, minlength=len(states[0])).double()
    return torch.bincount(owner, hit.double(), minlength=len(states[0])) / number


def sampled_variation(asked: Asked, first: Tensor, second: Tensor, count: int, length: int) -> Tensor:
    """Total variation of the laws P, Q of words of ``length`` after two prefixes, ``[n]``:

        TV = E |P - Q| / (P + Q)   over words from P and from Q in equal parts,

    ``count`` of each. Unbiased; 0 without error where the two laws agree on all that is drawn.
    """
    words = torch.cat([asked.continued(each, count, length, cutoff=False) for each in (first, second)], 1)
    p, q = (asked.probabilities(each, words).log().sum(2) for each in (first, second))
    return ((p - q) / 2).tanh().abs().mean(1).round(decimals=12)
