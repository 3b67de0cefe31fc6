"""What it costs to generate one trajectory, against its length, by backbone: one thread, side by side.

    python benchmarks/generators.py [--quick] [--budget SECONDS]

Trajectories of two numbers a frame, untrained models of width 32 and two layers. `flow` makes all frames at
once, in 4 Euler steps, with a backbone that looks both ways: softmax attention (DiT), linear attention with a
Mix-FFN (SANA's linear DiT), Mamba both ways, RWKV-7, retention. `ssm` makes frame after frame with a state
that does not grow, by Mamba or retention.

*Time* is processor time of one rollout, the least of two where it is short. *Memory* is how much the resident
memory of a forked child rose at its highest during a rollout. A row stops at the length whose time, by its
growth so far, would pass the budget; the line says so. *p*: time or memory ~ length^p by least squares of
logarithms over lengths from 1,024 on, with its standard error; *last*: the same of the last two lengths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import click
import torch
from measure import fit, in_child, load_warning, peak_bytes

from worldsim import Trajectory
from worldsim_plugins.backbones.linear_dit import LinearDiT
from worldsim_plugins.backbones.retention import Retention
from worldsim_plugins.backbones.rwkv7 import RWKV7
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.autoregressive import Autoregressive
from worldsim_plugins.generators.flow import Flow

LENGTHS = (256, 1024, 4096, 16384, 65536)
SETTLED = 1024
"""Below, what a call costs at any length is much of the time."""

Build = Callable[[Trajectory], torch.nn.Module]
ROWS: dict[str, Build] = {
    "flow, softmax attention (DiT)": lambda t: flow(t, Transformer()),
    "flow, linear DiT": lambda t: flow(t, LinearDiT()),
    "flow, Mamba both ways": lambda t: flow(t, SSM()),
    "flow, RWKV-7": lambda t: flow(t, RWKV7()),
    "flow, retention": lambda t: flow(t, Retention()),
    "ssm, Mamba, a frame at a time": lambda t: Autoregressive(short(t), width=32),
    "ssm, retention, a frame at a time": lambda t: Autoregressive(short(t), width=32, backbone=Retention()),
}


def flow(truth: Trajectory, backbone: object) -> Flow:
    return Flow(truth, width=32, backbone=backbone, steps=4, method="euler")  # type: ignore[arg-type]


def short(truth: Trajectory) -> Trajectory:
    return truth.span(0, 16)


def rollout(build: Build, length: int) -> Callable[[], object]:
    times = torch.arange(length + 1, dtype=torch.float64)
    states = torch.randn(1, 1, length + 1, 2, generator=torch.Generator().manual_seed(0))
    truth = Trajectory(states, times)
    torch.manual_seed(0)
    model = build(truth).eval()
    return lambda: model.rollout(truth.span(0, 1), times, None, 1, torch.Generator().manual_seed(0))


def measured(build: Build, length: int) -> tuple[float, float]:
    """Seconds and bytes, in a process that has computed nothing but a short rollout before."""
    torch.set_num_threads(1)
    rollout(build, 64)()
    call, spent = rollout(build, length), []

    def timed() -> object:
        begun = time.process_time()
        made = call()
        spent.append(time.process_time() - begun)
        return made

    memory = peak_bytes(timed)
    if spent[0] < 5:
        timed()
    return min(spent), memory


def figures(build: Build, lengths: tuple[int, ...], budget: float) -> tuple[list[tuple[float, float]], str]:
    """(seconds, bytes) at each length, and why there are no more of them."""
    found: list[tuple[float, float]] = []
    for length in lengths:
        if len(found) > 1:
            growth = found[-1][0] / found[-2][0]
            if found[-1][0] * growth > budget:
                return found, f"{length:,} would take {found[-1][0] * growth:.0f} s"
        got = in_child(measured, build, length)
        if got is None:
            return found, f"{length:,} died, for want of memory as a rule"
        found.append(got)
    return found, ""


def growth(lengths: tuple[int, ...], values: list[float]) -> str:
    settled = [(n, v) for n, v in zip(lengths, values) if n >= SETTLED and v > 0]
    if len(settled) < 2:
        return "p not measurable"
    exponent, error = fit(*zip(*settled))
    last, _ = fit(*zip(*settled[-2:]))
    spread = "" if math.isnan(error) else f" +- {error:.2f}"
    return f"p {exponent:.2f}{spread}, last {last:.2f}"


@click.command()
@click.option("--quick", is_flag=True, help="lengths to 4,096")
@click.option("--budget", default=60.0, show_default=True, help="seconds that one rollout may take")
@click.option("--only", default="", help="rows with this in their name")
def main(quick: bool, budget: float, only: str) -> None:
    """Time and memory of generating one trajectory."""
    print(load_warning(), end="")
    lengths = LENGTHS[:3] if quick else LENGTHS
    for name, build in ROWS.items():
        if only not in name:
            continue
        found, why = figures(build, lengths, budget)
        print(f"\n{name}{f' (stopped: {why})' if why else ''}")
        for kind, column, unit in (("seconds", 0, 1.0), ("MiB", 1, 2.0**20)):
            values = [each[column] / unit for each in found]
            cells = "".join(f"{n:>9,}:{v:8.3f}" for n, v in zip(lengths, values))
            print(f"  {kind:8}{cells}   {growth(lengths, values)}", flush=True)


if __name__ == "__main__":
    main()
