"""What ``kernels_gpu.py`` runs: shapes, our calls, the peers' calls, compulsory work and goals.

Compulsory work of one forward pass is what no implementation can avoid: inputs read once and outputs written
once; the flops of the chunked form with chunks of 64 tokens; the exponentials of a selective scan and of
Sinkhorn. A backward pass counts as two forward ones in flops, and reads and writes everything once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, rms_norm, scaled_dot_product_attention, softplus

import worldsim_kernels as ws

CHUNK = 64
Inputs = tuple[Tensor, ...]
Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    make    device, dtype -> inputs
    ours    (*inputs) -> output
    peers   name -> a function without arguments that returns their call, or raises ImportError
    few     inputs -> the same problem with fewer rows, heads or tokens, of which ``part(output)`` is the
            output: what the error is measured on, in float64
    goal    milliseconds on an H200, in ``goal_pass`` ("forward" or "backward")
    """

    name: str
    shape: str
    make: Callable[[str, torch.dtype], Inputs]
    ours: Call
    peers: dict[str, Callable[[], Call]]
    few: Callable[[Inputs], Inputs]
    part: Callable[[Tensor], Tensor]
    flops: float = 0.0
    exps: float = 0.0
    goal: float = math.nan
    goal_pass: str = "forward"
    backward: bool = True
    dtype: torch.dtype = torch.bfloat16


def theirs(module: str, function: str, arrange: Callable[..., Any] | None = None) -> Callable[[], Call]:
    """Their function on our inputs as ``arrange(call, *inputs)`` passes them; the first output."""

    def load() -> Call:
        call = getattr(import_module(module), function)

        def run(*inputs: Tensor) -> Tensor:
            found = call(*inputs) if arrange is None else arrange(call, *inputs)
            return found if isinstance(found, Tensor) else found[0]

        return run

    return load


