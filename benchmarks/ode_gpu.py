"""Millions of Lorenz trajectories on one NVIDIA GPU: ours as one Triton kernel, beside torchdiffeq.

    python benchmarks/ode_gpu.py [--rows 8388608]
    python benchmarks/ode_gpu.py --interpret        without a GPU: 64 rows in Triton's interpreter

The problem of GPUODEBenchmarks (Utkarsh et al. 2023, arXiv 2304.06835): float32, from (1, 0, 0) at t = 0 to
t = 1, rho from 0 to 21, another in each row, ends alone; 1000 equal steps, or adaptive at rtol = atol = 1e-8.
`x paper` is our time over the best published one, which is scaled by the peak rates in float32 of the two
devices and by the number of rows. `worst err` is max |y - ref| / (1 + |ref|) of 64 rows that did not fail
against dopri8 in float64; `failed` counts all rows (1e-8 is below the rounding of float32).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import click

ROWS = 8_388_608
PUBLISHED = {
    "constant": {
        "V100, MPGOS": (94.157, 15.7),
        "V100, DiffEqGPU": (145.317, 15.7),
        "Quadro RTX 5000, DiffEqGPU": (183.920, 11.2),
        "V100, torchdiffeq with vmap": (14353.0, 15.7),
        "Quadro RTX 5000, torchdiffeq with vmap": (40889.6, 11.2),
    },
    "adaptive": {
        "V100, MPGOS": (48.808, 15.7),
        "V100, DiffEqGPU": (69.451, 15.7),
        "Quadro RTX 5000, DiffEqGPU": (83.490, 11.2),
    },
}
"""Steps -> device and program -> milliseconds for ROWS rows (the data beside the paper; Tsit5, torchdiffeq's
rk4), and TFLOP/s in float32 of that device (NVIDIA's data sheets)."""
RATES = {"H200": 66.9, "H100 PCIe": 51.2, "H100": 66.9, "A100": 19.5, "V100": 15.7}
"""Part of a device's name -> TFLOP/s in float32 without tensor cores, from the same sheets."""
GOAL = 3.0


def timed(call: Callable[[], object], wait: Callable[[], None], turns: int) -> float:
    """Least milliseconds of ``turns`` calls."""
    took = []
    for _ in range(turns):
        wait()
        begun = time.perf_counter()
        call()
        wait()
        took.append(1e3 * (time.perf_counter() - begun))
    return min(took)


@click.command()
@click.option("--rows", default=ROWS, help="Trajectories.")
@click.option("--interpret", is_flag=True, help="64 rows on a CPU: does it run, and rightly?")
def main(rows: int, interpret: bool) -> None:
    """Print the table."""
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import torchdiffeq

    from worldsim_kernels.solve import ODE, PID, Constant, Solution, solve

    if not interpret and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --interpret runs 64 rows without one")
    device = "cpu" if interpret else "cuda"
    wait = (lambda: None) if interpret else torch.cuda.synchronize
    name = "Triton's interpreter" if interpret else torch.cuda.get_device_name()
    rate = next((RATES[part] for part in RATES if part in name), math.nan)
    rows, steps, tolerance = (64, 30, 1e-3) if interpret else (rows, 1000, 1e-8)
    rho = torch.linspace(0, 21, rows, device=device)
    y0 = torch.tensor([1.0, 0.0, 0.0], device=device).repeat(rows, 1)
    some = torch.linspace(0, rows - 1, 64, device=device).long()

    def field(t: torch.Tensor, y: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        x, v, z = y.unbind(-1)
        return torch.stack([10.0 * (v - x), x * (rho - z) - v, x * v - 8 / 3 * z], -1)

    def ours(method: str, control: PID | Constant) -> Solution:
        return solve(ODE(field, (rho,)), y0, 0.0, 1.0, stepper=method, controller=control, backend="triton")

    def theirs() -> torch.Tensor:
        options = {"step_size": 1 / steps}
        times = torch.tensor([0.0, 1.0], device=device)
        found = torchdiffeq.odeint(lambda t, y: field(t, y, rho), y0, times, method="rk4", options=options)
        return found[-1]

    exact = solve(
        ODE(field, (rho[some].double(),)), y0[some].double(), 0.0, 1.0,
        stepper="dopri8", controller=PID(1e-12, 1e-12),
    ).check().y  # fmt: skip

    def error(y: torch.Tensor) -> float:
        wrong = ((y[some] - exact).abs() / (1 + exact.abs())).amax(1)
        return float(wrong[wrong.isfinite()].max())

    print(f"{name}, torch {torch.__version__}, {rows:,} rows, {steps} equal steps, tolerance {tolerance:g}")
    print(
        f"{'steps':<10}{'method':<20}{'first ms':>10}{'ms':>10}{'x paper':>9}{'failed':>9}{'worst err':>11}"
    )
    adaptive = PID(tolerance, tolerance, first=1e-3)
    for kind, method, control in (
        ("constant", "rk4", Constant(1 / steps)),
        ("constant", "tsit5", Constant(1 / steps)),
        ("adaptive", "tsit5", adaptive),
        ("adaptive", "dopri5", adaptive),
    ):
        found: list[Solution] = []
        first = timed(lambda: found.append(ours(method, control)), wait, 1)  # noqa: B023
        least = timed(lambda: ours(method, control), wait, 1 if interpret else 5)  # noqa: B023
        paper = min(ms * own / rate for ms, own in PUBLISHED[kind].values()) * rows / ROWS
        print(
            f"{kind:<10}{'ours, ' + method:<20}{first:>10.1f}{least:>10.2f}{least / paper:>9.2f}"
            f"{int(found[0].failed.sum()):>9,}{error(found[0].y):>11.1e}"
        )
    end = theirs()
    took = timed(theirs, wait, 1)
    print(f"{'constant':<10}{'torchdiffeq, rk4':<20}{'':>10}{took:>10.1f}{'':>18}{error(end):>11.1e}")
    print(f"goal: x paper at most {GOAL:g}. Published, milliseconds:")
    for kind, each in PUBLISHED.items():
        print(f"  {kind}: " + "; ".join(f"{who} {ms:g}" for who, (ms, _) in each.items()))


if __name__ == "__main__":
    main()
