"""Temperature in attention: the weights are a Gibbs distribution, and its entropy rises with temperature.

Mean entropy of 64 rows over 64 keys, whose scores have unit variance, at temperatures 1/4 to 100, against its
limit ln 64; and the ranking of the weights at a negative temperature, which ``check=True`` refuses.
"""

import math
from itertools import pairwise

import torch

from worldsim_kernels.attention import attend

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "entropy rises strictly with temperature; at 100 within 1e-3 of ln 64; temperatures <= 0 refused"
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 100.0)
KEYS = 64
F64 = torch.float64


def weights(q, k, temperature, **options):
    """[rows, keys]: attention whose values are the unit vectors."""
    unit = torch.eye(KEYS, dtype=F64)[None, :, None]
    tau = torch.tensor(temperature, dtype=F64)
    return attend(q, k, unit, temperature=tau, **options)


def entropy(q, k, temperature):
    p = weights(q, k, temperature).output
    return float(-(p * p.clamp(min=1e-300).log()).sum(-1).mean())


def refused(q, k, temperature):
    try:
        weights(q, k, temperature, check=True)
    except ValueError:
        return True
    return False


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, KEYS, 1, 16, generator=rng, dtype=F64) for _ in range(2))
    figures = {f"entropy {tau:g}": entropy(q, k, tau) for tau in TEMPERATURES}
    upright, reversed_ = (weights(q, k, tau).output.argsort(-1) for tau in (1.0, -1.0))
    figures["ranking reversed at -1"] = float((upright == reversed_.flip(-1)).all())
    figures["refused"] = float(refused(q, k, 0.0) and refused(q, k, -1.0))
    return figures


def check(figures):
    rising = [figures[f"entropy {tau:g}"] for tau in TEMPERATURES]
    assert all(low < high for low, high in pairwise(rising))
    assert abs(rising[-1] - math.log(KEYS)) < 1e-3
    assert rising[-1] < math.log(KEYS)
    assert figures["ranking reversed at -1"] == 1
    assert figures["refused"] == 1
