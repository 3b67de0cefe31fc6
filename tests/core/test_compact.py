"""The compacted store holds what the files do, is used while it does, and masks what is not there."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from kept_folder import folder

from worldsim.cli import exit_code
from worldsim.compacting import DATASET, MARK, chunking, compact, is_current, open_compacted
from worldsim.errors import ResultError
from worldsim.plan_files import plan_path
from worldsim.stacking import STATUS, Layout, Variable
from worldsim.xarray_backend import results_tree

SMALLEST = np.iinfo(np.int64).min


def described(root):
    return folder(
        root, seeds=5, missing=(("net", 2), ("Net", 0)), failed=(("net", 3),), names=("world", "other")
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    results = described(tmp_path_factory.mktemp("made"))
    assert compact(results) == (results.root / DATASET, True)
    return results


@pytest.fixture
def results(made, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(made.root, root)
    return type(made)(root)


def test_the_store_and_the_files_hold_the_same(made):
    compacted, files = open_compacted(made.root), results_tree(made)
    assert {node.path for node in compacted.subtree} == {node.path for node in files.subtree}
    for path in ("scores", "world/test", "other/test"):
        one, other = compacted[path].to_dataset().load(), files[path].to_dataset()
        xr.testing.assert_equal(one, other)
        for name in other.variables:
            assert one[name].dtype == other[name].dtype, name
            assert one[name].attrs == other[name].attrs, name
        if path != "scores":
            assert one.attrs == other.attrs


@pytest.mark.parametrize("opened", [open_compacted, lambda root: xr.open_datatree(root, engine="worldsim")])
def test_dimensions_labels_units_and_status(made, opened):
    data = opened(made.root)["world/test"].to_dataset()
    assert data["state"].dims == ("model", "seed", "trajectory", "draw", "time", "component")
    assert data["model"].values.tolist() == ["net", "Net", "truth"]
    assert data["component"].values.tolist() == ["q", "p"]
    assert data["time"].attrs["units"] == "s"
    assert data["truth"].attrs["units"] == "m"
    meanings = dict(zip(data["status"].attrs["flag_meanings"].split(), data["status"].attrs["flag_values"]))
    assert meanings == STATUS
    status = data["status"].sel(model="net").values.tolist()
    assert status == [meanings[word] for word in ("done", "done", "missing", "failed", "done")]
    one = data["state"].sel(model="Net", seed=3)
    assert np.array_equal(one, made.rollouts("world", "Net", 3)["test"]["state"])


def test_what_is_not_there_is_neither_zero_nor_silent(made):
    data = open_compacted(made.root)["world/test"].to_dataset().load()
    there = np.isin(data["status"], (STATUS["done"], STATUS["unscored"]))
    for name in ("state", "truth"):
        first = data[name].isel(time=0)
        known = first.notnull().all([dim for dim in first.dims if dim not in ("model", "seed")])
        assert np.array_equal(known, there), name
    assert np.array_equal((data["token"] == SMALLEST).all(("trajectory", "draw", "time")), ~there)
    assert data["token"].dtype == np.int64
    assert np.array_equal((data["length"] == SMALLEST).all("trajectory"), ~there)
    assert data["length"].sel(model="net", seed=0).values.tolist() == [4, 3]
    assert not data["projected"].sel(model="net").any()
    assert data["projected"].attrs["ancillary_variables"] == "status"


def test_compacting_again_does_nothing(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob("*")}
    assert exit_code(["compact", str(made.root)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob("*")} == before


def changes():
    def run_gone(results):
        results.store.run_path(results.entries[0].key).unlink()

    def run_added(results):
        donor, empty = results.entries[0], next(e for e in results.entries if e.label == "world/net/2")
        tree = results.store.open_run(donor.key)
        tree.attrs["worldsim_key"] = empty.key
        results.store.keep_run(empty.key, tree, {})

    def failure_gone(results):
        next((results.root / "failures").iterdir()).unlink()

    def plan_changed(results):
        path = plan_path(results.root, "world")
        path.write_text("\n".join(path.read_text().splitlines()[:-1]))

    def shard_gone(results):
        next((results.root / DATASET / "world/test/state").glob("c.*")).unlink()

    def mark_gone(results):
        (results.root / DATASET / MARK).unlink()

    def mark_broken(results):
        (results.root / DATASET / MARK).write_text("{half")

    def link(results):
        (results.root / DATASET).rename(results.root.parent / "elsewhere")
        (results.root / DATASET).symlink_to(results.root.parent / "elsewhere")

    return [run_gone, run_added, failure_gone, plan_changed, shard_gone, mark_gone, mark_broken, link]


@pytest.mark.trial(12)
@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_a_store_that_may_be_old_or_damaged_is_not_used(results, change):
    assert is_current(results.root)
    change(results)
    assert not is_current(results.root)
    again = type(results)(results.root)
    tree = xr.open_datatree(results.root, engine="worldsim")
    for scenario in again.scenarios:
        xr.testing.assert_equal(
            tree[f"{scenario}/test"].to_dataset(), results_tree(again)[f"{scenario}/test"].to_dataset()
        )


def test_scores_that_come_later_make_it_old(results):
    entry = results.entries[0]
    path = results.store.score_path(entry.key, entry.metrics["rollout"])
    document = results.store.open_scores(entry.key, entry.metrics["rollout"])
    path.unlink()
    shutil.rmtree(results.root / DATASET)
    assert compact(results)[1]
    assert is_current(results.root)
    results.store.keep_scores(entry.key, entry.metrics["rollout"], document)
    assert not is_current(results.root)
    assert compact(type(results)(results.root))[1]
    assert not list(results.root.glob(f"{DATASET}.*"))


@pytest.mark.trial(12)
def test_a_flipped_bit_in_the_store_is_an_error_and_not_a_number(results):
    shard = next((results.root / DATASET / "world/test/state").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        open_compacted(results.root)["world/test"]["state"].load()


def test_a_compaction_that_breaks_leaves_what_was_there(results, monkeypatch):
    old = sorted(p.name for p in results.root.iterdir())
    results.store.run_path(results.entries[1].key).write_bytes(b"broken")
    results.store.run_path(results.entries[0].key).unlink()
    with pytest.raises(ResultError, match="damaged"):
        compact(type(results)(results.root))
    assert sorted(p.name for p in results.root.iterdir()) == old
    left = results.root / f"{DATASET}.00000000.1.part"
    left.mkdir()
    os.utime(left, (0, 0))
    monkeypatch.setattr(os, "rename", lambda a, b: pytest.fail("renamed"))
    with pytest.raises(ResultError):
        compact(type(results)(results.root))
    assert not left.exists()


def test_coordinates_of_a_stranger_are_not_made_room_for(results):
    path = results.root / DATASET / "zarr.json"
    about = json.loads(path.read_text())
    about["consolidated_metadata"]["metadata"]["world/test/seed"]["shape"] = [10**12]
    path.write_text(json.dumps(about))
    with pytest.raises(ResultError, match="shape"):
        open_compacted(results.root)


def test_files_of_many_cases_hold_a_hundred_of_them():
    small = Variable(("time",), (10,), np.dtype(np.float32), {})
    large = Variable(("trajectory", "time"), (1000, 2**15), np.dtype(np.float32), {})

    def layout(variable, seeds):
        return Layout(("a",), tuple(range(seeds)), np.zeros((1, seeds)), {"x": variable}, {}, {})

    assert chunking(small, layout(small, 10_000)) == ((1, 100, 10), (1, 100, 10))
    chunks, shards = chunking(large, layout(large, 10_000))
    assert np.prod(chunks) * 4 <= 64 * 2**20
    assert all(shard % chunk == 0 for shard, chunk in zip(shards, chunks, strict=True))
