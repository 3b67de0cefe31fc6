"""The shared kernels beside torch, flash-linear-attention and the limits of this machine's CPU, in one run.

    python benchmarks/kernels.py [--quick] [--only NAME] [--json FILE]

benchmarks/README.md says what each column means and how to install the peers.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import processes
import tables
import torch
from families import DEFAULT, FAMILIES, SOFTMAX, Family, H, K
from goals import goals
from measure import available_bytes, error, fit, keep_freed_memory, limits, load_warning, seconds, take_turns
from peers import INSTALL
from processes import WARM, work

PASSES = {False: "forward", True: "forward + backward"}


@dataclass(frozen=True)
class Plan:
    """How much is measured; lengths in tokens.

    lengths  of the comparisons
    long     of our default alone
    memory   where peak memory is measured, of ``remembered`` passes (False forward, True with backward)
    errors   where errors are
    cap      seconds that no call may pass
    budget   seconds that each call is given at each length, and ``least`` its rounds at any rate
    rounds   of what is measured in other processes
    builds   whether C is compiled anew, for this processor and a portable one
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    long: tuple[int, ...] = (4096, 16384, 65536, 262144, 1048576)
    memory: int = 4096
    remembered: tuple[bool, ...] = (False, True)
    errors: int = 1024
    cap: float = 4.0
    budget: float = 1.0
    least: int = 3
    rounds: int = 9
    builds: bool = True


FULL = Plan()
QUICK = Plan(
    lengths=(1024, 4096),
    long=(4096, 8192, 16384, 32768, 65536),
    memory=512,
    remembered=(False,),
    errors=256,
    cap=0.25,
    budget=0.1,
    least=2,
    rounds=4,
    builds=False,
)


@dataclass
class Row:
    """What was measured of one method; ``milliseconds`` at the plan's lengths, as far as they went."""

    milliseconds: list[float] = field(default_factory=list)
    gflops: float = math.nan
    of_flops: float = math.nan
    of_bytes: float = math.nan
    megabytes: float = math.nan
    error: float = math.nan
    exponent: float = math.nan
    exponent_error: float = math.nan
    note: str = ""


def measure(family: Family, backward: bool, plan: Plan, memories: dict[Any, float]) -> dict[str, Row]:
    """Time every method at every length until a call would pass the cap."""
    rows = {each.label: Row() for each in family.methods}
    wrong = errors(family, rows, plan.errors, backward)
    reached = first(family, rows, backward)
    for length in plan.lengths:
        inputs = family.inputs(length)
        calls = {}
        for method in family.methods:
            row = rows[method.label]
            row.note = row.note or too_long(reached[method.label], length, plan.cap)
            if not row.note:
                calls[method.label] = work(method, method.arrange(inputs), backward)
        for label, best in take_turns(calls, plan.budget, plan.least).items():
            rows[label].milliseconds.append(1e3 * best)
            reached[label].append((length, best))
    for label, row in rows.items():
        row.megabytes = memories.get((family.name, label, backward), math.nan)
        row.error = wrong.get(label, math.nan)
        lengths = plan.lengths[: len(row.milliseconds)]
        row.exponent, row.exponent_error = fit(lengths, row.milliseconds)
    return rows


def errors(family: Family, rows: dict[str, Row], length: int, backward: bool) -> dict[str, float]:
    """The relative error against float64 of each output, or the largest of its gradients' errors.

    Where a method fails, or is not installed, its row gets a note.
    """
    inputs, found, truths = family.inputs(length), {}, {}
    for method in family.methods:
        exact = family.truth(method)
        if method.run is None:
            rows[method.label].note = INSTALL
            continue
        try:
            if exact.label not in truths:
                precise = exact.arrange(tuple(x.double() for x in inputs))
                truths[exact.label] = work(exact, precise, backward)()
            mine = work(method, method.arrange(inputs), backward)()
        except Exception as problem:
            rows[method.label].note = _short(problem)
            continue
        true = truths[exact.label]
        pairs = zip(mine[1:], true[1:]) if backward else [(mine, true)]
        found[method.label] = max(error(method.restore(x), exact.restore(y)) for x, y in pairs)
    return found


def first(family: Family, rows: dict[str, Row], backward: bool) -> dict[str, list[tuple[int, float]]]:
    """(tokens, seconds) of each method's call of ``WARM`` tokens, itself warmed up."""
    inputs, found = family.inputs(WARM), {}
    for method in family.methods:
        if not rows[method.label].note:
            call = work(method, method.arrange(inputs), backward)
            call()
            found[method.label] = [(WARM, seconds(call))]
    return found


