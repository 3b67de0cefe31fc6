"""What has to be measured in processes of its own: memory, two threads, a portable build, starting up."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from families import DEFAULT, FAMILIES, Family, Method
from measure import available_bytes, in_child, in_children, peak_bytes, seconds, take_turns
from torch import Tensor

import worldsim_kernels
from worldsim_kernels import native

WARM = 128
"""Tokens of the call before those that are measured: it loads libraries, and compiles them the first time."""


def family_of(name: str) -> Family:
    return next(each for each in FAMILIES if each.name == name)


def work(method: Method, inputs: tuple[Tensor, ...], backward: bool) -> Callable[[], Any]:
    """One forward pass, or one forward and backward pass to all inputs, on inputs as the method takes them.

    A method that is not installed raises.
    """
    run = method.run
    if run is None:
        raise RuntimeError("not installed")
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return run(*inputs)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]

    def both() -> tuple[Tensor, ...]:
        output = run(*leaves)
        return (output, *torch.autograd.grad(output, leaves, torch.ones_like(output)))

    return both


# Memory -------------------------------------------------------------------------------------------------


def memory(family: Family, method: Method, length: int, backward: bool, cap: float) -> float:
    """MB of resident memory that one call adds at its peak to its inputs: results, gradients, scratch.

    NaN where the call fails or, by a shorter one, would take more than ``cap`` seconds.
    """
    found = in_child(_memory, family.name, method.label, length, backward, cap)
    return math.nan if found is None else found / 1e6


def _memory(name: str, label: str, length: int, backward: bool, cap: float) -> float:
    family = family_of(name)
    method = family.method(label)
    try:
        short = work(method, method.arrange(family.inputs(WARM)), backward)
        short()
        if seconds(short) * length / WARM > cap:
            return math.nan
        return peak_bytes(work(method, method.arrange(family.inputs(length)), backward))
    except Exception:
        return math.nan


def state_memory(family: Family, short: int, long: int) -> dict[str, float]:
    """Tokens -> MB that our default adds at its peak to inputs and output: its state and scratch."""
    found = {}
    for length in (short, long):
        moved = 4 * length * (family.reads + family.writes)
        if 1.5 * moved < available_bytes():
            whole = memory(family, family.method(DEFAULT), length, False, math.inf)
            found[str(length)] = whole - 4 * length * family.writes / 1e6
    return found


# Two threads --------------------------------------------------------------------------------------------


def two_threads(family: Family, length: int, rounds: int) -> dict[str, float] | None:
    """How much faster two threads are, and what this machine gives two processes that each do all the work.

    Both are ratios to one thread alone, from the same rounds; None where a process died or one processor is
    all there is.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return None
    turn = multiprocessing.get_context("fork").Barrier(2, timeout=120)
    found = in_children([(_worker, family.name, length, rounds, turn, main) for main in (True, False)])
    if any(each is None for each in found):
        return None
    main, other = found
    together = min(max(pair) for pair in zip(main["together"], other["together"]))
    alone, team = min(main["alone"]), min(main["team"])
    return {"alone": alone, "threads": alone / team, "processes": 2 * alone / together}


def _worker(name: str, length: int, rounds: int, turn: Any, main: bool) -> dict[str, list[float]] | None:
    family = family_of(name)
    spent: dict[str, list[float]] = {"alone": [], "team": [], "together": []}
    try:
        call = work(family.method(DEFAULT), family.inputs(length), backward=False)
        call()
        for _ in range(rounds):
            for kind, threads in (("alone", 1), ("team", 2)):
                turn.wait()
                if main:
                    torch.set_num_threads(threads)
                    spent[kind].append(seconds(call))
            torch.set_num_threads(1)
            turn.wait()
            spent["together"].append(seconds(call))
        return spent
    except Exception:
        turn.abort()
        return None


# A portable build ---------------------------------------------------------------------------------------

PORTABLE = ("-march=x86-64-v3",)


def portable(families: list[Family], length: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of this processor's own build and of one for x86-64-v3, which take turns."""
    best: dict[str, list[float]] = {family.name: [math.inf, math.inf] for family in families}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for i, flags in enumerate((None, PORTABLE)):
                found = in_child(_built, [family.name for family in families], length, flags, folder) or {}
                for name, spent in found.items():
                    best[name][i] = min(best[name][i], spent)
    return {name: (own, other) for name, (own, other) in best.items() if math.inf not in (own, other)}


def _built(names: list[str], length: int, flags: tuple[str, ...] | None, folder: str) -> dict[str, float]:
    if flags is not None:
        native.TARGETS = (flags,)
        os.environ["XDG_CACHE_HOME"] = folder
    calls = {}
    for name in names:
        family = family_of(name)
        run = family.method(DEFAULT)
        call = work(Method(run.label, _native_only(run)), family.inputs(length), backward=False)
        try:
            call()
        except Exception:
            continue
        calls[name] = call
    return take_turns(calls, budget=0.2)


def _native_only(method: Method) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        with worldsim_kernels.use("native"):
            assert method.run is not None
            return method.run(*inputs)

    return run


# Starting up --------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, time
marks = [time.perf_counter()]
import torch
marks.append(time.perf_counter())
from worldsim_kernels import state_scan
x = torch.ones(1, 4, 1, 16)
torch.set_num_threads(1)
marks.append(time.perf_counter())
state_scan(x, x, x, backend="native")
marks.append(time.perf_counter())
state_scan(x, x, x, backend="native")
marks.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(marks, marks[1:])]))
"""
PHASES = ("import torch", "import state_scan", "first kernel", "second kernel")


def starting(rounds: int, compile: bool) -> dict[str, dict[str, float]] | None:
    """Seconds of each phase of a new interpreter: the least of several, and one with nothing compiled yet.

    None where the native kernel cannot run.
    """
    phases = [_start() for _ in range(rounds)]
    if compile:
        with tempfile.TemporaryDirectory() as folder:
            phases.append(_start(XDG_CACHE_HOME=folder))
    if None in phases:
        return None
    found = {"compiled": {name: min(each[name] for each in phases[:rounds]) for name in PHASES}}
    return {**found, "compiling": phases[-1]} if compile else found


def _start(**environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(zip(PHASES, json.loads(done.stdout))) if done.returncode == 0 else None
