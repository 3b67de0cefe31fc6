"""Cases on a real Dask cluster of this machine: what comes of them, and what is refused."""

import contextlib
import io
import json
import os
import time
from pathlib import Path

import pytest
import xarray as xr

import worldsim
from worldsim import dask_executor
from worldsim.cli import exit_code
from worldsim.dask_clusters import directives_of, local_cluster, slurm_cluster, visible_gpus
from worldsim.dask_executor import Dask
from worldsim.errors import ClusterError, WorldsimError
from worldsim.events import read_events
from worldsim.executors import Task
from worldsim.plugins import registry
from worldsim.reading import from_document

pytest.importorskip("distributed")

PLUGIN = Path(__file__).parent / "perilous_world.py"
SPLIT = {"trajectories": 4, "horizon": 2.0}
DOCUMENT = {
    "about": "What becomes of cases on a cluster?",
    "system": "decay",
    "data": {"step": 0.5, "splits": {"train": SPLIT, "test": SPLIT}},
    "models": {},
    "metrics": ["rollout"],
    "baselines": ["persistence"],
    "seeds": [0],
}
PERILS = {"leaves": "crash", "raises": "exception", "sleeps": "timeout"}


def scenario(*perils, name="perilous"):
    models = {peril: {"name": "perilous", "peril": peril} for peril in perils}
    return from_document({**DOCUMENT, "models": models}, name, registry((PLUGIN,)))


def nothing(root):
    """A task that nobody comes to compute."""
    return Task({}, "s", "m", 0, "cpu", "float32", str(root), ())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What workers inherit: few plugins, and where a case that sleeps leaves its mark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLDSIM_PLUGINS", "rollout")
        patch.setenv("MARK", str(tmp_path_factory.mktemp("mark") / "mark"))
        yield


