"""Whatever call to the disk fails: a clear error or success, nothing unreadable, and a resume to the same."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from kept_folder import folder, key_of, rollouts

import worldsim
from worldsim.cli import exit_code
from worldsim.errors import ResultError
from worldsim.files import HOST, write_bytes
from worldsim.store import FOLDERS, Store
from worldsim.verifying import verify

SCENARIO = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"
CALLS = ("open", "read", "write", "fsync", "replace", "mkdir", "unlink")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR)


class Disk:
    """Counts the calls that touch ``root``, and fails the ``nth`` of them once."""

    def __init__(self, monkeypatch, root, nth, error):
        self.root, self.nth, self.error = str(root), nth, error
        self.count, self.files = 0, set()
        for name in (*CALLS, "close"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, real):
        def call(first, *rest, **options):
            ours = first in self.files if isinstance(first, int) else str(first).startswith(self.root)
            if ours and name == "close":
                self.files.discard(first)
            elif ours:
                self.count += 1
                if self.count == self.nth:
                    raise OSError(self.error, os.strerror(self.error), str(first))
            result = real(first, *rest, **options)
            if ours and name == "open":
                self.files.add(result)
            return result

        return call


def work(root):
    """One of each kind of file, written and read."""
    store, key, metric = Store(root), key_of("run"), key_of("metric")
    store.clear_parts()
    store.refuse_unwritable()
    if store.open_fit(key) is None:
        store.keep_fit(key, {"w": torch.arange(3.0)}, {"finished": "yes"})
    store.keep_failure(key, {"message": "an earlier run broke"})
    if not store.has_run(key):
        tree = worldsim_tree(key)
        store.keep_run(key, tree, {"key": key})
    store.open_run(key)
    if store.open_scores(key, metric) is None:
        store.keep_scores(key, metric, {"test": {}})
    store.open_failure(key)


def worldsim_tree(key):
    import xarray as xr

    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": key}), "/test": rollouts(1)})


def files(root):
    """What is kept: a fit is compared by its tensors, for its words have no order."""
    found = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return {p: b if p.parts[0] != "fits" else sorted(b) for p, b in found.items() if p.parts[0] != "failures"}


@pytest.mark.trial(2)
def test_any_one_call_may_fail(tmp_path, monkeypatch):
    calm = tmp_path / "calm"
    calm.mkdir()
    work(calm)
    expected, nth, tried = files(calm), 0, 0
    assert expected
    undisturbed = False
    while not undisturbed:
        nth += 1
        for error in ERRORS:
            root = tmp_path / f"{nth}-{error}"
            root.mkdir()
            raised = None
            with monkeypatch.context() as patched:
                disk = Disk(patched, root, nth, error)
                try:
                    work(root)
                except (OSError, ResultError) as caught:
                    raised = caught
            undisturbed = disk.count < nth
            tried += not undisturbed
            assert raised is None or str(root) in str(raised)
            assert raised is None or error != errno.EINTR, f"call {nth} gave up when it was interrupted"
            if any((root / name).exists() for name in FOLDERS):
                assert verify(root).damaged == ()
            assert [p for p in root.rglob("*.part") if ".writable." not in p.name] == []
            work(root)
            assert list(root.rglob("*.part")) == []
            assert files(root) == expected
            shutil.rmtree(root)
    assert tried > 3 * 40


TINY = """
about: Does a disk that fails cost more than time?
system: {name: pendulum}
data:
  step: 0.1
  block: 2
  splits: {train: {trajectories: 2, horizon: 0.2}, test: {trajectories: 2, horizon: 0.2}}
