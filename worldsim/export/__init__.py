"""Results for other programs.

netcdf  one netCDF-4 file with a group for each scenario and split (CF-1.12)
zarr    the same tree as a plain Zarr store (version 2, which has strings)
well    HDF5 files in the layout of The Well (Ohana et al. 2024): fields on a grid
minari  HDF5 datasets in the layout of Minari (Younis et al. 2024): systems with actions

What a format cannot hold is refused before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from worldsim.errors import ResultError, did_you_mean

if TYPE_CHECKING:
    from worldsim.results import Results

NEEDS = {"netcdf": ("h5netcdf", "h5py"), "zarr": (), "well": ("h5py",), "minari": ("h5py",)}
"""Format -> the libraries that write it, which are in the extra ``export``."""


def write(
    results: Results,
    form: str,
    out: Path,
    scenarios: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> list[Path]:
    """Write ``results``, or some ``scenarios`` of them, to ``out`` in one of the formats; what was written.

    Raises ResultError when ``out`` is there already, a library is missing, or the format cannot hold it.
    """
    if os.path.lexists(out):
        raise ResultError(f"{out} is there already; choose another place, or move it away")
    if form not in NEEDS:
        raise ResultError(f"there is no format {form!r}; {did_you_mean(form, NEEDS)}")
    for name in scenarios:
        if name not in results.scenarios:
            raise ResultError(
                f"{results.root} has no scenario {name!r}; {did_you_mean(name, results.scenarios)}"
            )
    missing = [library for library in NEEDS[form] if find_spec(library) is None]
    if missing:
        raise ResultError(f"--to {form} needs {' and '.join(missing)}: pip install 'worldsim[export]'")
    writer: Callable[..., list[Path]] = import_module(f"worldsim.export.{form}").write
    return writer(results, tuple(scenarios or results.scenarios), Path(out), tuple(map(Path, plugins)))
