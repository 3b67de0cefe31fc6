"""Keep results: one immutable file per case, each written whole or not at all.

fits/<fit key>.safetensors          weights and scaling, with the optimiser's state while under way
runs/<xx>/<key>.zarr.zip            truth and rollouts of a case: its appearance is the commit
scores/<run key>/<metric key>.json  scores, keyed apart, so that a new metric retrains nothing
failures/<key>.json                 why a case has no result

The names of files are hashes alone, so that no two names of scenarios or models meet on a disk. A file says
whose it is and has a checksum; ``verifying`` reads all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.archive import open_zip as open_zip
from worldsim.archive import provenance_of as provenance_of
from worldsim.archive import zip_tree as zip_tree
from worldsim.errors import ResultError
from worldsim.files import content, is_file, refuse_unwritable, stale_parts, write_bytes
from worldsim.files import write_text as write_text
from worldsim.files import write_whole as write_whole
from worldsim.seals import BLANK, is_whole, sealed
from worldsim.untrusted import MAX_TEXT, check_scores, plain_json

if TYPE_CHECKING:
    import torch
    import xarray as xr

FOLDERS = ("fits", "runs", "scores", "failures")
MAX_HEADER = 16 * 2**20
"""Bytes of the header of a checkpoint, which names its tensors."""
SEAL = "_kept"
"""Where a file of scores says whose they are; no split has this name."""


class Store:
    """A results folder.

    A file is never followed out of it: symbolic links in it are refused, the folder itself may be one.
    """

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

    def refuse_unwritable(self) -> None:
        """Raises OSError or ResultError before anything is computed, where that can be known: no room, no
        permission, a link that leads elsewhere."""
        for folder in (self.root, *(self.root / name for name in FOLDERS)):
            if folder == self.root or folder.is_dir() or folder.is_symlink():
                refuse_unwritable(self._inside(folder / "probe").parent)

    def clear_parts(self) -> None:
        """Delete the halves of files that an earlier run was writing when it was killed."""
        for part in stale_parts(self.root):
            with suppress(OSError):
                os.unlink(part)

    def has_run(self, key: str) -> bool:
        return is_file(self.run_path(key))

    def keep_run(self, key: str, tree: xr.DataTree, provenance: Mapping[str, Any]) -> None:
        """Write a case's trajectories; ``provenance`` goes beside the data, not into the compared bytes."""
        write_bytes(self._inside(self.run_path(key)), zip_tree(tree, provenance))
        with suppress(OSError):  # a failure that is left behind counts for nothing beside a result
            os.unlink(self.failure_path(key))

    def open_run(self, key: str) -> xr.DataTree:
        """Raises ResultError when it is missing, damaged, or another case's."""
        path = self._inside(self.run_path(key))
        tree = open_zip(path)
        check_run(tree, key, path)
        return tree

    def keep_fit(self, key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str]) -> None:
        """Write weights and words about them, with a checksum of both."""
        from safetensors.torch import save

        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        words = {**meta, "worldsim_key": key}
        data = save(plain, metadata={**words, "sha256": fit_digest(plain, words)})
        write_bytes(self._inside(self.fit_path(key)), data)

    def open_fit(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Tensors and metadata of a fit, finished or under way; None when there is none.

        Raises ResultError when it is damaged or another case's. Fits of earlier versions have no checksum.
        """
        path = self.fit_path(key)
        if not is_file(path):
            return None
        tensors, words = read_fit(self._inside(path))
        if words.pop("worldsim_key", key) != key:
            raise ResultError(f"{path} is the fit of another case; delete it, and it is fitted again")
        words.pop("sha256", None)
        return tensors, words

    def keep_scores(self, run_key: str, metric_key: str, document: Mapping[str, Any]) -> None:
        """Write split -> name -> score, with whose they are and a checksum."""
        seal = {"run": run_key, "metric": metric_key, "sha256": BLANK}
        data = sealed(json.dumps({**document, SEAL: seal}).encode())
        write_bytes(self._inside(self.score_path(run_key, metric_key)), data)

    def open_scores(self, run_key: str, metric_key: str) -> dict[str, Any] | None:
        """Split -> name -> score, or None; ResultError when they are damaged or another case's. Scores of
        earlier versions have no checksum."""
        path = self.score_path(run_key, metric_key)
        if not is_file(path):
            return None
        data = content(self._inside(path), MAX_TEXT)
        try:
            document = plain_json(data, path)
            seal = document.pop(SEAL, None)
            if seal is not None and not (isinstance(seal, dict) and is_whole(data)):
                raise ResultError(f"{path} is not what its checksum was made of")
            if seal and (seal.get("run"), seal.get("metric")) != (run_key, metric_key):
                raise ResultError(f"{path} holds the scores of another case or metric")
            check_scores(document, path)
        except ResultError as error:
            raise ResultError(f"{error}; delete it, and it is scored again") from None
        return document

    def keep_failure(self, key: str, document: Mapping[str, Any]) -> None:
        """Write why a case has no result. Where that cannot be written, the receipt alone says it: the reason
        often is the disk."""
        with suppress(OSError, ResultError):
            text = json.dumps(document, sort_keys=True, indent=1)
            write_bytes(self._inside(self.failure_path(key)), text.encode())

    def open_failure(self, key: str) -> dict[str, Any] | None:
        """Why a case has no result; a file that cannot be read is a reason too."""
        path = self.failure_path(key)
        if not is_file(path):
            return None
        try:
            kept = plain_json(content(self._inside(path), MAX_TEXT), path)
        except ResultError as error:
            return {"message": f"what is kept of this failure cannot be read: {error}"}
        return {**kept, "message": str(kept.get("message", ""))}

    def leads_out(self, path: Path) -> Path | None:
        """The link on the way to ``path`` that may lead out of the results folder, if there is one."""
        folders = (self.root / folder for folder in path.relative_to(self.root).parents)
        return next((place for place in folders if place != self.root and place.is_symlink()), None)

    def _inside(self, path: Path) -> Path:
        link = self.leads_out(path)
        if link is not None:
            raise ResultError(f"{link} is a symbolic link, which may lead elsewhere: link {self.root} itself")
        return path


def check_run(tree: xr.DataTree, key: str, path: Path) -> None:
    """Raises ResultError when ``tree`` says that it is another case's."""
    said = tree.attrs.get("worldsim_key", key)
    if said != key:
        raise ResultError(f"{path} holds case {said!r:.80}; delete it, and the case runs again")


def read_fit(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, and words about them; ResultError when the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = content(path)
    try:
        header = int.from_bytes(data[:8], "little")
        if header > MAX_HEADER:
            raise ValueError(f"its header has {header} bytes, at most {MAX_HEADER} are allowed")
        about = json.loads(data[8 : 8 + header])
        words = {str(name): str(text) for name, text in about.get("__metadata__", {}).items()}
        tensors = dict(load(data))
        sealed_by = {"worldsim_key", "sha256"} & set(words)
        if sealed_by and words.get("sha256") != fit_digest(tensors, words):
            raise ValueError("it is not what its checksum was made of")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultError(f"{path} cannot be read ({error}); delete it, and it is fitted again") from None
    return tensors, words


def fit_digest(tensors: Mapping[str, torch.Tensor], words: Mapping[str, str]) -> str:
    """Checksum of a checkpoint: names, dtypes, shapes and bytes, and the words about it."""
    import torch

    kept = {name: text for name, text in words.items() if name != "sha256"}
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
