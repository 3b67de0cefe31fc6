"""The cases of a scenario as one block over (model, seed), in memory or on disk.

Where a case is not there, floats are NaN, integers the smallest of their type and booleans false; the
variable ``status`` over (model, seed) says which cases are, so that a fill is never mistaken for a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr

from worldsim.errors import ResultError
from worldsim.trees import with_labels, without_labels

if TYPE_CHECKING:
    from worldsim.plan_files import Entry
from worldsim.results import Results

STATUS = {"done": 0, "unscored": 1, "failed": 2, "missing": 3}
FLAGS = {"flag_values": list(STATUS.values()), "flag_meanings": " ".join(STATUS)}

LARGEST_BLOCK = 128 * 2**20
"""Bytes of cases that are held in memory at once, where one case is smaller."""
MOST_CASES = 100
"""Cases in a block, which is a file of the compacted store."""


@dataclass(frozen=True)
class Variable:
    """One case's part of a variable: without the axes (model, seed)."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def fill(self) -> Any:
        if self.dtype.kind in "iu":
            return np.iinfo(self.dtype).min if self.dtype.kind == "i" else np.iinfo(self.dtype).max
        return False if self.dtype.kind == "b" else self.dtype.type(np.nan)


@dataclass(frozen=True)
class Layout:
    """What the stacked cases of one split look like."""

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    status: np.ndarray
    variables: Mapping[str, Variable]
    coords: Mapping[str, xr.Variable]
    attrs: Mapping[str, Any]

    @property
    def block(self) -> int:
        """How many seeds of a model are read and written at once."""
        case = sum(variable.bytes for variable in self.variables.values())
        return max(1, min(MOST_CASES, len(self.seeds), LARGEST_BLOCK // max(case, 1)))


Make: TypeAlias = Callable[[str, str, tuple[str, ...], tuple[int, ...], Variable, Layout], Any]
"""(split, name, dims, shape, variable, layout) -> an array of that shape that can be assigned to."""


def layouts(results: Results, scenario: str) -> dict[str, Layout]:
    """Split -> layout, as one kept case of each model has it. Raises ResultError where cases disagree."""
    entries = [entry for entry in results.entries if entry.scenario == scenario]
    models = tuple(dict.fromkeys(entry.model for entry in entries))
    seeds = tuple(sorted({entry.seed for entry in entries}))
    status = np.full((len(models), len(seeds)), STATUS["missing"], dtype=np.int8)
    rows, columns = _places(models), _places(seeds)
    for entry in entries:
        status[rows[entry.model], columns[entry.seed]] = STATUS[results.status(entry)]
    found: dict[str, Layout] = {}
    for model in models:
        kept = next((e for e in entries if e.model == model and results.store.has_run(e.key)), None)
        if kept is None:
            continue
        for split, data in _splits(results, kept).items():
            here = found.get(split) or Layout(models, seeds, status, {}, {}, {})
            found[split] = _joined(here, data, f"{kept.label}/{split}", not here.variables)
    return found


def _places(items: Sequence[Any]) -> dict[Any, int]:
    return {item: place for place, item in enumerate(items)}


def _splits(results: Results, entry: Entry) -> dict[str, xr.Dataset]:
    children = results.store.open_run(entry.key).children
    return {split: without_labels(node.to_dataset()) for split, node in children.items()}


def _joined(here: Layout, data: xr.Dataset, label: str, first: bool) -> Layout:
    variables = dict(here.variables)
    for name, array in data.data_vars.items():
        old = variables.get(str(name))
        dims = tuple(map(str, array.dims))
        if old is None:
            variables[str(name)] = Variable(dims, array.shape, array.dtype, dict(array.attrs))
        elif (old.dims, old.shape) == (dims, array.shape):
            dtype, attrs = np.result_type(old.dtype, array.dtype), _shared(old.attrs, array.attrs)
            variables[str(name)] = replace(old, dtype=dtype, attrs=attrs)
        else:
            raise ResultError(
                f"{label}: {name} is {dims} {array.shape}, and of other models {old.dims} {old.shape}"
            )
    coords = dict(here.coords) or {str(name): c.variable for name, c in data.coords.items()}
    for name, coord in coords.items():
        same: Any = coord
        if name in data.coords and not same.equals(data.coords[name].variable):
            raise ResultError(f"{label}: {name} is not that of the other models")
    attrs = dict(data.attrs) if first else _shared(here.attrs, data.attrs)
    return replace(here, variables=variables, coords=coords, attrs=attrs)


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key in other and other[key] == value}


def arrays(found: Mapping[str, Layout], make: Make) -> dict[str, dict[str, Any]]:
    """Split -> name -> what ``make`` gives for it."""
    made: dict[str, dict[str, Any]] = {}
    for split, layout in found.items():
        outer = (len(layout.models), len(layout.seeds))
        made[split] = {
            name: make(split, name, ("model", "seed", *v.dims), (*outer, *v.shape), v, layout)
            for name, v in layout.variables.items()
        }
    return made


def fill(
    results: Results, scenario: str, found: Mapping[str, Layout], into: Mapping[str, Mapping[str, Any]]
) -> None:
    """Read every kept case once, and assign blocks of a model's seeds. Raises ResultError for a file that is
    damaged or is of another shape than the layout."""
    kept = {
        (entry.model, entry.seed): entry
        for entry in results.entries
        if entry.scenario == scenario and results.store.has_run(entry.key)
    }
    if not found:
        return
    some = next(iter(found.values()))
    step = min(layout.block for layout in found.values())
    for row, model in enumerate(some.models):
        for start in range(0, len(some.seeds), step):
            seeds = some.seeds[start : start + step]
            there = [(place, kept[model, seed]) for place, seed in enumerate(seeds) if (model, seed) in kept]
            if there:
                for (split, name), block in _block(results, there, len(seeds), found).items():
                    into[split][name][row, start : start + len(seeds)] = block


def _block(
    results: Results, there: Sequence[tuple[int, Entry]], size: int, found: Mapping[str, Layout]
) -> dict[tuple[str, str], np.ndarray]:
    blocks = {
        (split, name): np.full((size, *variable.shape), variable.fill, dtype=variable.dtype)
        for split, layout in found.items()
        for name, variable in layout.variables.items()
    }
    for place, entry in there:
        for split, data in _splits(results, entry).items():
            for name, array in data.data_vars.items():
                block = blocks.get((split, str(name)))
                if block is None or array.shape != block.shape[1:]:
                    raise ResultError(f"{entry.label}/{split}: {name} is not laid out as in the other cases")
                block[place] = array.values
    return blocks


def described(layout: Layout) -> dict[str, Any]:
    """The attributes of a stacked group: those of its cases, and the labels of the models."""
    labels = {**layout.attrs.get("labels", {}), "model": list(layout.models)}
    return {**layout.attrs, "labels": labels}


def in_memory(results: Results, scenario: str) -> dict[str, xr.Dataset]:
    """Split -> the stacked cases of a scenario."""
    found = layouts(results, scenario)

    def full(split: str, name: str, dims: Any, shape: Any, variable: Variable, layout: Layout) -> np.ndarray:
        return np.full(shape, variable.fill, dtype=variable.dtype)

    made = arrays(found, full)
    fill(results, scenario, found, made)
    return {split: _dataset(layout, made[split]) for split, layout in found.items()}


def _dataset(layout: Layout, made: Mapping[str, np.ndarray]) -> xr.Dataset:
    data: dict[str, Any] = {
        name: (("model", "seed", *variable.dims), made[name], {**variable.attrs, **MASKED})
        for name, variable in layout.variables.items()
    }
    data["status"] = (("model", "seed"), layout.status, FLAGS)
    coords = {"seed": ("seed", np.array(layout.seeds)), **layout.coords}
    return with_labels(xr.Dataset(data, coords=coords, attrs=described(layout)))


MASKED = {"ancillary_variables": "status"}
"""CF-1.12, 3.4: which variable says where this one is real."""
