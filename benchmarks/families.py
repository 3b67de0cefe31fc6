"""The families of kernels that ``kernels.py`` times: inputs, methods, truth, work.

State scans have B = 1, H = 4, K = V = 64; the selective scan D = 256, N = 16; the affine scan 256 lanes; all
in float32. Keys are scaled so that the state stays of order one whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peers import affine_loop, fla, selective_loop, softmax_attention
from torch import Tensor
from torch.nn.functional import normalize

import worldsim_kernels

H, K, LANES, STATES = 4, 64, 256, 16
SCALE = K**-0.5
Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """One way to compute a family.

    run         the family's inputs -> output; None where its package is not installed
    ours        one of our backends (the others are peers)
    chunked     in torch, by chunks: the best of these is what the RWKV-7 goal is measured against
    heads_first it takes and gives [B, H, T, ...]; the transposition is not timed
    other       it computes something else (softmax): its own truth, in float64
    """

    label: str
    run: Run | None
    ours: bool = False
    chunked: bool = False
    heads_first: bool = False
    other: bool = False

    def arrange(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.transpose(1, 2).contiguous() for x in inputs) if self.heads_first else inputs

    def restore(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.heads_first else x


@dataclass(frozen=True)
class Family:
    """``inputs(T)`` have the tokens on axis 1.

    flops          of the recurrence, forward, a token
    reads, writes  numbers that a token's inputs and outputs have
    """

    name: str
    kernel: str
    inputs: Callable[[int], tuple[Tensor, ...]]
    methods: tuple[Method, ...]
    flops: int
    reads: int
    writes: int

    def method(self, label: str) -> Method:
        return next(each for each in self.methods if each.label == label)

    def truth(self, method: Method) -> Method:
        """What gives the right answer in float64."""
        return method if method.other else self.method(REFERENCE)

    def first(self, length: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first ``length`` tokens of inputs, without a copy."""
        total = max(x.shape[1] for x in inputs if x.dim() > 1)
        return tuple(x[:, :length] if x.dim() > 1 and x.shape[1] == total else x for x in inputs)


DEFAULT, TORCH, REFERENCE = "worldsim, default", "worldsim, torch", "worldsim, reference"
BACKENDS = {DEFAULT: None, TORCH: "torch", REFERENCE: "reference"}
SOFTMAX, LOOP = "torch SDPA, causal", "torch loop, low memory"


def _ours(call: Callable[..., Any]) -> tuple[Method, ...]:
    """The same call through each backend; ``call(*inputs, backend=...)`` gives the output."""

    def through(backend: str | None) -> Run:
        return lambda *inputs: call(*inputs, backend=backend)

    return tuple(
        Method(label, through(backend), ours=True, chunked=label == TORCH)
        for label, backend in BACKENDS.items()
    )


def _state_scan(*inputs: Tensor, backend: str | None) -> Tensor:
    return worldsim_kernels.state_scan(*inputs, scale=SCALE, backend=backend).output


def _selective_scan(*inputs: Tensor, backend: str | None) -> Tensor:
    return _output(worldsim_kernels.selective_scan(*inputs, backend=backend))


def _affine_scan(*inputs: Tensor, backend: str | None) -> Tensor:
    return _output(worldsim_kernels.affine_scan(*inputs, backend=backend))


def _output(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _qkv(length: int) -> tuple[Tensor, ...]:
    q, k, v = (_draw(1, length, H, K, seed=seed) for seed in (1, 2, 3))
    return q, normalize(k, dim=-1), v


def _scalar_decay(length: int) -> tuple[Tensor, ...]:
    decay = torch.log1p(-(2.0 ** -(5.0 + torch.arange(H))))
    return *_qkv(length), decay.expand(1, length, H).contiguous()


def _vector_decay(length: int) -> tuple[Tensor, ...]:
    return *_qkv(length), -0.6 * torch.sigmoid(_draw(1, length, H, K, seed=4))


def _rwkv7(length: int) -> tuple[Tensor, ...]:
    """ln w in (-0.607, 0), a = -kappa, b = kappa * eta with |kappa| = 1 and 0 < eta < 1."""
    q, k, v, g = _vector_decay(length)
    kappa = normalize(_draw(1, length, H, K, seed=5), dim=-1)
    eta = torch.sigmoid(_draw(1, length, H, K, seed=6))
    return q, k, v, g, -kappa, kappa * eta


def _selective(length: int) -> tuple[Tensor, ...]:
    """u, the raw step, A, B, C, D; the step is softplus(-2 + noise) and A = -(1, ..., N)."""
    A = -torch.arange(1.0, STATES + 1).repeat(LANES, 1)
    u, raw = (_draw(1, length, LANES, seed=seed) for seed in (1, 2))
    B, C = (_draw(1, length, STATES, seed=seed) for seed in (3, 4))
    return u, raw - 2, A, B, C, torch.ones(LANES)


def _affine(length: int) -> tuple[Tensor, ...]:
    a, b = (_draw(1, length, LANES, seed=seed) for seed in (1, 2))
    return torch.sigmoid(a + 2), b


def _fla_dplr(function: str) -> Run | None:
    """Theirs takes the gates last."""
    call = fla("generalized_delta_rule/dplr", function)
    return None if call is None else lambda q, k, v, g, a, b: call(q, k, v, a, b, g)


FAMILIES = (
    Family(
        "linear attention",
        "state_scan",
        _qkv,
        (
            *_ours(_state_scan),
            Method(SOFTMAX, softmax_attention, heads_first=True, other=True),
            Method("fla naive_chunk", fla("linear_attn", "naive_chunk_linear_attn"), chunked=True),
            Method("fla naive_recurrent", fla("linear_attn", "naive_recurrent_linear_attn")),
        ),
        flops=4 * H * K * K,
        reads=3 * H * K,
        writes=H * K,
    ),
    Family(
        "scalar decay (retention)",
        "state_scan",
        _scalar_decay,
        (
            *_ours(_state_scan),
            Method("fla naive_chunk", fla("simple_gla", "naive_chunk_simple_gla"), chunked=True),
        ),
        flops=5 * H * K * K,
        reads=3 * H * K + H,
        writes=H * K,
    ),
    Family(
        "vector decay (GLA)",
        "state_scan",
        _vector_decay,
        (*_ours(_state_scan), Method("fla naive_recurrent", fla("gla", "naive_recurrent_gla"))),
        flops=5 * H * K * K,
        reads=4 * H * K,
        writes=H * K,
    ),
    Family(
        "RWKV-7 form (DPLR)",
        "state_scan",
        _rwkv7,
        (
            *_ours(_state_scan),
            Method("fla dplr_chunkwise", _fla_dplr("dplr_chunkwise"), chunked=True, heads_first=True),
            Method("fla dplr_recurrence", _fla_dplr("dplr_recurrence"), heads_first=True),
        ),
        flops=9 * H * K * K,
        reads=6 * H * K,
        writes=H * K,
    ),
    Family(
        "selective scan (Mamba)",
        "selective_scan",
        _selective,
        (*_ours(_selective_scan), Method(LOOP, selective_loop)),
        flops=20 * LANES * STATES,
        reads=2 * LANES + 2 * STATES,
        writes=LANES,
    ),
    Family(
        "affine scan",
        "affine_scan",
        _affine,
        (*_ours(_affine_scan), Method(LOOP, affine_loop)),
        flops=2 * LANES,
        reads=2 * LANES,
        writes=LANES,
    ),
)
