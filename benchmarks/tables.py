"""The tables that ``kernels.py`` prints."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
from families import FAMILIES

import worldsim_kernels

Figures = dict[str, Any]


def number(x: float | None) -> str:
    """Three digits; "-" for what was not measured."""
    if x is None or math.isnan(x):
        return "-"
    decimals = min(3, max(0, 2 - math.floor(math.log10(abs(x))))) if x else 0
    return f"{x:.{decimals}f}"


def tokens(n: int) -> str:
    return f"{n // 2**20}M" if n >= 2**20 else f"{n // 2**10}k"


def header(limits: Figures, error_at: int, memory_at: int, warning: str) -> None:
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {_processor()}, one thread, float32"
    )
    if limits["matmul"]:
        print(
            f"limits measured now: matmul {limits['gflops']:.0f} GFLOP/s ({limits['matmul']}, "
            f"error {limits['matmul_error']:.1e}), copy {limits['gbytes']:.1f} GB/s"
        )
    print(f"errors at {error_at} tokens, memory at {memory_at}, rates at a row's last length")
    for kernel in dict.fromkeys(family.kernel for family in FAMILIES):
        try:
            print(worldsim_kernels.explain(kernel))
        except Exception as problem:
            print(f"{kernel}: {type(problem).__name__}: {problem}")
    if warning:
        print(warning)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def family(title: str, rows: dict[str, Figures], lengths: Sequence[int]) -> None:
    print(f"\n{title}: ms at so many tokens")
    heads = "".join(f"{tokens(n):>8}" for n in lengths)
    print(f"{'':23}{heads}{'GFLOP/s':>9}{'% flop':>8}{'% byte':>8}{'MB':>8}{'error':>9}  exponent")
    for label, row in rows.items():
        spent = row["milliseconds"]
        cells = "".join(f"{number(x):>8}" for x in [*spent, *[math.nan] * (len(lengths) - len(spent))])
        rates = f"{number(row['gflops']):>9}{number(row['of_flops']):>8}{number(row['of_bytes']):>8}"
        wrong = "-" if math.isnan(row["error"]) else f"{row['error']:.1e}"
        exponent = fitted(row["exponent"], row["exponent_error"], 2)
        print(f"{label:23}{cells}{rates}{number(row['megabytes']):>8}{wrong:>9}  {exponent}")
    for label, row in rows.items():
        if row["note"]:
            print(f"  - {label}: {row['note']}")


def fitted(value: float, spread: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}")


def long(found: dict[str, Figures], memory: dict[str, dict[str, float]]) -> None:
    print("\nworldsim, default, long sequences, forward: ms at so many tokens; MB of state and scratch")
    lengths = max((each.get("milliseconds", {}) for each in found.values()), key=len, default={})
    heads = "".join(f"{tokens(int(n)):>8}" for n in lengths)
    print(f"{'':25}{heads}{'fresh':>8}{'Mtok/s':>8}  {'exponent':15}MB")
    for name, row in found.items():
        if "note" in row:
            print(f"{name:25}  {row['note']}")
            continue
        spent = row["milliseconds"]
        cells = "".join(f"{number(spent.get(n)):>8}" for n in lengths) + f"{number(row['fresh']):>8}"
        last = list(spent)[-1]
        state = ", ".join(f"{number(x)} at {tokens(int(n))}" for n, x in memory[name].items())
        exponent = fitted(row["exponent"], row["exponent_error"], 3)
        print(f"{name:25}{cells}{int(last) / spent[last] / 1e3:8.2f}  {exponent:15}{state}")


def threads(found: dict[str, Figures | None]) -> None:
    print("\ntwo threads: worldsim, default, forward; beside it two processes that each do the same work")
    print(f"{'':25}{'one, ms':>9}{'threads':>9}{'processes':>11}{'ratio':>7}")
    for name, row in found.items():
        if row is None:
            print(f"{name:25}  not measured (one processor, or the kernel failed)")
            continue
        values = f"{number(1e3 * row['alone']):>9}{row['threads']:8.2f}x{row['processes']:10.2f}x"
        print(f"{name:25}{values}{row['threads'] / row['processes']:7.2f}")


def builds(portable: dict[str, tuple[float, float]]) -> None:
    if portable:
        print("\nC for this processor beside a build for x86-64-v3, forward, ms")
    for name, (own, other) in portable.items():
        print(f"{name:25}{number(1e3 * own):>9}{number(1e3 * other):>9}{other / own:7.2f}x slower")


def start(found: dict[str, dict[str, float]] | None) -> None:
    if found is None:
        print("\nstart of an interpreter: not measured (no native kernel here)")
        return
    print("\nstart of an interpreter, seconds")
    print(f"{'':12}" + "".join(f"{name:>21}" for name in found["compiled"]) + f"{'beyond torch':>14}")
    for name, phases in found.items():
        beyond = phases["import state_scan"] + phases["first kernel"]
        print(f"{name:12}" + "".join(f"{x:21.4f}" for x in phases.values()) + f"{beyond:14.4f}")


def goals(found: list[Figures]) -> None:
    print(f"\n{'goals':54}{'goal':>12}{'measured':>16}")
    verdicts = {True: "met", False: "NOT MET", None: "not measured"}
    for each in found:
        print(f"{each['name']:54}{each['goal']:>12}{each['measured']:>16}  {verdicts[each['met']]}")
