"""The state recurrence of ``scan`` in chunks, by matrix products: the backend "torch".

Within a chunk of C tokens, with x the vectors that read (q and a) and y those that write (k and b),
c_t = g_1 + ... + g_{t-1} and b_t = c_t + g_t, and S the state before the chunk,

    P_ij  = sum_n x_in y_jn e^{c_in - b_jn}   for j < i
    R     = (I - P_ab)^-1 (P_ak V + (a e^c) S)                        what a read of the states
    O     = P_qk V + P_qb R + (q e^c) S
    S_C   = e^{b_C} S + (k e^{b_C - b})^T V + (b e^{b_C - b})^T R

(the WY form of Bischof and Van Loan, 1987, as used by Yang et al., 2024, for the delta rule). An output that
reads the state after its own token's write has q e^g for q, and the term j = i besides; with ``bonus`` that
term is u q k. Chunks are joined by a loop over their states, tokens are taken in blocks that fit a cache, and
the backward stores the state at the start of every block only and recomputes the rest.

``P`` and the powers of e are the business of ``chunk_decays``.

Zeros above the diagonal of P are multiplied like the rest, so that an input that is infinite or NaN spoils
all tokens of its chunk and head, earlier ones too; ``native`` and ``reference`` keep it to later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.chunk_decays import MildDecay, NoDecay, ScalarDecay, StrongDecay, vector_decay
from worldsim_kernels.scan import offsets_of

BLOCK = 4096
"""Tokens times heads that are worked on at once: a megabyte for each float32 input with heads of 64."""


class _Inputs(NamedTuple):
    """One run of tokens: its sequences are the rows of the batch."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    a: Tensor | None
    b: Tensor | None
    bonus: Tensor | None
    scale: float


