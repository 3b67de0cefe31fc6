"""All that is kept as one sharded Zarr v3 store that opens at once.

It is a cache: the files are the truth, and where it may not hold what they do, it is not used. Files under a
key never change, so what can change is which there are. The store's mark has a checksum of the plan, of the
names in ``runs`` and ``failures``, and of the scores of cases that were not all scored; and how many files
and bytes the store itself has, because Zarr reads a file that is missing as nothing but fills.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from worldsim.errors import ResultError
from worldsim.files import HOST, content, flush, flush_folder, is_left, told, write_text
from worldsim.plan_files import plan_paths
from worldsim.stacking import FLAGS, MASKED, Layout, Variable, arrays, described, fill, layouts
from worldsim.trees import with_labels
from worldsim.untrusted import MAX_PLAN, MAX_TEXT, plain_json
from worldsim.xarray_backend import scores

if TYPE_CHECKING:
    from worldsim.results import Results

DATASET = "dataset.zarr"
MARK = "worldsim.json"
FORMAT = 1

CHUNK = 2**20
"""Bytes of a chunk that holds several small cases."""
LARGEST_CHUNK = 64 * 2**20
FLAT = {"name": "default", "separator": "."}
"""Chunks are files beside each other, and not each in a folder for every dimension."""
MOST_COORDINATES = 10**7
"""Length of the longest axis with coordinates."""


def compact(results: Results) -> tuple[Path, bool]:
    """Where the compacted store is, and whether it was written now.

    It is written beside and renamed whole. Raises ResultError for a file that is damaged, and OSError.
    """
    path = results.root / DATASET
    if is_current(results.root):
        return path, False
    unscored = [e.key for e in results.entries if results.status(e) == "unscored"]
    mark = {"format": FORMAT, "unscored": unscored, "kept": fingerprint(results.root, unscored)}
    part = path.with_name(f"{DATASET}.{HOST}.{os.getpid()}.part")
    _clear(results.root)
    try:
        _write(results, part)
        write_text(part / MARK, json.dumps({**mark, **_census(part)}))
        for folder, _, names in os.walk(part):
            for name in names:
                flush(Path(folder, name))
            flush_folder(Path(folder))
        _swap(part, path)
    except OSError as error:
        raise told(error, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path, True


def is_current(root: Path) -> bool:
    """Whether the compacted store is whole and holds what is kept: a few milliseconds, whatever it holds."""
    path = root / DATASET
    try:
        mark = plain_json(content(path / MARK, MAX_TEXT), path / MARK)
        unscored = mark.get("unscored")
        if path.is_symlink() or mark.get("format") != FORMAT or not isinstance(unscored, list):
            return False
        same, census = mark.get("kept") == fingerprint(root, unscored), _census(path)
        return same and {key: mark.get(key) for key in census} == census
    except (ResultError, OSError):
        return False


def open_compacted(root: Path) -> xr.DataTree:
    """The compacted store, read when asked for. Raises ResultError for one that does not open."""
    path = root / DATASET
    _check_coordinates(path / "zarr.json")
    try:
        groups = xr.open_groups(path, engine="zarr", consolidated=True, chunks=None, decode_times=False)
        return xr.DataTree.from_dict({name: with_labels(group) for name, group in groups.items()})
    except Exception as error:  # whatever a stranger's metadata provokes in zarr or xarray
        raise ResultError(f"{path} does not open ({error}); delete it, it can be made again") from None


def _check_coordinates(path: Path) -> None:
    """Raises ResultError for lists of coordinates, which xarray reads on opening, that no results have."""
    about = plain_json(content(path, MAX_TEXT), path).get("consolidated_metadata")
    nodes = about.get("metadata") if isinstance(about, dict) else None
    for node in nodes.values() if isinstance(nodes, dict) else ():
        shape = node.get("shape", []) if isinstance(node, dict) else None
        if not isinstance(shape, list) or (len(shape) == 1 and not 0 <= shape[0] <= MOST_COORDINATES):
            raise ResultError(f"{path} has an array of shape {shape!r:.80}; delete {path.parent}")


def fingerprint(root: Path, unscored: Sequence[Any]) -> str:
    """A checksum of what is kept, as far as it can change."""
    found = hashlib.sha256()
    for plan in plan_paths(root):
        found.update(content(plan, MAX_PLAN))
    folders = ["failures", *(f"runs/{name}" for name in _listed(f"{root}/runs"))]
    folders += [f"scores/{key}" for key in unscored]
    for folder in folders:
        names = [folder.rpartition("/")[2], *_listed(f"{root}/{folder}"), ""]
        found.update("\n".join(names).encode())
    return found.hexdigest()


def _listed(folder: str) -> list[str]:
    try:
        return sorted([name for name in os.listdir(folder) if not name.endswith(".part")])
    except (FileNotFoundError, NotADirectoryError):
        return []


def _census(path: Path) -> dict[str, int]:
    sizes = list(_sizes(str(path)))
    return {"files": len(sizes), "bytes": sum(sizes)}


def _sizes(folder: str) -> Iterator[int]:
    """Bytes of every file, but for the mark."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            elif entry.name != MARK:
                yield entry.stat(follow_symlinks=False).st_size


