"""Languages of automata and of models, cut at a suffix length: the exact side of Myhill-Nerode coherence.

The language of a prefix is the set of non-empty words valid after it. The Myhill-Nerode boundary of an
ordered pair is the set of minimal words that separate it (Vafa, Chen, Rambachan, Kleinberg and Mullainathan
2024):

    MNB(1, 2) = { a_1 .. a_k in L(1) \\ L(2) : every proper prefix is in L(1) and in L(2) }

A *suffix tree* is a list over depth d = 0 .. K-1 of ``[n, A^d, A]``: after row n's prefix and the d-token
word w (the A^d words in lexicographic order), the probability of each of the A next tokens. A *language* is
``[n, word]`` bool over all words of lengths 1 .. K, shorter first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_plugins.metrics.minimisation import minimal_classes

NextToken = Callable[[Tensor], Tensor]


def nerode_classes(transitions: Tensor, depth: int | None = None) -> Tensor:
    """Class of each state, ``[state]`` int64: two states share one when the same words are valid from both.

    With ``depth`` only words of at most that length are compared, by as many rounds of Moore's (1956)
    refinement. ``transitions`` is ``[state, token]``, -1 where the token is illegal.
    """
    if depth is None:
        return minimal_classes(transitions)
    classes = torch.zeros(len(transitions), dtype=torch.int64)
    for _ in range(depth):
        after = torch.where(transitions < 0, -1, classes[transitions.clamp(min=0)])
        signature = torch.cat([classes[:, None], after], 1)
        finer = signature.unique(dim=0, return_inverse=True)[1]
        if finer.max() == classes.max():
            break
        classes = finer
    return classes


def words(size: int, length: int) -> Tensor:
    """All words of ``length`` over ``size`` tokens, ``[size^length, length]``, in lexicographic order."""
    return (
        torch.cartesian_prod(*[torch.arange(size)] * length).reshape(-1, length)
        if length
        else torch.zeros(1, 0, dtype=torch.int64)
    )


def suffix_tree(
    next_token: NextToken, prefixes: Tensor, size: int, horizon: int, batch: int = 1024
) -> list[Tensor]:
    """The law of ``next_token`` after each of ``prefixes [n, length]`` and each word of length < ``horizon``.

    Raises ValueError when an answer is not ``[n, size]`` finite and non-negative.
    """
    tree = []
    for depth in range(horizon):
        tails = words(size, depth)
        whole = torch.cat([prefixes.repeat_interleave(len(tails), 0), tails.repeat(len(prefixes), 1)], 1)
        tree.append(law_after(next_token, whole, size, batch).reshape(len(prefixes), len(tails), size))
    return tree


def law_after(next_token: NextToken, tokens: Tensor, size: int, batch: int = 1024) -> Tensor:
    """The law ``[n, size]`` float64 after ``tokens [n, length]``: asked once for each of them that differ, a
    ``batch`` at a time."""
    once, row = tokens.unique(dim=0, return_inverse=True) if tokens.shape[1] else (tokens[:1], 0)
    laws = torch.cat([_checked(next_token(part), len(part), size) for part in once.split(batch)])
    return laws[row] if tokens.shape[1] else laws.expand(len(tokens), size)


def laws_along(token_laws: NextToken, tokens: Tensor, size: int, last: int, batch: int = 1024) -> Tensor:
    """The ``last`` laws ``[n, last, size]`` of those after 0, 1, ... all of ``tokens [n, length]``, from a
    model that gives them together."""
    once, row = tokens.unique(dim=0, return_inverse=True)
    shape = (tokens.shape[1] + 1, size)
    parts = [_checked(token_laws(part), len(part), *shape)[:, -last:] for part in once.split(batch)]
    return torch.cat(parts)[row]


def _checked(given: Tensor, *shape: int) -> Tensor:
    law = given.detach().double().cpu()
    if tuple(law.shape) != shape:
        raise ValueError(f"a law of the next token must be {list(shape)} here, it is {list(law.shape)}")
    bad = ~(torch.isfinite(law) & (law >= 0)).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(f"{int(bad.sum())} laws of {len(law)} are negative or not finite")
    return law


def automaton_tree(transitions: Tensor, states: Tensor, horizon: int) -> list[Tensor]:
    """The suffix tree of validity (1 or 0) after each of ``states`` ``[n]``."""
    tree, here = [], states[:, None]
    for _ in range(horizon):
        there = torch.where(here[..., None] < 0, -1, transitions[here.clamp(min=0)])
        tree.append((there >= 0).double())
        here = there.flatten(1)
    return tree


def language(tree: list[Tensor], epsilon: float = 0.0) -> Tensor:
    """``[n, word]`` bool: every token of the word has probability > ``epsilon``."""
    accepted, levels = torch.ones(len(tree[0]), 1, dtype=torch.bool), []
    for law in tree:
        accepted = (accepted[..., None] & (law > epsilon)).flatten(1)
        levels.append(accepted)
    return torch.cat(levels, 1)


def interior_parent(languages: Tensor, size: int) -> Tensor:
    """``[n, word]`` bool: the word without its last token is in the language (the empty word always is)."""
    count = (languages.shape[1] - size) // size
    empty = torch.ones(len(languages), 1, dtype=torch.bool)
    return torch.cat([empty, languages[:, :count]], 1).repeat_interleave(size, 1)


def first_rejected(languages: Tensor, size: int) -> Tensor:
    """``[n, word]`` bool: not in the language, though every proper prefix is."""
    return interior_parent(languages, size) & ~languages


def boundary_sizes(transitions: Tensor, horizon: int, tokens: Tensor | None = None) -> Tensor:
    """|MNB(i, j)| among words of each length k = 1 .. K, ``[k, state, state]`` float64, without listing any:

        |MNB_1(i, j)| = #{a legal at i, not at j},   |MNB_k(i, j)| = sum_a |MNB_{k-1}(i a, j a)|

    over the tokens a legal at both. ``tokens`` ``[token]`` bool, where given, are those words are made of.
    """
    legal = _legal(transitions, tokens)
    first = (legal.double() @ (transitions < 0).double().T)[None]
    return _longer(transitions, legal, first, horizon)


def interior_sizes(transitions: Tensor, horizon: int) -> Tensor:
    """How many words of each length k = 1 .. K are valid from both states, ``[k, state, state]`` float64."""
    legal = _legal(transitions, None)
    first = (legal.double() @ legal.double().T)[None]
    return _longer(transitions, legal, first, horizon)


def _legal(transitions: Tensor, tokens: Tensor | None) -> Tensor:
    legal = transitions >= 0
    return legal if tokens is None else legal & tokens


def _longer(transitions: Tensor, legal: Tensor, first: Tensor, horizon: int) -> Tensor:
    """``first [1, state, state]`` counts one-token words; longer ones begin with a token legal at both."""
    sizes = list(first)
    for _ in range(horizon - 1):
        size = torch.zeros_like(sizes[0])
        for token in legal.any(0).nonzero()[:, 0]:
            here = legal[:, token].nonzero()[:, 0]
            there = transitions[here, token]
            size[here[:, None], here] += sizes[-1][there[:, None], there]
        sizes.append(size)
    return torch.stack(sizes)


def boundary_words(
    transitions: Tensor,
    first: Tensor,
    second: Tensor,
    horizon: int,
    tokens: Tensor | None = None,
    most: int = 1_000_000,
) -> tuple[Tensor, Tensor]:
    """The words of MNB(first, second) for pairs of states ``[pair]``: whose each is, ``[word]``, and the
    words ``[word, horizon]``, -1 after their end.

    Raises ValueError where more than ``most`` words would have to be followed at once.
    """
    legal, pair = _legal(transitions, tokens), torch.arange(len(first))
    begun = torch.full((len(first), horizon), -1)
    owners, found = [], []
    for depth in range(horizon):
        if int(legal[first].sum()) > most:
            raise ValueError(f"over {most:,} words to follow: ask for a shorter boundary, or for fewer pairs")
        row, token = torch.nonzero(legal[first], as_tuple=True)
        words, pair = begun[row], pair[row]
        words[:, depth] = token
        first, second = transitions[first[row], token], transitions[second[row], token]
        minimal = second < 0
        owners.append(pair[minimal])
        found.append(words[minimal])
        begun, pair, first, second = (each[~minimal] for each in (words, pair, first, second))
    return torch.cat(owners), torch.cat(found)


def step_laws(tree: list[Tensor]) -> list[Tensor]:
    """P(w | prefix) for all words of each length k = 1 .. K: a list of ``[n, A^k + 1]``.

    The last entry is what the law leaves over (a model that accepts nothing stops at once).
    """
    mass, laws = torch.ones(len(tree[0]), 1, dtype=torch.float64), []
    for law in tree:
        mass = (mass[..., None] * law).flatten(1)
        laws.append(torch.cat([mass, 1 - mass.sum(1, keepdim=True)], 1))
    return laws


def total_variation(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """1/2 sum_w |P(w | i) - P(w | j)| for each length k, ``[i, j, k]``, rounded at 1e-12 for ties to tie."""
    return torch.stack([torch.cdist(p, q, p=1) / 2 for p, q in zip(first, second)], 2).round(decimals=12)


def count_words(transitions: Tensor, initial: int, length: int) -> Tensor:
    """How many valid words of lengths 0 .. ``length`` end in each state, ``[length + 1, state]`` float64."""
    counts = torch.zeros(length + 1, len(transitions), dtype=torch.float64)
    counts[0, initial] = 1
    source, token = torch.nonzero(transitions >= 0, as_tuple=True)
    for step in range(length):
        counts[step + 1].index_add_(0, transitions[source, token], counts[step, source])
    return counts


def all_prefixes(transitions: Tensor, initial: int, length: int) -> tuple[Tensor, Tensor]:
    """Every valid word of ``length`` from ``initial``, ``[n, length]``, and the state it ends in, ``[n]``."""
    prefixes, states = torch.zeros(1, 0, dtype=torch.int64), torch.tensor([initial])
    for _ in range(length):
        row, token = torch.nonzero(transitions[states] >= 0, as_tuple=True)
        prefixes = torch.cat([prefixes[row], token[:, None]], 1)
        states = transitions[states[row], token]
    return prefixes, states


@dataclass(frozen=True)
class Backwards:
    """An automaton read from the end: ``source [edge]`` and ``token [edge]`` of its edges, those into state
    q being ``first[q] .. first[q + 1] - 1``."""

    source: Tensor
    token: Tensor
    first: Tensor

    @staticmethod
    def of(transitions: Tensor) -> Backwards:
        source, token = torch.nonzero(transitions >= 0, as_tuple=True)
        target = transitions[source, token]
        order = target.argsort(stable=True)
        degree = torch.bincount(target, minlength=len(transitions))
        return Backwards(source[order], token[order], torch.nn.functional.pad(degree.cumsum(0), (1, 0)))

    def drawn(self, states: Tensor, ways: Tensor, generator: torch.Generator) -> Tensor:
        """An edge into each of ``states [n]``, with a chance in proportion to ``ways [state]`` of its
        source; some are above 0."""
        begin, degree = self.first[states], self.first[states + 1] - self.first[states]
        owner = torch.arange(len(states)).repeat_interleave(degree)
        edge = torch.arange(len(owner)) + (begin - degree.cumsum(0) + degree)[owner]
        chance = ways[self.source[edge]]
        share = chance / torch.zeros(len(states), dtype=chance.dtype).index_add_(0, owner, chance)[owner]
        below = share.cumsum(0)
        at = torch.arange(len(states)) + torch.rand(len(states), dtype=chance.dtype, generator=generator)
        last = torch.zeros(len(states), dtype=torch.int64)
        last = last.scatter_reduce(0, owner, torch.where(share > 0, torch.arange(len(owner)), 0), "amax")
        pick = torch.searchsorted(below, at, right=True)
        # Rounding of the sums may step over the end of a state's edges, or onto one of no chance.
        return edge[torch.minimum(pick, last)]


def prefixes_to(back: Backwards, counts: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
    """A valid word ``[n, length]`` to each of the states ``ends [n]``, uniform among all such words.

    ``counts`` is ``count_words`` up to that length. Drawn backwards from the last state, each edge weighted
    by the number of ways to get to it.
    """
    length = len(counts) - 1
    here, tokens = ends, torch.zeros(len(ends), length, dtype=torch.int64)
    for step in range(length - 1, -1, -1):
        edge = back.drawn(here, counts[step], generator)
        here, tokens[:, step] = back.source[edge], back.token[edge]
    return tokens


def sampled_prefixes(
    transitions: Tensor, initial: int, length: int, classes: Tensor, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``each`` valid words of ``length`` for every class that one can end in, drawn uniformly among those
    words, independently (repeats are possible); and the state each ends in."""
    counts = count_words(transitions, initial, length)
    reached = [c for c in classes.unique().tolist() if counts[length, classes == c].sum() > 0]
    weights = torch.stack([counts[length] * (classes == c) for c in reached])
    ends = torch.multinomial(weights, each, replacement=True, generator=generator).flatten()
    return prefixes_to(Backwards.of(transitions), counts, ends, generator), ends
