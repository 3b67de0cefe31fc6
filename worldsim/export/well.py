"""The Well's HDF5 layout (Ohana et al. 2024; docs/data_format.md of PolymathicAI/the_well).

    OUT/<scenario>/<source>/data/<split>/<scenario>.hdf5

where the source is ``truth`` or ``<model>-<seed>``: each is a dataset of its own for the reader. Every
component of a state is a scalar field ``[trajectory, time, *grid]`` in single precision, as the layout has
it; the draws of a forecast are trajectories of it. The grid is periodic, as every ``HasGrid`` is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from worldsim.errors import ResultError
from worldsim.files import write_whole
from worldsim.protocols import HasGrid
from worldsim.results import Results

AXES = ("x", "y", "z")
SOURCE = re.compile(r"[^./\\][^/\\]*")
"""A model's label that can name a folder."""


@dataclass(frozen=True)
class Fields:
    """What one file holds: ``states`` are ``[trajectory, time, *grid, component]``."""

    name: str
    states: np.ndarray
    times: np.ndarray
    grid: tuple[np.ndarray, ...]
    components: tuple[str, ...]


def write(results: Results, scenarios: Sequence[str], out: Path, plugins: Sequence[Path]) -> list[Path]:
    grids = {scenario: _grids(results, scenario, plugins) for scenario in scenarios}
    written: list[Path] = []
    for scenario in scenarios:
        truths: set[str] = set()
        for entry in results.entries:
            if entry.scenario != scenario or not results.store.has_run(entry.key):
                continue
            if not SOURCE.fullmatch(entry.model):
                raise ResultError(f"{scenario}: a model labelled {entry.model!r} cannot name a folder")
            for split, node in results.store.open_run(entry.key).children.items():
                data, grid = node.to_dataset(), grids[scenario][split]
                sources = {f"{entry.model}-{entry.seed}": _merged(data["state"])}
                if split not in truths:
                    sources["truth"] = data["truth"]
                    truths.add(split)
                for source, states in sources.items():
                    path = out / scenario / source / "data" / split / f"{scenario}.hdf5"
                    fields = _fields(scenario, split, data, states, grid)
                    write_whole(path, partial(_write, fields=fields))
                    written.append(path)
    return written


def _grids(results: Results, scenario: str, plugins: Sequence[Path]) -> dict[str, HasGrid]:
    """Split -> the system whose grid it is on. Raises ResultError for a system that has none."""
    from worldsim.plugins import registry
    from worldsim.reading import from_document

    known = registry(tuple(plugins))
    read = from_document(results.document(scenario), scenario, known)
    systems = {split: part.build(known) for split, part in read.split_systems.items()}
    for system in systems.values():
        if not isinstance(system, HasGrid) or not 1 <= system.dims <= len(AXES):
            raise ResultError(
                f"{scenario}: The Well holds fields on a grid, and {read.system.name!r} is none; "
                "take --to netcdf, or leave it out with --scenario"
            )
    return systems


def _merged(state: xr.DataArray) -> xr.DataArray:
    """``[trajectory, draw, time, ...]`` with each draw as a trajectory."""
    values = state.values.reshape(-1, *state.shape[2:])
    return xr.DataArray(values, dims=("trajectory", *state.dims[2:]))


def _fields(scenario: str, split: str, data: xr.Dataset, states: xr.DataArray, system: HasGrid) -> Fields:
    """Raises ResultError for what the layout has no place for: ragged ends, tokens, axes that are no grid."""
    grid = (system.points,) * system.dims
    if "length" in data and int(data["length"].min()) < data.sizes["time"]:
        raise ResultError(f"{scenario}/{split}: trajectories end at different times, The Well's do not")
    if states.dtype.kind != "f" or states.shape[2:-1] != grid:
        raise ResultError(
            f"{scenario}/{split}: states are {states.dtype} {states.shape}, expected numbers on a grid {grid}"
        )
    last = states.dims[-1]
    labels = data[last].values if last in data.coords else range(states.shape[-1])
    axis = np.arange(system.points) * (system.length / system.points)
    components = tuple(str(label) for label in labels)
    return Fields(scenario, states.values, data["time"].values, (axis,) * system.dims, components)


def _write(path: Path, fields: Fields) -> None:
    import h5py

    axes = AXES[: len(fields.grid)]
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs["dataset_name"] = fields.name
        file.attrs["grid_type"] = "cartesian"
        file.attrs["n_spatial_dims"] = len(axes)
        file.attrs["n_trajectories"] = len(fields.states)
        file.attrs.create("simulation_parameters", [], dtype=text)
        dimensions = file.create_group("dimensions")
        dimensions.attrs.create("spatial_dims", list(axes), dtype=text)
        dimensions.create_dataset("time", data=fields.times.astype(np.float32))
        dimensions["time"].attrs["sample_varying"] = False
        boundaries = file.create_group("boundary_conditions")
        for name, places in zip(axes, fields.grid):
            dimensions.create_dataset(name, data=places.astype(np.float32))
            dimensions[name].attrs.update(sample_varying=False, time_varying=False)
            _periodic(boundaries, name, len(places))
        for group in ("scalars", "t1_fields", "t2_fields"):
            file.create_group(group).attrs.create("field_names", [], dtype=text)
        scalars = file.create_group("t0_fields")
        scalars.attrs.create("field_names", list(fields.components), dtype=text)
        for index, name in enumerate(fields.components):
            made = scalars.create_dataset(name, data=fields.states[..., index].astype(np.float32))
            made.attrs.update(dim_varying=[True] * len(axes), sample_varying=True, time_varying=True)


def _periodic(boundaries: Any, name: str, points: int) -> None:
    import h5py

    group = boundaries.create_group(f"{name}_periodic")
    group.attrs.create("associated_dims", [name], dtype=h5py.string_dtype())
    group.attrs.create("associated_fields", [], dtype=h5py.string_dtype())
    group.attrs.update(bc_type="periodic", sample_varying=False, time_varying=False)
    mask = np.zeros(points, dtype=bool)
    mask[[0, -1]] = True
    group.create_dataset("mask", data=mask)
