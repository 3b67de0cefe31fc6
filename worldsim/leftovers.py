"""What a results folder no longer needs: kept failures, and files that no case of its plan refers to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worldsim import leases
from worldsim.errors import WorldsimError

if TYPE_CHECKING:
    from worldsim.results import Results


def failure_files(results: Results) -> list[Path]:
    """What is kept about failed cases; they are tried again either way. What is said of a result that is not
    finite stays with it."""
    from worldsim.failures import flag

    files = sorted((results.root / "failures").glob("*.json"))
    return [file for file in files if not flag(results.store, file.stem)]


def orphan_files(results: Results, plugins: Sequence[Path] = ()) -> list[Path]:
    """Files of cases, fits and metrics that left the plan, leases of processes that are gone, and halves of
    writes that never ended.

    Fits are told apart only while every case of the plan still has the key that the installed plugins give
    it; otherwise they are all spared.
    """
    store = results.store
    needed = {store.run_path(entry.key) for entry in results.entries}
    needed |= {store.failure_path(entry.key) for entry in results.entries}
    needed |= {store.score_path(e.key, key) for e in results.entries for key in e.metrics.values()}
    needed |= {results.root / leases.FOLDER / key for key in leases.live(results.root)}
    patterns = ["runs/*/*.zarr.zip", "scores/*/*.json", "failures/*.json", "leases/*", "**/*.part"]
    fits = _fit_paths(results, plugins)
    if fits is not None:
        needed |= fits
        patterns.append("fits/*.safetensors")
    found = {file for pattern in patterns for file in results.root.glob(pattern)} - needed
    return sorted(file for file in found if not store.leads_out(file))


def _fit_paths(results: Results, plugins: Sequence[Path]) -> set[Path] | None:
    """The fits of the plan; None when they cannot be known."""
    from worldsim.plugins import registry
    from worldsim.reading import from_document
    from worldsim.scenario import Case

    known = registry(tuple(map(Path, plugins)))
    try:
        read = {name: from_document(results.document(name), name, known) for name in results.scenarios}
    except WorldsimError:
        return None
    cases = {e.key: Case(read[e.scenario], e.model, e.seed, e.device, e.dtype) for e in results.entries}
    if any(case.key != key for key, case in cases.items()):
        return None
    return {results.store.fit_path(case.fit_key) for case in cases.values()}
