"""Exact and entropic transport between two planar Gaussians whose squared Bures distance is 5.377.

The exact distance of growing samples against the closed form; at n = 400 the transport cost of the entropic
plan (log domain) over the exact one, for falling epsilon; and the debiased divergence, which is 0 between a
sample and itself in another order, and |m|^2 exactly between a sample and itself moved by m.
"""

import ot
import torch

from worldsim_kernels.laws import bures
from worldsim_plugins.metrics.exact_transport import wasserstein2

SEEDS = (0, 1, 2)
CLAIM = "LP n=2000 within 6 % of Bures; entropic cost falls with eps, <= 2 % at 0.1; |S(x, x)| < 1e-6"
EPSILONS = (1.0, 0.3, 0.1)
F64 = torch.float64
MEAN, SHIFT = torch.zeros(2, dtype=F64), torch.tensor([2.2, -0.142], dtype=F64)
A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)
B = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=F64)


def samples(n, seed):
    noise = torch.randn(2, n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return noise[0] @ torch.linalg.cholesky(A).T, SHIFT + noise[1] @ torch.linalg.cholesky(B).T


def entropic(x, y, epsilon):
    """The transport cost of the entropic plan, and OT_eps = cost + eps KL(P | a b)."""
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    found = ot.solve(cost, reg=epsilon, reg_type="KL", max_iter=2000, tol=1e-9)
    return float(found.value_linear), float(found.value)


def debiased(x, y, epsilon):
    own = (entropic(x, x, epsilon)[1] + entropic(y, y, epsilon)[1]) / 2
    return entropic(x, y, epsilon)[1] - own


def run(seed=0):
    exact = bures(MEAN, A, SHIFT, B)
    figures = {"Bures": exact}
    for n in (400, 2000):
        figures[f"LP n={n}"] = wasserstein2(*samples(n, seed)).W2_squared
    x, y = samples(400, seed)
    for epsilon in EPSILONS:
        figures[f"excess eps={epsilon:g}"] = entropic(x, y, epsilon)[0] / figures["LP n=400"] - 1
    figures["undebiased cost (x, x) eps=1"] = entropic(x, x, 1.0)[0]
    figures["S(x, x) eps=0.3"] = debiased(x, x.flip(0), 0.3)
    figures["S(x, x + m) - |m|^2 eps=1"] = debiased(x, x + SHIFT, 1.0) - float(SHIFT @ SHIFT)
    return figures


def check(figures):
    assert abs(figures["Bures"] - 5.377) < 5e-4
    assert abs(figures["LP n=2000"] / figures["Bures"] - 1) < 0.06
    excesses = [figures[f"excess eps={epsilon:g}"] for epsilon in EPSILONS]
    assert excesses == sorted(excesses, reverse=True)
    assert excesses[-1] >= 0
    assert figures["excess eps=0.1"] <= 0.02
    assert figures["undebiased cost (x, x) eps=1"] > 0.1
    assert abs(figures["S(x, x) eps=0.3"]) < 1e-6
    assert abs(figures["S(x, x + m) - |m|^2 eps=1"]) < 1e-6
