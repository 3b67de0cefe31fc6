"""A results folder made by hand: what is kept, without computing anything."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import xarray as xr

from worldsim.files import write_text
from worldsim.plan_files import LOCK, PLAN
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
    store, lines = Store(root), []
    for name in names:
        cases = [(m, s) for m in ("net", "Net") for s in range(seeds)] + [("truth", 0)]
        for model, seed in cases:
            key, metric = key_of(name, model, seed), key_of("rollout")
            lines.append({
                "key": key, "scenario": name, "model": model, "seed": seed, "baseline": model == "truth",
                "device": "cpu", "dtype": "float32", "metrics": {"rollout": metric}, "learned": True,
            })  # fmt: skip
            if (model, seed) in failed:
                store.keep_failure(key, {"label": f"{name}/{model}/{seed}", "message": "it broke"})
            elif (model, seed) not in missing:
                data = rollouts(len(lines), flag=model == "Net", actions=actions)
                tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"worldsim_key": key}), "/test": data})
                store.keep_run(key, tree, {"key": key, "label": f"{name}/{model}/{seed}"})
                store.keep_scores(key, metric, {"test": to_document({"nrmse": Score(0.5 + seed, n=2)})})
    document = {"about": "Made by hand?", "system": "pendulum", "metrics": ["rollout"]}
    write_text(root / LOCK, json.dumps({"schema": 1, "scenarios": dict.fromkeys(names, document)}))
    write_text(root / PLAN, "".join(json.dumps(line) + "\n" for line in lines))
    return Results(root)


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
