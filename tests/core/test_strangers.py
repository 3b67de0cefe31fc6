"""Results and checkpoints of strangers are safe to open: refused before much is read, built or run."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from kept_folder import folder, key_of
from safetensors.torch import save

import worldsim
from worldsim.archive import (
    MAX_DIRECTORY,
    MEMBER,
    allowance,
    open_zip,
    provenance_of,
    unpacked_size,
    zip_tree,
)
from worldsim.cli import exit_code
from worldsim.errors import ResultError
from worldsim.leftovers import orphan_files
from worldsim.plan_files import plan_path
from worldsim.results import Results, open_results
from worldsim.store import MAX_HEADER, Store
from worldsim.verifying import verify

SCENARIO = Path(__file__).parent / "tiny" / "tiny_pendulum.yaml"
GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4],
    "data_type": "float64",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "codecs": [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
    ],
    "attributes": {},
    "dimension_names": ["time"],
    "storage_transformers": [],
}
PEAK = 64 * 2**20
"""Bytes that reading any of these may take."""


def array(**changes):
    return json.dumps({**ARRAY, **changes}).encode()


def grid(*chunk):
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


def members(about, chunk=b""):
    return {"zarr.json": GROUP, "x/zarr.json": about, **({"x/c/0": chunk} if chunk else {})}


def frame(size):
    """A Zstandard frame of 17 bytes that says it unpacks to ``size`` bytes."""
    return b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + size.to_bytes(8, "little") + b"\x03\x00\x00\x00"


def zipped(found, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in found.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def overlapping():
    """Two members that are the same bytes of the file, as in the bombs of Fifield (2019)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("zarr.json", GROUP)
        archive.writestr("x/c/0", bytes(100_000))
        for number in range(1, 50):
            other = copy.copy(archive.filelist[-1])
            other.filename = f"x/c/{number}"
            archive.filelist.append(other)
    return out.getvalue()


def twice():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("zarr.json", GROUP)
        archive.filelist.append(archive.filelist[0])
    return out.getvalue()


def long_directory():
    """A list of members that says it is longer than any that worldsim writes."""
    data = bytearray(zipped({"zarr.json": GROUP}))
    end = data.rindex(b"PK\5\6")
    data[end + 12 : end + 16] = (MAX_DIRECTORY + 1).to_bytes(4, "little")
    return bytes(data)


