"""What is exported is read back by the readers of each format, and what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from kept_folder import folder

import worldsim
from worldsim.cli import exit_code
from worldsim.errors import ResultError
from worldsim.export import write
from worldsim.plugins import registry
from worldsim.reading import from_document
from worldsim.xarray_backend import results_tree

h5py = pytest.importorskip("h5py")
pytest.importorskip("h5netcdf")

HEAT = {
    "about": "Does a field cool?",
    "system": {"name": "heat", "points": 8, "length": 2.0},
    "data": {
        "step": 0.5,
        "splits": {"train": {"trajectories": 2, "horizon": 1.0}, "test": {"trajectories": 3, "horizon": 1.0}},
    },
    "models": {},
    "metrics": ["rollout"],
    "baselines": ["truth", "persistence"],
    "seeds": [0],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return folder(root, missing=(("net", 2),), names=("world", "other"), actions=True)


@pytest.fixture(scope="module")
def heat(tmp_path_factory):
    document = {**HEAT, "models": {"still": {"name": "neural_ode", "width": 2, "fit": {"steps": 0}}}}
    scenario = from_document(document, "heat", registry())
    return worldsim.run(scenario, out=tmp_path_factory.mktemp("heat"))


@pytest.mark.parametrize(("form", "engine"), [("netcdf", "h5netcdf"), ("zarr", "zarr")])
def test_everything_comes_back_through_xarray(made, tmp_path, form, engine):
    out = tmp_path / "new" / f"out.{form}"
    assert exit_code(["export", str(made.root), str(out), "--to", form]) == 0
    back = xr.open_datatree(out, engine=engine, decode_times=False)
    files = results_tree(made)
    assert back.attrs["Conventions"] == "CF-1.12"
    assert "world: Made by hand?" in back.attrs["title"]
    for path in ("scores", "world/test", "other/test"):
        xr.testing.assert_equal(back[path].to_dataset().load(), files[path].to_dataset())
    test = back["world/test"]
    assert test["model"].values.tolist() == ["net", "Net", "truth"]
    assert test["token"].dtype == np.int64
    assert test["length"].sel(model="Net", seed=0).values.tolist() == [4, 3]
    assert test["truth"].attrs["units"] == "m"
    assert test.attrs["component_units"] == "p=kg m s-1, q=m, time=s"
    assert np.asarray(test["status"].attrs["flag_values"]).tolist() == [0, 1, 2, 3]
    assert not [path for path in out.parent.iterdir() if path != out]


def test_flags_of_netcdf_have_the_type_of_their_variable(made, tmp_path):
    write(made, "netcdf", tmp_path / "a.nc", ["world"])
    with h5py.File(tmp_path / "a.nc") as file:
        status = file["world/test/status"]
        assert status.attrs["flag_values"].dtype == status.dtype == np.int8
        assert "other" not in file


def spec_of_the_well(file):
    """What docs/data_format.md of The Well, and its script that checks files, ask of a file."""
    axes = list(file["dimensions"].attrs["spatial_dims"])
    assert file.attrs["grid_type"] == "cartesian"
    assert int(file.attrs["n_spatial_dims"]) == len(axes) > 0
    assert list(file.attrs["simulation_parameters"]) == []
    assert isinstance(file.attrs["dataset_name"], str)
    assert isinstance(file["dimensions/time"].attrs["sample_varying"], np.bool_)
    for axis in axes:
        for flag in ("sample_varying", "time_varying"):
            assert file["dimensions"][axis].attrs[flag] == np.False_
    steps = file["dimensions/time"].shape[-1]
    sizes = [file["dimensions"][axis].shape[-1] for axis in axes]
    for order in range(3):
        group = file[f"t{order}_fields"]
        for name in group.attrs["field_names"]:
            assert isinstance(name, str)
            field = group[name]
            assert field.dtype == np.float32
            assert field.attrs["sample_varying"]
            assert field.attrs["time_varying"]
            assert field.attrs["dim_varying"].tolist() == [True] * len(axes)
            assert list(field.shape) == [file.attrs["n_trajectories"], steps, *sizes]
    assert list(file["scalars"].attrs["field_names"]) == []
    for boundary in file["boundary_conditions"].values():
        assert boundary.attrs["bc_type"].upper() in ("WALL", "OPEN", "PERIODIC")
        (axis,) = boundary.attrs["associated_dims"]
        assert boundary["mask"].shape == file["dimensions"][axis].shape


def test_fields_have_the_layout_of_the_well(heat, tmp_path):
    assert exit_code(["export", str(heat.root), str(tmp_path / "well"), "--to", "well"]) == 0
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.hdf5"))
    sources = ("persistence-0", "still-0", "truth-0", "truth")
    assert files == [f"well/heat/{source}/data/test/heat.hdf5" for source in sources]
    kept = heat.rollouts("heat", "still", 0)["test"]
    for source, states in (("truth", kept["truth"]), ("still-0", kept["state"][:, 0])):
        with h5py.File(tmp_path / f"well/heat/{source}/data/test/heat.hdf5") as file:
            spec_of_the_well(file)
            (name,) = file["t0_fields"].attrs["field_names"]
            assert np.array_equal(file["t0_fields"][name][()], states.values[..., 0].astype(np.float32))
            assert file["dimensions/x"][()].tolist() == [i / 4 for i in range(8)]
            assert file["dimensions/time"][()].tolist() == [0.0, 0.5, 1.0]
            assert file["boundary_conditions/x_periodic/mask"][()].nonzero()[0].tolist() == [0, 7]


def test_the_reader_of_the_well_takes_it(heat, tmp_path):
    data = pytest.importorskip("the_well.data")
    write(heat, "well", tmp_path / "well")
    found = data.WellDataset(path=str(tmp_path / "well" / "heat" / "truth"), well_split_name="test")
    assert found[0]["input_fields"].shape == (1, 8, 1)


def test_episodes_have_the_layout_of_minari(made, tmp_path):
    (_, folder_) = write(made, "minari", tmp_path / "minari", plugins=())
    assert folder_ == tmp_path / "minari" / "world" / "test-v0" / "data"
    about = json.loads((folder_ / "metadata.json").read_text())
    assert about["dataset_id"] == "world/test-v0"
    assert (about["total_episodes"], about["total_steps"]) == (2, 3 + 2)
    space = json.loads(about["observation_space"])
    assert (space["type"], space["shape"], space["dtype"]) == ("Box", [2], "float64")
    kept = made.rollouts("world", "net", 0)["test"]
    with h5py.File(folder_ / "main_data.hdf5") as file:
        assert sorted(file) == ["episode_0", "episode_1"]
        for number, steps, terminated in ((0, 3, False), (1, 2, True)):
            episode = file[f"episode_{number}"]
            assert dict(episode.attrs) == {"id": number, "total_steps": steps}
            assert np.array_equal(episode["observations"], kept["truth"].values[number, : steps + 1])
            assert np.isfinite(episode["observations"]).all()
            assert np.array_equal(episode["actions"], kept["action"].values[number, :steps])
            assert np.array_equal(episode["rewards"], kept["truth_reward"].values[number, 1 : steps + 1])
            assert episode["terminations"][()].tolist() == [False] * (steps - 1) + [terminated]
            assert episode["truncations"][()].tolist() == [False] * (steps - 1) + [not terminated]


def test_the_reader_of_minari_takes_it(made, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    write(made, "minari", tmp_path / "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset = minari.load_dataset("world/test-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 5)
    assert dataset.observation_space.shape == (2,)
    kept = made.rollouts("world", "net", 0)["test"]
    for number, episode in enumerate(dataset.iterate_episodes()):
        steps = len(episode.actions)
        assert np.array_equal(episode.observations, kept["truth"].values[number, : steps + 1])
        assert np.array_equal(episode.rewards, kept["truth_reward"].values[number, 1 : steps + 1])


def test_a_system_without_rewards_has_none(tmp_path):
    results = folder(tmp_path / "kept", seeds=1, actions=True)
    entry = results.entries[0]
    tree = results.store.open_run(entry.key)
    bare = tree["test"].to_dataset().drop_vars(["truth_reward", "truth_terminated", "length"])
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), "/test": bare})
    results.store.keep_run(entry.key, tree, {})
    (data,) = write(results, "minari", tmp_path / "out")
    with h5py.File(data / "main_data.hdf5") as file:
        assert all(map(math.isnan, file["episode_0/rewards"]))
        assert not file["episode_0/terminations"][()].any()
        assert file["episode_0/truncations"][()].tolist() == [False, False, True]


def test_what_does_not_fit_is_refused_before_anything_is_written(made, heat, tmp_path, capsys):
    without = folder(tmp_path / "without", seeds=1)
    cases = [
        (heat, "minari", "Minari holds systems with actions, and this one has none"),
        (without, "minari", "take --to netcdf, or leave it out with --scenario"),
    ]
    for results, form, told in cases:
        with pytest.raises(ResultError, match=told):
            write(results, form, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    with pytest.raises(ResultError, match="is there already"):
        write(made, "netcdf", occupied)
    with pytest.raises(ResultError, match="did you mean 'world'"):
        write(made, "netcdf", tmp_path / "out", ["wrold"])
    assert exit_code(["export", str(made.root), str(tmp_path / "x"), "--to", "csv"]) == 2
    assert "'netcdf', 'zarr', 'well', 'minari'" in capsys.readouterr().err


def test_states_that_are_no_fields_are_refused_by_the_well(tmp_path):
    scenario = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"
    results = worldsim.run(scenario, out=tmp_path / "kept", models=["truth"])
    with pytest.raises(ResultError, match="'pendulum' is none"):
        write(results, "well", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", ["../../escaped", "/escaped", ".hidden", "a\\b"])
def test_a_label_of_a_stranger_names_no_folder_elsewhere(heat, tmp_path, label):
    root = tmp_path / "kept"
    shutil.copytree(heat.root, root)
    (plan,) = (root / "plan").iterdir()
    plan.write_text(plan.read_text().replace('"model": "still"', f'"model": {json.dumps(label)}'))
    with pytest.raises(ResultError, match="cannot name a folder"):
        write(worldsim.open_results(root), "well", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_a_missing_library_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setattr("worldsim.export.find_spec", lambda name: None)
    with pytest.raises(ResultError, match=r"pip install 'worldsim\[export\]'"):
        write(made, "netcdf", tmp_path / "out.nc")
