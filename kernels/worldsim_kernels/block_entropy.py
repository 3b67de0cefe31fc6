"""Entropy of token sequences by the length of the blocks that are looked at. All in bits.

    H(L) = - sum over words w of length L of p(w) log2 p(w)
    h_L  = H(L) - H(L - 1)        the entropy rate as blocks of L see it, which falls to h
    E_L  = H(L) - L h_L           the excess entropy, which rises to I(past; future)

(Crutchfield and Feldman 2003.) Counting words of N windows underestimates H by about (K - 1) / 2N nats, K the
number of words that occur (Miller 1955, Madow), which is added. ``causal_states`` groups histories by what
follows them, and the entropy of that grouping is the statistical complexity (Crutchfield and Young 1989).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST_CODE = 2**62


class BlockEntropies(NamedTuple):
    """H(1) .. H(L), L >= 2, of one set of sequences.

    value       ``[L]`` with the correction
    correction  ``[L]`` what was added to what counting gives
    rows        ``[L, sequence]`` the mean of - log2 p(w) over the words of each sequence: their mean is H
                before the correction, and their spread tells how well it is known
    """

    value: Tensor
    correction: Tensor
    rows: Tensor

    def rate(self) -> float:
        """h_L."""
        return float(self.value[-1] - self.value[-2])

    def excess(self) -> float:
        """E_L."""
        return float(self.value[-1]) - len(self.value) * self.rate()

    def rate_rows(self) -> Tensor:
        """``[sequence]`` parts of which h_L, uncorrected, is the mean."""
        return self.rows[-1] - self.rows[-2]

    def excess_rows(self) -> Tensor:
        """``[sequence]`` parts of which E_L, uncorrected, is the mean."""
        return self.rows[-1] - len(self.value) * self.rate_rows()


def entropy(law: Tensor) -> Tensor:
    """- sum p log2 p over the last axis of ``law`` ``[..., outcome]``; 0 log 0 = 0."""
    bits: Tensor = -torch.special.xlogy(law, law).sum(-1) / math.log(2)
    return bits


def word_codes(tokens: Tensor, size: int, length: int) -> Tensor:
    """Numbers of the words of ``length`` in ``tokens`` ``[sequence, time]``, ``[sequence, window]`` int64, in
    lexicographic order. Raises ValueError for tokens outside 0 .. size - 1 and for words that do not fit."""
    if tokens.dim() != 2 or tokens.is_floating_point() or not 1 <= length <= tokens.shape[1]:
        raise ValueError(f"tokens {list(tokens.shape)}: give integers [sequence, time >= {length}]")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise ValueError(f"tokens must be 0 .. {size - 1}; found {int(tokens.min())} .. {int(tokens.max())}")
    if size**length > LONGEST_CODE:
        raise ValueError(f"words of {length} out of {size} tokens are too many to number")
    power = size ** torch.arange(length - 1, -1, -1)
    return (tokens.long().unfold(1, length, 1) * power).sum(-1)


def block_entropies(tokens: Tensor, size: int, longest: int) -> BlockEntropies:
    """H(1) .. H(longest) of all windows of ``tokens`` ``[sequence, time]`` over ``size`` tokens."""
    value, correction, rows = [], [], []
    for length in range(1, longest + 1):
        codes = word_codes(tokens, size, length)
        found, index = torch.unique(codes, return_inverse=True)
        share = torch.bincount(index.flatten()).double() / codes.numel()
        rows.append(-share.log2()[index].mean(1))
        correction.append((len(found) - 1) / (2 * codes.numel() * math.log(2)))
        value.append(float(entropy(share)) + correction[-1])
    as_tensor = [torch.tensor(each, dtype=torch.float64) for each in (value, correction)]
    return BlockEntropies(as_tensor[0], as_tensor[1], torch.stack(rows))


def conditional_information(law: Tensor) -> float:
    """I(X; Y | Z) of a joint ``law`` ``[x, y, z]``, exactly."""
    parts = (law.sum(1), law.sum(0), law, law.sum((0, 1)))
    xz, yz, xyz, z = (float(entropy(part.double().flatten())) for part in parts)
    return xz + yz - xyz - z


def transfer_entropy(source: Tensor, target: Tensor, size: int, *, history: int = 1) -> float:
    """I(Y_t+1; past of X | past of Y), pasts of ``history`` tokens (Schreiber 2000), by counting the words of
    ``source`` X and ``target`` Y ``[sequence, time]`` over ``size`` tokens."""
    past_x, past_y = (word_codes(z[:, :-1], size, history) for z in (source, target))
    after = target[:, history:].long()
    count, words = after.numel(), size**history
    codes = (after * words + past_x) * words + past_y
    law = torch.bincount(codes.flatten(), minlength=size * words * words).double() / count
    return conditional_information(law.reshape(size, words, words))


class CausalStates(NamedTuple):
    """Groups of histories with one law of the future.

    share    ``[state]`` how often a history is in each
    futures  ``[state, word]`` the law of the words that follow
    state    ``[history]`` the group of each history that occurs, histories in lexicographic order
    """

    share: Tensor
    futures: Tensor
    state: Tensor

    @property
    def complexity(self) -> float:
        """The statistical complexity of this grouping."""
        return float(entropy(self.share))


def causal_states(
    tokens: Tensor, size: int, history: int, future: int, *, level: float = 1e-3
) -> CausalStates:
    """Group the histories of ``tokens`` ``[sequence, time]`` by the law of the words of length ``future``
    that follow, commonest first: a history joins the group that it is most like, unless a G test at
    ``level`` tells it apart from that too; then it begins a new one (after Shalizi and Klinkner 2004).

    A history that does not tell the state is a group of its own, however rare, so the complexity approaches
    its limit from either side as histories grow.
    """
    codes = word_codes(tokens, size, history + future)
    words = size**future
    past, row = torch.unique(codes // words, return_inverse=True)
    counts = torch.zeros(len(past), words, dtype=torch.float64)
    counts.index_put_((row.flatten(), (codes % words).flatten()), torch.ones(()).double(), accumulate=True)
    groups: list[Tensor] = []
    state = torch.empty(len(past), dtype=torch.int64)
    for h in counts.sum(1).argsort(descending=True, stable=True).tolist():
        chances = [_same_law(counts[h], group) for group in groups]
        best = max(range(len(groups)), key=chances.__getitem__, default=-1)
        if best < 0 or chances[best] < level:
            groups.append(counts[h].clone())
            best = len(groups) - 1
        else:
            groups[best] = groups[best] + counts[h]
        state[h] = best
    table = torch.stack(groups)
    return CausalStates(table.sum(1) / table.sum(), table / table.sum(1, keepdim=True), state)


def _same_law(a: Tensor, b: Tensor) -> float:
    """P-value of the G test that two rows of counts come from one law."""
    table = torch.stack([a, b])[:, (a + b) > 0]
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    statistic = 2 * torch.special.xlogy(table, table / expected).sum()
    degrees = table.shape[1] - 1
    if degrees == 0:
        return 1.0
    return float(torch.special.gammaincc(torch.tensor(degrees / 2).double(), statistic / 2))
