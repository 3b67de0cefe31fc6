"""Trial 12: there is no index to be lost. What is kept is found by its files, whatever lies beside them."""

import os
import shutil
import sqlite3

import oracle
import pytest

from worldsim.index import look

pytestmark = pytest.mark.trial(12)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "out"
    oracle.run(oracle.SUITE, out, "--no-report", check=True)
    return out


def write_nonsense(out):
    (out / "index.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4096))


def lock_a_database(out):
    """A database in WAL mode, which network file systems cannot keep, held open and locked."""
    database = sqlite3.connect(out / "index.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE runs (key TEXT)")
    database.execute("BEGIN EXCLUSIVE")
    return database


def put_a_folder(out):
    (out / "index.sqlite").mkdir()


def lose_the_leases(out):
    shutil.rmtree(out / "leases", ignore_errors=True)


def claim_every_case(out):
    """Leases of a living process, made now and far from now: advice, which nothing waits for."""
    (out / "leases").mkdir(exist_ok=True)
    for number, key in enumerate(sorted(look(out).runs)):
        path = out / "leases" / key
        path.write_text(f"{os.uname().nodename} {os.getpid()}", encoding="utf-8")
        if number % 2:
            os.utime(path, (2**33, 2**33))


def lose_the_events(out):
    (out / "events.jsonl").write_bytes(b"\0\xff{half")


DISTURBANCES = [
    write_nonsense, lock_a_database, put_a_folder, lose_the_leases, claim_every_case, lose_the_events,
]  # fmt: skip


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda disturb: disturb.__name__)
def test_nothing_beside_the_files_counts(kept, tmp_path, disturb):
    out = tmp_path / "out"
    shutil.copytree(kept, out)
    held = disturb(out)
    assert oracle.digest(out) == oracle.digest(kept)
    oracle.sound(out)
    if held is not None:
        held.close()


def test_a_run_goes_on_by_the_files_alone(kept, tmp_path):
    """With all of that at once, a case whose result has gone is computed again, and no other."""
    out = tmp_path / "out"
    shutil.copytree(kept, out)
    held = lock_a_database(out)
    claim_every_case(out)
    lose_the_events(out)
    gone = sorted(out.glob("runs/*/*.zarr.zip"))[0]
    others = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.zarr.zip") if path != gone}
    gone.unlink()
    oracle.run(oracle.SUITE, out, "--no-report", check=True)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert oracle.digest(out) == oracle.digest(kept)
    oracle.sound(out)
    held.close()
