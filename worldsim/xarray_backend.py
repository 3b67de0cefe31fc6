"""``xr.open_datatree(path, engine="worldsim")``: a results folder, or one case's file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendEntrypoint

from worldsim.stacking import FLAGS, STATUS, in_memory

if TYPE_CHECKING:
    from worldsim.results import Results


class WorldsimBackend(BackendEntrypoint):
    """Opens results of worldsim; a scenario's groups stack the cases that share its dimensions."""

    description = "Results of worldsim: a results folder or a single .zarr.zip"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "group")
    supports_groups = True

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: Any = None, group: str = "scores"
    ) -> xr.Dataset:
        """One group (of a folder "scores" unless told, of a file the one that it is told)."""
        tree = self.open_datatree(filename_or_obj, drop_variables=drop_variables)
        if group not in ("", "/") and group.strip("/") not in {n.path.strip("/") for n in tree.subtree}:
            groups = ", ".join(node.path for node in tree.subtree)
            raise ValueError(f"{filename_or_obj} has no group {group!r}; it has {groups}")
        node = tree if group in ("", "/") else tree[group.strip("/")]
        return node.to_dataset()

    def open_datatree(self, filename_or_obj: Any, *, drop_variables: Any = None, **_: Any) -> xr.DataTree:
        """Everything, loaded; of a folder whose compacted store is current, read when it is asked for."""
        from worldsim.archive import open_zip
        from worldsim.compacting import is_current, open_compacted
        from worldsim.results import open_results

        path = Path(filename_or_obj)
        if not path.is_dir():
            tree = open_zip(path)
        else:
            tree = open_compacted(path) if is_current(path) else open_results(path).tree()
        if not drop_variables:
            return tree
        kept: xr.DataTree = tree.map_over_datasets(lambda ds: ds.drop_vars(drop_variables, errors="ignore"))
        return kept

    def open_groups_as_dict(self, filename_or_obj: Any, **options: Any) -> dict[str, xr.Dataset]:
        tree = self.open_datatree(filename_or_obj, **options)
        return {node.path: node.to_dataset() for node in tree.subtree}

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        from worldsim.plan_files import has_plan

        try:
            path = Path(filename_or_obj)
        except TypeError:
            return False
        return path.name.endswith(".zarr.zip") or has_plan(path)


def results_tree(results: Results) -> xr.DataTree:
    """``/scores[scenario, model, seed, score]`` with ``status`` and ``/<scenario>/<split>``."""
    groups: dict[str, xr.Dataset] = {
        "/": xr.Dataset(attrs={"Conventions": "CF-1.12"}),
        "/scores": scores(results),
    }
    for scenario in results.scenarios:
        for split, data in in_memory(results, scenario).items():
            groups[f"/{scenario}/{split}"] = data
    return xr.DataTree.from_dict(groups)


def scores(results: Results) -> xr.Dataset:
    """Every scalar score: ``value``, ``floor``, ``low``, ``high`` over (scenario, model, seed, score)."""
    scenarios = results.scenarios
    models = list(dict.fromkeys(entry.model for entry in results.entries))
    seeds = sorted({entry.seed for entry in results.entries})
    rows = [row for row in results.rows() if not row.score.dims]
    names = sorted({f"{row.split}/{row.name}" for row in rows})
    index: dict[str, dict[Any, int]] = {
        "scenario": {n: i for i, n in enumerate(scenarios)},
        "model": {n: i for i, n in enumerate(models)},
        "score": {n: i for i, n in enumerate(names)},
        "seed": {n: i for i, n in enumerate(seeds)},
    }
    shape = (len(scenarios), len(models), len(seeds), len(names))
    arrays = {key: np.full(shape, np.nan) for key in ("value", "floor", "low", "high")}
    for row in rows:
        at = (
            index["scenario"][row.scenario],
            index["model"][row.model],
            index["seed"][row.seed],
            index["score"][f"{row.split}/{row.name}"],
        )
        low, high = row.score.interval or (np.nan, np.nan)
        floor = np.nan if row.score.floor is None else row.score.floor
        for key, value in (("value", row.score.value), ("floor", floor), ("low", low), ("high", high)):
            arrays[key][at] = value
    status = np.full(shape[:3], STATUS["missing"], dtype=np.int8)
    for entry in results.entries:
        at3 = (index["scenario"][entry.scenario], index["model"][entry.model], index["seed"][entry.seed])
        status[at3] = STATUS[results.status(entry)]
    dims = ("scenario", "model", "seed", "score")
    data: dict[str, Any] = {key: (dims, value) for key, value in arrays.items()}
    data["status"] = (dims[:3], status, FLAGS)
    coords = {"scenario": scenarios, "model": models, "seed": seeds, "score": names}
    return xr.Dataset(data, coords=coords)
