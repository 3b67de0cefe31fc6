"""Cases in supervised children: how they fail, what is kept of it, and what is said while they run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import worldsim
from worldsim import failures
from worldsim.batch import task_of
from worldsim.cli import exit_code
from worldsim.errors import NotFinite, WorldsimError
from worldsim.events import EventLog, read_events
from worldsim.executors import InProcess, Local, Task, compute
from worldsim.plugins import registry
from worldsim.reading import from_document
from worldsim.store import Store, provenance_of

HERE = Path(__file__).parent
PLUGIN = HERE / "perilous_world.py"
DOCUMENT = {
    "about": "What becomes of cases that go wrong?",
    "system": "decay",
    "data": {
        "step": 0.5,
        "splits": {
            "train": {"trajectories": 4, "horizon": 2.0},
            "test": {"trajectories": 4, "horizon": 3.0},
        },
    },
    "models": {},
    "metrics": ["rollout"],
    "baselines": ["persistence"],
    "seeds": [0],
}


@pytest.fixture(autouse=True)
def few_plugins(monkeypatch):
    """What these tests need and no more, so that children start soon."""
    monkeypatch.setenv("WORLDSIM_PLUGINS", "rollout")


def perilous(*perils, **changes):
    models = {peril: {"name": "perilous", "peril": peril} for peril in perils}
    return from_document({**DOCUMENT, "models": models, **changes}, "perilous", registry((PLUGIN,)))


def kept(results, model):
    return json.loads(results.store.failure_path(results.find("perilous", model).key).read_text())


PERILS = {
    "leaves": ("crash", 0, "left with exit code 0", "leaving by os._exit\n"),
    "exits": ("crash", 0, "SystemExit: 0", "leaving by sys.exit\n"),
    "raises": ("exception", None, "RuntimeError: boom", "raising\n"),
    "wants_memory": ("oom", None, "MemoryError", ""),
    "wants_a_tensor": ("oom", None, "can't allocate memory", ""),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All perils at once in two children, beside cases that are well: (results, receipts, progress, out)."""
    before = os.environ.get("WORLDSIM_PLUGINS")
    os.environ["WORLDSIM_PLUGINS"] = "rollout"
    receipts, seen = [], []
    try:
        results = worldsim.run(
            perilous(*PERILS, "none"),
            out=tmp_path_factory.mktemp("perilous"),
            plugins=[PLUGIN],
            workers=2,
            timeout=300,
            memory=8 * 10**9,
            on_receipt=receipts.append,
            on_progress=seen.append,
        )
    finally:
        os.environ.pop("WORLDSIM_PLUGINS") if before is None else os.environ.update(WORLDSIM_PLUGINS=before)
    return results, receipts, seen


@pytest.mark.trial(6, 24)
@pytest.mark.parametrize("peril", PERILS)
def test_a_failure_is_typed_and_keeps_what_was_written(run, peril):
    kind, code, words, log = PERILS[peril]
    document = kept(run[0], peril)
    assert (document["kind"], document["exit_code"], document["attempts"]) == (kind, code, 1)
    assert words in document["message"]
    assert document["log"] == log
    assert document["host"]
    assert ("perilous_world.py" in document["traceback"]) == (peril != "leaves")
    receipt = next(receipt for receipt in run[1] if receipt.label == f"perilous/{peril}/0")
    assert (receipt.status, receipt.kind) == ("failed", kind)


@pytest.mark.trial(6, 24)
def test_the_other_cases_are_done(run):
    results, receipts, _ = run
    done = {entry.model for entry in results.entries if results.status(entry) == "done"}
    assert done == {"none", "persistence"}
    assert len(receipts) == len(results.entries)
    assert all(receipt.cpu_seconds > 0 for receipt in receipts if receipt.status == "done")


def test_every_event_is_in_the_log(run):
    results, receipts, seen = run
    events = list(read_events(results.root))
    assert [e["event"] for e in (events[0], events[-1])] == ["run_started", "run_finished"]
    assert (events[0]["cases"], events[-1]["failed"], events[-1]["done"]) == (7, 5, 2)
    finished = [e for e in events if e["event"] == "case_finished"]
    assert [(e["label"], e["status"]) for e in finished] == [(r.label, r.status) for r in receipts]
    started = [e["label"] for e in events if e["event"] == "case_started"]
    assert started == [p.label for p in seen]
    assert sorted(started) == sorted(entry.label for entry in results.entries)


def test_another_attempt_is_counted_and_a_success_takes_the_failure_away(tmp_path):
    scenario, store = perilous("raises", "none"), Store(tmp_path)
    task = task_of(scenario.cases()[0], tmp_path, (PLUGIN,))
    for attempt in (1, 2):
        assert compute(task).status == "failed"
        assert failures.attempts(store, task.key) == attempt
    store.failure_path(task.key).write_text('{"attempts": 3, "mess', encoding="utf-8")
    assert compute(task).status == "failed"
    assert failures.attempts(store, task.key) == 1
    good = task_of(scenario.cases()[1], tmp_path, (PLUGIN,))
    failures.keep(store, good.key, good.label, "timeout", "it was slow")
    assert compute(good).status == "done"
    assert not store.failure_path(good.key).exists()


