"""Intervals cover what they should, where the law of what is measured is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from worldsim_plugins.metrics.continuous_coherence import Comparison, Facts, Pairs, intervals_of, ranking
from worldsim_plugins.metrics.history_pairs import couples
from worldsim_plugins.metrics.intervals import bootstrap, never, widened

F64 = torch.float64
SHIFT = 1.0
EXACT = {"coherence_auc": norm.cdf(SHIFT / 2**0.5), "compression": norm.cdf(1.0), "fidelity": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int, rng: torch.Generator) -> Comparison:
    """Log distances are N(0, 1) within pairs and N(SHIFT, 1) between couples, correlated through the states;
    the model's error is uniform."""
    state, within, between = torch.randn(3, n, generator=rng, dtype=F64)
    partner, couple = couples(n)
    near = (0.6 * state + 0.8 * within).exp()[:, None, None]
    far = (SHIFT + 0.5 * (state + state[partner]) + 0.5**0.5 * between).exp()[:, None, None]
    error = norm.cdf(0.6 * state + 0.8 * between)
    own = torch.from_numpy(error)[:, None, None]
    none = torch.zeros(n, dtype=torch.bool)
    same = Pairs(near, None, None, None, none, couple)
    return Comparison(same, Pairs(far, torch.ones_like(far), own, far, none, couple), True)


def coverage(n: int, repetitions: int, seed: int = 0, resamples: int = 500) -> dict[str, float]:
    """How often the interval of each score holds its exact value."""
    rng, hits = seeded(seed), dict.fromkeys(EXACT, 0)
    for _ in range(repetitions):
        comparison = drawn(n, rng)
        found = intervals_of(Facts.of(comparison, torch.tensor(1.0).exp().item()), comparison, resamples, rng)
        for name, value in EXACT.items():
            hits[name] += found[name][0] <= value <= found[name][1]
    return {name: hit / repetitions for name, hit in hits.items()}


def test_intervals_cover_in_ninety_five_of_a_hundred():
    for name, share in coverage(120, 200).items():
        assert 0.90 <= share <= 0.98, name


def test_the_resampled_ranking_is_that_of_repeated_entries():
    near, far = torch.rand(2, 6, generator=seeded(), dtype=F64).round(decimals=1)
    times = torch.randint(0, 3, (6,), generator=seeded(1))
    times[0] = 1

    def both(drawn):
        from worldsim_plugins.metrics.continuous_coherence import weighted_ranking

        return {"": weighted_ranking(near, far, drawn, drawn)}

    repeated = ranking(near.repeat_interleave(times), far.repeat_interleave(times))
    assert float(both(times[None].double())[""]) == pytest.approx(repeated, abs=1e-12)


def test_the_rule_of_three_is_exact():
    """A chance of never(m) leaves a nineteenth in twenty that all of m trials miss it."""
    for m in (5, 60, 1000):
        assert (1 - never(m)) ** m == pytest.approx(0.05)
    assert never(1000) == pytest.approx(-math.log(0.05) / 1000, rel=2e-3)
    assert never(0) == 1.0


def test_what_never_varied_is_widened_to_the_side_that_is_left():
    assert widened(1.0, (1.0, 1.0), 50) == (1 - never(50), 1.0)
    assert widened(0.0, (0.0, 0.0), 50) == (0.0, never(50))
    low, high = widened(0.5, (0.5, 0.5), 50)
    assert (low, high) == (pytest.approx(0.5 - never(50) / 2), pytest.approx(0.5 + never(50) / 2))
    assert widened(0.9, (0.8, 1.0), 50) == (0.8, 1.0)
    assert widened(3.0, (3.0, 3.0), 50) == (3.0, 3.0)
    assert widened(1.0, None, 50) is None


def test_one_sided_intervals_cover_whatever_the_share():
    """All of m trials succeed with chance p^m: the interval reaches down to p unless that is below 5 %."""
    m, worst = 30, 1.0
    for p in torch.linspace(0.5, 0.999, 200, dtype=F64).tolist():
        reached = widened(1.0, (1.0, 1.0), m)[0] <= p
        missed = 0.0 if reached else p**m
        worst = min(worst, 1 - missed)
    assert worst >= 0.95 - 1e-12


def test_the_bootstrap_of_a_mean_is_that_of_students_t():
    """Ten clusters: percentiles alone would be too narrow by a fifth."""
    values = torch.randn(10, generator=seeded(3), dtype=F64)
    found = bootstrap(
        lambda times: {"": times @ values / 10, "no": times[:, 0] * torch.nan}, 10, 20_000, seeded()
    )
    half = (found[""][1] - found[""][0]) / 2
    expected = 2.262157 * float(values.std()) / 10**0.5
    assert half == pytest.approx(expected, rel=0.05)
    assert found["no"] is None
