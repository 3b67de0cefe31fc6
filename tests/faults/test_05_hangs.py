"""Trial 5: plugins that hang are killed when their time is up, and their places are used again."""

import oracle
import pytest

pytestmark = pytest.mark.trial(5)

HANGS = {"is_busy": "in is_busy", "sleeps": "in sleeps", "sleeps_in_c": "in sleeps_in_c"}
TIMEOUT = 12.0
"""Seconds; a case that is well has to come through in less, on a busy machine too."""


def test_hangs_cost_their_cases_alone(tmp_path):
    out, options = tmp_path / "out", ("--plugin", oracle.PERILOUS, "--no-report")
    env = oracle.environment(out, "rollout", MARK=str(tmp_path / "mark"))
    file = oracle.perilous(tmp_path, *HANGS, "none")
    ended = oracle.run(file, out, *options, "--timeout", TIMEOUT, env=env)
    assert ended.returncode == 1, ended.stderr
    failures = oracle.failures_of(out)
    assert {model: failure["kind"] for model, failure in failures.items()} == dict.fromkeys(HANGS, "timeout")
    for model, place in HANGS.items():
        assert place in failures[model]["traceback"]
        assert TIMEOUT <= failures[model]["seconds"] < TIMEOUT + 2
    oracle.sound(out)
    assert oracle.left_behind(out, 5) == []
    calm = tmp_path / "calm"
    (tmp_path / "well").mkdir()
    oracle.run(oracle.perilous(tmp_path / "well", "none"), calm, *options, check=True, env=env)
    assert oracle.digest(out, ("none", "persistence")) == oracle.digest(calm)
