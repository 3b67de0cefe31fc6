"""A plain Zarr store. Version 2, because version 3 has no strings yet, and models have names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldsim.export.trees import plain_tree
from worldsim.files import HOST, flush_folder, make_folder, told
from worldsim.results import Results


def write(results: Results, scenarios: Sequence[str], out: Path, plugins: Sequence[Path]) -> list[Path]:
    tree = plain_tree(results, scenarios)
    for node in tree.subtree:
        for array in node.variables.values():
            array.attrs = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in array.attrs.items()}
    part = out.with_name(f"{out.name}.{HOST}.{os.getpid()}.part")
    try:
        make_folder(out.parent)
        tree.to_zarr(part, mode="w", consolidated=True, zarr_format=2)
        os.rename(part, out)
        flush_folder(out.parent)
    except OSError as error:
        raise told(error, out) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [out]
