"""Run the studies: ``python -m studies [-k EXPR] [--fresh]``.

A study is a file ``s<number>.py`` or ``b<number>.py``: a docstring that states the experiment, ``CLAIM``,
``SEEDS``, ``run(seed) -> figures`` and ``check(figures)``, which asserts the claim for every seed. Outcomes
are kept in .worldsim/studies.json under a hash of the file and of all of worldsim's sources, so that a second
call runs only what failed or what a change may have touched; --fresh runs everything. Exits 1 when a claim
fails.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch

import worldsim
import worldsim_kernels
import worldsim_plugins

HERE = Path(__file__).parent
KEPT = Path(".worldsim") / "studies.json"


def names(expression: str) -> list[str]:
    """The studies whose name has ``expression`` in it, in order of letter and number."""
    stems = (path.stem for path in HERE.glob("[bs][0-9]*.py"))
    found = sorted(stems, key=lambda name: (name[0], int(name[1:])))
    return [name for name in found if expression.lower() in name]


@cache
def sources() -> bytes:
    """Digest of the code that a study may run: the core, the kernels and the plugins."""
    digest = hashlib.sha256()
    for package in (worldsim, worldsim_kernels, worldsim_plugins):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()


def key_of(name: str) -> str:
    return hashlib.sha256((HERE / f"{name}.py").read_bytes() + sources()).hexdigest()


def outcome(name: str) -> dict[str, Any]:
    """Run one study over its seeds: figures of each seed, seconds, and why it failed ("" when it did not)."""
    began, figures, failure, seed = time.perf_counter(), [], "", None
    try:
        study = import_module(f"studies.{name}")
        for seed in study.SEEDS:
            figures.append(study.run(seed))
            study.check(figures[-1])
    except Exception:
        failure = f"seed {seed}\n{traceback.format_exc()}"
    return {"figures": figures, "seconds": time.perf_counter() - began, "failure": failure}


def row(name: str, done: dict[str, Any], kept: bool) -> str:
    claim = import_module(f"studies.{name}").CLAIM
    seconds = f"{done['seconds']:.0f}{' (kept)' if kept else ''}"
    verdict = "FAIL" if done["failure"] else "PASS"
    return f"{name.upper()} | {range_of(done['figures'])} | {claim} | {seconds} | {verdict}"


def range_of(figures: list[dict[str, float]]) -> str:
    """Each figure as its value, or as its lowest and highest over the seeds."""
    shown = []
    for name in figures[0] if figures else ():
        low, high = (pick(each[name] for each in figures) for pick in (min, max))
        shown.append(f"{name} {low:.3g}" + (f"..{high:.3g}" if high != low else ""))
    return "; ".join(shown)


@click.command()
@click.option("-k", "expression", default="", help="Only the studies with this in their name.")
@click.option("--fresh", is_flag=True, help="Run again what already holds.")
def main(expression: str, fresh: bool) -> None:
    """Run the studies and print a table: row | figure | assertion | seconds | verdict."""
    chosen = names(expression)
    if not chosen:
        raise click.ClickException(
            f"no study has {expression!r} in its name; there are: {', '.join(names(''))}"
        )
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    failed = False
    print("row | figure | assertion | seconds | verdict")
    for name in chosen:
        key = key_of(name)
        held = not fresh and key in kept and not kept[key]["failure"]
        done = kept[key] if held else outcome(name)
        kept[key] = done
        keep(kept)
        failed |= bool(done["failure"])
        print(row(name, done, held), flush=True)
        if done["failure"]:
            print(done["failure"], file=sys.stderr)
    sys.exit(int(failed))


def keep(outcomes: dict[str, Any]) -> None:
    """Written whole or not at all."""
    KEPT.parent.mkdir(exist_ok=True)
    partial = KEPT.with_suffix(".partial")
    partial.write_text(json.dumps(outcomes, indent=1))
    partial.replace(KEPT)


if __name__ == "__main__":
    main()