def too_long(reached: list[tuple[int, float]], length: int, cap: float) -> str:
    """Why a method is left out at this length, by growth as between its last two; "" when it is not."""
    last, took = reached[-1]
    growth = max(1.0, fit([n for n, _ in reached[-2:]], [t for _, t in reached[-2:]])[0])
    expected = took * (length / last) ** (1.0 if math.isnan(growth) else growth)
    return (
        "" if expected <= cap else f"one call with {tables.tokens(length)} tokens would take {expected:.1f} s"
    )


def memory(plan: Plan, families: list[Family]) -> dict[Any, float]:
    """(family, label, backward) -> MB."""
    return {
        (family.name, method.label, backward): processes.memory(
            family, method, plan.memory, backward, plan.cap
        )
        for family in families
        for method in family.methods
        if method.run is not None
        for backward in plan.remembered
    }


def long(plan: Plan, families: list[Family]) -> dict[str, dict[str, Any]]:
    """Our default forward from 4096 tokens on, at lengths that take turns on one allocation.

    Every round runs all of them, so that each finds the caches full of a longer one's tokens.
    """
    found: dict[str, dict[str, Any]] = {}
    for family in families:
        token = 4 * (family.reads + family.writes)
        lengths = [n for n in plan.long if 1.5 * n * token < available_bytes()]
        inputs = family.inputs(lengths[-1])
        method = family.method(DEFAULT)
        calls = {n: work(method, family.first(n, inputs), backward=False) for n in lengths}
        try:
            best = take_turns(calls, 0.0, plan.rounds // 2 + 1)
        except Exception as problem:
            found[family.name] = {"note": _short(problem)}
            continue
        exponent, spread = fit(lengths, [best[n] for n in lengths])
        keep_freed_memory(False)
        fresh = min(seconds(calls[lengths[-1]]) for _ in range(plan.least))
        keep_freed_memory(True)
        found[family.name] = {
            "fresh": 1e3 * fresh,
            "milliseconds": {str(n): 1e3 * best[n] for n in lengths},
            "exponent": exponent,
            "exponent_error": spread,
        }
    return found


def rate(family: Family, backward: bool, rows: dict[str, Row], plan: Plan, limit: dict[str, Any]) -> None:
    """Fill in the rates at each row's longest length; a backward pass counts as two forward ones."""
    numbers = 3 * family.reads + 2 * family.writes if backward else family.reads + family.writes
    for label, row in rows.items():
        if not row.milliseconds:
            continue
        length = plan.lengths[len(row.milliseconds) - 1]
        token = 2 * H * K * (length + 1) if label == SOFTMAX else family.flops
        spent = row.milliseconds[-1] / 1e3
        row.gflops = (3 if backward else 1) * token * length / spent / 1e9
        row.of_flops = 100 * row.gflops / limit["gflops"]
        row.of_bytes = 100 * 4 * numbers * length / spent / 1e9 / limit["gbytes"]


def _short(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:150]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="1k and 4k tokens, fewer rounds, no compiling: under a minute"
    )
    parser.add_argument("--only", help="families whose name contains this")
    parser.add_argument("--json", help="also write all figures to this file")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    families = [each for each in FAMILIES if (options.only or "").lower() in each.name.lower()]
    if not families:
        parser.error(f"no family contains {options.only!r}; there are {', '.join(f.name for f in FAMILIES)}")
    torch.set_num_threads(1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is measured is not lost
    begun = time.perf_counter()

    # Children first: they are forked while this process has computed nothing.
    results: dict[str, Any] = {}
    memories = memory(plan, families)
    ends = plan.long[0], plan.long[1] if plan is QUICK else plan.long[-2]
    results["state memory"] = {f.name: processes.state_memory(f, *ends) for f in families}
    results["threads"] = {f.name: processes.two_threads(f, plan.lengths[-1], plan.rounds) for f in families}
    if plan.builds:
        results["portable"] = processes.portable(families, plan.lengths[-1], plan.rounds // 2)
    results["start"] = processes.starting(plan.rounds // 2, plan.builds)

    keep_freed_memory(True)
    results["limits"] = limits()
    tables.header(results["limits"], plan.errors, plan.memory, load_warning())
    results["families"] = {}
    for family in families:
        results["families"][family.name] = {}
        for backward, name in PASSES.items():
            rows = measure(family, backward, plan, memories)
            rate(family, backward, rows, plan, results["limits"])
            shown = {label: asdict(row) for label, row in rows.items()}
            tables.family(f"{family.name}, {name}", shown, plan.lengths)
            results["families"][family.name][name] = shown
    results["long"] = long(plan, families)
    tables.long(results["long"], results["state memory"])
    tables.threads(results["threads"])
    tables.builds(results.get("portable", {}))
    tables.start(results["start"])
    results["goals"] = goals(results, plan.lengths)
    tables.goals(results["goals"])
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
