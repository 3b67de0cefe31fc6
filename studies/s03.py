"""Retention: its three forms agree, and a stream of any length needs the same memory.

In float64, 200 tokens of eight heads: the recurrence, its chunked form and the one that this machine chooses,
against the matrix (Q K^T * D) V with D_ij = gamma^{i-j}. A stream of 1,048,576 tokens of width 64 in chunks
of 256, float32: bytes of the state, growth of the process after its first chunks, and whether all outputs are
finite. Half-lives ln(1/2) / ln(gamma) of the heads, in tokens: the stream is stable because it forgets.
"""

import math
import os
from pathlib import Path

import torch

from worldsim_kernels import retention
from worldsim_kernels.mixers import retention_gates

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "forms agree to 1e-10 in float64; 2^20 tokens: 16,384 bytes of state, growth < 5 MB, all finite"
TOKENS, CHUNK, WARM = 1 << 20, 256, 64


def by_matrix(q, k, v):
    places = torch.arange(q.shape[1])
    between = (places[:, None] - places).double()
    gates = retention_gates(q.shape[2], dtype=torch.float64)
    decay = torch.where(between >= 0, (between * gates[:, None, None]).exp(), 0)
    weights = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhts,bshv->bthv", weights * decay, v)


def gaps(draw):
    """Largest differences from the matrix form."""
    q, k, v = (torch.randn(1, 200, 8, 32, generator=draw, dtype=torch.float64) for _ in range(3))
    expected = by_matrix(q, k, v)
    forms = {"recurrent": "reference", "chunked": "torch", "chosen": None}
    return {
        f"gap {name}": float((retention(q, k, v, backend=backend).output - expected).abs().max())
        for name, backend in forms.items()
    }


def resident():
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def streamed(draw, tokens):
    """Bytes of the state over all chunks, largest growth since the first ones, whether all is finite."""
    state, sizes, finite, start, growth = None, [], True, 0, 0
    for chunk in range(tokens // CHUNK):
        q, k, v = (torch.randn(1, CHUNK, 1, 64, generator=draw) for _ in range(3))
        output, state = retention(q, k, v, initial_state=state)
        sizes.append(state.nbytes)
        finite = finite and bool(output.isfinite().all() and state.isfinite().all())
        if chunk == WARM:
            start = resident()
        if chunk > WARM and chunk % 64 == 0:
            growth = max(growth, resident() - start)
    return {
        "state bytes least": min(sizes),
        "state bytes most": max(sizes),
        "growth MB": growth / 2**20,
        "all finite": float(finite),
    }


def run(seed=0, tokens=TOKENS):
    draw = torch.Generator().manual_seed(seed)
    half_lives = math.log(0.5) / retention_gates(8, dtype=torch.float64)
    figures = gaps(draw) | streamed(draw, tokens)
    return figures | {f"half-life of head {h}": float(half_lives[h]) for h in range(8)}


def check(figures):
    for name in ("recurrent", "chunked", "chosen"):
        assert figures[f"gap {name}"] < 1e-10
    assert figures["state bytes least"] == figures["state bytes most"] == 16_384
    assert figures["growth MB"] < 5
    assert figures["all finite"] == 1
    for head in range(8):
        expected = math.log(0.5) / math.log(1 - 2.0 ** (-5 - head))
        assert math.isclose(figures[f"half-life of head {head}"], expected, rel_tol=1e-9)
