"""Stochastic thermodynamics as a test of a simulator: the Jarzynski average of a dragged harmonic trap.

    dX = -k (X - vt) dt + sqrt(2 T) dW,   W = -k v * integral of (X - vt) dt,   <exp(-W / T)> = 1

(Jarzynski 1997; the free energy of a trap does not depend on where it is). Between steps of length h the
trapped particle is an Ornstein-Uhlenbeck process, so position and work have an exact joint normal law and
only sampling is left. k = T = 1, v = 1, to t = 2, 200,000 paths, against the same world with its noise 20 %
too small, its drift 30 % too strong, or no noise at all; the mean work of each stands beside it.
"""

import math

import torch

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "exact dynamics: average 1 within 3 standard errors; wrong noise or drift rejected by > 10; "
    "mean work of the wrong noise within 2 % of the exact"
)
PATHS, SPEED, HORIZON, STEPS = 200_000, 1.0, 2.0, 20


def work(seed, paths, stiffness=1.0, noise=1.0):
    """W ``[path]`` in units of T, charged by the true trap, along paths of a world with another stiffness and
    noise (over the true ones) that starts in the true equilibrium.

    y = X - vt obeys dy = -(k y + v) dt + s dW. Over a step the pair (y, its integral) is normal with the
    covariances of Uhlenbeck and Ornstein (1930).
    """
    draws = torch.Generator().manual_seed(seed)
    k, h, variance = stiffness, HORIZON / STEPS, 2 * noise**2
    a = math.exp(-k * h)
    end = variance * (1 - a * a) / (2 * k)
    both = variance * (1 - a) ** 2 / (2 * k**2)
    area = variance / k**2 * (h - 2 * (1 - a) / k + (1 - a * a) / (2 * k))
    slope = both / end if end else 0.0
    rest = math.sqrt(max(area - slope * both, 0.0))
    y = torch.randn(paths, dtype=torch.float64, generator=draws)
    total, rest_point = torch.zeros_like(y), -SPEED / k
    for _ in range(STEPS):
        first, second = torch.randn(2, paths, dtype=torch.float64, generator=draws)
        away, kick = y - rest_point, math.sqrt(end) * first
        total += rest_point * h + away * (1 - a) / k + slope * kick + rest * second
        y = rest_point + a * away + kick
    return -SPEED * total


def run(seed, paths=PATHS):
    figures = {}
    worlds = {
        "exact": {},
        "noise x 0.8": {"noise": 0.8},
        "drift x 1.3": {"stiffness": 1.3},
        "no noise": {"noise": 0.0},
    }
    for name, world in worlds.items():
        w = work(seed, paths, **world)
        weight = torch.exp(-w)
        average, error = float(weight.mean()), float(weight.std()) / paths**0.5
        figures[f"average, {name}"] = average
        figures[f"off by, {name}"] = (average - 1) / error
        figures[f"mean work, {name}"] = float(w.mean())
    return figures


def check(figures):
    assert abs(figures["off by, exact"]) < 3
    # Integral of the mean lag: v^2 (t - 1 + exp(-t)), Mazonka and Jarzynski (1999).
    mean = SPEED**2 * (HORIZON - 1 + math.exp(-HORIZON))
    assert abs(figures["mean work, exact"] / mean - 1) < 0.02
    for wrong in ("noise x 0.8", "drift x 1.3", "no noise"):
        assert abs(figures[f"off by, {wrong}"]) > 10
    # The mean work sees nothing of the noise.
    assert abs(figures["mean work, noise x 0.8"] / mean - 1) < 0.02