Gradients = tuple[Tensor | None, ...]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output [B, T, H, V] and the last state [N, H, K, V]; arguments as in ``scan.state_scan``."""
    inputs = _Inputs(q, k, v, g, a, b, bonus, scale)
    state = _first_state(inputs, initial_state, cu_seqlens)
    output = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    for rows, start, stop in _runs(q, cu_seqlens):
        _run(inputs, start, stop, state[rows], output)
    return output, state


def backward(
    grad_output: Tensor | None,
    grad_state: Tensor | None,
    needed: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    bonus: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Gradients:
    """Gradients of q, k, v, g, a, b, bonus and initial_state, None where that is absent."""
    inputs = _Inputs(q, k, v, g, a, b, bonus, scale)
    state = _first_state(inputs, initial_state, cu_seqlens)
    grad = torch.zeros_like(state) if grad_state is None else grad_state.to(state.dtype, copy=True)
    found = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:6]]
    grad_bonus = None if bonus is None else torch.zeros_like(bonus, dtype=state.dtype)
    for rows, start, stop in _runs(q, cu_seqlens):
        starts = _run(inputs, start, stop, state[rows], None)
        for (begin, end), before in zip(
            reversed(_blocks(inputs, start, stop)), reversed(starts), strict=True
        ):
            block = _Block(inputs, begin, end)
            block.advance(before)
            block.backward(grad_output, grad[rows], found, grad_bonus)
    return (*found, grad_bonus, None if initial_state is None else grad)


def _first_state(inputs: _Inputs, initial_state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    q, v = inputs.q, inputs.v
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is None:
        return torch.zeros(shape, dtype=dtype, device=q.device)
    return torch.empty(shape, dtype=dtype, device=q.device).copy_(initial_state)


def _runs(q: Tensor, cu_seqlens: Tensor | None) -> list[tuple[slice, int, int]]:
    """(rows of the state, first token, end) of what can be run together."""
    if cu_seqlens is None:
        return [(slice(None), 0, q.shape[1])]
    ends = pairwise(offsets_of(cu_seqlens, q.shape[1]))
    return [(slice(n, n + 1), start, stop) for n, (start, stop) in enumerate(ends)]


def _run(inputs: _Inputs, start: int, stop: int, state: Tensor, output: Tensor | None) -> list[Tensor]:
    """Advance ``state`` in place; write the output, or without one return the state before each block."""
    starts = []
    for begin, end in _blocks(inputs, start, stop):
        block = _Block(inputs, begin, end)
        if output is None:
            starts.append(state.clone())
        state.copy_(block.advance(state))
        if output is not None:
            _store(output[:, begin:end], block.output())
    return starts


def _chunk(inputs: _Inputs) -> int:
    """Tokens in a chunk: the best for heads of 64 on a CPU, where 16 is as good as 32."""
    return 32 if inputs.a is not None or (inputs.g is not None and inputs.g.dim() == 4) else 64


def _blocks(inputs: _Inputs, start: int, stop: int) -> list[tuple[int, int]]:
    chunk, heads = _chunk(inputs), inputs.q.shape[0] * inputs.q.shape[2]
    if not heads:
        return []
    size = chunk * max(1, BLOCK // (chunk * heads))
    return [(begin, min(stop, begin + size)) for begin in range(start, stop, size)]


class _Block:
    """Tokens begin to end of every row and head, as [chunk * row * head, C, D], zeros after the last."""

    def __init__(self, inputs: _Inputs, begin: int, end: int) -> None:
        dtype = torch.float64 if inputs.q.dtype == torch.float64 else torch.float32
        size = _chunk(inputs)

        def load(*tensors: Tensor | None) -> Tensor:
            return _load([x[:, begin:end] for x in tensors if x is not None], size, dtype)

        self.begin, self.end, self.size, self.scale = begin, end, size, inputs.scale
        self.rows, self.heads = inputs.q.shape[0], inputs.q.shape[2]
        x, y = load(inputs.q, inputs.a), load(inputs.k, inputs.b)
        if self.scale != 1:
            x[:, 0].mul_(self.scale)
        self.x, self.y, self.v, self.ranks = x, y, load(inputs.v)[:, 0], x.shape[1]
        repeats, after = self.chunks * self.rows, inputs.bonus is None
        self.bonus = None if inputs.bonus is None else inputs.bonus.to(dtype).repeat(repeats, 1)
        self.decay: NoDecay | ScalarDecay | MildDecay | StrongDecay
        if inputs.g is None:
            self.decay = NoDecay(x, y, after)
        elif inputs.g.dim() == 3:
            self.decay = ScalarDecay(x, y, after, load(inputs.g)[:, 0])
        else:
            self.decay = vector_decay(x, y, after, load(inputs.g)[:, 0])
        # What the token's own write adds to its output, where the decay leaves it out of P.
        self.own_k = self.bonus is not None or isinstance(self.decay, StrongDecay)
        self.own_b = self.bonus is None and self.own_k and self.ranks == 2
        self._add_own()

    @property
    def chunks(self) -> int:
        return -(-(self.end - self.begin) // self.size)

    def _add_own(self) -> None:
        if self.own_k:
            k = self.y[:, 0] if self.bonus is None else self.bonus[:, None] * self.y[:, 0]
            self._diagonal(self.decay.pairs, 0).add_((self.x[:, 0] * k).sum(-1))
        if self.own_b:
            self._diagonal(self.decay.pairs, 1).add_((self.x[:, 0] * self.y[:, 1]).sum(-1))

    def _diagonal(self, pairs: Tensor, writer: int) -> Tensor:
        """q of a token with k (0) or b (1) of the same token: [n, C]."""
        return pairs[:, : self.size, writer * self.size : (writer + 1) * self.size].diagonal(dim1=1, dim2=2)

    def advance(self, state: Tensor) -> Tensor:
        """The state after the block from the one before it, [row, head, K, V]."""
        size, decay = self.size, self.decay
        self.reads, self.writes = decay.reads, decay.writes
        added = self.writes[:, 0].mT @ self.v
        self.values = self.v
        if self.ranks == 1:
            self.states, last, _ = self._sweep(state, added, False)
            return last.view_as(state)
        eye = torch.eye(size, dtype=added.dtype, device=added.device)
        below = eye - decay.pairs[:, size:, size:]
        self.inverse = torch.linalg.solve_triangular(below, eye, upper=False, unitriangular=True)
        offset = self.inverse @ (decay.pairs[:, size:, :size] @ self.v)
        reader = self.inverse @ self.reads[:, 1]
        self.states, last, read = self._sweep(state, added, False, reader, offset, self.writes[:, 1])
        self.values = torch.cat([self.v, read], 1)
        return last.view_as(state)

    def _sweep(
        self,
        state: Tensor,
        added: Tensor,
        reverse: bool,
        reader: Tensor | None = None,
        offset: Tensor | None = None,
        writer: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """S <- e^{b_C} S + added + writer^T (offset + reader S), chunk after chunk.

        Returns S before each, S after all, and the brackets.
        """
        count = self.rows * self.heads
        current = state.reshape(count, *state.shape[2:])
        states = torch.empty_like(added)
        brackets = added if offset is None else torch.empty_like(offset)
        order = range(0, added.shape[0], count)
        for i in reversed(order) if reverse else order:
            part = slice(i, i + count)
            states[part] = current
            whole = self.decay.whole
            following = (
                added[part] + current if whole is None else torch.addcmul(added[part], whole[part], current)
            )
            if reader is not None and offset is not None and writer is not None:
                torch.baddbmm(offset[part], reader[part], current, out=brackets[part])
                following.baddbmm_(writer[part].mT, brackets[part])
            current = following
        return states, current, brackets

    def output(self) -> Tensor:
        """[row, token, head, V]"""
        inside = self.decay.pairs[:, : self.size] @ self.values
        return self._unfold(inside.baddbmm_(self.reads[:, 0], self.states))

    def backward(
        self,
        grad_output: Tensor | None,
        grad_state: Tensor,
        found: list[Tensor | None],
        grad_bonus: Tensor | None,
    ) -> None:
        """Carry ``grad_state`` from the state after the block to the one before, and write its tokens'."""
        size, decay = self.size, self.decay
        if grad_output is None:
            grad = torch.zeros_like(self.v)
        else:
            grad = _load([grad_output[:, self.begin : self.end]], size, self.v.dtype)[:, 0]
        added = self.reads[:, 0].mT @ grad
        if self.ranks == 1:
            states, last, _ = self._sweep(grad_state, added, True)
        else:
            transposed = self.inverse.mT
            offset = transposed @ (decay.pairs[:, :size, size:].mT @ grad)
            reader = transposed @ self.writes[:, 1]
            states, last, read = self._sweep(grad_state, added, True, reader, offset, self.reads[:, 1])
            grad = torch.cat([grad, read], 1)
        grad_state.copy_(last.view_as(grad_state))
        grad_pairs = grad @ self.values.mT
        own = [self._diagonal(grad_pairs, writer).clone()[..., None] for writer in range(self.ranks)]
        grad_v = (decay.pairs[:, :, :size].mT @ grad).baddbmm_(self.writes[:, 0], states)
        grad_whole = None if decay.whole is None else (states * self.states).sum(-1, keepdim=True)
        dx, dy, dg = decay.backward(
            grad_pairs, self._ranked(grad @ self.states.mT), self._ranked(self.values @ states.mT), grad_whole
        )
        self._own_backward(own, dx, dy, grad_bonus)
        made = (dx[:, 0] * self.scale, dy[:, 0], grad_v, dg, dx[:, -1], dy[:, -1])
        for into, one in zip(found, made, strict=True):
            if into is not None and one is not None:
                _store(into[:, self.begin : self.end], self._unfold(one))

    def _own_backward(self, own: Sequence[Tensor], dx: Tensor, dy: Tensor, grad_bonus: Tensor | None) -> None:
        if self.own_b:
            dx[:, 0].addcmul_(own[1], self.y[:, 1])
            dy[:, 1].addcmul_(own[1], self.x[:, 0])
        if self.own_k:
            q, k = self.x[:, 0], self.y[:, 0]
            bonus = q.new_ones(()) if self.bonus is None else self.bonus[:, None]
            dx[:, 0].addcmul_(own[0], bonus * k)
            dy[:, 0].addcmul_(own[0], bonus * q)
            if grad_bonus is not None:
                each = (own[0] * q * k).sum(1)
                grad_bonus += each.view(self.chunks * self.rows, *grad_bonus.shape).sum(0)

    def _ranked(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.ranks, self.size, x.shape[2])

    def _unfold(self, x: Tensor) -> Tensor:
        """[chunk * row * head, C, ...] -> [row, chunk, C, head, ...]"""
        x = x.view(self.chunks, self.rows, self.heads, *x.shape[1:])
        return x.permute(1, 0, 3, 2, *range(4, x.dim()))


def _load(tensors: Sequence[Tensor], size: int, dtype: torch.dtype) -> Tensor:
    """Some of [row, token, head, ...] -> [chunk * row * head, some, C, ...], zeros after the last token."""
    rows, length, heads, *rest = tensors[0].shape
    shape = (-(-length // size), rows, heads, len(tensors), size, *rest)
    loaded = torch.empty(shape, dtype=dtype, device=tensors[0].device)
    order = (1, 0, 3, 2, *range(4, 4 + len(rest)))
    for i, x in enumerate(tensors):
        if length % size:
            x = torch.cat([x, x.new_zeros(rows, -length % size, heads, *rest)], 1)
        loaded[:, :, :, i].copy_(x.view(rows, shape[0], size, heads, *rest).permute(order))
    return loaded.flatten(0, 2)


def _store(into: Tensor, x: Tensor) -> None:
    """Write [row, chunk, C, head, ...] over [row, token, head, ...]."""
    length, size = into.shape[1], x.shape[2]
    if length % size:
        into.copy_(x.flatten(1, 2)[:, :length])
    else:
        into.view(into.shape[0], length // size, size, *into.shape[2:]).copy_(x)
