"""Paired differences of scores, their intervals and corrected p-values."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import false_discovery_control, ttest_rel

import worldsim
from worldsim.cli import exit_code
from worldsim.comparing import compare, corrected, difference
from worldsim.errors import ResultError
from worldsim.protocols import Score
from worldsim.results import Row

TINY = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"
PLACE = ("s", "test", "error", "")
A = {0: 1.0, 1: 2.0, 2: 4.0, 3: 3.0, 4: 2.5}
B = {0: 0.7, 1: 1.9, 2: 3.1, 3: 2.8, 4: 2.0}


def rows(values, baseline=False, better="lower"):
    return [
        Row("s", "m", seed, baseline, "test", "metric", "error", Score(value, better=better))
        for seed, value in values.items()
    ]


def test_differences_are_paired_by_seed():
    found = difference(PLACE, rows(A), rows(dict(reversed(B.items()))))
    test = ttest_rel([B[s] for s in B], [A[s] for s in A])
    low, high = test.confidence_interval()
    assert found.mean == pytest.approx(-0.4)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.first, found.second) == pytest.approx((2.5, 2.1))
    assert found.pairs == 5


def test_a_seed_without_partner_is_named_and_left_out():
    found = difference(PLACE, rows(A), rows({seed: B[seed] for seed in (0, 1, 2)} | {7: 9.0}))
    assert found.pairs == 3
    assert found.alone == (3, 4, 7)


def test_a_baseline_stands_beside_every_seed():
    found = difference(PLACE, rows({0: 1.5}, baseline=True), rows(B))
    assert found.pairs == 5
    assert found.mean == pytest.approx(2.1 - 1.5)
    assert not math.isnan(found.p)


def test_one_pair_and_equal_differences_have_no_test():
    one = difference(PLACE, rows({0: 1.0}), rows({0: 2.0}))
    assert one.pairs == 1
    assert math.isnan(one.p)
    assert math.isnan(one.low)
    same = difference(PLACE, rows({0: 1.0, 1: 2.0}), rows({0: 1.5, 1: 2.5}))
    assert (same.low, same.high) == (0.5, 0.5)
    assert math.isnan(same.p)


def test_what_is_not_measurable_says_why():
    lost = [Row("s", "m", 0, False, "test", "metric", "error", Score(math.nan, reason="too few"))]
    found = difference(PLACE, lost, rows(B))
    assert found.pairs == 0
    assert math.isnan(found.mean)
    assert found.reasons == ("too few",)


def test_holm():
    made = [difference((*PLACE[:2], str(k), ""), rows(A), rows(B)) for k in range(4)]
    made = [replace(one, p=p) for one, p in zip(made, (0.01, 0.04, 0.03, math.nan))]
    found = [one.corrected for one in corrected(made)]
    assert found[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(found[3])
    # Holm's are never below those that hold the false discovery rate alone.
    assert all(h >= f for h, f in zip(found, false_discovery_control([0.01, 0.04, 0.03])))


@pytest.mark.parametrize(("better", "winner"), [("lower", "B"), ("higher", "A"), ("", "")])
def test_the_verdict_follows_the_direction(better, winner):
    found = difference(PLACE, rows(A), rows({seed: value - 0.5 - 0.01 * seed for seed, value in A.items()}))
    (found,) = corrected([replace(found, better=better)])
    assert found.verdict == winner


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept")
    worldsim.run(TINY, out=out)
    return out


def test_models_of_one_folder_and_two_folders(kept, capsys):
    (model,) = {entry.model for entry in worldsim.open_results(kept).entries if not entry.baseline}
    found = compare("truth", model, results=kept)
    assert found
    assert {one.scenario for one in found} == {"tiny_pendulum"}
    same = compare(kept, kept)
    assert {one.model for one in same} > {model}
    assert all(one.mean == 0 for one in same if one.pairs)
    assert exit_code(["compare", "truth", model, "--results", str(kept)]) == 0
    assert "p (Holm)" in capsys.readouterr().out
    with pytest.raises(ResultError, match="did you mean 'truth'"):
        compare("thruth", model, results=kept)
    with pytest.raises(ResultError, match="no score in common"):
        compare("truth", model, results=kept, split="nowhere")
