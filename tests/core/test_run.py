"""The main job on a tiny scenario: same bits twice, in any order, resumed, rescored, and on a user's data."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import worldsim
from worldsim.batch import task_of
from worldsim.errors import DeviceError, ResultError, ScenarioError, WorldsimError
from worldsim.executors import compute
from worldsim.plugins import registry
from worldsim.reading import from_document

DOCUMENT = {
    "about": "Does it run?",
    "system": {"name": "pendulum"},
    "data": {
        "step": 0.25,
        "splits": {
            "train": {"trajectories": 6, "horizon": 2.0, "noise": {"states": 0.01}},
            "validation": {"trajectories": 4, "horizon": 2.0},
            "test": {"trajectories": 5, "horizon": 3.0},
            "longer": {"trajectories": 3, "horizon": 6.0, "system": {"energy": [1.5, 1.8]}},
        },
    },
    "models": {
        "ode": {"name": "neural_ode", "width": 8, "depth": 1},
        "flow": {
            "name": "flow", "width": 16, "depth": 1, "steps": 4, "fit": {"window": None},
            "constraints": [{"name": "energy", "mechanisms": ["penalty", "guidance", "projection"]}],
        },
    },
    "fit": {"steps": 12, "batch": 4, "window": 3},
    "constraints": ["energy"],
    "metrics": ["rollout", "invariants"],
    "seeds": [0, 1],
}  # fmt: skip


def scenario(**changes):
    return from_document({**copy.deepcopy(DOCUMENT), **changes}, "tiny", registry())


def files(root, folder):
    return {path.name: path.read_bytes() for path in sorted((root / folder).rglob("*.zarr.zip"))}


def decoded(root):
    store = worldsim.open_results(root).store
    return {p.name: store.open_run(p.name.removesuffix(".zarr.zip")) for p in root.rglob("*.zarr.zip")}


def scores(root):
    return {str(p.relative_to(root)): p.read_text() for p in sorted((root / "scores").rglob("*.json"))}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    results = worldsim.run(scenario(), out=root)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    return results


def test_every_case_is_done(kept):
    assert [kept.status(entry) for entry in kept.entries] == ["done"] * len(kept.entries)
    assert len(kept.entries) == 2 * 2 + 5


def test_the_same_bits_in_another_order_and_in_parts(kept, tmp_path):
    worldsim.run(scenario(), out=tmp_path, models=["flow"], seeds=[1])
    worldsim.run(scenario(), out=tmp_path, models=["ode"])
    worldsim.run(scenario(), out=tmp_path)
    first, second = decoded(kept.root), decoded(tmp_path)
    assert first.keys() == second.keys()
    for key, tree in first.items():
        xr.testing.assert_identical(tree, second[key])
    assert scores(kept.root) == scores(tmp_path)


def test_nothing_is_done_twice(kept):
    receipts = []
    worldsim.run(scenario(), out=kept.root, on_receipt=receipts.append)
    assert receipts == []


def test_scores_of_what_was_just_computed_and_of_what_is_read_again_are_the_same(kept, tmp_path):
    shutil.copytree(kept.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "scores")
    worldsim.run(scenario(), out=tmp_path / "copy")
    assert scores(tmp_path / "copy") == scores(kept.root)
    assert files(tmp_path / "copy", "runs") == files(kept.root, "runs")


def test_a_new_metric_retrains_nothing(kept):
    fits = {path: path.stat().st_mtime_ns for path in (kept.root / "fits").iterdir()}
    runs = files(kept.root, "runs")
    transport = {"name": "transport", "splits": ["test"], "points": 16, "minimum": 4}
    more = scenario(metrics=["rollout", "invariants", transport])
    results = worldsim.run(more, out=kept.root)
    assert {path: path.stat().st_mtime_ns for path in (kept.root / "fits").iterdir()} == fits
    assert files(kept.root, "runs") == runs
    assert any(row.metric == "transport" for row in results.rows())
    worldsim.run(scenario(), out=kept.root)


def test_seeds_differ_and_the_test_truth_does_not(kept):
    zero, one = kept.rollouts("tiny", "ode", 0), kept.rollouts("tiny", "ode", 1)
    flow = kept.rollouts("tiny", "flow", 0)
    xr.testing.assert_identical(zero["test"]["truth"], one["test"]["truth"])
    xr.testing.assert_identical(zero["test"]["truth"], flow["test"]["truth"])
    assert not np.array_equal(zero["test"]["state"], one["test"]["state"])


def test_a_name_a_comment_or_a_metric_does_not_change_a_key():
    keys = [case.key for case in scenario().cases()]
    same = scenario(about="Another question?", metrics=["rollout"], constraints=[])
    assert [case.key for case in same.cases()] == keys
    renamed = from_document(DOCUMENT, "renamed", registry())
    assert [case.key for case in renamed.cases()] == keys


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("system", "mass"), 2.0),
        (("data", "step"), 0.125),
        (("data", "splits", "longer", "trajectories"), 4),
        (("models", "ode", "width"), 9),
        (("fit", "steps"), 13),
        (("draws",), 2),
    ],
)
def test_what_means_something_changes_the_key(path, value):
    document = copy.deepcopy(DOCUMENT)
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    old, new = scenario().cases()[0], from_document(document, "tiny", registry()).cases()[0]
    assert old.key != new.key


def test_the_projected_flow_keeps_its_energy(kept):
    rows = [row for row in kept.rows("tiny") if row.name == "violation_energy_max"]
    worst = [row.score.value for row in rows if row.model == "flow"]
    assert len(worst) == 2 * 2
    assert max(worst) < 1e-9
    assert min(row.score.value for row in rows if row.model == "ode") > 1e-3


def test_the_truth_makes_no_error(kept):
    for row in kept.rows("tiny"):
        if row.model == "truth" and row.name == "nrmse":
            assert row.score.value < 1e-9


def test_a_kept_model_rolls_out_on_a_users_own_data(kept):
    model = worldsim.load_model(kept, "ode", seed=1)
    given = torch.tensor([[[[0.3, 0.0]]]], dtype=torch.float64)
    own = worldsim.Trajectory(given, torch.zeros(1, dtype=torch.float64))
    times = torch.arange(4, dtype=torch.float64) * 0.25
    guess = model.rollout(own, times, None, 2, torch.Generator().manual_seed(0))
    assert guess.states.shape == (1, 2, 4, 2)
    tree = kept.rollouts("tiny", "ode", 1)["test"]
    context = worldsim.Trajectory(torch.from_numpy(tree["truth"].values[:, None, :1].copy()), times[:1])
    again = model.rollout(context, torch.from_numpy(tree["time"].values.copy()), None, 1, torch.Generator())
    assert np.array_equal(again.states.numpy(), tree["state"].values)


def test_results_open_as_xarray(kept):
    tree = xr.open_datatree(kept.root, engine="worldsim")
    assert tree["scores"]["value"].dims == ("scenario", "model", "seed", "score")
    value = tree["scores"]["value"].sel(scenario="tiny", model="ode", seed=1, score="test/nrmse")
    wanted = ("ode", 1, "test", "nrmse")
    row = next(r for r in kept.rows("tiny") if (r.model, r.seed, r.split, r.name) == wanted)
    assert float(value) == row.score.value
    state = tree["tiny/longer"]["state"].sel(model="flow", seed=0)
    assert np.array_equal(state, kept.rollouts("tiny", "flow", 0)["longer"]["state"])
    one = next((kept.root / "runs").rglob("*.zarr.zip"))
    state = xr.open_dataset(one, engine="worldsim", group="test")["state"]
    assert state.dims[:3] == ("trajectory", "draw", "time")


def test_a_case_that_fails_is_kept_as_a_failure_and_harms_no_other(tmp_path):
    plugin = tmp_path / "exploding.py"
    plugin.write_text(
        "from worldsim import hookimpl\n"
        "class Exploding:\n"
        "    def loss(self, truth):\n        raise RuntimeError('boom')\n"
        "    def rollout(self, *given):\n        raise RuntimeError('boom')\n"
        "@hookimpl\ndef worldsim_dynamics():\n    return {'exploding': Exploding}\n"
    )
    document = {**copy.deepcopy(DOCUMENT), "models": {"bad": "exploding"}, "seeds": [0]}
    document["baselines"] = ["persistence"]
    broken = from_document(document, "tiny", registry((plugin,)))
    results = worldsim.run(broken, out=tmp_path / "out", plugins=[plugin])
    assert {e.model: results.status(e) for e in results.entries} == {"bad": "failed", "persistence": "done"}
    assert "boom" in results.failure(results.find("tiny", "bad"))
    failure = json.loads(next((tmp_path / "out" / "failures").iterdir()).read_text())
    assert "exploding.py" in failure["traceback"]


def test_children_give_the_same_bits(kept, tmp_path):
    results = worldsim.run(scenario(), out=tmp_path, models=["ode"], workers=2)
    for seed in (0, 1):
        xr.testing.assert_identical(results.rollouts("tiny", "ode", seed), kept.rollouts("tiny", "ode", seed))


def test_an_absent_device_is_refused_before_anything_is_computed(tmp_path):
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match="this machine has"):
        worldsim.run(scenario(), out=tmp_path / "out", device=absent)
    with pytest.raises(DeviceError, match="float16"):
        worldsim.run(scenario(), out=tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_clear_words_for_what_is_not_there(kept, tmp_path):
    with pytest.raises(ResultError, match="holds no results"):
        worldsim.open_results(tmp_path)
    with pytest.raises(ResultError, match="tiny/ode/0"):
        kept.find("tiny", "od", 0)
    with pytest.raises(WorldsimError, match="neither a file, a folder nor an installed suite"):
        worldsim.run(tmp_path / "nowhere.yaml", out=tmp_path)
    with pytest.raises(ScenarioError, match="neural_od"):
        scenario(models={"ode": {"name": "neural_od"}})


def test_every_split_is_scored_in_its_own_world(tmp_path):
    document = copy.deepcopy(DOCUMENT)
    document["data"]["splits"]["longer"]["system"] = {"mass": 3.0}
    document["models"] = {"flow": document["models"]["flow"]}
    document["seeds"] = [0]
    results = worldsim.run(from_document(document, "tiny", registry()), out=tmp_path)
    rows = {(row.model, row.name): row.score for row in results.rows() if row.split == "longer"}
    assert rows["truth", "nrmse"].value < 1e-9
    assert rows["flow", "violation_energy_max"].value < 1e-9


def test_what_a_model_cannot_be_held_to_is_refused_before_anything_is_computed():
    held = {"name": "neural_ode", "constraints": [{"name": "energy", "mechanisms": ["guidance"]}]}
    with pytest.raises(ScenarioError, match="cannot be held to it by guidance"):
        scenario(models={"ode": held})
    with pytest.raises(ScenarioError, match="does not conserve its energy"):
        scenario(system={"name": "pendulum", "damping": 0.1}, models={"ode": "neural_ode"})


def test_a_worker_with_other_code_than_the_plan_says_so(tmp_path):
    task = task_of(scenario().cases()[0], tmp_path, ())
    receipt = compute(replace(task, key="0" * 32))
    assert receipt.status == "failed"
    assert "changed since the plan was made" in receipt.message
    assert list((tmp_path / "failures").iterdir())
    assert not (tmp_path / "runs").exists()
