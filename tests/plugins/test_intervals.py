"""Intervals cover what they should, where the law of what is measured is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, norm

from worldsim_plugins.metrics.automaton_coherence import coherence_tables
from worldsim_plugins.metrics.class_tables import headline
from worldsim_plugins.metrics.continuous_coherence import Comparison, Facts, Pairs, intervals_of, ranking
from worldsim_plugins.metrics.history_pairs import couples
from worldsim_plugins.metrics.inquiry import Answers, Inquiry, Prefixes, inquire
from worldsim_plugins.metrics.intervals import bootstrap, jackknife, never, widened
from worldsim_plugins.metrics.sampled_coherence import _mean
from worldsim_plugins.metrics.token_coherence import token_score
from worldsim_plugins.systems.automaton import Automaton

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


def test_the_jackknife_of_a_mean_is_students_interval_and_strata_add_up():
    first, second = torch.randn(2, 12, generator=seeded(4), dtype=F64)
    gone = [(each.mean() - each) / 11 for each in (first, second)]
    low, high = jackknife(float(first.mean()), gone[:1], share=False)
    assert (high - low) / 2 == pytest.approx(2.200985 * float(first.std()) / 12**0.5, rel=1e-6)
    middle = float(first.mean() + second.mean()) / 2
    low, high = jackknife(middle, [each / 2 for each in gone], share=False)
    error = float((first.var() + second.var()) / 48) ** 0.5
    # Two strata of nearly one variance have nearly 22 degrees of freedom.
    assert (high - low) / 2 == pytest.approx(2.08 * error, rel=0.01)
    assert jackknife(0.5, [torch.full((5,), 1e-15, dtype=F64)], share=True) == (0.5, 0.5)
    assert jackknife(1.0, gone, share=True) == (1.0, 1.0)
    low, high = jackknife(0.99, [torch.tensor([0.9, -0.9, 0.0], dtype=F64)], share=True)
    assert 0 <= low < 0.99 < high <= 1


@pytest.mark.parametrize("trials", [60, 200, 1000])
def test_shares_of_independent_trials_are_covered_by_their_intervals(trials):
    """Summed over all that may be drawn; Student's interval of the trials themselves holds 0.995 of 1,000 in
    87 % of cases."""
    for p in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99):
        held = 0.0
        for k in range(trials + 1):
            if (chance := binom.pmf(k, trials, p)) > 1e-7:
                low, high = _mean("", (torch.arange(trials) < k).double()).interval
                held += chance * (low <= p <= high)
        assert 0.92 < held < 0.98 + 1e-3, p


class Forgetful:
    """A lattice's next tokens, as likely as a few of the earlier ones together say: some are left out."""

    def __init__(self, system, seed=5):
        self.system, self.tilt = system, torch.randn(97, 3, generator=seeded(seed), dtype=F64).exp()

    def next_token(self, tokens):
        number = (tokens * torch.tensor([3, 7, 11, 13, 17, 19, 23, 29])[: tokens.shape[1]]).sum(1) % 97
        law = self.system.next_token(tokens) * self.tilt[number]
        law = torch.where(law > 0.05, law, 0.0)
        return law / law.sum(1, keepdim=True).clamp(min=1e-9)


LATTICE = Automaton(preset="lattice")
HORIZON, LENGTH = 3, 6
NAMED = ("coherence_auc", "compression_both", "distinction_recall", "fidelity")


def whole() -> Inquiry:
    """All 259 prefixes of six tokens."""
    model, table = Forgetful(LATTICE), LATTICE.transitions()
    settings = {"horizon": HORIZON, "epsilon": 0.01, "length": LENGTH, "pairs": 20}
    return inquire(table, 0, model.next_token, LATTICE.next_token, generator=seeded(), **settings)


def some(of: Inquiry, index: torch.Tensor) -> Inquiry:
    def told(answers):
        return Answers(answers.language[index], [law[index] for law in answers.laws], answers.first[index])

    prefixes = of.prefixes
    taken = Prefixes(prefixes.tokens[index], prefixes.state[index], prefixes.classes[index], False)
    return Inquiry(taken, told(of.given), told(of.truth))


def held_over_prefixes(repetitions: int, each: int = 12) -> dict[str, float]:
    """How often the interval of each score holds the value over all prefixes, of which ``each`` of every
    class are drawn."""
    everything, table, rng = whole(), LATTICE.transitions(), seeded(1)
    tables = coherence_tables(table, HORIZON, 0.01, everything, None)
    exact, hits = {name: headline(tables[name].blocks()) for name in NAMED}, dict.fromkeys(NAMED, 0)
    assert all(token_score(name, tables[name], n=259).interval is None for name in NAMED)
    members = [(everything.prefixes.classes == c).nonzero()[:, 0] for c in range(5)]
    for _ in range(repetitions):
        drawn = [of[torch.randint(len(of), (each,), generator=rng)] for of in members]
        found = coherence_tables(table, HORIZON, 0.01, some(everything, torch.cat(drawn)), None)
        for name in NAMED:
            low, high = token_score(name, found[name], n=5 * each).interval
            hits[name] += low <= exact[name] <= high
    return {name: hit / repetitions for name, hit in hits.items()}


def test_intervals_over_prefixes_cover_what_all_of_them_say():
    for name, share in held_over_prefixes(200).items():
        assert abs(share - 0.95) < 3 * (0.95 * 0.05 / 200) ** 0.5, name


@pytest.mark.slow
def test_the_coverage_of_a_thousand_intervals_over_prefixes():
    for name, share in held_over_prefixes(1000, 20).items():
        assert 0.93 <= share <= 0.97, name


def test_leaving_prefixes_out_is_what_it_says():
    """By dropping each of them from all that was asked."""
    index = torch.arange(0, 259, 7)
    table, drawn = LATTICE.transitions(), some(whole(), index)
    tables = coherence_tables(table, HORIZON, 0.01, drawn, None)
    visits = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    for weights in (None, visits):
        for name in ("compression_both", "distinction_recall", "distinction_precision_found", "fidelity"):
            ((prefixes, change),) = tables[name].deletions(weights)
            assert len(prefixes.tokens) == len(index)
            for i in (0, 17, len(index) - 1):
                fewer = some(drawn, torch.arange(len(index)) != i)
                again = coherence_tables(table, HORIZON, 0.01, fewer, None)[name]
                expected = headline(again.blocks(), weights) - headline(tables[name].blocks(), weights)
                assert float(change[i]) == pytest.approx(expected, abs=1e-12), name
    # Ranks change to first order.
    total = sum(change for _, change in tables["coherence_auc"].deletions(None))
    fewer = coherence_tables(table, HORIZON, 0.01, some(drawn, torch.arange(len(index)) != 3), None)
    expected = headline(fewer["coherence_auc"].blocks()) - headline(tables["coherence_auc"].blocks())
    assert float(total[3]) == pytest.approx(expected, abs=5e-3)
