"""What will be computed and why; which cases are meant; plans that runs share; what is kept, at one look."""

import copy
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import worldsim
from worldsim import leases
from worldsim.batch import TooManyFailures, freeze, perform, tasks
from worldsim.changes import changes
from worldsim.cli import exit_code
from worldsim.errors import ResultError, WorldsimError
from worldsim.index import STATES, look
from worldsim.leftovers import orphan_files
from worldsim.plan_files import plan_path
from worldsim.planning import make_plan
from worldsim.plugins import registry
from worldsim.reading import from_document
from worldsim.run import Receipt
from worldsim.selection import Selection, expression

SPLIT = {"trajectories": 2, "horizon": 0.5}
DOCUMENT = {
    "about": "What is there to do?",
    "system": "pendulum",
    "data": {"step": 0.25, "block": 2, "splits": {"train": SPLIT, "test": SPLIT}},
    "models": {
        "ode": {"name": "neural_ode", "width": 4, "depth": 1},
        "wide": {"name": "neural_ode", "width": 6, "depth": 1},
    },
    "fit": {"steps": 1, "batch": 2},
    "metrics": ["rollout"],
    "baselines": ["truth"],
    "seeds": [0, 1],
}


def scenario(name="tiny", **changes):
    return from_document({**copy.deepcopy(DOCUMENT), **changes}, name, registry())


def models(**changes):
    """The models with other parameters of ``ode``."""
    return {**DOCUMENT["models"], "ode": {**DOCUMENT["models"]["ode"], **changes}}


class Recorder:
    """An executor that computes nothing: it notes what it is given, and says that it failed or is done."""

    def __init__(self, status="done"):
        self.status = status
        self.begun = []

    def run(self, tasks, watch):
        for task in tasks:
            self.begun.append(task.label)
            yield Receipt(task.key, task.label, self.status, 0.0, "")