# What is not finite ---------------------------------------------------------------------------------------


@pytest.mark.trial(7)
def test_forecasts_that_are_not_finite_are_kept_and_flagged(tmp_path, capsys):
    """Two of four trajectories, the first from frame 3 on: in the receipt, the file, status and the report,
    and in no score."""
    file = tmp_path / "perilous.yaml"
    models = {"blows_up": {"name": "perilous", "peril": "blows_up"}}
    file.write_text(json.dumps({**DOCUMENT, "models": models}), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--workers", "0", "--plugin", str(PLUGIN)]
    assert exit_code(["run", str(file), "--out", str(out), *arguments]) == 0
    words = "forecasts are not finite (test: 2 of 4 trajectories, first at frame 3)"
    assert capsys.readouterr().out.count(f"warning: perilous/blows_up/0: nonfinite: {words}") == 2
    results = worldsim.open_results(out)
    entry = results.find("perilous", "blows_up")
    assert results.status(entry) == "done"
    where = {"test": {"trajectories": 2, "of": 4, "first_frame": 3}}
    assert provenance_of(results.store.run_path(entry.key))["not_finite"] == where
    assert (kept(results, "blows_up")["kind"], kept(results, "blows_up")["where"]) == ("nonfinite", where)
    scores = {row.name: row.score for row in results.rows() if row.model == "blows_up"}
    assert scores["nrmse"].value != scores["nrmse"].value
    assert "2 of 4" in scores["nrmse"].reason
    assert exit_code(["status", str(out)]) == 0
    assert words in capsys.readouterr().out
    assert words in (out / "report.html").read_text(encoding="utf-8")
    assert exit_code(["clean", str(out), "--failures"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert exit_code(["plan", str(file), "--out", str(out), "--plugin", str(PLUGIN)]) == 0
    assert "2 kept" in capsys.readouterr().out


@pytest.mark.trial(7)
def test_a_flag_comes_back_with_the_scores(tmp_path):
    """The result says what is not finite in it, so that a failed scoring in between loses nothing."""
    task = task_of(perilous("blows_up").cases()[0], tmp_path, (PLUGIN,))
    assert compute(task).kind == "nonfinite"
    store = Store(tmp_path)
    store.failure_path(task.key).unlink()
    for path in (tmp_path / "scores").rglob("*.json"):
        path.unlink()
    assert compute(task).kind == "nonfinite"
    assert "2 of 4 trajectories" in failures.flag(store, task.key)


@pytest.mark.trial(7)
def test_a_truth_that_is_not_finite_fails_the_case(tmp_path):
    splits = {
        **DOCUMENT["data"]["splits"],
        "odd": {"trajectories": 4, "horizon": 3.0, "system": {"spoilt": True}},
    }
    scenario = perilous("none", data={"step": 0.5, "splits": splits})
    results = worldsim.run(scenario, out=tmp_path, plugins=[PLUGIN])
    document = kept(results, "none")
    assert document["kind"] == "nonfinite"
    assert document["where"] == {"odd": {"trajectories": 1, "of": 4, "first_frame": 2}}
    assert (
        "of the truth are not finite in 1 of 4 trajectories of odd, first at frame 2" in document["message"]
    )


@pytest.mark.trial(7)
def test_what_follows_a_ragged_end_may_be_anything():
    states = np.zeros((2, 1, 4, 1))
    states[0, 0, 3] = np.nan
    whole = xr.Dataset({"state": (("trajectory", "draw", "time", "component"), states)})
    ends = whole.assign(length=(("trajectory",), np.array([3, 4])))
    tokens = whole.fillna(0).astype(np.int64)
    found = failures.not_finite({"whole": whole, "ends": ends, "tokens": tokens})
    assert found == {"whole": {"trajectories": 1, "of": 2, "first_frame": 3}}


@pytest.mark.trial(24)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (NotFinite("nan"), "nonfinite"),
        (SystemExit(1), "crash"),
        (RuntimeError("can't allocate"), "exception"),
    ],
)
def test_an_error_has_a_kind_and_what_was_raised_from_it_too(error, kind):
    assert failures.kind_of(error) == kind
    wrapped = WorldsimError("a metric raised")
    wrapped.__cause__ = error
    assert failures.kind_of(wrapped) == ("exception" if kind == "crash" else kind)


# The event log --------------------------------------------------------------------------------------------


def test_events_survive_torn_lines_and_share_the_file(tmp_path):
    with EventLog(tmp_path) as one, EventLog(tmp_path) as other:
        one.write("a", number=1)
        other.write("b", text="ä\n")
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "torn", "at')
    with EventLog(tmp_path) as again:
        again.write("c")
        again.write("d")
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "b", "c", "d"]
    assert list(read_events(tmp_path / "nowhere")) == []


