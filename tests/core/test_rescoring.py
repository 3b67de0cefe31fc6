"""Scores of rollouts that are kept already: no simulation, no training, nothing of the old lost."""

import shutil
import sys
from pathlib import Path

import pytest

import worldsim
from worldsim.cli import exit_code
from worldsim.errors import ResultError, ScenarioError, WorldsimError
from worldsim.plan_files import plan_path
from worldsim.rescoring import metrics_of, planned

TINY = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    worldsim.run(TINY, out=out)
    return out


@pytest.fixture
def kept(made, tmp_path):
    """A copy, since each test changes it."""
    return Path(shutil.copytree(made, tmp_path / "kept"))


def names(results):
    return {row.name for row in results.rows()}


def contents(root, part):
    return {path: path.read_bytes() for path in sorted((root / part).rglob("*")) if path.is_file()}


def test_a_new_metric_is_scored_without_training(kept, monkeypatch):
    before = worldsim.open_results(kept)
    fits, runs = contents(kept, "fits"), contents(kept, "runs")
    monkeypatch.setattr("worldsim.build.fit", lambda *a, **k: pytest.fail("it trained"))
    monkeypatch.setattr(sys.modules["worldsim.run"], "roll_out", lambda *a, **k: pytest.fail("it rolled out"))
    after = worldsim.rescore(kept, ["invariants"])
    assert names(after) > names(before)
    assert "drift_energy" in names(after)
    assert all(after.status(entry) == "done" for entry in after.entries)
    assert (contents(kept, "fits"), contents(kept, "runs")) == (fits, runs)


def test_a_metric_that_is_there_is_not_taken_twice(kept):
    own = worldsim.open_results(kept)
    (scenario,) = own.scenarios
    metrics = own.document(scenario)["metrics"]
    again = worldsim.rescore(kept, metrics)
    assert again.entries == own.entries
    twice = worldsim.rescore(kept, ["invariants", {"name": "invariants"}])
    assert all(set(entry.metrics) == {"rollout", "invariants"} for entry in twice.entries)


def test_what_is_missing_of_its_own_metrics_is_computed(kept):
    lost = next(iter(contents(kept, "scores")))
    lost.unlink()
    assert len(planned(worldsim.open_results(kept), (), (), ()).unscored) == 1
    worldsim.rescore(kept)
    assert lost.is_file()


def test_without_weights_it_says_so_and_does_not_train(kept):
    for path in contents(kept, "fits"):
        path.unlink()
    after = worldsim.rescore(kept, ["invariants"])
    told = [after.failure(entry) for entry in after.entries if entry.learned]
    assert told
    assert all("has no finished fit" in one for one in told)
    assert not contents(kept, "fits")


def test_cases_without_rollouts_are_named(kept):
    run = next(iter(contents(kept, "runs")))
    run.unlink()
    plan = planned(worldsim.open_results(kept), (), (), ())
    assert len(plan.left_out) == 1
    for run in contents(kept, "runs"):
        run.unlink()
    with pytest.raises(ResultError, match="no rollouts are kept"):
        worldsim.rescore(kept)


def test_rollouts_of_other_code_are_refused(kept):
    results = worldsim.open_results(kept)
    plan = plan_path(kept, *results.scenarios)
    key = results.entries[0].key
    other = key[::-1]
    plan.write_text(plan.read_text().replace(key, other))
    old = results.store.run_path(key)
    results.store.run_path(other).parent.mkdir(parents=True, exist_ok=True)
    old.rename(results.store.run_path(other))
    with pytest.raises(ResultError, match=r"1 of \d+ cases .* were made by other versions"):
        worldsim.rescore(kept)


def test_bad_metrics_are_refused_before_anything_is_written(kept):
    before = contents(kept, "")
    with pytest.raises(ScenarioError, match="did you mean 'transport'"):
        worldsim.rescore(kept, ["transprt"])
    with pytest.raises(ScenarioError, match=r"metrics\[1\]\.pairs"):
        worldsim.rescore(kept, [{"name": "coherence", "pairs": -1}])
    with pytest.raises(WorldsimError, match="has no scenario 'x'"):
        worldsim.rescore(kept, scenarios=["x"])
    assert contents(kept, "") == before


def test_a_list_is_read_as_in_a_scenario():
    assert metrics_of("rollout, {name: transport, points: 10}") == [
        "rollout",
        {"name": "transport", "points": 10},
    ]
    assert metrics_of("[rollout]") == ["rollout"]
    with pytest.raises(ScenarioError, match="--metrics:1"):
        metrics_of("{name: transport")


def test_the_command_prints_the_new_scores(kept, capsys):
    assert exit_code(["score", str(kept), "--metrics", "rollout, {name: invariants}", "--no-report"]) == 0
    assert "drift_energy" in capsys.readouterr().out
    assert exit_code(["score", str(kept), "--metrics", "invariant"]) == 2
    assert "did you mean 'invariants'" in capsys.readouterr().err


ORACLE = """
from worldsim import Score, hookimpl
from worldsim.protocols import GroundTruth


class Counting:
    '''How many trajectories there are.'''

    def __init__(self, system):
        pass

    def score(self, truth, prediction, model):
        return {"count": Score(float(len(truth)), better="")}

    @staticmethod
    def ground_truths():
        return [GroundTruth("one and one", 1 + 1, RIGHT, 0.0, "Peano 1889")]


@hookimpl
def worldsim_metrics():
    return {"counting": Counting}
"""


@pytest.mark.parametrize(("right", "code"), [(2, 0), (3, 1)])
def test_the_selftest_holds_metrics_to_what_they_offer(tmp_path, capsys, right, code):
    plugin = tmp_path / "counting.py"
    plugin.write_text(ORACLE.replace("RIGHT", str(right)))
    assert exit_code(["score", "--selftest", "--plugin", str(plugin)]) == code
    out = capsys.readouterr().out
    assert "one and one" in out
    assert "Peano 1889" in out
    assert ("MISSED" in out) == bool(code)