models: {small: {name: neural_ode, width: 2, depth: 1}}
fit: {steps: 1}
metrics: [rollout]
baselines: [persistence]
seeds: [0]
"""


def suite(root, scenario):
    receipts = []
    results = worldsim.run(scenario, out=root, on_receipt=receipts.append)
    return results, receipts


def decoded(results):
    trees = [results.store.open_run(entry.key) for entry in results.entries]
    scores = [results.store.open_scores(e.key, key) for e in results.entries for key in e.metrics.values()]
    return trees, scores


def trial(tmp_path, monkeypatch, scenario, expected, nth):
    """Whether a suite made fewer calls than ``nth``, having survived that the nth failed."""
    root, error = tmp_path / str(nth), ERRORS[nth % len(ERRORS)]
    with monkeypatch.context() as patched:
        disk = Disk(patched, root, nth, error)
        with suppress(OSError, ResultError):
            results, receipts = suite(root, scenario)
            for receipt in receipts:
                assert receipt.status != "failed" or "Error" in receipt.message
    if disk.count >= nth:
        if any((root / "plan").glob("*.jsonl")):
            assert verify(root).damaged == ()
        assert not list(root.rglob("*.part"))
    results, receipts = suite(root, scenario)
    assert [receipt.status for receipt in receipts if receipt.status == "failed"] == []
    trees, scores = decoded(results)
    assert all(one.identical(other) for one, other in zip(trees, expected[0], strict=True))
    assert scores == expected[1]
    shutil.rmtree(root)
    return disk.count < nth


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "scenario" / "faulty.yaml"
    file.parent.mkdir()
    file.write_text(TINY, encoding="utf-8")
    return worldsim.load(file)


@pytest.mark.trial(2)
def test_a_suite_survives_any_failing_call(tmp_path, monkeypatch, tiny):
    expected = decoded(suite(tmp_path / "calm", tiny)[0])
    nth = 1
    while not trial(tmp_path, monkeypatch, tiny, expected, nth):
        nth += 1
    assert nth > 60


@pytest.mark.trial(3)
@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_a_disk_that_fills_up_costs_cases_and_no_more(tmp_path):
    """Files may not grow beyond 8 KiB: the plan fits, the rollouts do not."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "from worldsim.cli import exit_code; sys.exit(exit_code(sys.argv[1:]))"
    )
    arguments = ["run", str(SCENARIO), "--out", str(tmp_path / "full"), "--workers", "0", "--no-report"]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large: files there may not become this large (ulimit -f); 0." in done.stdout
    assert "MiB are needed" in done.stdout
    assert str(tmp_path / "full" / "runs") in done.stdout
    assert not list((tmp_path / "full").rglob("*.zarr.zip*"))
    assert verify(tmp_path / "full").damaged == ()
    assert exit_code(arguments) == 0
    calm = worldsim.run(SCENARIO, out=tmp_path / "calm")
    resumed = worldsim.open_results(tmp_path / "full")
    for entry in calm.entries:
        assert calm.store.open_run(entry.key).identical(resumed.store.open_run(entry.key))


REFUSED = {
    errno.EROFS: "nothing can be written there, choose another folder with --out",
    errno.EACCES: "change its permissions or choose another folder with --out",
    errno.ENOSPC: "the disk is full, free some space there; 0.00 MiB are needed",
    errno.EDQUOT: "the quota there is used up",
}


@pytest.mark.trial(21)
@pytest.mark.parametrize("error", REFUSED, ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    error, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    real = os.open

    def refusing(path, flags, *rest, **options):
        if str(path).startswith(str(out)) and flags & os.O_CREAT:
            raise OSError(error, os.strerror(error), str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr("worldsim.executors.compute", lambda task: pytest.fail("it computed"))
    assert exit_code(["run", str(SCENARIO), "--out", str(out), "--workers", "0"]) == 3
    told = capsys.readouterr().err
    assert str(out) in told
    assert REFUSED[error] in told
    assert list(out.iterdir()) == []


@pytest.mark.trial(21)
def test_a_path_that_is_too_long_is_refused_before_anything_is_computed(tmp_path, capsys):
    out = tmp_path / ("x" * 300)
    assert exit_code(["run", str(SCENARIO), "--out", str(out), "--workers", "0"]) == 3
    assert "choose a folder with a shorter path" in capsys.readouterr().err


def test_halves_of_a_writer_that_is_gone_are_deleted_and_those_of_a_living_one_are_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / "runs" / "ab" / f"a.zarr.zip.{HOST}.{gone.pid}.part"
    mine = tmp_path / "scores" / "ab" / f"a.json.{HOST}.{os.getpid()}.part"
    elsewhere = tmp_path / "fits" / f"a.safetensors.{'0' * 8}.{gone.pid}.part"
    for part in (left, mine, elsewhere):
        write_bytes(part, b"half")
    Store(tmp_path).clear_parts()
    assert [part.exists() for part in (left, mine, elsewhere)] == [False, True, True]
    os.utime(elsewhere, (0, 0))
    Store(tmp_path).clear_parts()
    assert not elsewhere.exists()


def test_a_folder_is_flushed_after_a_rename(tmp_path, monkeypatch):
    """What the system has been asked to put on disk, in order: the file, its new name in the folder."""
    asked, opened = [], {}
    real_open, real_replace = os.open, os.replace

    def noting(path, *rest, **options):
        file = real_open(path, *rest, **options)
        opened[file] = Path(path)
        return file

    monkeypatch.setattr(os, "open", noting)
    monkeypatch.setattr(os, "fsync", lambda file: asked.append(opened[file]))
    monkeypatch.setattr(os, "replace", lambda a, b: (asked.append("renamed"), real_replace(a, b)))
    write_bytes(tmp_path / "new" / "file", b"text")
    part = tmp_path / "new" / f"file.{HOST}.{os.getpid()}.part"
    assert asked == [tmp_path, part, "renamed", tmp_path / "new"]


@pytest.mark.trial(3)
def test_a_failure_that_cannot_be_written_is_told_by_the_receipt(tmp_path, monkeypatch):
    results = folder(tmp_path / "kept", seeds=1)
    (results.root / "failures").write_text("a file in the place of a folder")
    results.store.keep_failure(key_of("x"), {"message": "no"})
    assert results.store.open_failure(key_of("x")) is None
