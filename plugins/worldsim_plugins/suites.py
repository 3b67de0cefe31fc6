"""The suites of scenarios that come with worldsim."""

from __future__ import annotations

from pathlib import Path

import worldsim
from worldsim import hookimpl


@hookimpl
def worldsim_scenarios() -> Path:
    """Inside the installed package, or beside it in a source tree."""
    package = Path(worldsim.__file__).parent
    installed = package / "scenarios"
    return installed if installed.is_dir() else package.parent / "scenarios"
