"""Linear attention: its forms agree, and its operations grow linearly.

In float64, 200 tokens, all against the explicit matrix phi(Q) phi(K)^T: the recurrence, its chunked form, the
form that this machine chooses, and the form over all tokens. Operations of both are counted as in S01, and
compared with softmax attention's at 4,096 tokens of width 512, where n / d = 8 is expected.
"""

import math

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import worldsim_kernels.cost  # noqa: F401
from worldsim_kernels import linear_attention

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "forms agree to 1e-10 in float64; operations as n^1.00 +- 0.01; 8.0 +- 0.1 times fewer at n = 8 d"
LENGTHS = (1024, 2048, 4096, 8192)


def by_matrix(q, k, v, causal):
    weights = torch.einsum("bthk,bshk->bhts", F.elu(q) + 1, F.elu(k) + 1)
    weights = weights.tril() if causal else weights
    return torch.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdim=True), v)


def gaps(seed, tokens=200, heads=2, width=32):
    """Largest differences from the matrix form."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, tokens, heads, width, generator=draw, dtype=torch.float64) for _ in range(3))
    causal, both = by_matrix(q, k, v, True), by_matrix(q, k, v, False)
    found = {
        "recurrent": linear_attention(q, k, v, eps=0, backend="reference").output - causal,
        "chunked": linear_attention(q, k, v, eps=0, backend="torch").output - causal,
        "chosen": linear_attention(q, k, v, eps=0).output - causal,
        "all tokens": linear_attention(q, k, v, eps=0, causal=False).output - both,
    }
    return {f"gap {name}": float(difference.abs().max()) for name, difference in found.items()}


def operations(run, length, width):
    """Of one head; nothing is computed."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        run(*(torch.empty(1, length, 1, width) for _ in range(3)))
    return counter.get_total_flops()


def softmax(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))


def causal(q, k, v):
    return linear_attention(q, k, v)


def over_all(q, k, v):
    return linear_attention(q, k, v, causal=False)


def exponent(run):
    few, many = (operations(run, n, 64) for n in (LENGTHS[0], LENGTHS[-1]))
    return math.log(many / few) / math.log(LENGTHS[-1] / LENGTHS[0])


def run(seed=0):
    figures = gaps(seed)
    for form in (causal, over_all):
        figures[f"exponent {form.__name__}"] = exponent(form)
        ratio = operations(softmax, 4096, 512) / operations(form, 4096, 512)
        figures[f"fewer operations {form.__name__}"] = ratio
    return figures


def check(figures):
    for name in ("recurrent", "chunked", "chosen", "all tokens"):
        assert figures[f"gap {name}"] < 1e-10
    for name in ("causal", "over_all"):
        assert abs(figures[f"exponent {name}"] - 1) < 0.01
        assert abs(figures[f"fewer operations {name}"] - 8) < 0.1
