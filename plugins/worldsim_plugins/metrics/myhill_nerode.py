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

import torch
from torch import Tensor

NextToken = Callable[[Tensor], Tensor]


def nerode_classes(transitions: Tensor, depth: int | None = None) -> Tensor:
    """Class of each state, ``[state]`` int64: two states share one when the same words are valid from both.

    Partition refinement (Moore 1956). With ``depth`` only words of at most that length are compared.
    ``transitions`` is ``[state, token]``, -1 where the token is illegal.
    """
    classes = torch.zeros(len(transitions), dtype=torch.int64)
    rounds = len(transitions) if depth is None else depth
    for _ in range(rounds):
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
        law = torch.cat([_law(next_token, part, size) for part in whole.split(batch)])
        tree.append(law.reshape(len(prefixes), len(tails), size))
    return tree


def _law(next_token: NextToken, tokens: Tensor, size: int) -> Tensor:
    law = next_token(tokens).detach().double().cpu()
    if tuple(law.shape) != (len(tokens), size):
        raise ValueError(
            f"next_token must give [n, token] = {[len(tokens), size]}, it gave {list(law.shape)}"
        )
    bad = ~(torch.isfinite(law) & (law >= 0)).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"next_token gave {int(bad.sum())} laws of {len(law)} that are negative or not finite"
        )
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


def boundary_sizes(transitions: Tensor, horizon: int) -> Tensor:
    """|MNB(i, j)| over words of length <= ``horizon``, ``[state, state]`` int64."""
    tree = automaton_tree(transitions, torch.arange(len(transitions)), horizon)
    valid = language(tree)
    return (valid.double() @ first_rejected(valid, transitions.shape[1]).double().T).long()


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


def sampled_prefixes(
    transitions: Tensor, initial: int, length: int, classes: Tensor, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``each`` valid words of ``length`` for every class that one can end in, drawn uniformly among those
    words, independently (repeats are possible); and the state each ends in.

    Words are drawn backwards from their last state, weighted by the number of ways to get there.
    """
    counts = count_words(transitions, initial, length)
    reached = [c for c in classes.unique().tolist() if counts[length, classes == c].sum() > 0]
    weights = torch.stack([counts[length] * (classes == c) for c in reached])
    ends = torch.multinomial(weights, each, replacement=True, generator=generator).flatten()
    source, token = torch.nonzero(transitions >= 0, as_tuple=True)
    arrives = transitions[source, token][None, :] == torch.arange(len(transitions))[:, None]
    here, tokens = ends, []
    for step in range(length - 1, -1, -1):
        edge = torch.multinomial(arrives[here] * counts[step, source], 1, generator=generator)[:, 0]
        here = source[edge]
        tokens.append(token[edge])
    return torch.stack(tokens[::-1], 1), ends
