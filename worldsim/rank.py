"""``python -m worldsim.rank RANK COUNT PORT``: one of the processes that fit a model, see ``ranks``.

The case comes as JSON in the standard input. The standard output is for one word to rank 0, which must not
wait for a rank that has ended; what plugins print goes where errors go. Only rank 0 keeps anything.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def take_part(ready: TextIO, task: dict[str, Any], rank: int, count: int, port: int) -> None:
    """Build the model and the truth of ``task``, and fit it with the others."""
    from worldsim.build import build_model, build_systems, train
    from worldsim.determinism import deterministic
    from worldsim.errors import WorldsimError
    from worldsim.plugins import registry
    from worldsim.ranks import READY, joined
    from worldsim.reading import from_document
    from worldsim.scenario import Case
    from worldsim.store import Store
    from worldsim.truth import SEEDED, simulate_split

    plugins = registry(tuple(map(Path, task["plugins"])))
    scenario = from_document(task["document"], task["scenario"], plugins)
    device = f"cuda:{rank}" if task["device"].startswith("cuda") else task["device"]
    case = Case(scenario, task["model"], task["seed"], device, task["dtype"])
    if case.key != task["key"]:
        raise WorldsimError("the code of a plugin changed since the plan was made; run again")
    with deterministic():
        systems = build_systems(case)
        truth = {split: simulate_split(case, split, systems[split]) for split in systems if split in SEEDED}
        model = build_model(case, systems["train"], truth)
        saved = Store(Path(task["root"])).open_fit(case.fit_key)
        with ready:
            ready.write(READY)
        with joined(rank, count, port, device) as ranks:
            train(case, model, truth, saved[0] if saved else None, ranks)


if __name__ == "__main__":
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    take_part(ready, json.load(sys.stdin), *map(int, sys.argv[1:]))
