"""Words drawn from a model instead of all words: what the published estimators of coherence do.

A word is ``[length]`` tokens; the number ``size`` of tokens, which is none, says that the law stopped here
(it gives no token any probability), and so on to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.myhill_nerode import NextToken, boundary_words, law_after, laws_along
from worldsim_plugins.metrics.prefix_trials import by_length


@dataclass(frozen=True)
class Asked:
    """A law over ``size`` tokens, what counts as accepted, and the chance to draw with; ``laws`` gives the
    laws after every token of a word together, where a model can."""

    law: NextToken
    size: int
    epsilon: float
    generator: torch.Generator
    laws: NextToken | None = None

    def continued(self, prefixes: Tensor, count: int, length: int, cutoff: bool) -> Tensor:
        """``count`` words ``[n, count, length]`` drawn after each of ``prefixes [n, longest]``.

        With ``cutoff`` tokens below epsilon are never drawn, and where there is no other the most probable
        one is: the epsilon sampling (Hewitt, Manning and Liang 2022) that the published code asks for.
        """
        words = prefixes.new_zeros(len(prefixes), count, length)
        for rows, part in by_length(prefixes):
            whole = part.repeat_interleave(count, 0)
            for _ in range(length):
                whole = torch.cat([whole, self._next(self._with_stop(whole), cutoff)], 1)
            words[rows] = whole[:, part.shape[1] :].reshape(len(part), count, length)
        return words

    def _next(self, law: Tensor, cutoff: bool) -> Tensor:
        """One token of each ``law [n, size + 1]``, ``[n, 1]``."""
        if cutoff:
            best = torch.nn.functional.one_hot(law[:, : self.size].argmax(1), self.size + 1).double()
            kept = torch.where(law >= self.epsilon, law, 0.0)
            kept[:, self.size] = 0.0
            law = torch.where(kept.sum(1, keepdim=True) > 0, kept, best)
        return torch.multinomial(law, 1, generator=self.generator)

    def probabilities(self, prefixes: Tensor, words: Tensor) -> Tensor:
        """Of each token of ``words [n, count, length]`` given those before it, ``[n, count, length]``; 1
        where a word has ended (-1, or stopped before)."""
        found = torch.ones(words.shape, dtype=torch.float64)
        for rows, part in by_length(prefixes):
            flat = words[rows].flatten(0, 1)
            token = flat.clamp(min=0)
            whole = torch.cat([part.repeat_interleave(words.shape[1], 0), token], 1)
            given = self._before_each(whole, flat.shape[1]).gather(2, token[..., None])[..., 0]
            found[rows] = torch.where(flat < 0, 1.0, given).reshape(len(part), *words.shape[1:])
        return found

    def _before_each(self, whole: Tensor, length: int) -> Tensor:
        """The law, and what it leaves over, before each of the last ``length`` tokens, ``[n, length, size +
        1]``."""
        first = whole.shape[1] - length
        if self.laws is None:
            return torch.stack([self._with_stop(whole[:, :at]) for at in range(first, whole.shape[1])], 1)
        before = whole[:, :-1]
        stopped = (before == self.size).cumsum(1)[:, first - 1 :] > 0
        tokens = before.masked_fill(before == self.size, 0)
        return self._stopping(laws_along(self.laws, tokens, self.size, length), stopped)

    def _with_stop(self, tokens: Tensor) -> Tensor:
        """The law, and what it leaves over; who has stopped stays so, ``[n, size + 1]``."""
        ended = tokens == self.size
        return self._stopping(law_after(self.law, tokens.masked_fill(ended, 0), self.size), ended.any(1))

    def _stopping(self, law: Tensor, stopped: Tensor) -> Tensor:
        left = (1 - law.sum(-1, keepdim=True)).clamp(min=0)
        left = torch.where(left < 1e-12, 0.0, left)
        end = torch.nn.functional.one_hot(torch.tensor(self.size), self.size + 1).double()
        return torch.where(stopped[..., None], end, torch.cat([law, left], -1))


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
