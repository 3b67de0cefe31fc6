"""What decay does inside the chunks of ``chunked``: the pairs P, and how the state is read and written.

Each class takes x [n, R, C, K], the vectors that read, y of the same shape, those that write, and gates, and
has, with c_t the sum of the gates before token t of its chunk and b_t = c_t + g_t,

    pairs   [n, R C, R C]  sum over keys of x_i y_j e^{c_i - b_j} for j < i
    reads   x e^c          what meets the state before the chunk
    writes  y e^{b_C - b}  what reaches the state after it
    whole   e^{b_C}        None without decay

R is 2 with a low-rank part, else 1. With ``after``, reader 0 is q of an output read after its token's write:
its exponents have b for c, and without decay or with a scalar one its pairs include j = i.

No exponent is formed as a difference of long sums and none exceeds 0, but for chunks of mild vector decay.
Gates below ``FLOOR`` count as that, where e is zero: an infinite one would make 0 times infinity.

``backward`` takes the gradients of these four and gives those of x, y and the gates. A gate's gradient is a
sum over the pairs that straddle it. It is added up as such: the usual difference of two running sums cancels
when decay is strong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = {torch.float32: -120.0, torch.float64: -800.0}
MILD = 40.0
"""Decay over a chunk up to which its exponents are split at its middle: beyond, gates lose their gradient."""


class NoDecay:
    """P = x y^T below the diagonal."""

    whole: Tensor | None = None

    def __init__(self, x: Tensor, y: Tensor, after: bool) -> None:
        self.x, self.y = x, y
        self.reads, self.writes = x, y
        self.hidden = ~_seen(x, after).repeat(1, x.shape[1])
        self.pairs = (_flat(x) @ _flat(y).mT).masked_fill_(self.hidden, 0.0)

    def backward(
        self, grad_pairs: Tensor, grad_reads: Tensor, grad_writes: Tensor, grad_whole: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        inside = grad_pairs.masked_fill(self.hidden, 0.0)
        dx = torch.baddbmm(_flat(grad_reads), inside, _flat(self.y))
        dy = torch.baddbmm(_flat(grad_writes), inside.mT, _flat(self.x))
        return dx.view_as(self.x), dy.view_as(self.y), None


class ScalarDecay:
    """One gate for all keys, g [n, C]: P = x y^T times a matrix of e^{c_i - b_j}."""

    def __init__(self, x: Tensor, y: Tensor, after: bool, g: Tensor) -> None:
        self.x, self.y = x, y
        n, ranks, size, _ = x.shape
        ends = g.double().clamp_min_(FLOOR[g.dtype]).cumsum(-1)
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        places = torch.stack([ends if after else starts, starts][:ranks], 1)
        seen = _seen(x, after)
        apart = (places.flatten(1)[:, :, None] - ends[:, None]).masked_fill_(~seen, -torch.inf)
        self.matrix = apart.to(g.dtype).exp_().view(n, ranks * size, 1, size)
        self.pairs = ((_flat(x) @ _flat(y).mT).view(n, ranks * size, ranks, size) * self.matrix).flatten(2)
        self.into = places.to(g.dtype).exp_()[..., None]
        self.out_of = (ends[:, -1:] - ends).to(g.dtype).exp_()[:, None, :, None]
        self.reads, self.writes = x * self.into, y * self.out_of
        self.whole = self.into.new_empty(n, 1, 1).copy_(ends[:, -1:, None].exp())
        self.passed = seen.to(x.dtype)
        """Which gates reader i has passed: the places of the writers it sees."""

    def backward(
        self, grad_pairs: Tensor, grad_reads: Tensor, grad_writes: Tensor, grad_whole: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert grad_whole is not None
        n, ranks, size, _ = self.x.shape
        inside = grad_pairs.view(n, ranks * size, ranks, size) * self.matrix
        straddling = (grad_pairs * self.pairs).view(n, ranks * size, ranks, size).sum(2)
        inside = inside.flatten(2)
        dx = torch.baddbmm(_flat(grad_reads * self.into), inside, _flat(self.y)).view_as(self.x)
        dy = torch.baddbmm(_flat(grad_writes * self.out_of), inside.mT, _flat(self.x)).view_as(self.y)
        read = (self.reads * grad_reads).sum(-1).flatten(1)
        written = (self.writes * grad_writes).sum((1, 3))
        below = _ones_below(self.x)
        dg = (self.passed.mT @ straddling).mul_(below).sum(-1)
        dg += read @ self.passed + written @ below.mT + (self.whole * grad_whole.sum(1, keepdim=True))[..., 0]
        return dx, dy, dg


class VectorDecay:
    """One gate for each key, g [n, C, K].

    While no key decays by more than e^-``MILD`` in a chunk, the exponent is split at the chunk's middle m:
    e^{c_i - c_m} e^{c_m - b_j}.
    Else the chunk is halved again and again: pairs of one token in the upper half and one in the lower are
    split at the boundary, where both exponents are at most 0.
    """

    def __init__(self, x: Tensor, y: Tensor, after: bool, g: Tensor) -> None:
        self.y, self.after = y, after
        self.below = _ones_below(x)
        g = g.clamp_min(FLOOR[g.dtype])
        self.own = g.exp() if after else None
        self.x = x if self.own is None else torch.cat([(x[:, 0] * self.own)[:, None], x[:, 1:]], 1)
        self.into, self.out_of = (self.below @ g).exp_(), (self.below.mT @ g).exp_()
        over = g.sum(1)
        self.whole = over.exp()[..., None]
        self.reads, self.writes = self.x * self.into[:, None], y * self.out_of[:, None]
        self.mild = g.numel() == 0 or float(over.abs().amax()) <= MILD
        self.splits: Sequence[_Middle | _Half] = (
            [_Middle(self.x, y, g)] if self.mild else _halves(self.x, y, g)
        )
        n, ranks, size, _ = x.shape
        self.pairs = x.new_zeros(n, ranks * size, ranks * size)
        for split in self.splits:
            split.add_pairs(self.pairs)

    def backward(
        self, grad_pairs: Tensor, grad_reads: Tensor, grad_writes: Tensor, grad_whole: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert grad_whole is not None
        dx, dy = grad_reads * self.into[:, None], grad_writes * self.out_of[:, None]
        dg = self.below.mT @ (self.reads * grad_reads).sum(1) + self.below @ (self.writes * grad_writes).sum(
            1
        )
        dg += (self.whole * grad_whole).mT
        for split in self.splits:
            split.backward(grad_pairs, dx, dy, dg)
        if self.own is not None:
            dg.addcmul_(self.x[:, 0], dx[:, 0])
            dx[:, 0].mul_(self.own)
        return dx, dy, dg


class _Middle:
    """All pairs at once, split at the middle of the chunk."""

    def __init__(self, x: Tensor, y: Tensor, g: Tensor) -> None:
        below = _ones_below(x)
        middle = below[below.shape[0] // 2]
        self.to_reader = below - middle
        self.to_writer = middle - below - torch.eye(below.shape[0], dtype=x.dtype, device=x.device)
        self.into, self.out_of = (self.to_reader @ g).exp_()[:, None], (self.to_writer @ g).exp_()[:, None]
        self.x, self.y = _flat(x * self.into), _flat(y * self.out_of)
        self.hidden = ~_seen(x, False).repeat(1, x.shape[1])

    def add_pairs(self, pairs: Tensor) -> None:
        torch.bmm(self.x, self.y.mT, out=pairs).masked_fill_(self.hidden, 0.0)

    def backward(self, grad_pairs: Tensor, dx: Tensor, dy: Tensor, dg: Tensor) -> None:
        """Add to the gradients of x, y and the gates."""
        inside = grad_pairs.masked_fill(self.hidden, 0.0)
        grad_x, grad_y = inside @ self.y, inside.mT @ self.x
        dx.addcmul_(grad_x.view_as(dx), self.into)
        dy.addcmul_(grad_y.view_as(dy), self.out_of)
        dg += self.to_reader.mT @ (self.x * grad_x).view_as(dx).sum(1)
        dg += self.to_writer.mT @ (self.y * grad_y).view_as(dy).sum(1)


class _Half:
    """The pairs of an upper and a lower half of every run of ``2 half`` tokens, split where these meet."""

    def __init__(self, x: Tensor, y: Tensor, g: Tensor, half: int) -> None:
        self.half, self.ranks, self.size = half, x.shape[1], x.shape[2]
        place = torch.arange(self.size, device=g.device)
        gate, token = place[None, :], place[:, None]
        passed = torch.where(token % (2 * half) >= half, gate < token, gate > token)
        self.to_border = (passed & (token // half == gate // half)).to(g.dtype)
        self.decay = (self.to_border @ g).exp_()[:, None]
        self.x = self._upper(x) * self._upper(self.decay)
        self.y = self._lower(y) * self._lower(self.decay)

    def add_pairs(self, pairs: Tensor) -> None:
        corner = self._corner(pairs)
        corner.copy_((self._rows(self.x) @ self._rows(self.y).mT).view(corner.shape))

    def backward(self, grad_pairs: Tensor, dx: Tensor, dy: Tensor, dg: Tensor) -> None:
        """Add to the gradients of x, y and the gates."""
        rows = self.ranks * self.half
        inside = self._corner(grad_pairs).reshape(-1, rows, rows)
        grad_x = (inside @ self._rows(self.y)).view(self.x.shape)
        grad_y = (inside.mT @ self._rows(self.x)).view(self.y.shape)
        self._upper(dx).addcmul_(grad_x, self._upper(self.decay))
        self._lower(dy).addcmul_(grad_y, self._lower(self.decay))
        apart = torch.empty_like(dg)[:, None]
        self._upper(apart).copy_((self.x * grad_x).sum(2, keepdim=True))
        self._lower(apart).copy_((self.y * grad_y).sum(2, keepdim=True))
        dg += self.to_border.mT @ apart[:, 0]

    def _runs(self, x: Tensor) -> Tensor:
        """[n, R, C, K] -> [n, run, R, token of the run, K]"""
        return x.view(*x.shape[:2], -1, 2 * self.half, x.shape[3]).transpose(1, 2)

    def _lower(self, x: Tensor) -> Tensor:
        return self._runs(x)[:, :, :, : self.half]

    def _upper(self, x: Tensor) -> Tensor:
        return self._runs(x)[:, :, :, self.half :]

    def _rows(self, x: Tensor) -> Tensor:
        """[n, run, R, half, K] -> [n run, R half, K]"""
        return x.reshape(-1, self.ranks * self.half, x.shape[-1])

    def _corner(self, pairs: Tensor) -> Tensor:
        """[n, R C, R C] -> [n, run, R, upper, R, lower]"""
        axis = (self.ranks, self.size // (2 * self.half), 2 * self.half)
        runs = pairs.view(pairs.shape[0], *axis, *axis).diagonal(dim1=2, dim2=5)
        return runs.permute(0, 5, 1, 2, 3, 4)[:, :, :, self.half :, :, : self.half]


def _halves(x: Tensor, y: Tensor, g: Tensor) -> list[_Half]:
    """Runs of the whole chunk, of its halves, and so on to pairs of neighbours."""
    return [_Half(x, y, g, 1 << level) for level in range(x.shape[2].bit_length() - 1)]


def _flat(x: Tensor) -> Tensor:
    """[n, R, C, K] -> [n, R C, K]"""
    return x.flatten(1, 2)


def _ones_below(x: Tensor) -> Tensor:
    """[C, C], ones below the diagonal: times gates, the sum of those before each token."""
    return torch.ones(x.shape[2], x.shape[2], dtype=x.dtype, device=x.device).tril(-1)


def _seen(x: Tensor, after: bool) -> Tensor:
    """[R C, C]: whether reader i sees the write of token j."""
    every = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool, device=x.device)
    return torch.cat([every.tril(0 if after else -1), every.tril(-1)][: x.shape[1]])