@pytest.fixture(scope="module")
def cluster(environment):
    with local_cluster(2, ["5", "7"]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    """All perils in one run: (results, receipts, progress, what was printed)."""
    receipts, seen, printed = [], [], io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = worldsim.run(
            scenario(*PERILS, "none", "tells_its_gpus"),
            out=tmp_path_factory.mktemp("perilous"),
            plugins=[PLUGIN],
            executor=Dask(cluster, timeout=5),
            on_receipt=receipts.append,
            on_progress=seen.append,
        )
    return results, receipts, seen, printed.getvalue()


def test_failures_are_typed_and_cost_themselves_alone(run):
    results, receipts, _, _ = run
    for peril, kind in PERILS.items():
        failure = json.loads(results.store.failure_path(results.find("perilous", peril).key).read_text())
        assert (failure["kind"], failure["attempts"]) == (kind, 1)
        assert failure["host"]
    done = {entry.model for entry in results.entries if results.status(entry) == "done"}
    assert done == {"none", "tells_its_gpus", "persistence"}
    assert sorted(receipt.label for receipt in receipts) == sorted(entry.label for entry in results.entries)


def test_results_are_those_of_this_process(run, tmp_path):
    here = worldsim.run(scenario("none"), out=tmp_path, plugins=[PLUGIN])
    for entry in here.entries:
        ours, theirs = (folder.store.open_run(entry.key) for folder in (here, run[0]))
        xr.testing.assert_identical(ours, theirs)
        for key in entry.metrics.values():
            assert here.store.open_scores(entry.key, key) == run[0].store.open_scores(entry.key, key)


def test_who_begins_what_is_told_and_what_cases_print_is_printed(run):
    results, _, seen, printed = run
    begun = [progress for progress in seen if progress.label and not progress.text]
    assert sorted(progress.label for progress in begun) == sorted(entry.label for entry in results.entries)
    assert {progress.worker for progress in begun} == {"0", "1"}
    events = [event["label"] for event in read_events(results.root) if event["event"] == "case_started"]
    assert events == [progress.label for progress in begun]
    assert "nothing happens\n" in printed
    assert "raising" not in printed


def test_each_child_sees_one_gpu(run, cluster):
    assert ("gpus 5\n" in run[3]) != ("gpus 7\n" in run[3])
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        found = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(found.values()) == ["5", "7"]


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8d")
    assert visible_gpus() == ["2", "GPU-8d"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_many_tasks_go_out_in_windows_and_nothing_is_left_on_the_cluster(cluster, tmp_path, monkeypatch):
    """Of scenarios with so few cases that their documents go with the tasks."""
    from distributed import Client

    monkeypatch.setattr(dask_executor, "AHEAD", 2)
    scenarios = [scenario("none", name=f"number_{number}") for number in range(5)]
    held = []
    with Client(cluster, set_as_default=False) as client:
        results = worldsim.run(
            scenarios,
            out=tmp_path,
            plugins=[PLUGIN],
            executor=Dask(client),
            on_receipt=lambda receipt: held.append(len(cluster.scheduler.tasks)),
        )
        plugins = client.run(lambda dask_worker: " ".join(dask_worker.plugins))
    assert {results.status(entry) for entry in results.entries} == {"done"}
    assert len(plugins) == 2
    assert "worldsim" not in " ".join(plugins.values())
    assert 0 < max(held) <= 4
    assert not cluster.scheduler.tasks


def test_brief_cases_go_out_together_and_one_that_dies_costs_itself_alone(cluster, tmp_path, monkeypatch):
    """Of 40 seeds one ends its process; they are brief once the first have ended."""
    from distributed import Client

    sent, given = [], Client.map

    def spy(client, call, names, bundles, **more):
        sent.extend(map(len, bundles))
        return given(client, call, names, bundles, **more)

    monkeypatch.setattr(Client, "map", spy)
    models = {"m": {"name": "perilous", "peril": "may_leave"}}
    document = {**DOCUMENT, "models": models, "baselines": [], "seeds": list(range(40))}
    brief = from_document(document, "brief", registry((PLUGIN,)))
    seen, receipts = [], []
    results = worldsim.run(
        brief,
        out=tmp_path,
        plugins=[PLUGIN],
        executor=Dask(cluster),
        on_progress=seen.append,
        on_receipt=receipts.append,
    )
    labels = sorted(entry.label for entry in results.entries)
    assert len(labels) == 40
    assert sorted(receipt.label for receipt in receipts) == labels
    assert sorted(progress.label for progress in seen if not progress.text) == labels
    (failed,) = [receipt for receipt in receipts if receipt.status != "done"]
    assert (failed.label, failed.kind) == ("brief/m/18", "crash")
    assert set(sent[: 2 * dask_executor.AHEAD]) == {1}
    assert 1 < max(sent) <= dask_executor.BUNDLE
    assert sum(sent) == 40


def test_a_run_that_is_cancelled_ends_within_five_seconds(cluster, tmp_path, monkeypatch):
    """The case that sleeps is abandoned, the other never begun, and neither is a failure."""
    mark = Path(os.environ["MARK"])
    mark.unlink(missing_ok=True)
    executor, receipts = Dask(cluster), []

    def cancel(progress):
        if progress.label.endswith("sleeps/0"):
            begun.append(time.monotonic())
            executor.cancel()

    begun = []
    results = worldsim.run(
        scenario("sleeps"),
        out=tmp_path,
        plugins=[PLUGIN],
        executor=executor,
        on_receipt=receipts.append,
        on_progress=cancel,
    )
    assert time.monotonic() - begun[0] < 6  # beside 5 s, what this machine is at
    assert "sleeps" not in {receipt.label.split("/")[1] for receipt in receipts}
    assert not (tmp_path / "failures").exists()
    assert results.status(results.find("perilous", "sleeps")) == "missing"
    assert list(executor.run([nothing(tmp_path)])) == []


def test_workers_of_other_versions_are_refused(cluster, tmp_path, monkeypatch):
    from worldsim import dask_worker

    monkeypatch.setattr(dask_worker, "versions", lambda: {"worldsim": "9.0", "torch": "9.1"})
    with pytest.raises(ClusterError, match=r"has worldsim .*, and this run worldsim 9\.0 and torch 9\.1"):
        list(Dask(cluster).run([nothing(tmp_path)]))


def test_workers_that_do_not_see_the_results_are_refused(cluster, tmp_path):
    task = nothing(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match=r"does not see the folder .*elsewhere"):
        list(Dask(cluster).run([task]))


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_executor, "CONNECT_SECONDS", 0.3)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "):
        list(Dask("tcp://127.0.0.1:9").run([nothing(tmp_path)]))


# The command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--address tcp://a:1", "--address needs --executor dask"),
        ("--slurm partition=gpu", "--slurm needs --executor dask"),
        ("--executor dask --workers 0", "needs --workers 1 or more"),
        ("--executor dask --address tcp://a:1 --workers 2", "has its own workers: leave --workers out"),
        (
            "--executor dask --address tcp://a:1 --slurm time=1:00",
            "--address and --slurm each name a cluster",
        ),
        ("--executor dask --slurm partition=gpu", "--slurm needs --workers N"),
        ("--executor dask --slurm partition --workers 2", "'partition' is no option of sbatch as NAME=VALUE"),
        ("--executor dask --slurm mem=1G,mem=2G --workers 2", "mem is given twice"),
        ("--executor dask --slurm cpus-per-task=x --workers 2", "cpus-per-task=x is no number"),
        ("--executor dask --scheduler-file {no}", "is no scheduler file"),
        ("--executor dask --scheduler-file {no}s", "is no scheduler file"),
        ("--executor ray", "'ray' is not one of"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words, tmp_path, capsys):
    (no := tmp_path / "no.json").write_text("[]", encoding="utf-8")
    given = options.format(no=no).split()
    assert exit_code(["run", "quickstart", "--out", str(tmp_path / "out"), *given]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_cluster_ends_with_3_and_the_line_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_executor, "CONNECT_SECONDS", 0.3)
    file = tmp_path / "perilous.yaml"
    models = {"none": {"name": "perilous"}}
    file.write_text(json.dumps({**DOCUMENT, "models": models}), encoding="utf-8")
    arguments = ["run", str(file), "--out", str(tmp_path / "out"), "--plugin", str(PLUGIN)]
    arguments += ["--executor", "dask", "--address", "tcp://127.0.0.1:9"]
    assert exit_code(arguments) == 3
    errors = capsys.readouterr().err
    assert "0 of 2 cases ended" in errors
    assert f"worldsim {' '.join(arguments)}\n" in errors.partition("to go on: ")[2]
    assert "no Dask scheduler answers" in errors


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(WorldsimError, match=r"pip install 'worldsim\[dask\]'"):
        Dask("tcp://127.0.0.1:9")


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="needs sbatch, which this machine does not have"):
        list(Dask(lambda: slurm_cluster({}, 1)).run([nothing(tmp_path)]))


def test_a_cluster_that_cannot_start_says_why(tmp_path):
    task = nothing(tmp_path)
    with pytest.raises(ClusterError, match="no Dask cluster could be started: ZeroDivisionError"):
        list(Dask(lambda: 1 / 0).run([task]))


# SLURM ----------------------------------------------------------------------------------------------------


def test_a_slurm_job_asks_for_what_was_said():
    """Its script alone: there is no SLURM to give it to."""
    said = directives_of("partition=gpu, gpus=1,time=2:00:00,mem=16G,cpus-per-task=4,account=lab")
    with slurm_cluster(said, 0) as cluster:
        lines = cluster.job_script().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"-p gpu", "-A lab", "-n 1", "--cpus-per-task=4", "--mem=16G", "-t 2:00:00", "--gpus=1"} <= asked
    command = next(line for line in lines if "dask_worker" in line or "dask worker" in line)
    assert "--nthreads 1" in command
    assert "--memory-limit 0" in command


def test_a_slurm_job_without_memory_takes_the_default_of_the_site():
    with slurm_cluster(directives_of("partition=cpu"), 0) as cluster:
        script = cluster.job_script()
    assert "--mem=" not in script
    assert "-t 01:00:00" in script
