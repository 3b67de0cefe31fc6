"""Minari's HDF5 layout (Younis et al. 2024): the true trajectories of systems with actions, as episodes.

    OUT/<scenario>/<split>-v0/data/{metadata.json, main_data.hdf5}

which ``minari.load_dataset("<scenario>/<split>-v0")`` reads where MINARI_DATASETS_PATH is OUT. An episode has
one more observation than actions, and ends where its trajectory does. Rewards and terminations are the
observables ``reward`` and ``terminated``; a system without them has rewards that are NaN, for it defines
none, and ends that are truncations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from worldsim import __version__
from worldsim.errors import ResultError
from worldsim.files import write_text, write_whole
from worldsim.results import Results

READERS = "0.5.4"
"""The version of Minari whose layout this is; it reads those that it lists by name."""


def write(results: Results, scenarios: Sequence[str], out: Path, plugins: Sequence[Path]) -> list[Path]:
    found = [(scenario, *one) for scenario in scenarios for one in _truths(results, scenario)]
    written = []
    for scenario, split, data in found:
        folder = out / scenario / f"{split}-v0" / "data"
        episodes = list(_episodes(data))
        steps = sum(len(episode["actions"]) for episode in episodes)
        write_whole(folder / "main_data.hdf5", partial(_write, episodes=episodes))
        about = {
            "dataset_id": f"{scenario}/{split}-v0",
            "data_format": "hdf5",
            "total_episodes": len(episodes),
            "total_steps": steps,
            "observation_space": json.dumps(_space(data["truth"])),
            "action_space": json.dumps(_space(data["action"])),
            "minari_version": READERS,
            "algorithm_name": "actions sampled by the scenario's system",
            "description": f"{results.about(scenario)} The true trajectories of worldsim {__version__}.",
            "dataset_size": round((folder / "main_data.hdf5").stat().st_size / 1e6, 1),
        }
        write_text(folder / "metadata.json", json.dumps(about))
        written.append(folder)
    return written


def _truths(results: Results, scenario: str) -> list[tuple[str, xr.Dataset]]:
    """(split, data) of one kept case: the truth is that of every case. ResultError for a system that is not
    driven."""
    for entry in results.entries:
        if entry.scenario == scenario and results.store.has_run(entry.key):
            splits = {k: node.to_dataset() for k, node in results.store.open_run(entry.key).children.items()}
            if not all("action" in data for data in splits.values()):
                raise ResultError(
                    f"{scenario}: Minari holds systems with actions, and this one has none; "
                    "take --to netcdf, or leave it out with --scenario"
                )
            return list(splits.items())
    raise ResultError(f"{scenario}: no rollouts are kept; run it first")


def _episodes(data: xr.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """Trajectories of at least one step, up to their ends."""
    count, frames = data.sizes["trajectory"], data.sizes["time"]
    length = data["length"].values if "length" in data else np.full(count, frames)
    missing = xr.DataArray(np.full((count, frames), np.nan))
    reward = data.get("truth_reward", missing).values.reshape(count, frames).astype(np.float64)
    ended = data.get("truth_terminated", missing * 0 == 1).values.reshape(count, frames).astype(bool)
    for row in range(count):
        steps = int(length[row]) - 1
        if steps < 1:
            continue
        terminated = ended[row, 1 : steps + 1]
        truncated = np.zeros(steps, dtype=bool)
        truncated[-1] = not terminated[-1]
        yield {
            "observations": data["truth"].values[row, : steps + 1],
            "actions": data["action"].values[row, :steps],
            "rewards": reward[row, 1 : steps + 1],
            "terminations": terminated,
            "truncations": truncated,
        }


def _space(array: xr.DataArray) -> dict[str, Any]:
    """A Box without bounds, of one observation or action, as Minari writes it."""
    shape, dtype = array.shape[2:], array.dtype
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": str(dtype), "shape": list(shape), **bounds}


def _write(path: Path, episodes: Sequence[dict[str, np.ndarray]]) -> None:
    import h5py

    with h5py.File(path, "w", track_order=True) as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs.update(id=number, total_steps=len(episode["actions"]))
            for name, values in episode.items():
                group.create_dataset(name, data=values)
