"""Stationary processes over tokens that have finitely many hidden states, exactly.

A process is ``matrices`` ``[token, state, state]``: P(emit this token and go to j | in i). It is *unifilar*
when state and token determine the next state; the minimal unifilar one is the epsilon-machine (Crutchfield
and Young 1989), whose states are the causal states. Bits throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim_kernels.block_entropy import entropy

MOST_WORDS = 2**20


def stationary_law(matrices: Tensor) -> Tensor:
    """The law of the hidden state ``[state]`` that does not change. Raises ValueError when the rows are no
    laws, or when there is more than one such law."""
    step = matrices.double().sum(0)
    count = len(step)
    if bool((matrices < 0).any()) or not torch.allclose(step.sum(1), torch.ones(count).double()):
        raise ValueError("from every state the probabilities of tokens and next states must sum to 1")
    moved = step.mT - torch.eye(count, dtype=torch.float64)
    if int(torch.linalg.matrix_rank(moved)) < count - 1:
        raise ValueError("the states fall apart into several closed sets: there is no one stationary law")
    equations = torch.cat([moved, torch.ones(1, count, dtype=torch.float64)])
    right = torch.zeros(count + 1, 1, dtype=torch.float64)
    right[-1] = 1
    law: Tensor = torch.linalg.lstsq(equations, right).solution[:, 0].clamp(min=0)
    return law


def statistical_complexity(matrices: Tensor) -> float:
    """C_mu = H(state), of an epsilon-machine."""
    return float(entropy(stationary_law(matrices)))


def entropy_rate(matrices: Tensor) -> float:
    """h_mu = sum over states of their share times the entropy of the next token. Raises ValueError unless the
    process is unifilar: otherwise no formula gives it."""
    if bool(((matrices > 0).sum(2) > 1).any()):
        raise ValueError("a state and a token lead to several states: only block entropies approach its rate")
    return float(stationary_law(matrices) @ entropy(matrices.double().sum(2).mT))


def word_law(matrices: Tensor, length: int) -> Tensor:
    """Probabilities of all words of ``length``, ``[size^length]`` in lexicographic order."""
    if len(matrices) ** length > MOST_WORDS:
        raise ValueError(f"{len(matrices)}^{length} words are more than {MOST_WORDS}")
    ways = stationary_law(matrices)[None]
    for _ in range(length):
        ways = torch.einsum("wi,aij->waj", ways, matrices.double()).flatten(0, 1)
    return ways.sum(1)


def exact_block_entropies(matrices: Tensor, longest: int) -> Tensor:
    """H(1) .. H(longest), ``[longest]``."""
    return torch.stack([entropy(word_law(matrices, length)) for length in range(1, longest + 1)])


def sampled(matrices: Tensor, sequences: int, length: int, generator: torch.Generator) -> Tensor:
    """Tokens ``[sequence, time]`` int64 of a process that has run for ever."""
    states = matrices.shape[1]
    state = torch.multinomial(stationary_law(matrices), sequences, replacement=True, generator=generator)
    joint, tokens = matrices.double().transpose(0, 1).flatten(1), []
    for _ in range(length):
        drawn = torch.multinomial(joint[state], 1, generator=generator)[:, 0]
        tokens.append(drawn // states)
        state = drawn % states
    return torch.stack(tokens, 1)
