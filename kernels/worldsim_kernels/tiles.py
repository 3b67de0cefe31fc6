"""Softmax attention by tiles, in torch: the (query, key) matrix is never stored.

Online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): with the maximum m and the sum l of what was
seen so far, a block of scores s gives m' = max(m, max s), l' = e^(m - m') l + sum e^(s - m') and
o' = e^(m - m') o + e^(s - m') V. The backward computes P = e^(s - lse) again, tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEYS = 512
TILE = 2**19
"""Keys of a tile, and its numbers over all heads: 2 MiB of float32, near which a core is quickest."""


@dataclass(frozen=True)
class Scores:
    """s_ij = (scale q_i . k_j + bias_ij) / temperature, -inf where query i may not see key j.

    q [B, H, T, K] is already multiplied by scale / temperature, k [B, G, S, K] with G dividing H; both of the
    dtype computed in. bias and mask [b, h, t, s]: b divides B (batch n has row n % b), the others are 1 or
    whole.
    """

    q: Tensor
    k: Tensor
    bias: Tensor | None
    mask: Tensor | None
    temperature: Tensor | None
    causal: bool
    window: int | None

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        temperature: Tensor | None,
        causal: bool,
        window: int | None,
        scale: float,
    ) -> Scores:
        """From the arguments of ``attend``, heads last but one; low precision is widened."""
        tau = None if temperature is None else temperature.to(computed_in(q)).view(-1, 1, 1)
        queries = heads_first(q) * (scale if tau is None else scale / tau)
        return Scores(queries, heads_first(k), bias, mask, tau, causal, window)

    def row_blocks(self) -> Iterator[slice]:
        batch, heads, length, _ = self.q.shape
        return blocks(0, length, max(16, min(length, TILE // (batch * heads * min(KEYS, self.k.shape[2])))))

    def column_blocks(self, rows: slice) -> Iterator[slice]:
        """Only those with a key that one of these queries may see."""
        behind = self.k.shape[2] - self.q.shape[2]
        first = 0 if self.window is None else max(0, rows.start + behind - self.window + 1)
        last = min(self.k.shape[2], rows.stop + behind) if self.causal else self.k.shape[2]
        return blocks(first, last, KEYS)

    def tile(self, queries: Tensor, rows: slice, columns: slice) -> Tensor:
        """[B, H, rows, columns]; ``queries`` are this block's, folded by ``fold``."""
        made = self.unfold(queries @ self.k[:, :, columns].mT)
        if self.bias is not None:
            bias = part(self.bias, rows, columns).to(made.dtype)
            bias = bias if self.temperature is None else bias / self.temperature
            torch.unflatten(made, 0, (-1, self.bias.shape[0])).add_(bias)
        if self.mask is not None:
            hidden = part(self.mask, rows, columns).logical_not()
            torch.unflatten(made, 0, (-1, self.mask.shape[0])).masked_fill_(hidden, -math.inf)
        hidden_by_place = self.outside(rows, columns)
        return made if hidden_by_place is None else made.masked_fill_(hidden_by_place, -math.inf)

    def outside(self, rows: slice, columns: slice) -> Tensor | None:
        """Which pairs of a tile ``causal`` and ``window`` hide; None when they hide none of it."""
        behind = self.k.shape[2] - self.q.shape[2]
        future = self.causal and columns.stop - 1 > rows.start + behind
        past = self.window is not None and columns.start <= rows.stop - 1 + behind - self.window
        if not (future or past):
            return None
        device = self.q.device
        lead = torch.arange(columns.start, columns.stop, device=device) - behind
        lead = lead - torch.arange(rows.start, rows.stop, device=device)[:, None]
        hidden = lead > 0 if self.causal else torch.zeros_like(lead, dtype=torch.bool)
        return hidden if self.window is None else hidden | (lead <= -self.window)

    def fold(self, x: Tensor) -> Tensor:
        """[B, H, rows, .] -> [B, G, H/G rows, .]: queries that share keys become rows of one product."""
        groups = self.k.shape[1]
        return x if groups == x.shape[1] else torch.unflatten(x, 1, (groups, -1)).flatten(2, 3)

    def unfold(self, x: Tensor) -> Tensor:
        heads = self.q.shape[1]
        return x if heads == x.shape[1] else torch.unflatten(x, 2, (heads // x.shape[1], -1)).flatten(1, 2)


def tiled_forward(scores: Scores, v: Tensor) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, V], lse [B, H, T]) for values [B, G, S, V]; zeros and -inf where nothing is seen."""
    shape = scores.q.shape[:3]
    output, lse = v.new_empty(*shape, v.shape[-1]), v.new_empty(shape)
    for rows in scores.row_blocks():
        queries = scores.fold(scores.q[:, :, rows])
        top = v.new_full((*shape[:2], rows.stop - rows.start, 1), -math.inf)
        total, mixed = torch.zeros_like(top), v.new_zeros(*top.shape[:3], v.shape[-1])
        for columns in scores.column_blocks(rows):
            s = scores.tile(queries, rows, columns)
            higher = torch.maximum(top, s.amax(-1, keepdim=True))
            # Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
            shift = higher.masked_fill(higher == -math.inf, 0.0)
            p, fade = s.sub_(shift).exp_(), (top - shift).exp_()
            total = total.mul_(fade).add_(p.sum(-1, keepdim=True))
            mixed = mixed.mul_(fade).add_(scores.unfold(scores.fold(p) @ v[:, :, columns]))
            top = higher
        output[:, :, rows] = mixed / total.masked_fill(total == 0, 1.0)
        lse[:, :, rows] = (top + total.log()).squeeze(-1)
    return output, lse


def tiled_backward(
    scores: Scores,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor | None,
    scale: float,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k [B, G, S, K], v, bias and temperature: with D_i = do_i . o_i less the gradient of
    lse_i, dS = P (dO V' - D). All arrays heads first; None for those not ``needed``.
    """
    q, k, tau = scores.q, scores.k, scores.temperature
    d_row = (output * d_output).sum(-1, keepdim=True)
    d_row = d_row if d_lse is None else d_row - d_lse.unsqueeze(-1)
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    d_bias = None if scores.bias is None or not needed[3] else torch.zeros_like(scores.bias, dtype=q.dtype)
    heat = _Heat(q.shape[:3], q) if needed[4] else None
    # A row that sees nothing has lse = -inf; +inf makes its P zero.
    norm = lse.masked_fill(lse == -math.inf, math.inf).unsqueeze(-1)
    for rows in scores.row_blocks():
        queries, grads = scores.fold(q[:, :, rows]), scores.fold(d_output[:, :, rows])
        for columns in scores.column_blocks(rows):
            s = scores.tile(queries, rows, columns)
            p = (s - norm[:, :, rows]).exp_()
            d_v[:, :, columns] += scores.fold(p).mT @ grads
            if not (needed[0] or needed[1] or needed[3] or needed[4]):
                continue
            d_p = scores.unfold(grads @ v[:, :, columns].mT)
            if heat is not None:
                heat.add(rows, s, p, d_p)
            d_s = d_p.sub_(d_row[:, :, rows]).mul_(p)
            d_q[:, :, rows] += scores.unfold(scores.fold(d_s) @ k[:, :, columns])
            d_k[:, :, columns] += scores.fold(d_s).mT @ queries
            if d_bias is not None:
                spread = part(d_bias, rows, columns)
                d_s = d_s if tau is None else d_s / tau
                spread += torch.unflatten(d_s, 0, (-1, d_bias.shape[0])).sum(0).sum_to_size(spread.shape)
    d_tau = None if heat is None or tau is None else -heat.total(d_lse) / tau.flatten()
    return d_q.mul_(scale if tau is None else scale / tau), d_k, d_v, d_bias, d_tau


