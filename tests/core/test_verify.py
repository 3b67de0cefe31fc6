"""``worldsim verify`` finds what is damaged or in another's place, and only that is computed again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from kept_folder import folder, key_of

from worldsim.cli import exit_code
from worldsim.errors import ResultError
from worldsim.seals import BLANK, END, is_whole, sealed
from worldsim.store import Store
from worldsim.verifying import move_aside, verify

SCENARIO = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"
RUN = ("run", str(SCENARIO), "--workers", "0", "--no-report")


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    root = tmp_path_factory.mktemp("computed")
    assert exit_code([*RUN, "--out", str(root)]) == 0
    return root


@pytest.fixture
def root(computed, tmp_path):
    return Path(shutil.copytree(computed, tmp_path / "results"))


@pytest.fixture
def handmade(tmp_path):
    results = folder(tmp_path / "handmade", failed=(("net", 1),))
    results.store.keep_fit(key_of("fit"), {"w": torch.eye(3)}, {"finished": "yes"})
    return results.root


def only(root, pattern, number=0):
    return sorted(root.glob(pattern))[number]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path):
    path.write_bytes(b"")


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_link(path):
    elsewhere = path.with_name(".elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = [flip, truncate, empty, make_folder, make_pipe, make_link]
SEALED = ["runs/*/*.zarr.zip", "scores/*/*.json", "fits/*.safetensors"]
TEXTS = ["failures/*.json", "plan/*.jsonl"]
"""Without a checksum: a flipped letter of a message is a letter."""
CASES = [(kind, damage) for damage in DAMAGES for kind in SEALED]
CASES += [(kind, damage) for damage in DAMAGES[1:] for kind in TEXTS]


def test_a_whole_folder_has_nothing_to_say_against(root, handmade, capsys):
    for each in (root, handmade):
        found = verify(each)
        assert (found.damaged, found.unsealed, found.parts) == ((), 0, ())
    assert exit_code(["verify", str(root)]) == 0
    assert capsys.readouterr().out == f"0 damaged files of {verify(root).files}\n"


@pytest.mark.trial(11)
@pytest.mark.parametrize(("kind", "damage"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_damage_is_found_and_nothing_else(handmade, kind, damage):
    path = only(handmade, kind)
    damage(path)
    assert [found.path for found in verify(handmade).damaged] == [path]


@pytest.mark.trial(11)
@pytest.mark.parametrize("kind", SEALED)
def test_every_flipped_bit_is_found(handmade, kind):
    path, store = only(handmade, kind), Store(handmade)
    good = path.read_bytes()
    key, owner = path.name.split(".")[0], path.parent.name

    def read(data):
        path.write_bytes(data)
        if kind.startswith("fits"):
            return store.open_fit(key)
        if kind.startswith("scores"):
            return store.open_scores(owner, key)
        return verify_one(handmade, path)

    assert read(good)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        if kind.startswith("runs") and is_whole(bytes(bad)) is False:
            continue  # what is not what its checksum was made of is refused before it is read
        with pytest.raises(ResultError):
            read(bytes(bad))


def verify_one(root, path):
    damaged = [found for found in verify(root).damaged if found.path == path]
    if damaged:
        raise ResultError(damaged[0].reason)
    return True


@pytest.mark.trial(11)
@pytest.mark.parametrize("kind", SEALED)
def test_files_that_were_swapped_are_found(handmade, kind):
    Store(handmade).keep_fit(key_of("other"), {"w": torch.eye(2)}, {})
    one, other = only(handmade, kind), only(handmade, kind, 1)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert [found.path for found in verify(handmade).damaged] == [one, other]


def test_a_file_with_a_name_that_is_no_key_or_in_another_folder_is_found(handmade):
    path = only(handmade, "runs/*/*.zarr.zip")
    stray = path.parent / "results.zarr.zip"
    shutil.copy(path, stray)
    moved = path.rename(path.parents[1] / "zz.zarr.zip")
    assert {found.path for found in verify(handmade).damaged} == {stray, moved}


@pytest.mark.trial(11)
def test_a_run_that_means_something_else_than_its_key_is_found(root):
    path = only(root, "runs/*/*.zarr.zip")
    data = path.read_bytes()
    other = data.replace(b'"draws": 1', b'"draws": 2')
    assert other != data
    found = END.search(other)
    path.write_bytes(sealed(other[: found.start(1)] + BLANK.encode() + other[found.end(1) :]))
    (damage,) = verify(root).damaged
    assert "has not the key of what it says that it means" in damage.reason


def test_files_of_earlier_versions_are_read_and_counted(handmade):
    path = only(handmade, "scores/*/*.json")
    document = json.loads(path.read_text())
    del document["_kept"]
    path.write_text(json.dumps(document))
    found = verify(handmade)
    assert (found.damaged, found.unsealed) == ((), 1)
    assert Store(handmade).open_scores(path.parent.name, path.stem) == document


@pytest.mark.trial(11)
def test_what_is_moved_aside_alone_is_computed_again_with_the_same_bits(root, computed, capsys):
    run, scores = only(root, "runs/*/*.zarr.zip"), only(root, "scores/*/*.json", 1)
    fit = only(root, "fits/*.safetensors")
    for path in (run, scores, fit):
        flip(path)
    untouched = {p: p.stat().st_mtime_ns for p in root.glob("*/*/*") if p not in (run, scores)}
    assert exit_code(["verify", str(root)]) == 1
    said = capsys.readouterr()
    for path in (run, scores, fit):
        assert f"damaged: {path}: " in said.out
    assert "--delete" in said.err
    assert run.exists()
    assert exit_code(["verify", str(root), "--delete"]) == 0
    said = capsys.readouterr()
    for path in (run, scores, fit):
        assert f"moved to {root / 'damaged' / path.relative_to(root)}\n" in said.out
        assert not path.exists()
        assert (root / "damaged" / path.relative_to(root)).is_file()
    assert exit_code([*RUN, "--out", str(root)]) == 0
    assert verify(root).damaged == ()
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    one, other = Store(root), Store(computed)
    assert scores.read_bytes() == (computed / scores.relative_to(root)).read_bytes()
    key = run.name.split(".")[0]
    assert one.open_run(key).identical(other.open_run(key))
    weights, again = other.open_fit(fit.stem)[0], one.open_fit(fit.stem)
    if again:  # trained again only where the case that needs it is
        assert all(torch.equal(value, again[0][name]) for name, value in weights.items())


def test_a_second_damaged_file_does_not_take_the_place_of_the_first(handmade):
    path = only(handmade, "scores/*/*.json")
    for _ in range(2):
        empty(path)
        moved = move_aside(handmade, verify(handmade).damaged)
        path.write_bytes(b"")
    assert moved[0].name == f"{path.name}.2"


def test_halves_of_files_are_no_damage_and_go_with_the_next_run(root):
    part = root / "runs" / "ab" / "x.zarr.zip.123.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    assert verify(root).parts == (part,)
    assert exit_code([*RUN, "--out", str(root)]) == 0
    assert not part.exists()


def test_what_is_no_results_folder_is_said_so(tmp_path, capsys):
    assert exit_code(["verify", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err
