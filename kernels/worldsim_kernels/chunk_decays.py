"""What decay does inside the chunks of ``chunked``: the pairs P, and how the state is read and written.

Each class takes x [n, R, C, K], the vectors that read, y of the same shape, those that write, and gates, and
has, with c_t the sum of the gates before token t of its chunk and b_t = c_t + g_t,

    pairs   [n, R C, R C]  sum over keys of x_i y_j e^{c_i - b_j} for j < i
    reads   x e^c          what meets the state before the chunk
    writes  y e^{b_C - b}  what reaches the state after it
    whole   e^{b_C}        None without decay

R is 2 with a low-rank part, else 1. With ``after``, reader 0 is q of an output read after its token's write:
its exponents have b for c, and its pairs include j = i (save for ``StrongDecay``, which leaves them out).

No exponent is a difference of long float32 sums and none exceeds 0, but for ``MildDecay``. Gates below
``FLOOR`` count as that, where e is zero: an infinite one would make 0 times infinity.

``backward`` turns the gradients of these four, overwriting them, into those of x, y and the gates. A gate's
gradient is a sum over the pairs that straddle it. Where decay can be strong it is added up as such: the
difference of two running sums, which ``MildDecay`` takes, would cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float32: -120.0, torch.float64: -800.0}
MILD = 30.0
"""-b_C up to which a decay is mild. Beyond, gates would lose their gradient to rounding, and from 88 on
float32 overflows."""


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
        inside = grad_pairs.masked_fill_(self.hidden, 0.0)
        dx = _flat(grad_reads).baddbmm_(inside, _flat(self.y))
        dy = _flat(grad_writes).baddbmm_(inside.mT, _flat(self.x))
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
        straddling = (grad_pairs * self.pairs).view(n, ranks * size, ranks, size).sum(2)
        inside = grad_pairs.view(n, ranks * size, ranks, size).mul_(self.matrix).flatten(2)
        dx = _flat(grad_reads * self.into).baddbmm_(inside, _flat(self.y)).view_as(self.x)
        dy = _flat(grad_writes * self.out_of).baddbmm_(inside.mT, _flat(self.x)).view_as(self.y)
        read = (self.reads * grad_reads).sum(-1).flatten(1)
        written = (self.writes * grad_writes).sum((1, 3))
        below = _ones_below(self.x)
        dg = (self.passed.mT @ straddling).mul_(below).sum(-1)
        dg += read @ self.passed + written @ below.mT + (self.whole * grad_whole.sum(1, keepdim=True))[..., 0]
        return dx, dy, dg


def vector_decay(x: Tensor, y: Tensor, after: bool, g: Tensor) -> MildDecay | StrongDecay:
    """One gate for each key, g [n, C, K]."""
    g = g.clamp_min(FLOOR[g.dtype])
    ends = g.cumsum(1)
    mild = g.numel() == 0 or float(ends[:, -1].abs().amax()) <= MILD
    return MildDecay(x, y, after, g, ends) if mild else StrongDecay(x, y, after, g)


class MildDecay:
    """Every power is split at the chunk's start, e^{c_i} e^{-b_j}, for b_C >= -``MILD``."""

    def __init__(self, x: Tensor, y: Tensor, after: bool, g: Tensor, ends: Tensor) -> None:
        starts = ends - g
        self.into = torch.stack([ends if after else starts, starts][: x.shape[1]], 1).exp_()
        self.out_of = ends.neg().exp_()[:, None]
        self.whole = ends[:, -1, :, None].exp()
        self.y, self.reads, self.seen = y, x * self.into, _seen(x, after)
        self.split = y * self.out_of
        self.writes = self.split * self.whole.mT[:, None]
        self.hidden = ~self.seen.repeat(1, x.shape[1])
        self.pairs = (_flat(self.reads) @ _flat(self.split).mT).masked_fill_(self.hidden, 0.0)

    def backward(
        self, grad_pairs: Tensor, grad_reads: Tensor, grad_writes: Tensor, grad_whole: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert grad_whole is not None
        inside = grad_pairs.masked_fill_(self.hidden, 0.0)
        grad_split = grad_writes * self.whole.mT[:, None]
        ends = (self.split * grad_split).sum((1, 2)) + (self.whole * grad_whole)[..., 0]
        _flat(grad_reads).baddbmm_(inside, _flat(self.split))
        _flat(grad_split).baddbmm_(inside.mT, _flat(self.reads))
        dg = self.seen.to(ends.dtype).mT @ _flat(self.reads * grad_reads)
        dg -= (_ones_below(self.y).mT + _eye(self.y)) @ (self.split * grad_split).sum(1)
        return grad_reads.mul_(self.into), grad_split.mul_(self.out_of), dg.add_(ends[:, None])


class StrongDecay:
    """The chunk is halved again and again, and pairs of one token in the upper half and one in the lower are
    split where these meet: both exponents are sums of gates.
    """

    def __init__(self, x: Tensor, y: Tensor, after: bool, g: Tensor) -> None:
        self.y, self.below = y, _ones_below(x)
        self.own = g.exp() if after else None
        self.x = x if self.own is None else torch.cat([(x[:, 0] * self.own)[:, None], x[:, 1:]], 1)
        self.into, self.out_of = (self.below @ g).exp_(), (self.below.mT @ g).exp_()
        self.whole = g.sum(1).exp_()[..., None]
        self.reads, self.writes = self.x * self.into[:, None], y * self.out_of[:, None]
        self.halves = [_Half(self.x, y, g, 1 << level) for level in range(g.shape[1].bit_length() - 1)]
        rows = x.shape[1] * x.shape[2]
        self.pairs = x.new_zeros(x.shape[0], rows, rows)
        for half in self.halves:
            half.add_pairs(self.pairs)

    def backward(
        self, grad_pairs: Tensor, grad_reads: Tensor, grad_writes: Tensor, grad_whole: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert grad_whole is not None
        dx, dy = grad_reads * self.into[:, None], grad_writes * self.out_of[:, None]
        dg = self.below.mT @ (self.reads * grad_reads).sum(1)
        dg += self.below @ (self.writes * grad_writes).sum(1)
        dg += (self.whole * grad_whole).mT
        for half in self.halves:
            half.backward(grad_pairs, dx, dy, dg)
        if self.own is not None:
            dg.addcmul_(self.x[:, 0], dx[:, 0])
            dx[:, 0].mul_(self.own)
        return dx, dy, dg


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


def _flat(x: Tensor) -> Tensor:
    """[n, R, C, K] -> [n, R C, K]"""
    return x.flatten(1, 2)


def _ones_below(x: Tensor) -> Tensor:
    """[C, C], ones below the diagonal: times gates, the sum of those before each token."""
    return torch.ones(x.shape[2], x.shape[2], dtype=x.dtype, device=x.device).tril(-1)


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[2], dtype=x.dtype, device=x.device)


def _seen(x: Tensor, after: bool) -> Tensor:
    """[R C, C]: whether reader i sees the write of token j."""
    every = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool, device=x.device)
    return torch.cat([every.tril(0 if after else -1), every.tril(-1)][: x.shape[1]])
