"""Files are written whole or not at all, equal results are equal bytes, and damage is noticed."""

import numpy as np
import pytest
import torch
import xarray as xr

from worldsim.errors import ResultError
from worldsim.store import Store, provenance_of, write_whole, zip_tree


def tree():
    states = np.arange(24, dtype=np.float64).reshape(2, 1, 6, 2)
    data = xr.Dataset(
        {"state": (("trajectory", "draw", "time", "component"), states)},
        coords={"time": ("time", np.arange(6) * 0.1, {"units": "s"})},
    )
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"key": "k"}), "/test": data})


def test_equal_trees_are_equal_bytes():
    assert zip_tree(tree(), {"a": 1}) == zip_tree(tree(), {"a": 1})


def test_a_run_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path)
    store.keep_run("abcd", tree(), {"command": "run"})
    back = store.open_run("abcd")
    xr.testing.assert_identical(back["test"].to_dataset(), tree()["test"].to_dataset())
    assert back["test"]["time"].dtype == np.float64
    assert provenance_of(store.run_path("abcd")) == {"command": "run"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_run_is_refused_by_name(tmp_path, damage):
    store = Store(tmp_path)
    store.keep_run("abcd", tree(), {})
    path = store.run_path("abcd")
    good = bytearray(path.read_bytes())
    if damage == "flipped":
        member = good.index(b"state/c/0")
        good[member + 40] ^= 0xFF
    path.write_bytes({"truncated": good[: len(good) // 2], "flipped": good, "empty": b""}[damage])
    with pytest.raises(ResultError, match=r"abcd\.zarr\.zip"):
        store.open_run("abcd")


def test_a_fit_keeps_tensors_and_words(tmp_path):
    store = Store(tmp_path)
    assert store.open_fit("f") is None
    store.keep_fit("f", {"w": torch.eye(2).T}, {"finished": "yes"})
    tensors, words = store.open_fit("f")
    assert torch.equal(tensors["w"], torch.eye(2))
    assert words == {"finished": "yes"}
    store.fit_path("f").write_bytes(b"not safetensors")
    with pytest.raises(ResultError, match="delete it"):
        store.open_fit("f")


def test_a_finished_run_clears_its_failure(tmp_path):
    store = Store(tmp_path)
    store.keep_failure("abcd", {"message": "no"})
    assert store.open_failure("abcd") == {"message": "no"}
    store.keep_run("abcd", tree(), {})
    assert store.open_failure("abcd") is None
