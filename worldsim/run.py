"""One case, from a question to kept numbers: simulate, fit, roll out, keep, score."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr

from worldsim.build import build_model, build_systems, fit_model, load_weights, prepare, roll_out
from worldsim.errors import WorldsimError
from worldsim.leases import lease
from worldsim.protocols import System
from worldsim.provenance import provenance
from worldsim.scenario import Case
from worldsim.score import ScoredPart, scored_parts, to_document
from worldsim.seeds import derive, forked
from worldsim.store import Store
from worldsim.trees import from_dataset
from worldsim.truth import SEEDED, simulate_split


@dataclass(frozen=True)
class Receipt:
    """What a worker returns: small and plain; the data is on disk."""

    key: str
    label: str
    status: str
    seconds: float
    message: str = ""


def run_case(case: Case, store: Store, train: bool = True) -> Receipt:
    """Compute what is not kept yet of one case. Whatever goes wrong is kept as a failure, not raised.

    ``train`` false asks for the weights of a fit that is kept, and fails where there are none.
    """
    case.scenario.registry.notify("worldsim_case_started", case=case)
    begun = time.monotonic()
    try:
        with one_thread(), lease(store.root, case.key):
            status, message = _run(case, store, train), ""
    except Exception as error:
        status, message = "failed", f"{type(error).__name__}: {error}"
        document = {"label": case.label, "message": message, "traceback": traceback.format_exc()}
        store.keep_failure(case.key, document)
    receipt = Receipt(case.key, case.label, status, time.monotonic() - begun, message)
    case.scenario.registry.notify("worldsim_case_finished", case=case, result=receipt)
    return receipt


def _run(case: Case, store: Store, train: bool) -> str:
    missing = [part for part in scored_parts(case) if store.open_scores(case.key, part.key) is None]
    if store.has_run(case.key) and not missing:
        return "kept"
    systems = build_systems(case)
    rolled = store.has_run(case.key)
    truth = {
        split: simulate_split(case, split, systems[split])
        for split in systems
        if split in SEEDED or not rolled
    }
    model = build_model(case, systems["train"], truth)
    if train:
        fit_model(case, model, truth, store)
    else:
        load_weights(case, model, store)
    if not rolled:
        groups, spent = {}, {}
        for split in case.scenario.scored_splits:
            groups[split], spent[split] = roll_out(case, model, split, truth[split], systems[split])
        tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": case.key}), **groups})
        store.keep_run(case.key, tree, {**provenance(case), "rollout_cpu_seconds": spent})
    _score(case, store, model, systems, missing)
    return "done"


def _score(
    case: Case, store: Store, model: Any, systems: Mapping[str, System], parts: list[ScoredPart]
) -> None:
    """Keep what each part gives. One that breaks is raised when the others are kept."""
    kept, broken = store.open_run(case.key), []
    for part in parts:
        scores = {}
        try:
            for split in part.splits:
                truth, guess = from_dataset(kept[split].to_dataset())
                prepare(case, model, systems[split], truth)
                with forked(derive(case.scenario.master_seed, "score", part.key, split)):
                    scores[split] = to_document(part.score(systems[split], truth, guess, model, split))
        except WorldsimError as error:
            broken.append(error)
        else:
            store.keep_scores(case.key, part.key, scores)
    if broken:
        raise broken[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """A sum's bits depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
