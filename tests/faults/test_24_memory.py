"""Trial 24: a case that wants too much memory is called so, and costs itself alone."""

import oracle
import pytest
import torch

pytestmark = pytest.mark.trial(24)


def failed_for_want_of_memory(tmp_path, perils, *options):
    out, options = tmp_path / "out", ("--plugin", oracle.PERILOUS, "--no-report", *options)
    env = oracle.environment(out, "rollout")
    ended = oracle.run(oracle.perilous(tmp_path, *perils, "none"), out, *options, env=env)
    assert ended.returncode == 1, ended.stderr
    failures = oracle.failures_of(out)
    assert {model: failure["kind"] for model, failure in failures.items()} == dict.fromkeys(perils, "oom")
    oracle.sound(out)
    assert oracle.left_behind(out, 5) == []
    calm = tmp_path / "calm"
    (tmp_path / "well").mkdir()
    oracle.run(oracle.perilous(tmp_path / "well", "none"), calm, *options, check=True, env=env)
    assert oracle.digest(out, ("none", "persistence")) == oracle.digest(calm)
    return failures


def test_a_process_may_hold_no_more_than_its_limit(tmp_path):
    perils = ("hoards", "wants_memory", "wants_a_tensor")
    failures = failed_for_want_of_memory(tmp_path, perils, "--memory", "2GB")
    assert "may hold 2 GB" in failures["hoards"]["message"]
    assert {failure["attempts"] for failure in failures.values()} == {1}


def test_a_gpu_has_an_end(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU, whose memory could be used up")
    failed_for_want_of_memory(tmp_path, ["wants_a_tensor_of_a_gpu"])
