"""Trajectories as xarray, and back. One group for each split; dims as in ``Trajectory``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from worldsim.protocols import HasObservables, System, Trajectory
from worldsim.untouched import untouched


def axes_of(trajectory: Trajectory) -> tuple[str, ...]:
    """Names of the state axes; the last one is "component" where the system named none."""
    n = len(trajectory.state_shape)
    if len(trajectory.axes) == n:
        return trajectory.axes
    return tuple(f"axis_{i}" for i in range(n - 1)) + (("component",) if n else ())


def to_dataset(truth: Trajectory, guess: Trajectory, system: System) -> xr.Dataset:
    """``truth`` and ``guess`` on the same times; the first time is the last one that was given.

    Variables: ``state[trajectory, draw, time, ...]`` (the prediction), ``truth[trajectory, time, ...]``,
    ``truth_<observable>``, ``<observable>`` of the prediction, ``action``.
    """
    axes = axes_of(truth)
    observed = {**_observed(system, guess.states), **guess.observables}
    _refuse_taken([*truth.observables, *observed], axes)
    data: dict[str, Any] = {
        "state": (("trajectory", "draw", "time", *axes), guess.states.numpy()),
        "truth": (("trajectory", "time", *axes), truth.states[:, 0].numpy()),
    }
    if truth.actions is not None:
        extra = _extra("action", truth.actions.dim() - 2)
        data["action"] = (("trajectory", "time", *extra), truth.actions.numpy())
    if truth.length is not None:
        data["length"] = (("trajectory",), truth.length[:, 0].numpy())
    for name, value in truth.observables.items():
        data[f"truth_{name}"] = (("trajectory", "time", *_extra(name, value.dim() - 3)), value[:, 0].numpy())
    for name, value in observed.items():
        data[name] = (("trajectory", "draw", "time", *_extra(name, value.dim() - 3)), value.numpy())
    dataset = xr.Dataset(data, coords={"time": ("time", truth.times.numpy())})
    dataset.attrs["labels"] = {axis: list(names) for axis, names in truth.labels.items() if axis in axes}
    return with_labels(_with_units(dataset, truth.units))


TAKEN = ("state", "truth", "action", "length", "trajectory", "draw", "time")


def _refuse_taken(names: Sequence[str], axes: Sequence[str]) -> None:
    """Raises ValueError for an observable that would stand in the place of something else in the dataset."""
    for name in names:
        if name in TAKEN or name in axes or name.startswith("truth_"):
            taken = ", ".join([*TAKEN, *axes, "truth_*"])
            raise ValueError(f"an observable cannot be named {name!r}; these names are taken: {taken}")


def with_labels(dataset: xr.Dataset) -> xr.Dataset:
    """Labels of the state axes as coordinates. They are kept as attributes: Zarr v3 has no strings yet."""
    return dataset.assign_coords(
        {axis: list(names) for axis, names in dataset.attrs.get("labels", {}).items()}
    )


def without_labels(dataset: xr.Dataset) -> xr.Dataset:
    """What ``with_labels`` added, taken away."""
    return dataset.drop_vars(list(dataset.attrs.get("labels", {})))


def _observed(system: System, states: Tensor) -> dict[str, Tensor]:
    if not isinstance(system, HasObservables):
        return {}
    with untouched(f"{type(system).__name__}.observe", {"states": states}):
        return dict(system.observe(states))


def _extra(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{i}" for i in range(count))


def _with_units(dataset: xr.Dataset, units: Mapping[str, str]) -> xr.Dataset:
    dataset["time"].attrs["units"] = units.get("time", "1")
    for name in dataset.data_vars:
        unit = units.get(str(name).removeprefix("truth_"))
        if unit:
            dataset[name].attrs["units"] = unit
    dataset.attrs["units"] = [f"{name}={unit}" for name, unit in sorted(units.items())]
    return dataset


def from_dataset(dataset: xr.Dataset) -> tuple[Trajectory, Trajectory]:
    """(truth, guess) of a kept split."""
    axes = tuple(str(dim) for dim in dataset["state"].dims[3:])
    shared: dict[str, Any] = {
        "times": tensor(dataset["time"]),
        "actions": tensor(dataset["action"]) if "action" in dataset else None,
        "axes": axes,
        "labels": {axis: tuple(map(str, dataset[axis].values)) for axis in axes if axis in dataset.coords},
        "units": dict(pair.split("=", 1) for pair in np.atleast_1d(dataset.attrs.get("units", [])).tolist()),
    }
    truth = Trajectory(
        states=tensor(dataset["truth"])[:, None],
        observables={
            str(name).removeprefix("truth_"): tensor(value)[:, None]
            for name, value in dataset.data_vars.items()
            if str(name).startswith("truth_")
        },
        length=tensor(dataset["length"])[:, None] if "length" in dataset else None,
        **shared,
    )
    known = {"state", "truth", "action", "length"}
    observables = {
        str(name): tensor(value)
        for name, value in dataset.data_vars.items()
        if str(name) not in known and not str(name).startswith("truth_")
    }
    return truth, Trajectory(states=tensor(dataset["state"]), observables=observables, **shared)


def tensor(array: xr.DataArray) -> Tensor:
    return torch.from_numpy(array.values.copy())
