"""Keep results: one immutable file per case, each written whole or not at all.

fits/<fit key>.safetensors          weights and scaling, with the optimiser's state while under way
runs/<xx>/<key>.zarr.zip            truth and rollouts of a case: its appearance is the commit
scores/<run key>/<metric key>.json  scores, keyed apart, so that a new metric retrains nothing
failures/<key>.json                 why a case has no result
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.errors import ResultError

if TYPE_CHECKING:
    import torch
    import xarray as xr

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every member of a result file: bytes must not depend on the clock."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name beside ``path``, flush to disk, then rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


class Store:
    """A results folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def run_path(self, key: str) -> Path:
        return self.root / "runs" / key[:2] / f"{key}.zarr.zip"

    def fit_path(self, key: str) -> Path:
        return self.root / "fits" / f"{key}.safetensors"

    def score_path(self, run_key: str, metric_key: str) -> Path:
        return self.root / "scores" / run_key / f"{metric_key}.json"

    def failure_path(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"

    def has_run(self, key: str) -> bool:
        return self.run_path(key).is_file()

    def keep_run(self, key: str, tree: xr.DataTree, provenance: Mapping[str, Any]) -> None:
        """Write a case's trajectories; ``provenance`` goes beside the data, not into the compared bytes."""
        payload = zip_tree(tree, provenance)
        write_whole(self.run_path(key), lambda part: part.write_bytes(payload))
        self.failure_path(key).unlink(missing_ok=True)

    def open_run(self, key: str) -> xr.DataTree:
        return open_zip(self.run_path(key))

    def keep_fit(self, key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str]) -> None:
        from safetensors.torch import save_file

        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_whole(self.fit_path(key), lambda part: save_file(plain, part, metadata=dict(meta)))

    def open_fit(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Tensors and metadata of a fit, finished or under way; None when there is none."""
        from safetensors import SafetensorError, safe_open

        path = self.fit_path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ResultError(f"{path} cannot be read ({error}); delete it, and it is fitted again") from None

    def keep_scores(self, run_key: str, metric_key: str, document: Mapping[str, Any]) -> None:
        write_text(self.score_path(run_key, metric_key), json.dumps(document))

    def open_scores(self, run_key: str, metric_key: str) -> dict[str, Any] | None:
        path = self.score_path(run_key, metric_key)
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise ResultError(f"{path} is not whole; delete it, and it is scored again") from None

    def keep_failure(self, key: str, document: Mapping[str, Any]) -> None:
        write_text(self.failure_path(key), json.dumps(document, sort_keys=True, indent=1))

    def open_failure(self, key: str) -> dict[str, Any] | None:
        path = self.failure_path(key)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def zip_tree(tree: xr.DataTree, provenance: Mapping[str, Any]) -> bytes:
    """A Zarr v3 group in an uncompressed zip with fixed dates: equal trees give equal bytes.

    zarr's own ZipStore stamps the local time, so that the same result would differ from run to run.
    """
    from zarr.storage import MemoryStore

    from worldsim.trees import without_labels

    memory: dict[str, Any] = {}
    tree.map_over_datasets(without_labels).to_zarr(MemoryStore(memory), consolidated=False, zarr_format=3)
    members = {name: value.to_bytes() for name, value in memory.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members, key=lambda n: (n != "zarr.json", n)):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), members[name])
        archive.comment = json.dumps(provenance, sort_keys=True).encode()[:65535]
    return out.getvalue()


def open_zip(path: Path) -> xr.DataTree:
    """The tree of a result file, loaded, checksums checked; ResultError when it is missing or damaged."""
    import xarray as xr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    from worldsim.trees import with_labels

    if not path.is_file():
        raise ResultError(f"there is no result at {path}")
    buffer = default_buffer_prototype().buffer
    try:
        with zipfile.ZipFile(path) as archive:
            memory = {name: buffer.from_bytes(archive.read(name)) for name in archive.namelist()}
        store: Any = MemoryStore(memory, read_only=True)
        tree = xr.open_datatree(store, engine="zarr", consolidated=False, decode_times=False).load()
        return tree.map_over_datasets(with_labels)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ResultError(f"{path} is damaged ({error}); delete it, and the case runs again") from None


def provenance_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return dict(json.loads(archive.comment))
