"""One case, from a question to kept numbers: simulate, fit, roll out, keep, score."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from worldsim import failures
from worldsim.build import build_model, build_systems, fit_model, load_weights, prepare, roll_out
from worldsim.determinism import deterministic
from worldsim.errors import NotFinite, WorldsimError
from worldsim.leases import lease
from worldsim.protocols import System
from worldsim.provenance import provenance
from worldsim.scenario import Case
from worldsim.score import ScoredPart, scored_parts, to_document
from worldsim.seeds import derive, forked
from worldsim.store import Store, provenance_of
from worldsim.trees import from_dataset
from worldsim.truth import SEEDED, Truths


@dataclass(frozen=True)
class Receipt:
    """What a worker returns: small and plain; the data is on disk.

    ``status`` is "done", "kept" (there was nothing to do) or "failed", and ``kind`` what is wrong, as
    ``failures`` has it: "nonfinite" also of a case that is done. ``cpu_seconds`` is what the worker spent.
    """

    key: str
    label: str
    status: str
    seconds: float
    message: str = ""
    kind: str = ""
    cpu_seconds: float = 0.0


def run_case(
    case: Case,
    store: Store,
    train: bool = True,
    log: Callable[[], str] | None = None,
    cpu_begun: float | None = None,
    truths: Truths | None = None,
) -> Receipt:
    """Compute what is not kept yet of one case. Whatever goes wrong is kept as a failure, not raised.

    ``train`` false asks for the weights of a fit that is kept, and fails where there are none. ``log`` gives
    the end of what this case has written. ``truths`` has those of cases before. A plugin that would leave the
    process costs its case alone.
    """
    begun, cpu_begun = time.monotonic(), time.process_time() if cpu_begun is None else cpu_begun
    case.scenario.registry.notify("worldsim_case_started", case=case)
    try:
        with deterministic() as nondeterministic, lease(store.root, case.key):
            status = _run(case, store, train, truths or Truths(), nondeterministic)
        message = failures.flag(store, case.key)
        kind = "nonfinite" if message else ""
    except (Exception, SystemExit) as error:
        status, message, kind = "failed", f"{type(error).__name__}: {error}", failures.kind_of(error)
        failures.keep(
            store, case.key, case.label, kind, message,
            seconds=time.monotonic() - begun,
            log=log() if log else "",
            traceback=traceback.format_exc(),
            exit_code=exit_code(error),
            where=error.where if isinstance(error, NotFinite) else None,
        )  # fmt: skip
    seconds, cpu_seconds = time.monotonic() - begun, time.process_time() - cpu_begun
    receipt = Receipt(case.key, case.label, status, seconds, message, kind, cpu_seconds)
    case.scenario.registry.notify("worldsim_case_finished", case=case, result=receipt)
    return receipt


def exit_code(error: BaseException) -> int | None:
    """The exit code that ``sys.exit`` asked for, None of any other error."""
    if not isinstance(error, SystemExit):
        return None
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _run(case: Case, store: Store, train: bool, truths: Truths, nondeterministic: set[str]) -> str:
    """What became of it; ``nondeterministic`` names what had no deterministic form so far."""
    missing = [part for part in scored_parts(case) if store.open_scores(case.key, part.key) is None]
    if store.has_run(case.key) and not missing:
        return "kept"
    systems = build_systems(case)
    rolled = store.has_run(case.key)
    truth = {
        split: truths.split(case, split, systems[split]) for split in systems if split in SEEDED or not rolled
    }
    model = build_model(case, systems["train"], truth)
    if train:
        fit_model(case, model, truth, store, nondeterministic)
    else:
        load_weights(case, model, store)
    if not rolled:
        groups, spent = {}, {}
        for split in case.scenario.scored_splits:
            groups[split], spent[split] = roll_out(case, model, split, truth[split], systems[split])
        where = failures.not_finite(groups)
        tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": case.key}), **groups})
        about = {**provenance(case, nondeterministic), "rollout_cpu_seconds": spent, "not_finite": where}
        store.keep_run(case.key, tree, about)
    else:
        tree = store.open_run(case.key)
        where = provenance_of(store.run_path(case.key)).get("not_finite", {})
    _score(case, store, tree, model, systems, missing)
    _flag(case, store, where)
    return "done"


def _flag(case: Case, store: Store, where: Mapping[str, Mapping[str, int]]) -> None:
    """Take away why the case has failed before; say what is not finite in the result it has now."""
    store.failure_path(case.key).unlink(missing_ok=True)
    if where:
        failures.keep(store, case.key, case.label, "nonfinite", failures.in_words(where), where=where)


def _score(
    case: Case, store: Store, kept: xr.DataTree, model: Any, systems: Mapping[str, System],
    parts: list[ScoredPart],
) -> None:  # fmt: skip
    """Keep what each part gives of the rollouts ``kept``, which have the same bits when they are read again.
    A part that breaks is raised when the others are kept."""
    broken = []
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