@pytest.fixture
def counts(monkeypatch):
    """How often something is trained, rolled out and scored."""
    build, run = sys.modules["worldsim.build"], sys.modules["worldsim.run"]
    found = dict.fromkeys(("fit", "roll_out", "score"), 0)

    def counted(name, function):
        def call(*arguments, **options):
            found[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(build, "fit", counted("fit", build.fit))
    monkeypatch.setattr(run, "roll_out", counted("roll_out", run.roll_out))
    monkeypatch.setattr(run, "to_document", counted("score", run.to_document))
    return found


def pretend(root, steps, scored=True):
    """Files as a run would leave them, by name alone."""
    store = worldsim.open_results(root).store
    for step in steps:
        store.run_path(step.entry.key).parent.mkdir(parents=True, exist_ok=True)
        store.run_path(step.entry.key).write_bytes(b"")
        for key in step.entry.metrics.values() if scored else ():
            store.keep_scores(step.entry.key, key, {})


def does(plan):
    return {step.entry.label: step.does for step in plan.steps}


def test_twice_one_parameter_and_one_metric(tmp_path, counts):
    """The whole way: each change computes what it changes and nothing else, and the plan says so before."""
    first = make_plan([scenario()], tmp_path)
    assert set(does(first).values()) == {"new"}
    assert first.summary() == "5 to run"
    worldsim.run(scenario(), out=tmp_path)
    assert counts == {"fit": 4, "roll_out": 5, "score": 5}

    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    worldsim.run(scenario(), out=tmp_path)
    assert counts == {"fit": 4, "roll_out": 5, "score": 5}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files

    wider = scenario(models=models(width=5))
    plan = make_plan([wider], tmp_path)
    assert {label for label, word in does(plan).items() if word != "kept"} == {"tiny/ode/0", "tiny/ode/1"}
    assert plan.summary() == "2 changed, to run, 3 kept"
    assert {plan.why(step) for step in plan.todo} == {"model.width 4 -> 5"}
    worldsim.run(wider, out=tmp_path)
    assert counts == {"fit": 6, "roll_out": 7, "score": 7}

    scored = scenario(models=models(width=5), metrics=["rollout", "invariants"])
    plan = make_plan([scored], tmp_path)
    assert plan.summary() == "5 to score"
    assert {plan.why(step) for step in plan.todo} == {"not scored: invariants"}
    worldsim.run(scored, out=tmp_path)
    assert counts == {"fit": 6, "roll_out": 7, "score": 12}

    more = scenario(models=models(width=5), metrics=["rollout", "invariants"], seeds=[0, 1, 2])
    plan = make_plan([more], tmp_path)
    assert [(step.does, plan.why(step)) for step in plan.todo] == [("new", "seed 2 is new")] * 2
    back = make_plan([scenario()], tmp_path)
    assert back.summary() == "5 kept"


def test_a_swept_case_that_is_kept_is_not_computed_again(tmp_path, counts):
    worldsim.run(scenario(models={"ode": DOCUMENT["models"]["ode"]}), out=tmp_path)
    assert counts["fit"] == 2
    swept = scenario(models={"ode": DOCUMENT["models"]["ode"]}, sweep={"models": {"ode": {"width": [4, 6]}}})
    plan = make_plan([swept], tmp_path)
    assert {step.entry.label for step in plan.todo} == {"tiny/ode[width=6]/0", "tiny/ode[width=6]/1"}
    worldsim.run(swept, out=tmp_path)
    assert counts == {"fit": 4, "roll_out": 5, "score": 5}


def test_labels_that_mean_the_same_are_computed_once(tmp_path):
    twins = {"a": DOCUMENT["models"]["ode"], "b": DOCUMENT["models"]["ode"]}
    plan = make_plan([scenario(models=twins)], tmp_path)
    assert len(plan.todo) == 5
    assert [task.label for task in tasks(plan, ())] == ["tiny/a/0", "tiny/a/1", "tiny/truth/0"]


def test_a_failure_is_tried_again_and_says_of_which_kind_it_was(tmp_path):
    plan = make_plan([scenario()], tmp_path)
    freeze(plan)
    store = worldsim.open_results(tmp_path).store
    store.keep_failure(plan.steps[0].entry.key, {"kind": "oom", "message": "it held 9 GB\nand more"})
    store.keep_failure(plan.steps[1].entry.key, {"message": "ValueError: no"})
    plan = make_plan([scenario()], tmp_path, Selection(failed=True))
    assert [plan.why(step) for step in plan.steps] == ["oom: it held 9 GB", "exception: ValueError: no"]


def test_what_was_before_stays_findable_after_the_plan_is_made_anew(tmp_path, counts):
    worldsim.run(scenario(baselines=[]), out=tmp_path, models=["ode"], seeds=[0])
    for width in (5, 7):
        freeze(make_plan([scenario(models=models(width=width))], tmp_path))
    plan = make_plan([scenario(models=models(width=9), fit={"steps": 1, "batch": 1})], tmp_path)
    (step,) = [step for step in plan.steps if step.entry.label == "tiny/ode/0"]
    assert (step.does, plan.why(step)) == ("changed", "model.width 4 -> 9, fit.batch 2 -> 1")
    store = worldsim.open_results(tmp_path).store
    store.run_path(step.entry.before[0]).write_bytes(b"damaged")
    assert plan.why(step) == "nothing kept under tiny/ode/0 says what it was"


def test_changes_are_told_once_in_the_words_of_a_scenario():
    case = scenario().cases()[0]
    heavy = scenario(system={"name": "pendulum", "mass": 2.0}).cases()[0]
    assert [str(each) for each in changes(case.meaning, heavy.meaning)] == ["system.mass 1.0 -> 2.0"]
    splits = copy.deepcopy(DOCUMENT["data"])
    splits["splits"]["test"] = {**SPLIT, "horizon": 1.0, "system": {"mass": 3.0}}
    longer = scenario(data=splits).cases()[0]
    assert [str(each) for each in changes(case.meaning, longer.meaning)] == [
        "data.splits.test.system.mass 1.0 -> 3.0", "data.splits.test.horizon 0.5 -> 1.0"
    ]  # fmt: skip
    newer = {**case.meaning, "plugins": [["a", "x", "2", ""], ["b", "x", "2", ""], ["c", "y", "1", ""]]}
    older = {**case.meaning, "plugins": [["a", "x", "1", ""], ["b", "x", "1", ""]]}
    assert [str(each) for each in changes(older, newer)] == [
        "plugins a, b x 1 -> x 2", "plugin c nothing -> y 1"
    ]  # fmt: skip
    held = scenario(models=models(constraints=["energy"])).cases()[0]
    told = [str(each) for each in changes(case.meaning, held.meaning)]
    assert "uses[0].constraint nothing -> energy" in told
    assert changes(case.meaning, case.meaning) == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("ode", {"tiny/ode/0", "tiny/ode/1"}),
        ("ODE and /1", {"tiny/ode/1"}),
        ("truth or ode and not /0", {"tiny/truth/0", "tiny/ode/1"}),
        ("(truth or ode) and /0", {"tiny/truth/0", "tiny/ode/0"}),
        ("not not truth", {"tiny/truth/0"}),
    ],
)
def test_words_mean_labels(tmp_path, words, meant):
    assert set(does(make_plan([scenario()], tmp_path, Selection(words)))) == meant


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ode and", "expected a word, not, or a bracket, found the end"),
        ("or ode", "found 'or'"),
        ("(ode", "a bracket is not closed"),
        ("ode)", "expected and, or, or the end, found '\\)'"),
        ("ode truth", "found 'truth'"),
    ],
)
def test_words_that_are_no_expression_are_told(words, told):
    with pytest.raises(WorldsimError, match=told):
        expression(words)


