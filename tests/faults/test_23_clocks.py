"""Trial 23: the clock jumps while a suite runs, and nothing of what is kept depends on it."""

import os
import shutil
import subprocess
import sys
import time

import oracle
import pytest

from worldsim.events import read_events

pytestmark = pytest.mark.trial(23)

CLOCK = """
/* The clocks that tell the date jump by CLOCK_JUMP seconds once the steady clock has come to CLOCK_AT. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    struct timespec steady;
    int failed;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    failed = real(id, t);
    if (failed || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
    real(CLOCK_MONOTONIC, &steady);
    if (steady.tv_sec >= atol(getenv("CLOCK_AT"))) t->tv_sec += atol(getenv("CLOCK_JUMP"));
    return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""
YEAR = 365 * 24 * 3600
JUMPS = {"back an hour": -3600, "to 1970": None, "ten years ahead": 10 * YEAR}


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """A library that is loaded before the C library, and whose clocks can jump."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler to make a clock that jumps")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "clock.so"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    calm = tmp_path_factory.mktemp("calm")
    oracle.run(oracle.SUITE, calm, check=True)
    return oracle.digest(calm)


def jumping(out, clock, jump, at):
    return oracle.environment(out, LD_PRELOAD=str(clock), CLOCK_JUMP=str(jump), CLOCK_AT=str(at))


def test_the_clock_jumps_indeed(tmp_path, clock):
    ask = "import time, datetime; print(datetime.datetime.now().year - 10, time.time())"
    said = subprocess.run(
        [sys.executable, "-c", ask],
        env=jumping(tmp_path, clock, 10 * YEAR, 0), capture_output=True, text=True, check=True,
    )  # fmt: skip
    year, seconds = said.stdout.split()
    assert abs(int(year) - time.localtime().tm_year) <= 1
    assert float(seconds) > time.time() + 9 * YEAR


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_changes_nothing(tmp_path, clock, expected, name):
    """It comes after the start: while cases run; and the batch, stopped, goes on with that clock."""
    out, jump = tmp_path / "out", JUMPS[name]
    jump = 86400 - int(time.time()) if jump is None else jump
    process = oracle.start(oracle.SUITE, out, env=jumping(out, clock, jump, time.monotonic() + 2**30))
    oracle.come_to(process, lambda: len(list(out.glob("runs/*/*.zip"))) >= 2)
    oracle.kill(process)
    for key in ("0" * 32, "1" * 32):  # what a run that is gone, and one that lives, said of a case
        (out / "leases").mkdir(exist_ok=True)
        (out / "leases" / key).write_text(f"{os.uname().nodename} {os.getpid()}", encoding="utf-8")
        os.utime(out / "leases" / key, (time.time() + jump, time.time() + jump))
    begun = time.monotonic()
    at = round(begun) + 5
    ended = oracle.run(oracle.SUITE, out, check=True, env=jumping(out, clock, jump, at))
    took = time.monotonic() - begun
    assert "Traceback" not in ended.stderr
    assert oracle.digest(out) == expected
    oracle.sound(out)
    finished = [event for event in read_events(out) if event["event"] == "case_finished"]
    assert all(0 <= event["seconds"] <= took + 60 for event in finished)
    again = oracle.run(oracle.SUITE, out, check=True, env=jumping(out, clock, jump, 0))
    assert "nothing to compute" in again.stdout
    assert oracle.digest(out) == expected
