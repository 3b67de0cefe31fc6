"""The tree of results with attributes that every format can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from worldsim import __version__
from worldsim.results import Results
from worldsim.stacking import in_memory
from worldsim.xarray_backend import scores


def plain_tree(results: Results, scenarios: Sequence[str]) -> xr.DataTree:
    """``/scores`` and ``/<scenario>/<split>``, with attributes that are text or numbers."""
    table = scores(results).sel(scenario=list(scenarios))
    title = "; ".join(f"{name}: {results.about(name)}" for name in scenarios)
    source = f"worldsim {__version__}"
    groups = {"/": xr.Dataset(attrs={"Conventions": "CF-1.12", "title": title, "source": source})}
    groups["/scores"] = _plain(table)
    for scenario in scenarios:
        for split, data in in_memory(results, scenario).items():
            groups[f"/{scenario}/{split}"] = _plain(data)
    return xr.DataTree.from_dict(groups)


def _plain(data: xr.Dataset) -> xr.Dataset:
    """Labels are coordinates already; units of single components become one line of text."""
    attrs = {key: value for key, value in data.attrs.items() if key != "labels"}
    units = attrs.pop("units", None)
    if units:
        attrs["component_units"] = ", ".join(map(str, np.atleast_1d(units)))
    plain = data.copy().drop_encoding().drop_attrs(deep=False).assign_attrs(attrs)
    for name, array in plain.variables.items():
        array.attrs = {**_with_flags(array), "long_name": str(name).replace("_", " ")}
    return plain


def _with_flags(array: xr.Variable) -> dict[str, Any]:
    """CF wants flag values in the type of the variable."""
    attrs = dict(array.attrs)
    if "flag_values" in attrs:
        attrs["flag_values"] = np.asarray(attrs["flag_values"], dtype=array.dtype)
    return attrs