def test_every_filter_narrows(tmp_path):
    both = [scenario("tiny", tags=["quick"]), scenario("tinier[mass=1.0]"), scenario("other")]
    sweep = scenario("swept", sweep={"models": {"ode": {"width": [4, 6]}}})

    def meant(read=both, **parts):
        return set(does(make_plan(read, tmp_path, Selection(**parts))))

    assert {label.split("/")[0] for label in meant(tags=["quick"])} == {"tiny"}
    assert {each.split("/")[0] for each in meant(models=["ode"])} == {"tiny", "tinier[mass=1.0]", "other"}
    named = make_plan(both, tmp_path, Selection(scenarios=["tini*", "tinier[mass=1.0]"]))
    assert {step.entry.scenario for step in named.steps} == {"tinier[mass=1.0]"}
    assert meant([sweep], models=["ode"], seeds=[0]) == {"swept/ode[width=4]/0", "swept/ode[width=6]/0"}
    assert meant([sweep], models=["ode[width=6]"], seeds=[1]) == {"swept/ode[width=6]/1"}
    assert len(meant(limit=3)) == 3
    for parts, told in (
        ({"scenarios": ["tinny"]}, "did you mean 'tiny'"),
        ({"tags": ["quik"]}, "did you mean 'quick'"),
        ({"models": ["od"]}, "did you mean 'ode'"),
        ({"seeds": [7]}, "allowed: 0, 1"),
        ({"words": "nothing"}, "no case is meant by -k 'nothing'"),
    ):
        with pytest.raises(WorldsimError, match=told):
            meant(**parts)


