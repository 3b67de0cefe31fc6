"""One case, from a question to kept numbers: simulate, fit, roll out, keep, score."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import xarray as xr

from worldsim.build import build_model, build_systems, fit_model, prepare, roll_out
from worldsim.provenance import provenance
from worldsim.scenario import Case
from worldsim.score import scored_parts, to_document
from worldsim.store import Store
from worldsim.trees import from_dataset
from worldsim.truth import simulate_split


@dataclass(frozen=True)
class Receipt:
    """What a worker returns: small and plain; the data is on disk."""

    key: str
    label: str
    status: str
    seconds: float
    message: str = ""


def run_case(case: Case, store: Store) -> Receipt:
    """Compute what is not kept yet of one case. Whatever goes wrong is kept as a failure, not raised."""
    case.scenario.registry.notify("worldsim_case_started", case=case)
    begun = time.monotonic()
    try:
        with one_thread():
            status, message = _run(case, store), ""
    except Exception as error:
        status, message = "failed", f"{type(error).__name__}: {error}"
        document = {"label": case.label, "message": message, "traceback": traceback.format_exc()}
        store.keep_failure(case.key, document)
    receipt = Receipt(case.key, case.label, status, time.monotonic() - begun, message)
    case.scenario.registry.notify("worldsim_case_finished", case=case, result=receipt)
    return receipt


def _run(case: Case, store: Store) -> str:
    missing = [part for part in scored_parts(case) if store.open_scores(case.key, part.key) is None]
    if store.has_run(case.key) and not missing:
        return "kept"
    systems = build_systems(case)
    truth = {split: simulate_split(case, split, systems[split]) for split in systems}
    model = build_model(case, systems["train"], truth)
    fit_model(case, model, truth, store)
    if not store.has_run(case.key):
        groups = {
            split: roll_out(case, model, truth[split], systems[split])
            for split in case.scenario.scored_splits
        }
        tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": case.key}), **groups})
        store.keep_run(case.key, tree, provenance(case))
    kept = store.open_run(case.key)
    for part in missing:
        scores = {}
        for split in part.splits:
            truth_of, guess = from_dataset(kept[split].to_dataset())
            prepare(case, model, systems[split], truth_of)
            scores[split] = to_document(part.score(systems[split], truth_of, guess, model))
        store.keep_scores(case.key, part.key, scores)
    return "done"


@contextmanager
def one_thread() -> Iterator[None]:
    """A sum's bits depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
