"""Whether what is kept is whole: each file of a results folder is read, and is what its name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldsim.archive import whole_zip
from worldsim.errors import ResultError
from worldsim.files import PART, content, flush_folder, is_file, make_folder
from worldsim.plan_files import FOLDER, plan_path
from worldsim.scenario import digest
from worldsim.store import FOLDERS, Store, check_run, read_fit
from worldsim.untrusted import KEY, MAX_TEXT, MEND, plain_json, plan_of

ASIDE = "damaged"
"""The folder that damaged files are moved to."""


@dataclass(frozen=True)
class Damage:
    """A file that must not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Findings:
    """What a look at every file found.

    damaged    files that must not be used
    files      how many were read
    unsealed   how many of them, of earlier versions, have no checksum of their own
    parts      halves of files that were being written when a run was killed; the next run deletes them
    """

    damaged: tuple[Damage, ...]
    files: int
    unsealed: int
    parts: tuple[Path, ...]


def verify(root: Path) -> Findings:
    """Read every file that worldsim keeps in ``root``. Raises ResultError when it is no results folder."""
    if not any((root / name).exists() for name in (FOLDER, *FOLDERS)):
        raise ResultError(f"{root} holds no results; run a scenario with --out there")
    store, damaged, parts, files, unsealed = Store(root), [], [], 0, 0
    for path in _files(root):
        if PART.search(path.name):
            parts.append(path)
            continue
        files += 1
        try:
            unsealed += not _check(store, path)
        except (ResultError, OSError) as error:
            damaged.append(Damage(path, _reason(error, path)))
    return Findings(tuple(damaged), files, unsealed, tuple(parts))


def _reason(error: Exception, path: Path) -> str:
    """Without the file's name and the advice, which are said once for all."""
    text = str(error).removeprefix(f"{path}").lstrip(": ")
    for advice in ("; delete it", f"; {MEND}"):
        text = text.partition(advice)[0]
    return text


def _files(root: Path) -> Iterator[Path]:
    """Everything that should be a file of ours, in order: also what is a folder or a link in its place."""
    yield from _entries(root / FOLDER, 1)
    for name in FOLDERS:
        depth = 2 if name in ("runs", "scores") else 1
        yield from _entries(root / name, depth)


def _entries(place: Path, depth: int) -> Iterator[Path]:
    if depth == 0 or place.is_symlink() or not place.is_dir():
        if os.path.lexists(place) and not place.name.startswith("."):
            yield place
        return
    for entry in sorted(place.iterdir()):
        yield from _entries(entry, depth - 1)


def _check(store: Store, path: Path) -> bool:
    """Whether the file has a checksum of its own. Raises ResultError when it is damaged."""
    if not is_file(path):
        raise ResultError(f"{path} is no plain file")
    place = path.relative_to(store.root).parts
    if place[0] == FOLDER:
        head, _ = plan_of(path)
        if path != plan_path(store.root, head["scenario"]):
            raise ResultError(f"{path} has not the name of the plan of {head['scenario']!r:.80}")
        return True
    key, check = _named(store, path, place)
    return check(key)


def _named(store: Store, path: Path, place: Sequence[str]) -> tuple[str, Callable[[str], bool]]:
    """The key in a file's name, and how a file of its kind is read. ResultError for a name out of place."""
    key = path.name.split(".")[0]
    expected = {
        "runs": (store.run_path(key), lambda key: _check_run(path, key)),
        "fits": (store.fit_path(key), lambda key: _check_fit(path, key)),
        "scores": (
            store.score_path(place[1], key),
            lambda key: _check_scores(store, path, place[1], key),
        ),
        "failures": (store.failure_path(key), lambda _: _check_failure(path)),
    }
    home, check = expected[place[0]]
    owner = place[1] if place[0] == "scores" else key
    if path != home or not KEY.fullmatch(key) or not KEY.fullmatch(owner):
        raise ResultError(f"{path} has the name of no file that is kept here")
    return key, check


def _check_run(path: Path, key: str) -> bool:
    tree, about, sealed = whole_zip(path)
    check_run(tree, key, path)
    if about.get("key", key) != key:
        raise ResultError(f"{path} says that it comes from case {about['key']!r:.80}")
    meaning = about.get("meaning")
    if isinstance(meaning, dict) and digest(meaning) != key:
        raise ResultError(f"{path} has not the key of what it says that it means")
    return sealed


def _check_fit(path: Path, key: str) -> bool:
    _, words = read_fit(path)
    if words.get("worldsim_key", key) != key:
        raise ResultError(f"{path} holds the fit {words['worldsim_key']!r:.80}")
    return "sha256" in words


def _check_scores(store: Store, path: Path, run_key: str, metric_key: str) -> bool:
    store.open_scores(run_key, metric_key)
    return b'"_kept": {' in content(path, MAX_TEXT)


def _check_failure(path: Path) -> bool:
    if not isinstance(plain_json(content(path, MAX_TEXT), path).get("message"), str):
        raise ResultError(f"{path} does not say why the case failed")
    return True


def move_aside(root: Path, damaged: Sequence[Damage]) -> list[Path]:
    """Move damaged files into ``damaged/`` of the folder, under their own names; where they are now."""
    moved = []
    for damage in damaged:
        home = root / ASIDE / damage.path.relative_to(root)
        number = 1
        while os.path.lexists(home):
            number += 1
            home = home.with_name(f"{damage.path.name}.{number}")
        make_folder(home.parent)
        os.rename(damage.path, home)
        flush_folder(damage.path.parent)
        moved.append(home)
    return moved
