"""Trial 25: a cluster as a user would start it, and the loss of each of its parts while a batch runs on it.

A worker or a nanny that is lost costs nothing but time. Without the scheduler a run ends and says how to go
on, and without the client that asked for it nothing goes on. Nobody is left behind.
"""

import os
import signal
import subprocess
import sys
import time

import oracle
import psutil
import pytest

import worldsim
from worldsim.events import read_events

pytest.importorskip("distributed")
pytestmark = pytest.mark.trial(25)

LEFT_SECONDS = 30
"""When everybody has to be gone."""


class Cluster:
    """A scheduler and two workers, each a process of its own with its nanny; ``folder`` marks them."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.file = folder / "scheduler.json"
        self.scheduler = self.begin("dask_scheduler", "--port", "0", "--scheduler-file", self.file)
        assert oracle.wait_for(self.file.exists), self.said()
        options = ("--scheduler-file", self.file, "--nthreads", "1", "--local-directory", folder)
        self.nannies = [self.begin("dask_worker", *options) for _ in range(2)]

    def begin(self, program, *options):
        words = [sys.executable, "-m", f"distributed.cli.{program}", "--host", "127.0.0.1", "--no-dashboard"]
        with open(self.folder / "log", "a") as log:
            return subprocess.Popen(
                [*words, *map(str, options)],
                env=oracle.environment(self.folder), start_new_session=True, stdout=log, stderr=log,
            )  # fmt: skip

    def workers(self):
        """nanny -> its worker."""
        found = {}
        for nanny in self.nannies:
            for child in psutil.Process(nanny.pid).children():
                if "spawn_main" in " ".join(child.cmdline()):
                    found[nanny] = child
        return found

    def children(self):
        """The processes in which cases are computed."""
        return [
            child
            for worker in self.workers().values()
            for child in worker.children()
            if "spawn_main" in " ".join(child.cmdline())
        ]

    def said(self):
        return (self.folder / "log").read_text()

    def close(self):
        for process in (*self.nannies, self.scheduler):
            process.terminate()
        left = oracle.left_behind(self.folder, LEFT_SECONDS)
        for process in (*self.nannies, self.scheduler):
            oracle.kill(process)
        assert left == [], self.said()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path / "cluster")
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the local executor keeps."""
    calm = tmp_path_factory.mktemp("calm")
    oracle.run(oracle.SUITE, calm, check=True)
    return oracle.digest(calm)


def start(cluster, out, target=oracle.SUITE, *options):
    words = ["run", target, "--out", out, "--executor", "dask", "--scheduler-file", cluster.file, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "worldsim", *map(str, words)],
        env=oracle.environment(out), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def under_way(out, process):
    """Wait until some cases have ended and others have not."""
    events = lambda name: sum(event["event"] == name for event in read_events(out))  # noqa: E731
    assert oracle.wait_for(lambda: events("case_finished") >= 2 or process.poll() is not None)
    assert process.poll() is None, "it ended too soon for a trial"


def finished(process, out, expected):
    code, output, errors = oracle.finish(process, out)
    assert code == 0, errors or output
    assert oracle.digest(out) == expected
    oracle.sound(out)
    assert oracle.left_behind(out, 5) == []
    return output


def test_a_suite_on_a_cluster_is_what_it_is_here(cluster, tmp_path, expected):
    out = tmp_path / "out"
    finished(start(cluster, out), out, expected)
    assert oracle.wait_for(lambda: cluster.children() == [], LEFT_SECONDS)
    again = start(cluster, out)
    assert "nothing to compute" in finished(again, out, expected)


def test_a_worker_that_is_killed_costs_nothing(cluster, tmp_path, expected):
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    next(iter(cluster.workers().values())).send_signal(signal.SIGKILL)
    finished(process, out, expected)


def test_a_nanny_that_is_killed_costs_nothing(cluster, tmp_path, expected):
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    nanny, worker = next(iter(cluster.workers().items()))
    gone = [worker, *worker.children(recursive=True)]
    cluster.nannies.remove(nanny)
    oracle.kill(nanny)
    finished(process, out, expected)
    assert psutil.wait_procs(gone, LEFT_SECONDS)[1] == []


def test_without_its_scheduler_a_run_ends_and_says_how_to_go_on(cluster, tmp_path, expected):
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    children, killed = cluster.children(), time.monotonic()
    assert children
    oracle.kill(cluster.scheduler)
    code, _, errors = oracle.finish(process, out)
    assert code == 3, errors
    assert time.monotonic() - killed < LEFT_SECONDS
    assert "the Dask scheduler at tcp://127.0.0.1:" in errors
    assert "is gone, was restarted or does not answer" in errors
    assert "to go on: python -m worldsim run" in errors
    assert "Traceback" not in errors
    assert psutil.wait_procs(children, LEFT_SECONDS)[1] == []
    assert oracle.left_behind(out, 5) == []
    oracle.sound(out)
    other = Cluster(tmp_path / "other")
    try:
        finished(start(other, out), out, expected)
    finally:
        other.close()