class _Heat:
    """Sum over a head of dS s, from the means of dP, s and dP s in each row under P.

    The D of the other gradients would do but for its rounding in low precision, which does not cancel here.
    """

    def __init__(self, shape: torch.Size, like: Tensor) -> None:
        self.d_p, self.s, self.both = (like.new_zeros(shape) for _ in range(3))

    def add(self, rows: slice, s: Tensor, p: Tensor, d_p: Tensor) -> None:
        known, weighed = s.masked_fill_(s == -math.inf, 0.0), p * d_p
        self.d_p[:, :, rows] += weighed.sum(-1)
        self.s[:, :, rows] += (p * known).sum(-1)
        self.both[:, :, rows] += weighed.mul_(known).sum(-1)

    def total(self, d_lse: Tensor | None) -> Tensor:
        level = self.d_p if d_lse is None else self.d_p - d_lse
        return (self.both - level * self.s).sum((0, 2))


def computed_in(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def heads_first(x: Tensor) -> Tensor:
    """[B, T, H, D] -> [B, H, T, D] of the dtype computed in, contiguous for the products."""
    return x.transpose(1, 2).to(computed_in(x), memory_format=torch.contiguous_format)


def blocks(first: int, last: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, last)) for i in range(first, last, size))


def part(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """The tile of [b, h, t, s]; an axis of one is taken whole."""
    whole = slice(None)
    return x[:, :, whole if x.shape[2] == 1 else rows, whole if x.shape[3] == 1 else columns]