def test_a_limit_counts_what_there_is_to_do(tmp_path):
    plan = make_plan([scenario()], tmp_path)
    freeze(plan)
    pretend(tmp_path, plan.steps[:2])
    limited = make_plan([scenario()], tmp_path, Selection(limit=2))
    assert [step.entry.label for step in limited.todo] == [step.entry.label for step in plan.steps[2:4]]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_are_everything_exactly_once_in_any_order(tmp_path, of):
    guided = [{"name": "energy", "mechanisms": ["projection"]}]
    read = [scenario(seeds=list(range(5)), under=guided, constraints=["energy"]), scenario("other")]
    whole = make_plan(read, tmp_path)
    parts = [make_plan(read, tmp_path, shard=(i, of)) for i in range(of)]
    labels = [step.entry.label for part in parts for step in part.steps]
    assert sorted(labels) == sorted(step.entry.label for step in whole.steps)
    again = [make_plan(read[::-1], tmp_path, shard=(i, of)) for i in range(of)]
    assert [set(does(part)) for part in parts] == [set(does(part)) for part in again]
    fits = [{step.case.fit_key for step in part.steps} for part in parts]
    assert sum(map(len, fits)) == len(set().union(*fits))
    assert max(map(len, fits)) - min(map(len, fits)) <= 1
    narrowed = [make_plan(read, tmp_path, Selection("ode"), shard=(i, of)) for i in range(of)]
    assert all(set(does(part)) <= set(does(one)) for part, one in zip(narrowed, parts, strict=True))


def test_a_shard_of_another_plan_is_refused(tmp_path):
    freeze(make_plan([scenario()], tmp_path))
    make_plan([scenario()], tmp_path, shard=(0, 2))
    with pytest.raises(WorldsimError, match="2 cases of 'tiny' are not in the plan that is frozen"):
        make_plan([scenario(models=models(width=5))], tmp_path, shard=(0, 2))
    freeze(make_plan([scenario(models=models(width=5))], tmp_path))
    make_plan([scenario(models=models(width=5))], tmp_path, shard=(0, 2))


@pytest.mark.trial(10)
def test_runs_that_share_a_folder_lose_no_line_of_each_other(tmp_path):
    """Both plan before either writes; then each writes over what it has not seen."""
    one, other = (make_plan([scenario(name)], tmp_path) for name in ("one", "other"))
    same = make_plan([scenario("one")], tmp_path, Selection(models=["wide"]))
    assert freeze(one)
    assert freeze(other)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert not freeze(same)
    assert not freeze(one)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    results = worldsim.open_results(tmp_path)
    assert [entry.label for entry in results.entries] == [*does(one), *does(other)]
    assert results.scenarios == ["one", "other"]


@pytest.mark.trial(16)
def test_names_that_differ_in_case_alone_have_plans_of_their_own(tmp_path):
    freeze(make_plan([scenario("tiny"), scenario("Tiny")], tmp_path))
    names = [path.name.lower() for path in (tmp_path / "plan").iterdir()]
    assert len(set(names)) == 2
    assert worldsim.open_results(tmp_path).scenarios == ["Tiny", "tiny"]


