"""Build what a case names, train it, and let it forecast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import xarray as xr

from worldsim.baselines import BASELINES, Baseline, Truth
from worldsim.errors import DeviceError, ResultError, WorldsimError
from worldsim.fit import Tensors, fit
from worldsim.mechanisms import Use, missing_mechanisms
from worldsim.protocols import HasActions, Model, ShapesModels, System, Trajectory
from worldsim.ranks import Ranks, ranks_of
from worldsim.scenario import Case
from worldsim.seeds import derive, forked, generator
from worldsim.store import Store
from worldsim.trees import to_dataset
from worldsim.truth import held, simulate_split
from worldsim.wrapped import Wrapped


def build_systems(case: Case) -> dict[str, System]:
    plugins = case.scenario.registry
    return {split: part.build(plugins) for split, part in case.scenario.split_systems.items()}


def build_model(case: Case, system: System, truth: dict[str, Trajectory]) -> Any:
    """The model of a case, untrained: its initial weights come from its seed."""
    train = held(truth["train"])
    if case.is_baseline:
        return BASELINES[case.model](system, train)
    plugins, spec = case.scenario.registry, case.spec
    kind = getattr(plugins.builder("model", spec.component.name), "scaling", "component")
    uses = build_uses(case, system)

    shaped = [u.constraint for u in uses if u.by("structure") and isinstance(u.constraint, ShapesModels)]
    asked = {k: v for each in shaped for k, v in each.parameters.items() if k in spec.component.params}
    part = replace(spec.component, params={**spec.component.params, **asked})

    def build(example: Trajectory) -> Model:
        built: Model = part.build(plugins, system=system, truth=example)
        return built

    device = checked_device(case.device)
    with forked(derive(case.scenario.master_seed, "build", case.seed), device):
        model = Wrapped(
            build, kind, train, uses,
            window=spec.fit.window, block=case.scenario.data.block, dtype=checked_dtype(case.dtype),
        )  # fmt: skip
    for use in uses:
        lacks = missing_mechanisms(model.inner, use.held.mechanisms)
        if lacks:
            raise WorldsimError(f"{case.model!r} cannot be held to {use.name!r} by {', '.join(lacks)}")
    return model.to(device)


def build_uses(case: Case, system: System) -> list[Use]:
    """The constraints a model is held to, in the world of one split."""
    plugins = case.scenario.registry
    return [
        Use(u.component.name.rpartition("/")[2], u.component.build(plugins, system=system), u.held)
        for u in case.spec.uses
    ]


def fit_model(
    case: Case, model: Any, truth: dict[str, Trajectory], store: Store, nondeterministic: set[str]
) -> None:
    """Train, or load what was trained; a fit that was interrupted goes on where its checkpoint is.

    Names of operations without a deterministic form are kept with the weights, and added to
    ``nondeterministic`` when those are loaded.
    """
    if has_weights(case, model, store, nondeterministic):
        return
    saved = store.open_fit(case.fit_key)

    def keep(tensors: Tensors, **words: str) -> None:
        if nondeterministic:
            words["nondeterministic"] = "\n".join(sorted(nondeterministic))
        store.keep_fit(case.fit_key, tensors, words)

    with ranks_of(case, store) as ranks:
        report = train(case, model, truth, saved[0] if saved else None, ranks, partial(keep, finished="no"))
    keep(model.state_dict(), finished="yes", **{k: repr(v) for k, v in report.items()})


def train(
    case: Case,
    model: Any,
    truth: dict[str, Trajectory],
    saved: Tensors | None,
    ranks: Ranks | None,
    save: Callable[[Tensors], None] | None = None,
) -> dict[str, float]:
    """Fit ``model`` from where ``saved`` left off, alone or as one of ``ranks``; observers hear of it from
    the first of them."""
    device = next(model.parameters()).device
    splits = {name: held(truth[name]).to(device=device) for name in ("train", "validation") if name in truth}

    def progress(step: int, losses: Any) -> None:
        case.scenario.registry.notify("worldsim_fit_progress", case=case, step=step, losses=losses)

    return fit(
        model, splits["train"], splits.get("validation"), case.spec.fit,
        derive(case.scenario.master_seed, case.seed),
        saved=saved, save=save, progress=progress if ranks is None or ranks.rank == 0 else None, ranks=ranks,
    )  # fmt: skip


def has_weights(case: Case, model: Any, store: Store, nondeterministic: set[str] | None = None) -> bool:
    """Whether ``model`` needs no training: there is nothing to train, or its finished fit is loaded now."""
    if case.is_baseline or not model.trainable or not any(p.requires_grad for p in model.parameters()):
        return True
    saved = store.open_fit(case.fit_key)
    if nondeterministic is not None and saved is not None:
        nondeterministic |= set(saved[1].get("nondeterministic", "").split("\n")) - {""}
    if saved is None or saved[1].get("finished") != "yes":
        return False
    try:
        model.load_state_dict(saved[0])
    except (RuntimeError, KeyError) as error:
        path = store.fit_path(case.fit_key)
        raise ResultError(f"{path} holds no weights of {case.label} ({error}); delete it") from None
    return True


def load_weights(case: Case, model: Any, store: Store) -> None:
    """Raises ResultError when ``model`` has to be trained and no finished fit is kept."""
    if not has_weights(case, model, store):
        raise ResultError(f"{case.label} has no finished fit in {store.root}; run the scenario first")


def roll_out(
    case: Case, model: Any, split: str, truth: Trajectory, system: System
) -> tuple[xr.Dataset, float]:
    """The forecast of one split beside its truth, from the last frame that was given; and the CPU seconds
    that the model took for it."""
    last = case.scenario.data.context - 1
    future = truth.span(last)
    prepare(case, model, system, future)
    rng = generator(case.scenario.master_seed, case.scenario.world, "rollout", split, case.seed)
    actions = future.actions if isinstance(system, HasActions) else None
    context = held(truth).span(0, last + 1)
    with forked(derive(case.scenario.master_seed, "rollout", case.seed)):
        begun = time.process_time()
        guess = model.rollout(context, future.times, actions, case.scenario.draws, rng)
        spent = time.process_time() - begun
    return to_dataset(future, guess, system), spent


def prepare(case: Case, model: Any, system: System, truth: Trajectory) -> None:
    """Put a model into the world of a split: its constraints, the true system, and what that may replay."""
    if isinstance(model, Baseline):
        model.system = system
    else:
        model.uses = tuple(build_uses(case, system))
    if isinstance(model, Truth):
        model.known = held(truth)


def checked_device(name: str) -> torch.device:
    """Raises DeviceError when this machine has no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r} was asked for, and this machine has no CUDA device; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} was asked for, and this machine has {torch.cuda.device_count()}")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use cpu or cuda")
    return device


def checked_dtype(name: str) -> torch.dtype:
    """Raises DeviceError for a dtype that models cannot be trained in."""
    allowed = {"float32": torch.float32, "float64": torch.float64}
    if name not in allowed:
        raise DeviceError(f"dtype {name!r} is not supported; use {' or '.join(allowed)}")
    return allowed[name]


def load_fitted(case: Case, store: Store) -> Any:
    """The trained model of a kept case."""
    systems = build_systems(case)
    truth = {split: simulate_split(case, split, systems[split]) for split in ("train",)}
    model = build_model(case, systems["train"], truth)
    load_weights(case, model, store)
    return model