def test_a_full_disk_costs_events_and_not_the_run(tmp_path, monkeypatch):
    real = os.write
    with EventLog(tmp_path) as log:
        monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:9]))
        log.write("short")

        def full(file, line):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        log.write("lost")
        monkeypatch.setattr(os, "write", real)
        log.write("good")
    assert [event["event"] for event in read_events(tmp_path)] == ["good"]


# Executors of others --------------------------------------------------------------------------------------


class Backwards:
    """An executor of somebody else: the least that the protocol asks for."""

    def run(self, tasks, watch):
        for task in reversed(tasks):
            yield compute(task)

    def cancel(self):
        """Nothing to do."""

    def close(self):
        """Nothing to give back."""


def test_any_executor_will_do(tmp_path):
    receipts = []
    scenario = perilous("none", "raises")
    results = worldsim.run(
        scenario, out=tmp_path, plugins=[PLUGIN], executor=Backwards(), on_receipt=receipts.append
    )
    assert [receipt.label.split("/")[1] for receipt in receipts] == ["persistence", "raises", "none"]
    assert [results.status(entry) for entry in results.entries] == ["done", "failed", "done"]


def test_a_cancelled_executor_begins_nothing(tmp_path):
    local = Local(2)
    local.cancel()
    task = Task({}, "s", "m", 0, "cpu", "float32", str(tmp_path), ())
    assert list(local.run([task])) == []
    with pytest.raises(KeyboardInterrupt):
        InProcess().cancel()


# Signals --------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import click, perilous
from worldsim.children import Crew
from worldsim.cli.following import followed

class Executor:
    crew = Crew(2, perilous.prepared)
    def cancel(self):
        self.crew.stop({grace})
    def close(self):
        print("closed")

@click.command()
def main():
    executor = Executor()
    with followed(executor, 3) as follower:
        for outcome in executor.crew.map({items!r}, lambda *seen: None):
            print(outcome, flush=True)

if __name__ == "__main__":
    try:
        main.main([], standalone_mode=False, obj=("run", "a b.yaml"))
    except click.Abort:
        sys.exit(130)
"""


def signalled(tmp_path, grace, *signals):
    """(exit code, standard output, standard error, seconds, children) of a run with a case that sleeps."""
    mark, script = tmp_path / "mark", tmp_path / "script.py"
    items = [("double", 1), ("sleeps", str(mark)), ("sleeps", str(mark))]
    text = textwrap.dedent(SCRIPT).format(here=str(HERE), grace=grace, items=items)
    script.write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waited(mark.exists, 60)
    begun = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    spent = time.monotonic() - begun
    child = int(mark.read_text())
    assert waited(lambda: not Path(f"/proc/{child}").exists(), 5)
    return process.returncode, out, err, spent


@pytest.mark.trial(22)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_one_signal_stops_in_order_and_says_how_to_go_on(tmp_path, number):
    code, out, err, spent = signalled(tmp_path, 0.5, number)
    assert code == 130
    assert spent < 10
    assert f"{number.name}: stopping" in err
    assert "1 of 3 cases ended" in err or "0 of 3 cases ended" in err
    assert "to go on: worldsim run 'a b.yaml'\n" in err
    assert "Traceback" not in err
    assert out.endswith("closed\n")


@pytest.mark.trial(22)
def test_two_signals_leave_at_once(tmp_path):
    code, out, err, spent = signalled(tmp_path, 500, signal.SIGTERM, signal.SIGINT)
    assert code == 130
    assert spent < 60
    assert "to go on" not in err
    assert "closed" not in out


@pytest.mark.trial(22)
def test_a_real_run_is_stopped_and_resumed_by_the_line_it_prints(tmp_path, monkeypatch):
    file, out, mark = tmp_path / "perilous.yaml", tmp_path / "out", tmp_path / "mark"
    models = {peril: {"name": "perilous", "peril": peril} for peril in ("none", "sleeps")}
    file.write_text(json.dumps({**DOCUMENT, "models": models}), encoding="utf-8")
    monkeypatch.setenv("MARK", str(mark))
    arguments = [
        "run",
        str(file),
        "--out",
        str(out),
        "--workers",
        "1",
        "--plugin",
        str(PLUGIN),
        "--no-report",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "worldsim", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waited(mark.exists, 170)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    line = next(line for line in err.splitlines() if line.startswith("to go on: "))
    words = shlex.split(line.removeprefix("to go on: "))
    assert words == ["python", "-m", "worldsim", *arguments]
    assert [event["event"] for event in read_events(out)][-1] == "run_stopped"
    assert not (out / "failures").exists()
    again = [*words[3:], "--workers", "0"]
    assert exit_code(again) == 0
    results = worldsim.open_results(out)
    assert [results.status(entry) for entry in results.entries] == ["done"] * 3


def waited(holds, seconds):
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held