BOMBS = {
    "a shape of eight terabytes": zipped(members(array(shape=[10**12], chunk_grid=grid(10**6)))),
    "a shape that fits in memory": zipped(members(array(shape=[2**27], chunk_grid=grid(2**27)))),
    "a shape beyond all integers": zipped(members(array(shape=[2**70]))),
    "a negative shape": zipped(members(array(shape=[-4]))),
    "a shape of words": zipped(members(array(shape=["4"]))),
    "many small arrays": zipped(
        {
            "zarr.json": GROUP,
            **{f"x{i}/zarr.json": array(shape=[2**24], chunk_grid=grid(2**24)) for i in range(9)},
        }
    ),
    "a chunk larger than its array": zipped(members(array(chunk_grid=grid(2**40)))),
    "endless chunks": zipped(members(array(shape=[10**7], data_type="int8", chunk_grid=grid(1)))),
    "no chunk": zipped(members(array(chunk_grid=grid(0)))),
    "a frame that says 1 TiB": zipped(members(array(), frame(2**40))),
    "a frame that says nothing": zipped(members(array(), b"\x28\xb5\x2f\xfd\x00\x58" + bytes(20))),
    "no frame at all": zipped(members(array(), bytes(32))),
    "packed twice": zipped(members(array(codecs=[*ARRAY["codecs"], ARRAY["codecs"][1]]))),
    "an unknown codec": zipped(members(array(codecs=[{"name": "pickle"}]))),
    "objects": zipped(members(array(data_type="object"))),
    "long text": zipped(
        members(array(data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}))
    ),
    "a transformer": zipped(members(array(storage_transformers=[{"name": "x"}]))),
    "metadata nested deeply": zipped(members(b"[" * 100_000 + b"]" * 100_000)),
    "metadata of 5 MiB": zipped(members(array(attributes={"x": "y" * 5 * 2**20}))),
    "metadata that are a list": zipped(members(b"[]")),
    "labels for other sizes": zipped(
        {"zarr.json": GROUP.replace(b"{}", b'{"labels": {"a": ["b"], "c": 1}}')}
    ),
    "packed members": zipped({"zarr.json": GROUP, "x": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "a path upwards": zipped({"zarr.json": GROUP, "../../escaped": b"x"}),
    "an absolute path": zipped({"zarr.json": GROUP, "/escaped": b"x"}),
    "overlapping members": overlapping(),
    "a list of members without end": long_directory(),
    "no zip": b"PK\3\4" + bytes(1000),
}


@pytest.mark.trial(19)
@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_would_take_memory_or_odd_ways_is_refused(name, tmp_path):
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    with pytest.raises(ResultError, match=r"x\.zarr\.zip is damaged"):
        open_zip(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PEAK
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.trial(19)
def test_a_member_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "x.zarr.zip").write_bytes(twice())
    with pytest.raises(ResultError, match="comes twice"):
        open_zip(tmp_path / "x.zarr.zip")


def test_what_worldsim_writes_is_far_within_these_limits(tmp_path):
    import numpy as np
    import xarray as xr

    shapes = {"none": (0, 3), "scalar": (), "constant": (300, 400), "noise": (300, 400)}
    rng = np.random.default_rng(0)
    data = {
        name: ([f"{name}{i}" for i in range(len(shape))], rng.normal(size=shape) * (name == "noise"))
        for name, shape in shapes.items()
    }
    tree = xr.DataTree.from_dict({"/test": xr.Dataset(data)})
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(zip_tree(tree, {"meaning": "x" * 70_000, "key": "k"}))
    assert open_zip(path)["test"].to_dataset().identical(tree["test"].to_dataset())
    assert provenance_of(path) == {"key": "k", "meaning": "left out, for it is too long"}
    assert allowance(path.stat().st_size) >= 256 * 2**20


def test_the_size_of_a_frame_is_read_as_the_standard_says():
    numcodecs = pytest.importorskip("numcodecs")
    for size in (0, 1, 255, 256, 300, 65_791, 65_792, 10**6):
        assert unpacked_size(bytes(numcodecs.Zstd(level=1).encode(bytes(size)))) == size


@pytest.mark.trial(17, 19)
@pytest.mark.parametrize("name", ["../x", "x/../y", "/x", "x\\y", "..", ".", "x/./y", "a\0b", ""])
def test_names_of_members_that_lead_elsewhere_are_none(name):
    assert not MEMBER.fullmatch(name)


def header(about, data=b""):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


CHECKPOINTS = {
    "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "a header that is too long": header(b" " * (MAX_HEADER + 1)),
    "overlapping tensors": header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "tensors beyond the end": header({"a": tensor(0, 8)}, bytes(4)),
    "a giant shape": header({"a": tensor(0, 8, (2**40,))}, bytes(8)),
    "a hole": header({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)),
    "an unknown dtype": header({"a": {**tensor(0, 8), "dtype": "PICKLE"}}, bytes(8)),
    "metadata of numbers in a list": header({"__metadata__": [1]}),
    "a pickle": b"\x80\x04\x95" + bytes(64),
    "a header nested deeply": header(b"[" * 50_000 + b"]" * 50_000),
    "nothing": b"",
}


@pytest.mark.trial(19)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused(name, tmp_path):
    store, key = Store(tmp_path), key_of("fit")
    store.fit_path(key).parent.mkdir()
    store.fit_path(key).write_bytes(CHECKPOINTS[name])
    tracemalloc.start()
    with pytest.raises(ResultError, match="delete it, and it is fitted again"):
        store.open_fit(key)
    assert tracemalloc.get_traced_memory()[1] < PEAK
    tracemalloc.stop()


@pytest.mark.trial(19)
def test_weights_of_another_shape_cost_their_case_with_a_clear_reason(tmp_path):
    scenario = worldsim.load(SCENARIO)
    case = next(case for case in scenario.cases() if case.model == "small")
    path = Store(tmp_path).fit_path(case.fit_key)
    path.parent.mkdir()
    path.write_bytes(save({"a": torch.zeros(3)}, metadata={"finished": "yes"}))
    results = worldsim.run(scenario, out=tmp_path, models=["small"])
    assert f"{path} holds no weights of tiny_pendulum/small/0" in results.failure(results.entries[0])


SCORE = {
    "value": 1.0, "dims": [], "better": "lower", "units": "1", "floor": 0.0, "interval": [0.5, 1.5], "n": 3,
    "failed": 0, "reason": "", "coords": {}, "met_by": "",
}  # fmt: skip


def scored(**changes):
    return json.dumps({"test": {"nrmse": {**SCORE, **changes}}})


SCORES = {
    "NaN": '{"test": {"nrmse": NaN}}',
    "infinity": scored().replace("1.0", "-Infinity"),
    "an infinite exponent": scored().replace("1.0", "1e999"),
    "a whole number of 5000 digits": scored().replace("1.0", "9" * 5000),
    "deep nesting": '{"test": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a list": "[]",
    "a number": "7",
    "half of it": scored()[:-20],
    "no score": '{"test": {"nrmse": 1.0}}',
    "a split that is a path": '{"../test": {}}',
    "a word for a value": scored(value="1.0"),
    "a word in an array": scored(value=["1.0"], dims=["time"]),
    "ragged arrays": scored(value=[[1.0], [1.0, 2.0]], dims=["a", "b"]),
    "an array without dims": scored(value=[1.0]),
    "a value that is true": scored(value=True),
    "no n": scored(n=None),
    "a negative n": scored(n=-1),
    "a list for units": scored(units=["m"]),
    "an interval of one": scored(interval=[1.0]),
    "a floor of text": scored(floor="low"),
    "coords that are none": scored(coords=[1]),
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.trial(19)
@pytest.mark.parametrize("name", SCORES)
def test_scores_that_are_none_are_refused(name, tmp_path):
    store, run, metric = Store(tmp_path), key_of("run"), key_of("metric")
    path = store.score_path(run, metric)
    path.parent.mkdir(parents=True)
    text = SCORES[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ResultError, match="delete it, and it is scored again"):
        store.open_scores(run, metric)


def test_scores_as_they_are_written_are_read(tmp_path):
    store, run, metric = Store(tmp_path), key_of("run"), key_of("metric")
    for document in (
        {},
        {"test": {"a": SCORE}},
        {"test": {"a": {**SCORE, "value": [[]], "dims": ["b", "c"]}}},
    ):
        store.keep_scores(run, metric, document)
        assert store.open_scores(run, metric) == document


LINES = {
    "key": ["../../x", "A" * 32, "0" * 31, 7, None, "0" * 32 + "/x"],
    "scenario": ["../x", "a/b", "", ".hidden", "x" * 65, "a\\b", None, "café"],
    "model": ["", "x" * 201, "a\0b", "a\nb", None, ["a"]],
    "seed": [True, 1.5, -1, "0", 2**63, None],
    "metrics": [{"a": "../x"}, {"a": 7}, ["a"], "a", None],
    "device": ["cuda:x", "/dev/null", None],
    "dtype": ["", "../x", None],
    "baseline": ["no", 1],
    "surplus": [1],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in LINES.items() for v in values], ids=repr
)
def test_a_plan_with_a_line_that_is_none_is_refused(field, value, tmp_path):
    results = folder(tmp_path, seeds=1)
    path = plan_path(tmp_path, "world")
    lines = path.read_text().splitlines()
    number = 0 if field in json.loads(lines[0]) else 1
    lines[number] = json.dumps({**json.loads(lines[number]), field: value})
    path.write_text("\n".join(lines))
    with pytest.raises(ResultError, match=path.name):
        open_results(results.root)


HEADS = [
    "", "[]", "{}", '{"scenario": []}', '{"scenario": "../x", "document": {"about": ""}}',
    '{"scenario": "x", "document": {"about": 1}}', "{" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", HEADS, ids=range(len(HEADS)))
def test_a_plan_that_says_of_no_scenario_is_refused(text, tmp_path, capsys):
    results = folder(tmp_path, seeds=1)
    path = plan_path(tmp_path, "world")
    path.write_text(text)
    with pytest.raises(ResultError, match=path.name):
        open_results(results.root)
    assert exit_code(["show", str(tmp_path)]) == 2
    assert "verify --delete" in capsys.readouterr().err


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_bytes(b"not to be read or written")
    return path


@pytest.mark.trial(17)
def test_a_link_in_the_place_of_a_file_is_neither_read_nor_written_through(tmp_path, outside):
    results = folder(tmp_path / "kept", seeds=1)
    store, entry = results.store, results.entries[0]
    kept = store.open_run(entry.key)
    metric = entry.metrics["rollout"]
    for path in (store.run_path(entry.key), store.score_path(entry.key, metric)):
        path.unlink()
        path.symlink_to(outside / "secret")
    assert not store.has_run(entry.key)
    assert results.status(entry) == "missing"
    assert store.open_scores(entry.key, metric) is None
    with pytest.raises(ResultError, match="is a symbolic link"):
        store.open_run(entry.key)
    store.keep_run(entry.key, kept, {})
    store.keep_scores(entry.key, metric, {})
    assert store.open_run(entry.key).identical(kept)
    assert (outside / "secret").read_bytes() == b"not to be read or written"


@pytest.mark.trial(17)
def test_a_link_in_the_place_of_a_folder_is_refused_and_nothing_goes_through_it(tmp_path, outside):
    results = folder(tmp_path / "kept", seeds=1)
    store, entry = results.store, results.entries[0]
    kept = store.open_run(entry.key)
    strange = outside / f"{'0' * 32}.zarr.zip"
    strange.write_bytes(b"not ours")
    place = store.run_path(entry.key).parent
    place.rename(outside / "moved")
    place.symlink_to(outside)
    for refused in (
        lambda: store.open_run(entry.key),
        lambda: store.keep_run(entry.key, kept, {}),
    ):
        with pytest.raises(ResultError, match="symbolic link"):
            refused()
    assert [
        file for file in orphan_files(results) if "secret" in str(file) or file.name == strange.name
    ] == []
    assert exit_code(["clean", str(results.root), "--yes"]) == 0
    assert strange.exists()
    runs = results.root / "runs"
    place.unlink()
    runs.rename(outside / "runs")
    runs.symlink_to(outside / "runs")
    with pytest.raises(ResultError, match="symbolic link"):
        store.refuse_unwritable()


def test_the_results_folder_itself_may_be_a_link(tmp_path):
    results = folder(tmp_path / "disk", seeds=1)
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    linked = open_results(tmp_path / "results")
    assert linked.store.open_run(results.entries[0].key) is not None
    linked.store.refuse_unwritable()


@pytest.mark.trial(17)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO there")
def test_nobody_waits_for_a_pipe(tmp_path):
    results = folder(tmp_path, seeds=1)
    store, entry = results.store, results.entries[0]
    metric = entry.metrics["rollout"]
    paths = [store.run_path(entry.key), store.score_path(entry.key, metric), store.fit_path(entry.key)]
    for path in [*paths, store.failure_path(entry.key), plan_path(tmp_path, "world")]:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert results.status(entry) == "missing"
    assert store.open_fit(entry.key) is None
    assert store.open_failure(entry.key) is None
    with pytest.raises(ResultError, match="not a plain file"):
        store.open_run(entry.key)
    with pytest.raises(ResultError, match="not a plain file"):
        _ = Results(results.root).plans


def test_a_failure_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    results = folder(tmp_path, seeds=2, failed=(("net", 0), ("net", 1)))
    path = results.store.failure_path(results.entries[0].key)
    path.write_bytes(b"{half")
    assert [results.status(e) for e in results.entries[:2]] == ["failed", "failed"]
    assert "cannot be read" in results.failure(results.entries[0])
    assert results.failure(results.entries[1]) == "it broke"


HEAD = {
    "schema": 2, "scenario": "world[mass=2.0]", "document": {"about": "Which?"}, "compositions": {},
    "environment": {}, "device": "cpu", "dtype": "float32", "metrics": {"rollout": "a" * 32},
}  # fmt: skip
CASE = {"key": "b" * 32, "model": "net", "seed": 0, "baseline": False, "learned": True}


def planned(root, head, *cases):
    path = plan_path(root, "world[mass=2.0]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *cases)))
    return path


@pytest.mark.trial(17)
@pytest.mark.parametrize(
    ("wrong", "number"),
    [
        ({"scenario": "../../etc"}, 1),
        ({"document": ["about"]}, 1),
        ({"document": {"about": 3}}, 1),
        ({"device": "/dev/sda"}, 1),
        ({"metrics": {"rollout": "../up"}}, 1),
        ({"key": "../" + "b" * 29}, 2),
        ({"model": "a\u0000b"}, 2),
        ({"seed": 1.5}, 2),
        ({"seed": True}, 2),
        ({"baseline": "no"}, 2),
        ({"before": "b" * 32}, 2),
        ({"before": ["up/../" + "b" * 26]}, 2),
    ],
)
def test_a_plan_is_believed_line_by_line(tmp_path, wrong, number):
    planned(tmp_path, HEAD, {**CASE, "before": ["c" * 32]})
    (entry,) = open_results(tmp_path).entries
    assert entry.label == "world[mass=2.0]/net/0"
    lines = [HEAD, CASE]
    lines[number - 1] = {**lines[number - 1], **wrong}
    path = planned(tmp_path, *lines)
    with pytest.raises(ResultError, match=rf"{re.escape(str(path))}:{number}: {next(iter(wrong))}|scenario"):
        open_results(tmp_path)
    (damage,) = verify(tmp_path).damaged
    assert damage.path == path


def test_a_plan_under_the_name_of_another_is_found(tmp_path):
    path = planned(tmp_path, HEAD, CASE)
    path.rename(path.with_name("d" * 32 + ".jsonl"))
    (damage,) = verify(tmp_path).damaged
    assert "not the name of the plan of 'world[mass=2.0]'" in damage.reason


@pytest.mark.trial(16)
def test_names_of_files_are_hashes_alone_so_that_no_names_collide(tmp_path):
    """Two scenarios, and two models, whose names are one on a disk that ignores case."""
    results = folder(tmp_path, names=("world", "World"))
    assert {entry.model for entry in results.entries} == {"net", "Net", "truth"}
    hashed = re.compile(
        r"(runs/[0-9a-f]{2}|scores/[0-9a-f]{32}|fits|failures)/[0-9a-f]{32}\.(zarr\.zip|json)"
    )
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    plans = sorted(str(plan_path(tmp_path, name).relative_to(tmp_path)) for name in ("world", "World"))
    assert sorted(f for f in files if not hashed.fullmatch(f)) == plans
    assert len({f.casefold() for f in files}) == len(files)
    assert len([f for f in files if f.startswith("runs")]) == len(results.entries) == 14


@pytest.mark.trial(16)
@pytest.mark.parametrize("name", ["café", "cafe\u0301", "ＮＥＴ", "net\u202e", "a b", "x" * 300, "שלום"])
def test_names_that_look_alike_or_have_several_forms_are_refused(name, tmp_path):
    text = SCENARIO.read_text(encoding="utf-8").replace("small:", f"'{name}':")
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(worldsim.WorldsimError):
        worldsim.load(file)


OUTSIDE = [
    "../x", "/etc/passwd", "~", "~root", "a/b", "\\\\server\\x", "http://x.org/y", "..", "/dev/zero", "file:///x",
]  # fmt: skip


@pytest.mark.trial(17)
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["small:", "{name: pendulum}", "test:", "[rollout]", "name: neural_ode"])
def test_a_scenario_names_no_file(place, name, tmp_path):
    """Neither as a label nor as a component: names are looked up, and never opened."""
    old = {"[rollout]": "rollout", "{name: pendulum}": "pendulum", "name: neural_ode": "neural_ode"}
    word = old.get(place, place.rstrip(":"))
    text = SCENARIO.read_text(encoding="utf-8")
    assert place in text
    file = tmp_path / "s.yaml"
    file.write_text(text.replace(place, place.replace(word, json.dumps(name))), encoding="utf-8")
    with pytest.raises(worldsim.errors.ScenarioError) as caught:
        worldsim.load(file)
    told = [f"{problem.key} {problem.message}" for problem in caught.value.problems]
    assert any(name in words or repr(name) in words for words in told), told


@pytest.mark.trial(17)
def test_a_suite_leads_to_no_file_outside(tmp_path, capsys):
    suite, secret = tmp_path / "suite", tmp_path / "secret.yaml"
    suite.mkdir()
    secret.write_text("password: swordfish", encoding="utf-8")
    (suite / "good.yaml").symlink_to(suite / "real.yaml")
    shutil.copy(SCENARIO, suite / "real.yaml")
    assert exit_code(["validate", str(suite / "good.yaml")]) == 0
    (suite / "link.yaml").symlink_to(secret)
    for target in (suite, "quickstart/../../pyproject"):
        assert exit_code(["validate", str(target)]) == 2
    told = capsys.readouterr().err
    assert f"{suite / 'link.yaml'} leads out of {suite}, to {secret}" in told
    assert "swordfish" not in told


@pytest.mark.trial(18)
@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("name: neural_ode", "_target_: os.system, name: neural_ode"),
        ("name: neural_ode", "name: os.system"),
        ("name: neural_ode", 'name: \'__import__("os").mkdir("ran")\''),
        ("width: 4", "width: '{{ 2 + 2 }}'"),
        ("width: 4", "width: ${WIDTH}"),
        ("width: 4", "width: ${oc.env:WIDTH}"),
        ("width: 4", "width: $WIDTH"),
        ("width: 4", "width: 2 + 2"),
        ("[rollout]", "['!function os.getcwd']"),
    ],
)
def test_code_in_a_scenario_is_a_wrong_value(place, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WIDTH", "4")
    text = SCENARIO.read_text(encoding="utf-8")
    assert place in text
    file = tmp_path / "s.yaml"
    file.write_text(text.replace(place, code), encoding="utf-8")
    with pytest.raises(worldsim.errors.ScenarioError):
        worldsim.load(file)
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.trial(18)
def test_code_in_a_text_is_text(tmp_path):
    about = "{{ 7 * 7 }} ${HOME} `id` $(id) %(x)s {x} <%= 7 %>"
    text = re.sub("about: .*", lambda _: f"about: '{about}'", SCENARIO.read_text(encoding="utf-8"))
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    assert worldsim.load(file).about == about