def test_a_scheduler_that_is_stopped_is_not_waited_for_for_ever(cluster, tmp_path, expected):
    """A machine that hangs keeps its connections."""
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    cluster.scheduler.send_signal(signal.SIGSTOP)
    try:
        code, _, errors = oracle.finish(process, out)
    finally:
        cluster.scheduler.send_signal(signal.SIGCONT)
    assert code == 3, errors
    assert "does not answer" in errors
    assert "to go on: python -m worldsim run" in errors
    oracle.sound(out)
    finished(start(cluster, out), out, expected)


def test_a_client_that_is_killed_leaves_no_case_running(cluster, tmp_path, expected):
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    assert cluster.children()
    oracle.kill(process)
    assert oracle.wait_for(lambda: cluster.children() == [], LEFT_SECONDS)
    assert oracle.left_behind(out) == []
    oracle.sound(out)
    finished(start(cluster, out), out, expected)


def test_a_run_that_is_interrupted_leaves_its_cluster_as_it_was(cluster, tmp_path, expected):
    out = tmp_path / "out"
    process = start(cluster, out)
    under_way(out, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, errors = oracle.finish(process, out)
    assert code == 130, errors
    assert time.monotonic() - asked < 10
    assert oracle.wait_for(lambda: cluster.children() == [], LEFT_SECONDS)
    finished(start(cluster, out), out, expected)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_cluster_of_its_own_ends_with_its_run(tmp_path, expected, how):
    """Killed alone, not its group; or by Ctrl-C, which a terminal sends to every process."""
    out = tmp_path / "out"
    process = oracle.start(oracle.SUITE, out, "--executor", "dask")
    under_way(out, process)
    if how == "killed":
        process.kill()
        process.communicate()
    else:
        asked = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        code, _, errors = oracle.finish(process, out)
        assert (code, errors.count("to go on: ")) == (130, 1), errors
        assert time.monotonic() - asked < 10
        assert "Traceback" not in errors
    assert oracle.left_behind(out, LEFT_SECONDS) == []
    oracle.sound(out)
    code, output, errors = oracle.finish(oracle.start(oracle.SUITE, out, "--executor", "dask"), out)
    assert code == 0, errors or output
    assert oracle.digest(out) == expected
    assert oracle.left_behind(out, 5) == []


def test_a_case_that_takes_its_workers_with_it_is_a_crash(tmp_path, monkeypatch):
    """And its own alone: workers of a cluster of this run's own are replaced."""
    monkeypatch.setenv("DASK_DISTRIBUTED__LOGGING__DISTRIBUTED", "critical")
    out, file = tmp_path / "out", oracle.perilous(tmp_path, "takes_a_worker_with_it", "none")
    options = ("--plugin", oracle.PERILOUS, "--executor", "dask")
    process = oracle.start(file, out, *options, env=oracle.environment(out, "rollout"))
    code, _, errors = oracle.finish(process, out)
    assert code == 1, errors
    (failure,) = oracle.failures_of(out).values()
    assert (failure["kind"], failure["label"]) == ("crash", "perilous/takes_a_worker_with_it/0")
    assert "Dask workers ended while they had this case" in failure["message"]
    states = dict(oracle.states_of(out))
    assert sorted(states.values()) == ["done", "done", "failed"]
    oracle.sound(out)
    assert oracle.left_behind(out, LEFT_SECONDS) == []


def test_a_case_that_takes_its_workers_with_it_costs_none_of_its_bundle(tmp_path, monkeypatch):
    """Brief cases go out together; the one of seed 18 ends the worker that has them, time and again."""
    monkeypatch.setenv("DASK_DISTRIBUTED__LOGGING__DISTRIBUTED", "critical")
    out, file = tmp_path / "out", oracle.perilous(tmp_path, "may_take_a_worker_with_it", seeds=24)
    options = ("--plugin", oracle.PERILOUS, "--executor", "dask")
    process = oracle.start(file, out, *options, env=oracle.environment(out, "rollout"))
    code, _, errors = oracle.finish(process, out)
    assert code == 1, errors
    results = worldsim.open_results(out)
    failures = {entry.label: results.store.open_failure(entry.key) for entry in results.entries}
    (failure,) = filter(None, failures.values())
    assert (failure["kind"], failure["label"]) == ("crash", "perilous/may_take_a_worker_with_it/18")
    assert "Dask workers ended while they had this case" in failure["message"]
    assert sorted(state for _, state in oracle.states_of(out)) == ["done"] * 24 + ["failed"]
    oracle.sound(out)
    assert oracle.left_behind(out, LEFT_SECONDS) == []
