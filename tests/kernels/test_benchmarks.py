"""The benchmarks' own arithmetic, and that every GPU case has shapes that fit."""

import math
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_exponent_and_its_standard_error_are_those_of_least_squares():
    from measure import fit

    lengths = [1000, 2000, 4000, 8000]
    exponent, spread = fit(lengths, [3e-6 * n**1.5 for n in lengths])
    assert exponent == pytest.approx(1.5)
    assert spread == pytest.approx(0, abs=1e-6)
    # Residuals +d, -d, -d, +d on equally spaced logarithms leave the slope alone.
    d = 0.1
    noisy = [n * math.exp(s * d) for n, s in zip(lengths, (1, -1, -1, 1))]
    exponent, spread = fit(lengths, noisy)
    assert exponent == pytest.approx(1)
    assert spread == pytest.approx(math.sqrt(4 * d**2 / 2 / (5 * math.log(2) ** 2)))
    assert math.isnan(fit([1], [1.0])[0])


def test_candidates_take_turns_and_slow_ones_leave_early():
    from measure import take_turns

    order = []
    calls = {"slow": lambda: (order.append("slow"), time.sleep(0.02)), "quick": lambda: order.append("quick")}
    best = take_turns(calls, budget=0.03, least=2, most=6)
    assert order[:6] == ["slow", "quick"] * 3
    assert order.count("quick") == 7
    assert order.count("slow") < 7
    assert best["quick"] < 0.02 <= best["slow"]


def test_memory_of_a_forked_child_is_what_the_call_allocates():
    from measure import in_child, peak_bytes

    found = in_child(peak_bytes, lambda: (torch.ones(16, 2**20) * 2).sum())
    if found is None or math.isnan(found):
        pytest.skip("NOT RUN: this system does not tell the peak of resident memory")
    assert found == pytest.approx(2 * 64 * 2**20, rel=0.1)


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed():
    from goals import goals

    none = {"families": {}, "long": {}, "state memory": {}, "threads": {"linear attention": None}}
    assert {each["met"] for each in goals(none, (1024,))} == {None}


def test_every_gpu_case_computes_its_part_from_the_part_of_its_inputs():
    import gpu_cases
    from kernels_gpu import shapes, wrong

    for case in gpu_cases.cases(tiny=True):
        inputs = case.make("cpu", torch.float32)
        error = wrong(case, inputs, case.ours(*inputs))
        assert math.isnan(error) or error < 5e-6, case.name
        read, written = shapes(case)
        assert read == sum(x.nbytes for x in case.make("cpu", case.dtype))
        assert written > 0
