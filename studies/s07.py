"""Eight-bit attention: error of softmax(Q K' / sqrt(d)) V with e4m3 inputs, against float64.

Q, K and V have the outliers of Shah et al. 2024: N(0, 1), and with probability 0.001 another N(0, 100) added;
n = 2048, d = 128. The weights stay in float64. Per tensor (one scale), by blocks of 64 rows, with incoherent
queries and keys, and both; float16 beside them. RMS errors of the output.
"""

import torch

from worldsim_kernels.attention import attend
from worldsim_kernels.quantise import incoherent, quantise, random_signs

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "e4m3 error per tensor >= 1.5x that with incoherent processing, and with blocks too"
ROWS = 64
F64 = torch.float64


def outliers(n, d, rng):
    rare = torch.rand(n, d, generator=rng, dtype=F64) < 0.001
    return torch.randn(n, d, generator=rng, dtype=F64) + rare * 10 * torch.randn(
        n, d, generator=rng, dtype=F64
    )


def attention(q, k, v):
    q, k, v = (x[None, :, None] for x in (q, k, v))
    return attend(q, k, v).output[0, :, 0]


def error(made, exact):
    return float((made - exact).square().mean().sqrt())


def run(seed=0, n=2048, d=128):
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (outliers(n, d, rng) for _ in range(3))
    signs = random_signs(d, rng, F64)
    turned = incoherent(q, signs), incoherent(k, signs)
    exact = attention(q, k, v)

    def rounded(rows, q, k):
        return error(attention(*(quantise(x, rows).restored() for x in (q, k, v))), exact)

    figures = {
        "tensor": rounded(None, q, k),
        "block": rounded(ROWS, q, k),
        "incoherent": rounded(None, *turned),
        "both": rounded(ROWS, *turned),
        "float16": error(attention(*(x.half().double() for x in (q, k, v))), exact),
    }
    figures["gain incoherent"] = figures["tensor"] / figures["incoherent"]
    figures["gain both"] = figures["tensor"] / figures["both"]
    return figures


def check(figures):
    assert figures["gain incoherent"] >= 1.5
    assert figures["gain both"] >= 1.5
    assert figures["float16"] < figures["both"] / 10
