"""One netCDF-4 file, written by xarray through h5netcdf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worldsim.export.trees import plain_tree
from worldsim.files import write_whole
from worldsim.results import Results


def write(results: Results, scenarios: Sequence[str], out: Path, plugins: Sequence[Path]) -> list[Path]:
    tree = plain_tree(results, scenarios)
    write_whole(out, lambda part: tree.to_netcdf(part, engine="h5netcdf"))
    return [out]
