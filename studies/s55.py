"""Entropy and compression: a coder needs at least the entropy rate, far below that of one symbol where
symbols depend on each other.

An independent source with p = (1/2, 1/4, 1/8, 1/8), 200,000 symbols, by LZMA; and a bit that flips with
probability 0.05, whose symbols have 1 bit each and whose rate is H2(0.05) = 0.286.
"""

import math

import torch

from worldsim_kernels.block_entropy import block_entropies
from worldsim_kernels.hidden_markov import entropy_rate, sampled
from worldsim_plugins.metrics.token_information import coded_bits

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "LZMA >= entropy (<= 1.25x i.i.d.); sticky bit: marginal 1.00, rate 0.286 +- 0.01, LZMA between them"
FLIP = 0.05
STICKY = torch.tensor([[[1 - FLIP, 0.0], [FLIP, 0.0]], [[0.0, FLIP], [0.0, 1 - FLIP]]], dtype=torch.float64)
"""``[token, state, state]``: the token is the new state."""


def run(seed=0, symbols=200_000):
    generator = torch.Generator().manual_seed(seed)
    law = torch.tensor([0.5, 0.25, 0.125, 0.125])
    drawn = torch.multinomial(law, symbols, replacement=True, generator=generator).reshape(200, -1)
    independent = block_entropies(drawn, 4, 2)
    bits = sampled(STICKY, 200, symbols // 200, generator)
    sticky = block_entropies(bits, 2, 4)
    return {
        "H": float(independent.value[0]),
        "bound, bytes": float(independent.value[0]) * symbols / 8,
        "LZMA / bound": coded_bits(drawn, 4) / float(independent.value[0]),
        "sticky H": float(sticky.value[0]),
        "sticky rate": sticky.rate(),
        "exact rate": entropy_rate(STICKY),
        "sticky LZMA": coded_bits(bits, 2),
    }


def check(figures):
    assert abs(figures["H"] - 1.75) < 0.01
    assert 1 <= figures["LZMA / bound"] <= 1.25
    exact = -FLIP * math.log2(FLIP) - (1 - FLIP) * math.log2(1 - FLIP)
    assert abs(figures["exact rate"] - exact) < 1e-12
    assert abs(figures["exact rate"] - 0.286) < 5e-4
    assert abs(figures["sticky rate"] - exact) < 0.01
    assert figures["sticky H"] > 0.99
    assert figures["sticky rate"] <= figures["sticky LZMA"] < 0.5 * figures["sticky H"]
