"""A results folder made by hand: what is kept, without computing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from worldsim.plan_files import plan_path
from worldsim.protocols import Score
from worldsim.results import Results
from worldsim.score import to_document
from worldsim.store import Store

TIMES = np.arange(4) * 0.5


def key_of(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:32]


def folder(
    root: Path,
    seeds: int = 3,
    missing: tuple[tuple[str, int], ...] = (),
    failed: tuple[tuple[str, int], ...] = (),
    names: tuple[str, ...] = ("world",),
    actions: bool = False,
) -> Results:
    """Scenarios with the models "net" and "Net" at every seed and "truth" once; of tokens and numbers."""
    store, number, metric = Store(root), 0, key_of("rollout")
    for name in names:
        lines = []
        cases = [(m, s) for m in ("net", "Net") for s in range(seeds)] + [("truth", 0)]
        for model, seed in cases:
            key, number = key_of(name, model, seed), number + 1
            lines.append(
                {"key": key, "model": model, "seed": seed, "baseline": model == "truth", "learned": True}
            )
            if (model, seed) in failed:
                store.keep_failure(key, {"label": f"{name}/{model}/{seed}", "message": "it broke"})
            elif (model, seed) not in missing:
                data = rollouts(number, flag=model == "Net", actions=actions)
                tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": key}), "/test": data})
                store.keep_run(key, tree, {"key": key, "label": f"{name}/{model}/{seed}"})
                store.keep_scores(key, metric, {"test": to_document({"nrmse": Score(0.5 + seed, n=2)})})
        keep_plan(root, name, {"about": "Made by hand?", "system": "pendulum"}, {"rollout": metric}, lines)
    return Results(root)


def keep_plan(
    root: Path,
    name: str,
    document: Mapping[str, Any],
    metrics: Mapping[str, str],
    cases: Sequence[Mapping[str, Any]],
    environment: Mapping[str, str] | None = None,
) -> None:
    head = {
        "schema": 2, "scenario": name, "document": document, "compositions": {},
        "environment": environment or {}, "device": "cpu", "dtype": "float32", "metrics": metrics,
    }  # fmt: skip
    path = plan_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *cases)), encoding="utf-8")


def rollouts(number: int, flag: bool = False, actions: bool = False) -> xr.Dataset:
    """2 trajectories of 4 frames: numbers, tokens, and trajectories of 4 and 3 frames."""
    rng = np.random.default_rng(number)
    dims = ("trajectory", "draw", "time")
    truth = np.random.default_rng(0).normal(size=(2, 4, 2))
    truth[1, 3] = np.nan
    data = {
        "state": ((*dims, "component"), rng.normal(size=(2, 1, 4, 2)).astype(np.float32)),
        "truth": (("trajectory", "time", "component"), truth, {"units": "m"}),
        "token": (dims, rng.integers(0, 9, size=(2, 1, 4))),
        "length": (("trajectory",), np.array([4, 3])),
    }
    if flag:
        data["projected"] = (dims, np.ones((2, 1, 4), dtype=bool))
    if actions:
        data["action"] = (("trajectory", "time", "action_0"), rng.normal(size=(2, 4, 1)))
        data["truth_reward"] = (("trajectory", "time"), rng.normal(size=(2, 4)))
        data["truth_terminated"] = (
            ("trajectory", "time"),
            np.array([[0, 0, 0, 0], [0, 0, 1, 1]], dtype=bool),
        )
    attrs = {"labels": {"component": ["q", "p"]}, "units": ["p=kg m s-1", "q=m", "time=s"]}
    coords = {"time": ("time", TIMES, {"units": "s"}), "component": ["q", "p"]}
    return xr.Dataset(data, coords=coords, attrs=attrs)
