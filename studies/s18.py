"""The rate and distortion of a uniform quantiser with an ideal entropy coder, on a Gaussian source.

At a high rate a bit buys 20 log10(2) = 6.02 dB, and the quantiser needs log2(2 pi e / 12) / 2 = 0.2546 bit
more than Shannon's D(R) = 2^(-2R). Of the laws fitted to the coarse half of the rates, the exponential one is
the best on the fine half, and the one that is linear in the logarithm says that errors become negative: it is
refused.
"""

import math

import numpy as np
import torch

from worldsim_kernels.block_entropy import entropy
from worldsim_plugins.metrics.scaling_law import choose_law

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "slope -6.02 +- 0.25 dB/bit; 0.25..0.32 bit above R(D); exponential best held out, linear-log refused"
WIDTHS = tuple(2.0**-k for k in (0, 0.5, 1, 1.5, 2, 2.5, 3))


def rate_and_distortion(x, width):
    level = (x / width).round()
    share = level.unique(return_counts=True)[1].double() / len(x)
    return float(entropy(share)), float((x - level * width).square().mean())


def run(seed=0, samples=200_000):
    x = torch.randn(samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rate, distortion = np.array([rate_and_distortion(x, width) for width in WIDTHS]).T
    slope = float(np.polyfit(rate, 10 * np.log10(distortion), 1)[0])
    gap = rate + 0.5 * np.log2(distortion)
    choice = choose_law(rate[:4], distortion[:4], rate[4:], distortion[4:])
    return {
        "dB per bit": slope,
        "gap, coarsest": float(gap[0]),
        "gap, finest": float(gap[-1]),
        "high-rate gap": math.log2(2 * math.pi * math.e / 12) / 2,
        "exponential, held out": choice.held_out["exponential"],
        "power, held out": choice.held_out.get("power", math.nan),
        "linear-log refused": float("error is above 0" in choice.refused.get("logarithmic", "")),
    }


def check(figures):
    assert abs(figures["dB per bit"] + 6.02) < 0.25
    assert abs(figures["high-rate gap"] - 0.2546) < 5e-5
    assert figures["high-rate gap"] - 0.005 < figures["gap, finest"] < 0.26
    assert figures["gap, finest"] < figures["gap, coarsest"] < 0.32
    assert figures["linear-log refused"] == 1
    assert not figures["power, held out"] <= figures["exponential, held out"]