def _clear(root: Path) -> None:
    """Delete what an earlier compaction left that was killed."""
    for part in root.glob(f"{DATASET}.*.part"):
        if is_left(part):
            shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, path: Path) -> None:
    """Put ``part`` in the place of ``path``. A folder cannot be renamed over another: between the two renames
    there is none, and the files are read."""
    old = path.with_name(f"{DATASET}.old")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.rename(path, old)
    os.rename(part, path)
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write(results: Results, part: Path) -> None:
    import zarr

    root = zarr.open_group(str(part), mode="w", zarr_format=3, attributes={"Conventions": "CF-1.12"})
    for scenario in results.scenarios:
        found = layouts(results, scenario)
        groups = {split: root.create_group(f"{scenario}/{split}") for split in found}

        def make(
            split: str,
            name: str,
            dims: tuple[str, ...],
            shape: tuple[int, ...],
            variable: Variable,
            layout: Layout,
            groups: dict[str, Any] = groups,
        ) -> Any:
            chunks, shards = chunking(variable, layout)
            return groups[split].create_array(
                name, shape=shape, dtype=variable.dtype, chunks=chunks, shards=shards,
                fill_value=variable.fill, compressors=_codecs(), chunk_key_encoding=FLAT,
                dimension_names=dims, attributes={**variable.attrs, **MASKED},
            )  # fmt: skip

        fill(results, scenario, found, arrays(found, make))
        for split, layout in found.items():
            groups[split].attrs.update(described(layout))
            small = {
                "seed": xr.Variable("seed", np.array(layout.seeds)),
                "status": xr.Variable(("model", "seed"), layout.status, dict(FLAGS)),
            }
            for name, array in {**layout.coords, **small}.items():
                _small(groups[split], name, array)
    _write_scores(results, root)
    with warnings.catch_warnings():  # consolidated metadata are no part of Zarr v3 yet; xarray reads them
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(part), zarr_format=3)


def _write_scores(results: Results, root: Any) -> None:
    table = scores(results)
    group = root.create_group("scores")
    labels = {name: [str(v) for v in table[name].values] for name in ("scenario", "model", "score")}
    group.attrs.update({"labels": labels})
    for name, array in {"seed": table["seed"], **table.data_vars}.items():
        _small(group, str(name), array.variable)


def _small(group: Any, name: str, array: xr.Variable) -> None:
    """An array in one chunk."""
    values = np.asarray(array.values)
    made = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=tuple(max(n, 1) for n in values.shape),
        fill_value=Variable((), (), values.dtype, {}).fill, compressors=_codecs(), chunk_key_encoding=FLAT,
        dimension_names=tuple(map(str, array.dims)), attributes=dict(array.attrs),
    )  # fmt: skip
    made[...] = values


def _codecs() -> tuple[Any, ...]:
    """Compression, and a checksum of what was compressed, so that damage is an error and not a number."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(level=0), Crc32cCodec()


def chunking(variable: Variable, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(chunk, shard) of a stacked variable: a shard is a block of a model's seeds; a chunk is one case, or
    several small ones, or part of a large one along its first axis."""
    block, inner = layout.block, tuple(max(n, 1) for n in variable.shape)
    if variable.bytes > LARGEST_CHUNK:
        first = max(1, inner[0] * LARGEST_CHUNK // variable.bytes)
        shard = -(-inner[0] // first) * first
        return (1, 1, first, *inner[1:]), (1, block, shard, *inner[1:])
    several = max(
        n for n in range(1, block + 1) if block % n == 0 and (n == 1 or n * variable.bytes <= CHUNK)
    )
    return (1, several, *inner), (1, block, *inner)
