"""Trial 1: the whole process group is killed at random points, and each time the batch goes on."""

import random
import time

import oracle
import pytest

pytestmark = pytest.mark.trial(1)

KILLS_OF_A_BATCH = 5


def test_nothing_is_lost_by_kills(tmp_path, seed, kills):
    """Each point is drawn between the first thing that an undisturbed run writes and its end; a run that ends
    before its point has finished its batch, and another is begun."""
    calm, begun = tmp_path / "calm", time.monotonic()
    process = oracle.start(oracle.SUITE, calm)
    oracle.come_to(process, (calm / "plan").is_dir)
    first = time.monotonic() - begun
    assert oracle.finish(process, calm)[0] == 0
    whole, expected = time.monotonic() - begun, oracle.digest(calm)

    points, killed, batches = random.Random(seed), 0, 0
    while killed < kills:
        out, batches = tmp_path / str(batches), batches + 1
        for _ in range(min(KILLS_OF_A_BATCH, kills - killed)):
            process = oracle.start(oracle.SUITE, out)
            point = points.uniform(first, whole)
            if oracle.wait_for(lambda process=process: process.poll() is not None, point):
                break
            oracle.kill(process)
            killed += 1
            assert oracle.left_behind(out, 5) == []
            if (out / "plan").is_dir():
                oracle.sound(out)
        else:
            process = oracle.start(oracle.SUITE, out)
        code, output, errors = oracle.finish(process, out)
        assert code == 0, errors or output
        assert oracle.digest(out) == expected
        oracle.sound(out)
        assert list(out.rglob("*.part")) == []
        assert oracle.left_behind(out, 5) == []
    assert killed == kills
