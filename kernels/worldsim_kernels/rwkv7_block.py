"""The two halves of an RWKV-7 layer (Peng et al., 2025): time mixing and channel mixing.

Both mix each token with the one before it, x^m_t = x_t + mu_m * (x_{t-1} - x_t), with a learned mu for each
projection m. Time mixing is the recurrence ``rwkv7`` between projections: with sigma the logistic function,
products elementwise, and lora(x) = act(x W_1) W_2,

    r, k, v = x^r W_r, x^k W_k, x^v W_v
    ln w    = -e^{-1/2} sigma(w_0 + lora_w(x^w)), act = tanh       decays in (0.545, 1)
    eta     = a_max sigma(a_0 + lora_a(x^a))                       in-context rate
    v       = v + (v_first - v) sigma(v_0 + lora_v(x^v))           but in the first layer, which gives v_first
    kappa   = k xi / |k xi|                                        the direction removed, per head
    k~      = k (1 + (eta - 1) alpha)                              the key written
    y       = group norm of S_t^T r_t per head, epsilon 64e-5
    out     = ((y + (sum r k~ rho) v) * lora_g(x^g)) W_o, act = sigma

Channel mixing is relu(x^k W_k)^2 W_v. Both are causal and carry a state, so that a sequence may come in
pieces of any length, down to a token at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim_kernels.arguments import expect
from worldsim_kernels.mixers import rwkv7
from worldsim_kernels.rows import token_shift
from worldsim_kernels.scan import state_dtype

EPS = 64e-5


class TimeMixState(NamedTuple):
    """``last`` [B, D] is the token before the next, ``memory`` [B, H, K, K] is S, float32 or float64."""

    last: Tensor
    memory: Tensor


class TimeMixed(NamedTuple):
    """``output`` and ``v_first`` [B, T, D] (the first layer's values, for the layers above), ``state``."""

    output: Tensor
    v_first: Tensor
    state: TimeMixState


class ChannelMixed(NamedTuple):
    """``output`` [B, T, D] and ``last`` [B, D], the token before the next."""

    output: Tensor
    last: Tensor


class RWKV7TimeMix(nn.Module):
    """Time mixing of layer ``layer`` out of ``layers``, of ``width`` = heads * K channels.

    a_max  largest in-context rate: 1 as published, 2 for transitions with negative eigenvalues, which track
           parity and permutations (Grazzi et al., 2024)
    ranks  of the low-rank maps of w, a, v and g; None scales them with the width

    Raises ValueError unless ``heads`` divides ``width`` and ``layer`` is one of 0 to ``layers`` - 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layer: int = 0,
        layers: int = 1,
        a_max: float = 1.0,
        ranks: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"RWKV7TimeMix: heads is {heads}; expected a divisor of width={width}")
        _expect_place("RWKV7TimeMix", layer, layers)
        self.heads, self.a_max = heads, a_max
        place, depth = torch.arange(width) / width, 1 - layer / layers
        rank_w, rank_a, rank_v, rank_g = ranks or _ranks(width)
        # How far each projection looks back: channels range from the token before to the token itself.
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2]) * depth
        self.mu = nn.Parameter(1 - place ** powers[:, None])
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        # Decays from e^-0.001 to e^-0.11: half-lives from hundreds of tokens down to six.
        slow = -6.5 + 5 * torch.linspace(0, 1, width) ** (0.85 + math.sqrt(layer / max(layers - 1, 1)))
        self.w = LowRank(width, rank_w, slow, torch.tanh)
        self.a = LowRank(width, rank_a, torch.zeros(width))
        self.v = LowRank(width, rank_v, torch.ones(width)) if layer else None
        self.g = LowRank(width, rank_g, None, torch.sigmoid)
        self.xi = nn.Parameter(torch.full((width,), 0.85))
        self.alpha = nn.Parameter(torch.ones(width))
        self.rho = nn.Parameter(torch.zeros(heads, width // heads))
        self.norm = nn.GroupNorm(heads, width, eps=EPS)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None = None,
        state: TimeMixState | None = None,
        *,
        backend: str | None = None,
    ) -> TimeMixed:
        """x [B, T, D]; v_first [B, T, D] from the first layer, None in it; state None at the start.

        Raises ValueError naming the argument for a wrong shape, or for v_first in the first layer or none in
        another.
        """
        self._validate(x, v_first, state)
        batch, length, width = x.shape
        shifted = token_shift(x, self.mu, None if state is None else state.last, backend=backend)
        xr, xw, xk, xv, xa, xg = shifted.output
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w_log = -math.exp(-0.5) * torch.sigmoid(self.w(xw).to(state_dtype(x)))
        eta = self.a_max * torch.sigmoid(self.a(xa))
        if self.v is None or v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v(xv))

        def split(tensor: Tensor) -> Tensor:
            return tensor.view(batch, length, self.heads, width // self.heads)

        # Under autocast some of these are half precision and some are not.
        low = r.dtype
        kappa = F.normalize(split(k * self.xi), dim=-1).to(low)
        r, k, v = split(r), split(k * (1 + (eta - 1) * self.alpha)).to(low), split(v).to(low)
        before = None if state is None else state.memory
        y, memory = rwkv7(
            r, split(w_log), k, v, kappa, split(eta).to(low), initial_state=before, backend=backend
        )
        y = self.norm(y.reshape(batch * length, width)).view(batch, length, width)
        bonus = (r * k * self.rho).sum(-1, keepdim=True) * v
        output = self.output((y + bonus.reshape(batch, length, width)) * self.g(xg))
        return TimeMixed(output, v_first, TimeMixState(shifted.last, memory))

    def step(
        self,
        x: Tensor,
        v_first: Tensor | None = None,
        state: TimeMixState | None = None,
        *,
        backend: str | None = None,
    ) -> TimeMixed:
        """``forward`` of one token: x, v_first and the output are [B, D]."""
        expect("RWKV7TimeMix", "x", x, (("B", None), ("D", None)))
        if v_first is not None:
            expect("RWKV7TimeMix", "v_first", v_first, tuple(zip("BD", x.shape)), like=x)
        before = None if v_first is None else v_first[:, None]
        output, v_first, state = self(x[:, None], before, state, backend=backend)
        return TimeMixed(output[:, 0], v_first[:, 0], state)

    def _validate(self, x: Tensor, v_first: Tensor | None, state: TimeMixState | None) -> None:
        width = self.mu.shape[1]
        expect("RWKV7TimeMix", "x", x, (("B", None), ("T", None), ("D", width)))
        if v_first is None and self.v is not None:
            raise ValueError("RWKV7TimeMix: v_first is missing; this layer needs the first's values")
        if v_first is not None:
            if self.v is None:
                raise ValueError("RWKV7TimeMix: v_first is given; the first layer makes it")
            expect("RWKV7TimeMix", "v_first", v_first, tuple(zip("BTD", x.shape)), like=x)
        if state is not None:
            if not isinstance(state, TimeMixState):
                raise TypeError(f"RWKV7TimeMix: state must be a TimeMixState, not {type(state).__name__}")
            batch, size = ("B", x.shape[0]), width // self.heads
            axes = (batch, ("H", self.heads), ("K", size), ("K", size))
            expect("RWKV7TimeMix", "state.last", state.last, (batch, ("D", width)), like=x)
            expect("RWKV7TimeMix", "state.memory", state.memory, axes, like=x)


class RWKV7ChannelMix(nn.Module):
    """Channel mixing of layer ``layer`` out of ``layers``, of ``width`` channels.

    relu(x^k W_k)^2 W_v, with ``expand`` times as many channels between. Raises ValueError unless ``layer`` is
    one of 0 to ``layers`` - 1.
    """

    def __init__(self, width: int, *, expand: int = 4, layer: int = 0, layers: int = 1) -> None:
        super().__init__()
        _expect_place("RWKV7ChannelMix", layer, layers)
        place, depth = torch.arange(width) / width, 1 - layer / layers
        self.mu = nn.Parameter(1 - place ** (depth**4))
        self.key = nn.Linear(width, expand * width, bias=False)
        self.value = nn.Linear(expand * width, width, bias=False)

    def forward(self, x: Tensor, last: Tensor | None = None, *, backend: str | None = None) -> ChannelMixed:
        """x [B, T, D]; last [B, D] is the token before, None for zeros.

        Raises ValueError naming the argument for a wrong shape.
        """
        width = self.mu.shape[0]
        expect("RWKV7ChannelMix", "x", x, (("B", None), ("T", None), ("D", width)))
        if last is not None:
            expect("RWKV7ChannelMix", "last", last, (("B", x.shape[0]), ("D", width)), like=x)
        mixed, last = token_shift(x, self.mu, last, backend=backend)
        return ChannelMixed(self.value(torch.relu(self.key(mixed)).square()), last)

    def step(self, x: Tensor, last: Tensor | None = None, *, backend: str | None = None) -> ChannelMixed:
        """``forward`` of one token: x and the output are [B, D]."""
        expect("RWKV7ChannelMix", "x", x, (("B", None), ("D", None)))
        output, last = self(x[:, None], last, backend=backend)
        return ChannelMixed(output[:, 0], last)


class LowRank(nn.Module):
    """start + act(x W_1) W_2, which starts at ``start`` (nothing when None)."""

    def __init__(
        self,
        width: int,
        rank: int,
        start: Tensor | None,
        act: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.act = act
        self.start = None if start is None else nn.Parameter(start)
        self.down = nn.Parameter(torch.zeros(width, rank))
        self.up = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.down
        changed = (low if self.act is None else self.act(low)) @ self.up
        return changed if self.start is None else self.start + changed


def _expect_place(block: str, layer: int, layers: int) -> None:
    if not 0 <= layer < layers:
        raise ValueError(f"{block}: layer is {layer}; expected 0 to layers - 1, layers being {layers}")


def _ranks(width: int) -> tuple[int, int, int, int]:
    """Ranks of w, a, v and g: multiples of 32 that grow like powers of the width."""
    wanted = (1.8 * width**0.5, 1.8 * width**0.5, 1.3 * width**0.5, 0.6 * width**0.8)
    w, a, v, g = (max(32, round(each / 32) * 32) for each in wanted)
    return w, a, v, g
