"""The goals of the shared kernels on a CPU, each with what was measured.

A goal is judged at the length it is stated for; a shorter run says "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from families import DEFAULT, FAMILIES, LOOP, SOFTMAX, Family
from tables import tokens

LENGTH, LONGEST = 16384, 2**20
ERROR = 5e-6
STATE_MB = 2.0
Goal = dict[str, Any]


def goals(results: dict[str, Any], lengths: Sequence[int]) -> list[Goal]:
    """name, goal, measured (in words) and met: True, False, or None when it was not measured."""
    return [
        *_speed(results["families"], lengths),
        *_errors(results["families"]),
        *_long(results["long"], results["state memory"]),
        *_threads(results["threads"], lengths[-1]),
    ]


def _speed(families: dict[str, Any], lengths: Sequence[int]) -> Iterator[Goal]:
    def at(family: str, label: str) -> float:
        """Milliseconds forward at the goals' length; NaN where that was not reached."""
        row = families.get(family, {}).get("forward", {}).get(label, {"milliseconds": []})
        reached = dict(zip(lengths, row["milliseconds"]))
        return float(reached.get(LENGTH, math.nan))

    linear, rwkv7, selective = (FAMILIES[i] for i in (0, 3, 4))
    ours = at(linear.name, DEFAULT)
    yield _least("linear, 16k: SDPA's time / ours", at(linear.name, SOFTMAX) / ours, 60)
    share = families.get(linear.name, {}).get("forward", {}).get(DEFAULT, {}).get("of_flops", math.nan)
    yield _least("linear, 16k: % of the matmul limit", share if ours == ours else math.nan, 50)
    chunked = [at(rwkv7.name, method.label) for method in rwkv7.methods if method.chunked]
    best = min((x for x in chunked if x == x), default=math.nan)
    yield _least("RWKV-7 form, 16k: best chunked torch / ours", best / at(rwkv7.name, DEFAULT), 5)
    loop = at(selective.name, LOOP)
    yield _least("selective scan, 16k: low-memory loop / ours", loop / at(selective.name, DEFAULT), 15)


def _errors(families: dict[str, Any]) -> Iterator[Goal]:
    ours = [
        row["error"]
        for passes in families.values()
        for rows in passes.values()
        for label, row in rows.items()
        if label.startswith("worldsim")
    ]
    known = [x for x in ours if x == x]
    worst = max(known) if known and len(known) == len(ours) else math.nan
    yield _most("ours, all: largest relative error", worst, ERROR)


def _long(long: dict[str, Any], memory: dict[str, dict[str, float]]) -> Iterator[Goal]:
    for family in FAMILIES:
        if family.name not in long:
            continue
        found = long[family.name]
        band = 0.05 if family.kernel == "state_scan" else 0.1
        value = found.get("exponent", math.nan)
        spread = found.get("exponent_error", math.nan)
        whole = str(LONGEST) in found.get("milliseconds", {})
        yield _goal(
            f"{family.name}: exponent from 4k to {tokens(LONGEST)}",
            f"1.00 ± {band}",
            f"{value:.3f} ± {spread:.3f}",
            abs(value - 1) <= band if whole else None,
        )
        yield _state(family, memory.get(family.name, {}))


def _state(family: Family, memory: dict[str, float]) -> Goal:
    values = list(memory.values())
    growth = values[-1] - values[0] if len(values) == 2 else math.nan
    return _most(f"{family.name}: growth of state, MB", growth, STATE_MB)


def _threads(threads: dict[str, Any], length: int) -> Iterator[Goal]:
    for name, found in threads.items():
        measured = found is not None and length == LENGTH
        value = found["threads"] / found["processes"] if measured else math.nan
        yield _least(f"{name}: two threads / two processes", value, 0.9)


def _least(name: str, value: float, goal: float) -> Goal:
    return _goal(name, f">= {goal:g}", f"{value:.3g}", None if math.isnan(value) else value >= goal)


def _most(name: str, value: float, goal: float) -> Goal:
    return _goal(name, f"<= {goal:g}", f"{value:.2g}", None if math.isnan(value) else value <= goal)


def _goal(name: str, goal: str, measured: str, met: bool | None) -> Goal:
    return {"name": name, "goal": goal, "measured": "-" if met is None else measured, "met": met}