@pytest.mark.trial(12)
@pytest.mark.parametrize("damage", ["", "{}", "[1]\n", "cut"])
def test_a_damaged_plan_is_named_and_made_anew(tmp_path, damage):
    plan = make_plan([scenario()], tmp_path)
    freeze(plan)
    path = plan_path(tmp_path, "tiny")
    good = path.read_text()
    path.write_text(good[: len(good) // 2] if damage == "cut" else damage)
    with pytest.raises(ResultError, match=path.name):
        _ = worldsim.open_results(tmp_path).entries
    assert freeze(make_plan([scenario()], tmp_path))
    assert path.read_text() == good


@pytest.mark.trial(17)
@pytest.mark.parametrize("key", ["../../etc/passwd", "0" * 31, 7, None])
@pytest.mark.parametrize("place", ["key", "before", "metrics"])
def test_a_plan_from_a_stranger_names_no_file_but_ours(tmp_path, key, place):
    freeze(make_plan([scenario()], tmp_path))
    path = plan_path(tmp_path, "tiny")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if place == "metrics":
        lines[0]["metrics"]["rollout"] = key
    else:
        lines[2][place] = [key] if place == "before" else key
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ResultError, match=path.name):
        _ = worldsim.open_results(tmp_path).entries


@pytest.mark.trial(12)
def test_the_index_says_what_the_files_say(tmp_path):
    plan = make_plan([scenario()], tmp_path)
    freeze(plan)
    pretend(tmp_path, plan.steps[:1])
    pretend(tmp_path, plan.steps[1:3], scored=False)
    results = worldsim.open_results(tmp_path)
    results.store.keep_failure(plan.steps[2].entry.key, {"message": "no score"})
    results.store.keep_failure(plan.steps[3].entry.key, {"message": "no rollout"})
    index = look(tmp_path)
    states = [index.state(entry) for entry in results.entries]
    assert states == [results.status(entry) for entry in results.entries]
    assert states == ["done", "unscored", "failed", "failed", "missing"]
    assert set(states) == set(STATES)


def test_a_case_is_running_while_somebody_says_so(tmp_path, monkeypatch):
    run = sys.modules["worldsim.run"]
    seen = []
    inner = run._run

    def watched(case, store, *rest):
        seen.append((case.key, set(leases.live(store.root))))
        return inner(case, store, *rest)

    monkeypatch.setattr(run, "_run", watched)
    worldsim.run(scenario(models={"ode": DOCUMENT["models"]["ode"]}), out=tmp_path, models=["truth"])
    ((key, live),) = seen
    assert live == {key}
    assert set(leases.live(tmp_path)) == set()

    host = socket.gethostname()
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    for name, words, age in (
        ("mine", f"{host} {os.getpid()}", 0.0),
        ("elsewhere", "another-host 1", 0.0),
        ("dead", f"{host} {finished.pid}", 0.0),
        ("stale", "another-host 1", 10 * leases.STALE_SECONDS),
        ("odd", "", 0.0),
    ):
        path = tmp_path / "leases" / name
        path.write_text(words)
        os.utime(path, (time.time() - age,) * 2)
    assert set(leases.live(tmp_path)) == {"mine", "elsewhere"}
    gone = {path.name for path in orphan_files(worldsim.open_results(tmp_path))}
    assert gone == {"dead", "stale", "odd"}


@pytest.mark.trial(12)
def test_a_lease_that_cannot_be_written_harms_no_case(tmp_path):
    (tmp_path / "leases").write_text("not a folder")
    with leases.lease(tmp_path, "k"):
        assert set(leases.live(tmp_path)) == set()


@pytest.mark.parametrize(("most", "begun"), [(None, 5), (1, 1), (3, 3)])
def test_after_so_many_failures_nothing_more_is_begun(tmp_path, most, begun):
    executor = Recorder("failed")
    plan = make_plan([scenario()], tmp_path)
    perform(plan, executor, max_failures=most)
    assert len(executor.begun) == begun
    assert issubclass(TooManyFailures, WorldsimError)


def test_results_can_be_narrowed(tmp_path):
    plan = make_plan([scenario(), scenario("other", tags=["slow"])], tmp_path)
    freeze(plan)
    results = worldsim.open_results(tmp_path)
    results.store.keep_failure(plan.steps[0].entry.key, {"message": "no"})
    assert {entry.label for entry in results.selected(Selection(failed=True)).entries} == {
        "tiny/ode/0", "other/ode/0"
    }  # fmt: skip
    assert results.selected(Selection(tags=["slow"])).scenarios == ["other"]
    assert len(results.selected(Selection(limit=2)).entries) == 2
    assert replace(results).selected(Selection()).entries == results.entries


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        code = exit_code([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


TEXT = """\
about: What is there to do?
system: pendulum
data:
  step: 0.25
  block: 2
  splits: {train: {trajectories: 2, horizon: 0.5}, test: {trajectories: 2, horizon: 0.5}}
models:
  ode: {name: neural_ode, width: WIDTH, depth: 1}
fit: {steps: 1, batch: 2}
metrics: [rollout]
baselines: [truth]
seeds: [0]
tags: [quick]
"""


def test_the_commands_say_what_why_and_how_far(cli, tmp_path):
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(TEXT.replace("WIDTH", "4"), encoding="utf-8")
    code, said, _ = cli("run", file, "--out", out, "--dry-run", "-k", "ode")
    assert (code, out.exists()) == (0, False)
    assert said.startswith("new     tiny/ode/0")
    assert cli("plan", file, "--out", out, "--freeze")[1].endswith(f"frozen: 2 cases in {out}\n")
    assert "2 cases: 0 done, 0 unscored, 0 failed, 2 missing" in cli("status", out)[1]
    for part in ("0/2", "1/2"):
        code, said, _ = cli("run", file, "--out", out, "--workers", 0, "--shard", part, "--fail-fast")
        assert (code, "[1/1] 1 done" in said) == (0, True), said
    assert not (out / "report.html").exists()
    code, said, _ = cli("status", out, "--watch")
    assert code == 0
    assert said.endswith("2 cases: 2 done, 0 unscored, 0 failed, 0 missing\n")
    assert "1 case: 1 done" in cli("status", out, "--model", "ode", "--tag", "quick")[1]
    code, said, _ = cli("run", file, "--out", out, "--workers", 0, "--no-report")
    assert (code, said) == (0, f"nothing to compute: 2 kept; worldsim show {out} prints the scores\n")

    key = next(e.key for e in worldsim.open_results(out).entries if e.model == "ode")
    code, said, _ = cli("why", key[:8], "--out", out)
    assert code == 0
    document, _, rest = said.partition("\n\nlabel")
    assert json.loads(document)["model"]["params"]["width"] == 4
    assert f"key     {key}" in rest
    assert "differs" not in rest
    file.write_text(TEXT.replace("WIDTH", "5"), encoding="utf-8")
    code, said, _ = cli("why", "tiny/ode/0", file, "--out", out)
    assert code == 0
    assert said.endswith("what differs from what is kept under this label:\n  model.width 4 -> 5\n")
    cli("plan", file, "--out", out, "--freeze")
    code, said, _ = cli("why", key, "--out", out)
    assert (code, json.loads(said.partition("\n\nkept")[0])["model"]["params"]["width"]) == (0, 4)
    file.write_text(TEXT.replace("WIDTH", "6"), encoding="utf-8")
    code, _, err = cli("why", "tiny/od/0", "--out", out)
    assert (code, "did you mean 'tiny/ode/0'" in err) == (2, True)
    code, _, err = cli("run", file, "--out", out, "--shard", "0/2")
    assert (code, "not in the plan that is frozen" in err) == (2, True)
    code, _, err = cli("run", file, "--out", out, "--shard", "2/2")
    assert (code, "no part" in err) == (2, True)


def test_status_names_kinds_of_failures_and_who_is_running(cli, tmp_path):
    plan = make_plan([scenario()], tmp_path)
    freeze(plan)
    store = worldsim.open_results(tmp_path).store
    store.keep_failure(plan.steps[0].entry.key, {"kind": "timeout", "message": "it took more than 3 s"})
    store.keep_failure(plan.steps[1].entry.key, {"kind": "exception", "message": "ValueError: no"})
    with leases.lease(tmp_path, plan.steps[2].entry.key):
        code, said, _ = cli("status", tmp_path)
    assert code == 1
    assert "5 cases: 0 done, 0 unscored, 2 failed, 3 missing, 1 of them running" in said
    assert "failed by exception 1, timeout 1" in said
    assert "failed: tiny/ode/0: timeout: it took more than 3 s" in said
    assert "failed: tiny/ode/1: ValueError: no" in said


def test_status_needs_neither_torch_nor_xarray(tmp_path):
    freeze(make_plan([scenario()], tmp_path))
    code = (
        "import sys\nfrom worldsim.cli import exit_code\n"
        f"assert exit_code(['status', {str(tmp_path)!r}]) == 0\n"
        "heavy = {'torch', 'xarray', 'scipy', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