def randn(device: str, dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


# State scans --------------------------------------------------------------------------------------------


def _tokens(B: int, T: int, H: int, D: int, kind: str, keys: int | None = None) -> Any:
    """Inputs of this kind; ``keys`` heads of q and k where they are fewer than H."""

    def make(device: str, dtype: torch.dtype) -> Inputs:
        def draw(seed: int, *shape: int) -> Tensor:
            return randn(device, torch.float32, seed, *shape)

        heads = keys or H
        q, k = draw(1, B, T, heads, D), normalize(draw(2, B, T, heads, D), dim=-1)
        qkv = (normalize(q, dim=-1).to(dtype), k.to(dtype), draw(3, B, T, H, D).to(dtype))
        scalar = -softplus(draw(4, B, T, H) - 3)
        beta = torch.sigmoid(draw(5, B, T, H)).to(dtype)
        if kind == "none":
            return qkv
        if kind == "scalar":
            gates = torch.log1p(-(2.0 ** -(5.0 + torch.arange(H, device=device))))
            return *qkv, gates
        if kind == "gdn":
            return *qkv, scalar, beta
        vector = -0.6 * torch.sigmoid(draw(4, B, T, H, D))
        if kind == "gla":
            return *qkv, vector
        if kind == "kda":
            return *qkv, vector, beta
        kappa = normalize(draw(6, B, T, H, D), dim=-1).to(dtype)
        eta = torch.sigmoid(draw(7, B, T, H, D)).to(dtype)
        return *qkv, vector, -kappa, kappa * eta

    return make


def _repeated(x: Tensor, like: Tensor) -> Tensor:
    """Keys for as many heads as the values have; the copy is inside the clock, as theirs need none."""
    times = like.shape[2] // x.shape[2]
    return x if times == 1 else x.repeat_interleave(times, 2)


def _gdn(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return ws.gated_delta_rule(_repeated(q, v), _repeated(k, v), v, g, beta, l2_normalise=False).output


def _scan(*inputs: Tensor) -> Tensor:
    return ws.state_scan(*inputs, scale=inputs[0].shape[-1] ** -0.5).output


FLA = "fla.ops."
OURS: dict[str, Call] = {
    "none": _scan,
    "scalar": _scan,
    "gla": _scan,
    "gdn": _gdn,
    "kda": lambda *x: ws.kda(*x, l2_normalise=False).output,
    "dplr": _scan,
}
PEERS: dict[str, dict[str, Callable[[], Call]]] = {
    "none": {
        "fla linear_attn": theirs(
            FLA + "linear_attn", "chunk_linear_attn", lambda f, *x: f(*x, normalize=False)
        )
    },
    "scalar": {
        "fla retention": theirs(FLA + "retention", "chunk_retention", lambda f, q, k, v, g: f(q, k, v))
    },
    "gla": {"fla gla": theirs(FLA + "gla", "chunk_gla")},
    "gdn": {"fla gated_delta_rule": theirs(FLA + "gated_delta_rule", "chunk_gated_delta_rule")},
    "kda": {"fla kda": theirs(FLA + "kda", "chunk_kda")},
    "dplr": {
        "fla dplr": theirs(
            FLA + "generalized_delta_rule",
            "chunk_dplr_delta_rule",
            lambda f, q, k, v, g, a, b: f(q, k, v, a, b, g, safe_gate=True, chunk_size=64),
        )
    },
}


def scan(
    kind: str, B: int, T: int, H: int, D: int, keys: int | None = None, softmax: bool = False, **goal: Any
) -> Case:
    tokens = B * T * H
    flops = tokens * {
        "none": 4 * D * D + 4 * CHUNK * D,
        "scalar": 4 * D * D + 4 * CHUNK * D,
        "gla": 4 * D * D + 4 * CHUNK * D,
        "gdn": 8 * D * D + 6 * CHUNK * D,
    }.get(kind, 8 * D * D + 10 * CHUNK * D)

    def few(inputs: Inputs) -> Inputs:
        return tuple(x[:1] if x.dim() == 1 else x[:1, :256, :1] for x in inputs)

    heads = f"{keys}/{H}" if keys else f"{H}"
    return Case(
        f"state_scan {kind}",
        f"({B},{T},{heads},{D})",
        _tokens(B, T, H, D, kind, keys),
        OURS[kind],
        {
            **PEERS[kind],
            **(
                {"torch SDPA (softmax)": lambda: lambda q, k, v, *_: _sdpa(q, k, v, causal=True)}
                if softmax
                else {}
            ),
        },
        few,
        lambda output: output[:1, :256, :1],
        flops=flops,
        **goal,
    )


def decode(B: int, H: int, D: int, **goal: Any) -> Case:
    """One token with the state that came before."""

    def make(device: str, dtype: torch.dtype) -> Inputs:
        state = randn(device, torch.float32, 9, B, H, D, D)
        return *_tokens(B, 1, H, D, "gdn")(device, dtype), state

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
        return ws.gated_delta_rule(q, k, v, g, beta, l2_normalise=False, initial_state=state).output

    peer = theirs(
        FLA + "gated_delta_rule",
        "fused_recurrent_gated_delta_rule",
        lambda f, *x: f(*x[:5], initial_state=x[5], output_final_state=True),
    )
    return Case(
        "decode gdn",
        f"({B},1,{H},{D})",
        make,
        run,
        {"fla fused_recurrent": peer},
        lambda inputs: (*(x[:1, :, :1] for x in inputs[:5]), inputs[5][:1, :1]),
        lambda output: output[:1, :, :1],
        flops=B * H * 9.0 * D * D,
        backward=False,
        **goal,
    )


def ssd(B: int, T: int, H: int, P: int, N: int) -> Case:
    def make(device: str, dtype: torch.dtype) -> Inputs:
        def draw(seed: int, *shape: int) -> Tensor:
            return randn(device, torch.float32, seed, *shape)

        A = -torch.linspace(1, 16, H, device=device)
        x, B_, C = draw(1, B, T, H, P), draw(3, B, T, 1, N), draw(4, B, T, 1, N)
        return x.to(dtype), softplus(draw(2, B, T, H) - 4), A, B_.to(dtype), C.to(dtype)

    peer = theirs("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", lambda f, *x: f(*x, 256))
    return Case(
        "ssd",
        f"({B},{T},{H}x{P},N={N})",
        make,
        lambda *x: ws.ssd(*x).output,
        {"mamba-ssm": peer},
        lambda i: (i[0][:1, :256, :1], i[1][:1, :256, :1], i[2][:1], i[3][:1, :256], i[4][:1, :256]),
        lambda output: output[:1, :256, :1],
        flops=B * T * H * (4.0 * N * P + 2 * CHUNK * (N + P)),
    )


# Other scans --------------------------------------------------------------------------------------------


def selective(B: int, T: int, D: int, N: int, **goal: Any) -> Case:
    def make(device: str, dtype: torch.dtype) -> Inputs:
        def draw(seed: int, *shape: int) -> Tensor:
            return randn(device, dtype, seed, *shape)

        A = -torch.arange(1.0, N + 1, device=device).repeat(D, 1)
        return draw(1, B, T, D), draw(2, B, T, D) - 2, A, draw(3, B, T, N), draw(4, B, T, N)

    def channels_first(f: Any, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C: Tensor) -> Tensor:
        u, delta, B_, C = (x.transpose(1, 2) for x in (u, delta, B_, C))
        found: Tensor = f(u, delta, A, B_, C, delta_softplus=True)
        return found.transpose(1, 2)

    return Case(
        "selective_scan",
        f"({B},{T},D={D},N={N})",
        make,
        lambda *x: ws.selective_scan(*x)[0],
        {"mamba-ssm": theirs("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", channels_first)},
        lambda i: (i[0][:1, :256, :8], i[1][:1, :256, :8], i[2][:8], i[3][:1, :256], i[4][:1, :256]),
        lambda output: output[:1, :256, :8],
        flops=6.0 * B * T * D * N,
        exps=1.0 * B * T * D * N,
        **goal,
    )


def affine(B: int, D: int, T: int, **goal: Any) -> Case:
    """Their layout is [B, D, T], ours [B, T, D]; each gets its own in memory."""

    def make(device: str, dtype: torch.dtype) -> Inputs:
        return torch.sigmoid(randn(device, dtype, 1, B, T, D) + 2), randn(device, dtype, 2, B, T, D)

    kept: dict[int, Inputs] = {}

    def lanes_first(f: Any, a: Tensor, b: Tensor) -> Tensor:
        if id(a) not in kept:
            kept.clear()
            kept[id(a)] = (a.transpose(1, 2).contiguous(), b.transpose(1, 2).contiguous())
        found: Tensor = f(*kept[id(a)])
        return found.transpose(1, 2)

    return Case(
        "affine_scan",
        f"({B},{D},{T})",
        make,
        lambda *x: ws.affine_scan(*x)[0],
        {"accelerated-scan": theirs("accelerated_scan.warp", "scan", lanes_first)},
        lambda inputs: tuple(x[:1, :256, :8] for x in inputs),
        lambda output: output[:1, :256, :8],
        flops=2.0 * B * D * T,
        dtype=torch.float32,
        **goal,
    )


# Attention, transport, rows, experts --------------------------------------------------------------------


def non_causal(B: int, T: int, H: int, D: int) -> Case:
    """SANA's form: relu features over all tokens."""
    return Case(
        "linear, non-causal",
        f"({B},{T},{H},{D})",
        _tokens(B, T, H, D, "none"),
        lambda *x: ws.linear_attention(*x, feature_map="relu", causal=False, eps=1e-15).output,
        {"torch SDPA (softmax)": lambda: lambda *x: _sdpa(*x, causal=False)},
        lambda inputs: tuple(x[:1, :, :1] for x in inputs),
        lambda output: output[:1, :, :1],
        flops=4.0 * B * T * H * D * D,
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def attention(B: int, T: int, H: int, D: int) -> Case:
    return Case(
        "attend, causal",
        f"({B},{T},{H},{D})",
        _tokens(B, T, H, D, "none"),
        lambda *x: ws.attend(*x, causal=True).output,
        {"torch SDPA": lambda: lambda *x: _sdpa(*x, causal=True)},
        lambda inputs: tuple(x[:1, :256, :1] for x in inputs),
        lambda output: output[:1, :256, :1],
        flops=2.0 * B * H * T * T * D,
    )


def sinkhorn_step(n: int, d: int, **goal: Any) -> Case:
    """Two half-steps between clouds of n points with |x|^2 of order one, epsilon 0.05, uniform weights."""
    epsilon = 0.05

    def make(device: str, dtype: torch.dtype) -> Inputs:
        return randn(device, dtype, 1, n, d) / d**0.5, randn(device, dtype, 2, n, d) / d**0.5

    def half(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        bias = (g - y.square().sum(-1)) / epsilon - math.log(len(y))
        heads = (each[None, :, None] for each in (x, y, y))
        lse = ws.attend(*heads, bias=bias[None, None, None], scale=2 / epsilon).lse
        return x.square().sum(-1) - epsilon * lse[0, :, 0]

    def step(x: Tensor, y: Tensor) -> Tensor:
        return half(y, x, half(x, y, y.new_zeros(len(y))))

    return Case(
        "sinkhorn, one step",
        f"n={n}, d={d}",
        make,
        step,
        {},
        lambda inputs: tuple(x[:0] for x in inputs),
        lambda output: output[:0],
        flops=4.0 * n * n * d,
        exps=2.0 * n * n,
        backward=False,
        dtype=torch.float32,
        **goal,
    )


def rows(name: str, count: int, width: int, ours: Call, plain: Call) -> Case:
    def make(device: str, dtype: torch.dtype) -> Inputs:
        return randn(device, dtype, 1, count, width), randn(device, dtype, 2, count, width)

    return Case(
        name,
        f"({count},{width})",
        make,
        ours,
        {"torch": lambda: plain},
        lambda inputs: tuple(x[:64] for x in inputs),
        lambda output: output[:64],
    )


def experts(M: int, E: int, K: int, N: int) -> Case:
    """Rows of equal number for each expert."""

    def make(device: str, dtype: torch.dtype) -> Inputs:
        return randn(device, dtype, 1, M, K), randn(device, dtype, 2, E, K, N) / K**0.5

    def offsets(x: Tensor, weight: Tensor) -> Tensor:
        return torch.arange(len(weight) + 1, device=x.device) * (len(x) // len(weight))

    return Case(
        "grouped_matmul",
        f"M={M}, E={E}, {K}x{N}",
        make,
        lambda x, w: ws.grouped_matmul(x, w, offsets(x, w)),
        {"torch bmm, equal groups": lambda: lambda x, w: torch.bmm(x.view(E, -1, K), w).view(M, N)},
        lambda inputs: (inputs[0][: M // E], inputs[1][:1]),
        lambda output: output[: M // E],
        flops=2.0 * M * K * N,
    )


def _plain_norm(x: Tensor, residual: Tensor) -> Tensor:
    return rms_norm(x + residual, x.shape[-1:])


def cases(tiny: bool) -> Iterator[Case]:
    """All cases, or the same kernels at sizes for Triton's interpreter."""
    if tiny:
        for kind in OURS:
            yield scan(kind, 1, 70, 2, 16, softmax=kind == "none")
        yield from (decode(2, 2, 16), ssd(1, 70, 2, 16, 16), selective(1, 70, 8, 4), affine(1, 8, 70))
        yield from (non_causal(1, 70, 2, 16), attention(1, 70, 2, 16), sinkhorn_step(70, 8))
        yield from _rows(32, 48)
        yield experts(32, 4, 16, 16)
        return
    heads = [(1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128)]
    for B, T, H, D in [*heads, (8, 2048, 32, 256), (8, 1024, 8, 64)]:
        yield scan("scalar", B, T, H, D, softmax=True)
        yield scan("gla", B, T, H, D)
        yield scan("gdn", B, T, H, D)
    yield scan("none", 1, 8192, 64, 128, goal=0.28)
    yield scan("scalar", 1, 8192, 64, 128, goal=0.28)
    yield scan("gla", 1, 8192, 64, 128, goal=0.70)
    for T, goal in ((2048, math.nan), (8192, 0.60), (32768, 2.4)):
        yield scan("gdn", 1, T, 64, 128, keys=16, goal=goal)
    yield scan("gdn", 1, 2048, 32, 128, keys=16)
    yield scan("gdn", 1, 8192, 32, 128, keys=16, goal=1.1, goal_pass="backward")
    yield scan("gdn", 1, 32768, 32, 128, keys=16)
    for B in (1, 2):
        for T in (512, 1024, 8192):
            yield scan("kda", B, T, 64, 128, goal=1.2 if (B, T) == (1, 8192) else math.nan)
    yield scan("dplr", 1, 8192, 64, 128, goal=1.2)
    yield scan("dplr", 8, 4096, 64, 64)
    for B in (1, 8):
        for T in (256, 1024):
            yield scan("scalar", B, T, 4, 64, goal=0.06)
            yield scan("gdn", B, T, 4, 64, goal=0.06)
    yield from (scan("scalar", 1, T, 4, 64) for T in (65536, 1048576))
    yield from (decode(B, 64, 128, goal=0.14 if B == 64 else math.nan) for B in (1, 64, 256))
    yield ssd(8, 2048, 80, 64, 128)
    yield from (selective(8, 2048, 2048, 16), selective(1, 16384, 4096, 16, goal=0.6))
    yield from (affine(8, 1536, 4096), affine(8, 1536, 65536, goal=2.5))
    yield from (non_causal(2, T, 32, D) for T in (4096, 16384) for D in (32, 72))
    yield from (attention(4, 4096, 16, 128), attention(1, 16384, 16, 64))
    yield sinkhorn_step(50000, 64, goal=5.0)
    yield from _rows(8192, 4096)
    yield experts(16384, 8, 2048, 2048)


def _rows(count: int, width: int) -> Iterator[Case]:
    silu = torch.nn.functional.silu
    yield rows("rms_norm + residual", count, width, lambda x, r: ws.rms_norm(x, residual=r)[0], _plain_norm)
    yield rows("swiglu", count, width, ws.swiglu, lambda a, b: silu(a) * b)
