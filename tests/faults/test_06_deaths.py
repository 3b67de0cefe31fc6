"""Trial 6: plugins that end their process are crashes, whatever the exit code, and nobody else's."""

import oracle
import pytest

pytestmark = pytest.mark.trial(6)

DEATHS = {
    "reads_nowhere": ("SIGSEGV", None),
    "aborts": ("SIGABRT", None),
    "leaves": ("", 0),
    "exits": ("", 0),
}


def test_deaths_cost_their_cases_alone(tmp_path):
    out, options = tmp_path / "out", ("--plugin", oracle.PERILOUS, "--no-report")
    env = oracle.environment(out, "rollout")
    ended = oracle.run(oracle.perilous(tmp_path, *DEATHS, "none"), out, *options, env=env)
    assert ended.returncode == 1, ended.stderr
    assert "4 of 6 cases failed" in ended.stderr
    failures = oracle.failures_of(out)
    assert {model: failure["kind"] for model, failure in failures.items()} == dict.fromkeys(DEATHS, "crash")
    assert {model: (failure["signal"], failure["exit_code"]) for model, failure in failures.items()} == DEATHS
    oracle.sound(out)
    assert oracle.left_behind(out, 5) == []
    calm = tmp_path / "calm"
    (tmp_path / "well").mkdir()
    oracle.run(oracle.perilous(tmp_path / "well", "none"), calm, *options, check=True, env=env)
    assert oracle.digest(out, ("none", "persistence")) == oracle.digest(calm)
