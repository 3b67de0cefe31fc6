"""Where a result comes from: kept beside the data, never in the bytes that are compared."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from worldsim import __version__

if TYPE_CHECKING:
    from worldsim.scenario import Case

REPRODUCIBILITY = "bit-identical for the same key, device class and torch build; to tolerance elsewhere"
TO_TOLERANCE = "to tolerance: there is no deterministic form here of "


def provenance(case: Case, nondeterministic: Collection[str] = ()) -> dict[str, Any]:
    """Versions, hardware, plugins and the key document of one case; and how far it is reproducible, given the
    operations it used that have no deterministic form."""
    without = ", ".join(sorted(nondeterministic))
    return {
        "key": case.key,
        "label": case.label,
        "meaning": case.meaning,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "reproducibility": TO_TOLERANCE + without if without else REPRODUCIBILITY,
        **environment(),
    }


@cache
def environment() -> dict[str, Any]:
    """What does not change within a process."""
    import torch

    return {
        "worldsim": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "command": " ".join(map(os.path.basename, sys.argv[:1])) + " " + " ".join(sys.argv[1:]),
        "git": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
