"""Trial 22: a real run that is asked to stop does, says how to go on, and goes on to the same results."""

import shlex
import signal
import time

import oracle
import pytest

from worldsim.events import read_events

pytestmark = pytest.mark.trial(22)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def begun(out, count):
    return sum(event["event"] == "case_started" for event in read_events(out)) >= count


def test_a_run_is_stopped_again_and_again(tmp_path):
    calm, out = tmp_path / "calm", tmp_path / "out"
    oracle.run(oracle.SUITE, calm, check=True)
    count = 0
    for number in SIGNALS:
        process = oracle.start(oracle.SUITE, out)
        oracle.come_to(process, lambda count=count: begun(out, count + 1))
        process.send_signal(number)
        asked = time.monotonic()
        code, _, errors = oracle.finish(process, out)
        assert code == 130, errors
        assert time.monotonic() - asked < 10
        assert f"{number.name}: stopping" in errors
        line = next(line for line in errors.splitlines() if line.startswith("to go on: "))
        assert shlex.split(line.removeprefix("to go on: python ")) == oracle.command(oracle.SUITE, out)[1:]
        assert "Traceback" not in errors
        assert [event["event"] for event in read_events(out)][-1] == "run_stopped"
        oracle.sound(out)
        assert oracle.left_behind(out, 5) == []
        count = sum(event["event"] == "case_started" for event in read_events(out))
    oracle.run(oracle.SUITE, out, check=True)
    assert oracle.digest(out) == oracle.digest(calm)
    oracle.sound(out)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_twice_a_run_leaves_at_once(tmp_path, number):
    out = tmp_path / "out"
    env = oracle.environment(out, "rollout", MARK=str(tmp_path / "mark"))
    options = ("--plugin", oracle.PERILOUS, "--no-report")
    file = oracle.perilous(tmp_path, "sleeps", "none")
    process = oracle.start(file, out, *options, env=env)
    oracle.come_to(process, (tmp_path / "mark").exists)
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)
    asked = time.monotonic()
    code, _, errors = oracle.finish(process, out)
    assert code == 130, errors
    assert time.monotonic() - asked < 2, "the case under way had its five seconds"
    assert "to go on" not in errors
    oracle.sound(out)
    assert oracle.left_behind(out, 5) == []
    oracle.run(file, out, *options, check=True, env=env)
