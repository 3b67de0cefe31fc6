"""Trial 1: the whole process group is killed at random points, and each time the batch goes on."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest

pytestmark = pytest.mark.trial(1)

BATCHES = 2
"""How many go on at once: a run that starts has work for one processor."""
KILLS = 5
"""Of one batch, at most."""


def undisturbed(out):
    """(seconds until it first wrote something, seconds until it had ended) of a run that nobody kills."""
    begun = time.monotonic()
    process = oracle.start(oracle.SUITE, out)
    oracle.come_to(process, (out / "plan").is_dir)
    first = time.monotonic() - begun
    assert oracle.finish(process, out)[0] == 0
    return first, time.monotonic() - begun


def batch(out, points, kills, span):
    """Kill and begin again, up to ``kills`` times, at points of ``span``; then run to the end. How often it
    was killed: a run that ends before its point has finished the batch."""
    killed = 0
    process = oracle.start(oracle.SUITE, out)
    while killed < kills:
        if oracle.wait_for(lambda process=process: process.poll() is not None, points.uniform(*span)):
            break
        oracle.kill(process)
        killed += 1
        assert oracle.left_behind(out, 5) == []
        if (out / "plan").is_dir():
            oracle.sound(out)
        process = oracle.start(oracle.SUITE, out)
    code, output, errors = oracle.finish(process, out)
    assert code == 0, errors or output
    oracle.sound(out)
    assert list(out.rglob("*.part")) == []
    assert oracle.left_behind(out, 5) == []
    return killed


def batches(root, points, kills, span, expected):
    """Batches one after the other until there were ``kills``; how many."""
    killed = count = 0
    while killed < kills:
        out, count = root / str(count), count + 1
        killed += batch(out, points, min(KILLS, kills - killed), span)
        assert oracle.digest(out) == expected
    return killed


def test_nothing_is_lost_by_kills(tmp_path, seed, kills):
    """Points are drawn between the first thing that an undisturbed run writes and its end."""
    span = undisturbed(tmp_path / "calm")
    expected = oracle.digest(tmp_path / "calm")
    shares = [kills // BATCHES + (number < kills % BATCHES) for number in range(BATCHES)]
    with ThreadPoolExecutor(BATCHES) as pool:
        found = [
            pool.submit(
                batches, tmp_path / str(number), random.Random(f"{seed} {number}"), share, span, expected
            )
            for number, share in enumerate(shares)
        ]
        assert sum(each.result() for each in found) == kills
