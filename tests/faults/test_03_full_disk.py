"""Trial 3: a disk that is full before the suite is done: what is kept is whole, and more room is enough."""

import os
import subprocess

import oracle
import pytest

pytestmark = pytest.mark.trial(3)

SMALL, LARGE = "size=256k", "size=16m"
"""Room for half of what the suite keeps, and for more than all of it."""


def mounted(folder, options):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or not mounted(folder, SMALL):
        pytest.skip("no file system can be mounted here; a limit of file sizes stands in for it")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_file_system_costs_cases_until_there_is_room(tmp_path, disk):
    calm, out = tmp_path / "calm", disk / "out"
    oracle.run(oracle.SUITE, calm, "--no-report", check=True)
    ended = oracle.run(oracle.SUITE, out, "--no-report")
    assert ended.returncode == 1, ended.stderr
    assert str(out) in ended.stdout
    assert "the disk is full, free some space there" in ended.stdout
    assert "MiB are needed" in ended.stdout
    oracle.sound(out)
    states = [state for _, state in oracle.states_of(out)]
    assert states.count("done") > 0
    assert states.count("done") < len(states)
    assert not [part for part in out.rglob("*.part") if "writable" not in part.name]
    assert mounted(disk, f"remount,{LARGE}")
    oracle.run(oracle.SUITE, out, "--no-report", check=True)
    assert oracle.digest(out) == oracle.digest(calm)
    oracle.sound(out)
