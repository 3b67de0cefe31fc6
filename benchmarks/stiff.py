"""Batches of stiff rows: our steppers beside a loop over scipy's Radau and BDF.

    python benchmarks/stiff.py --quick      # 64 rows, rtol 1e-6, about a minute
    python benchmarks/stiff.py              # 256 and 1024 rows

Robertson's kinetics with rate constants spread over a decade each up to t = 1e5 (atol = 1e-4 rtol), and van
der Pol's oscillator with mu = 1000 from starts in a square up to t = 2000 (atol = rtol); float64, forward
only, one thread. scipy has the analytic Jacobian and fields in plain Python floats; it solves a few of the
rows, and its time is scaled to all of them. Ours have the Jacobian by automatic differentiation. Errors are
those at the end of the rows that scipy solved, over atol + rtol |y|, against scipy's Radau at 1e-11.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from worldsim_kernels.solve import ODE, PID, solve
from worldsim_kernels.solve.kvaerno import Kvaerno5
from worldsim_kernels.solve.stepper import Stepper

Slope = Callable[[float, np.ndarray], list[float]]
Matrix = Callable[[float, np.ndarray], list[list[float]]]


@dataclass(frozen=True)
class Batch:
    """The same rows for ours and for scipy.

    row  the slope and the Jacobian of row i
    """

    name: str
    term: ODE
    y0: Tensor
    end: float
    atol: float
    row: Callable[[int], tuple[Slope, Matrix]]


def robertson(n: int) -> Batch:
    """Rates 0.04, 3e7, 1e4, each times 10^U(-1/2, 1/2)."""
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** (torch.rand(3, n, dtype=torch.float64, generator=generator) - 0.5)
    rates = (spread * torch.tensor([[0.04], [3e7], [1e4]], dtype=torch.float64)).unbind(0)

    def field(t: Tensor, y: Tensor, k1: Tensor, k2: Tensor, k3: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        decay, catalysis, back = k1 * a, k2 * b * b, k3 * b * c
        return torch.stack([back - decay, decay - back - catalysis, catalysis], -1)

    def row(i: int) -> tuple[Slope, Matrix]:
        p, q, r = (float(each[i]) for each in rates)

        def slope(t: float, y: np.ndarray) -> list[float]:
            decay, catalysis, back = p * y[0], q * y[1] * y[1], r * y[1] * y[2]
            return [back - decay, decay - back - catalysis, catalysis]

        def matrix(t: float, y: np.ndarray) -> list[list[float]]:
            both, one = 2 * q * y[1], r * y[2]
            return [[-p, one, r * y[1]], [p, -one - both, -r * y[1]], [0.0, both, 0.0]]

        return slope, matrix

    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).repeat(n, 1)
    return Batch("Robertson", ODE(field, tuple(rates)), y0, 1e5, 1e-4, row)


def van_der_pol(n: int) -> Batch:
    """mu = 1000, x and v uniform in [-2, 2]."""
    mu = 1000.0

    def field(t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, mu * ((1 - x * x) * v) - x], -1)

    def slope(t: float, y: np.ndarray) -> list[float]:
        return [y[1], mu * ((1 - y[0] * y[0]) * y[1]) - y[0]]

    def matrix(t: float, y: np.ndarray) -> list[list[float]]:
        return [[0.0, 1.0], [-2 * mu * y[0] * y[1] - 1, mu * (1 - y[0] * y[0])]]

    generator = torch.Generator().manual_seed(0)
    y0 = 4 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 2
    return Batch("van der Pol", ODE(field), y0, 2000.0, 1.0, lambda i: (slope, matrix))


def scipy_rows(batch: Batch, method: str, rtol: float, rows: range) -> tuple[np.ndarray, float]:
    """The ends of ``rows``, and the seconds that all rows would take."""
    began, ends = time.process_time(), []
    for i in rows:
        slope, matrix = batch.row(i)
        start = batch.y0[i].numpy()
        found = solve_ivp(
            slope, (0.0, batch.end), start, method=method, jac=matrix, rtol=rtol, atol=rtol * batch.atol
        )
        ends.append(found.y[:, -1])
    return np.array(ends), (time.process_time() - began) / len(rows) * len(batch.y0)


def ours(batch: Batch, name: str, rtol: float) -> tuple[np.ndarray, float, str]:
    """The ends of all rows, seconds, and a note on steps."""
    tolerance = PID(rtol, rtol * batch.atol)
    stepper: str | Stepper = Kvaerno5(rtol=rtol, atol=rtol * batch.atol) if name == "kvaerno5" else name
    began = time.process_time()
    with torch.no_grad():
        found = solve(batch.term, batch.y0, 0.0, batch.end, stepper=stepper, controller=tolerance)
    seconds = time.process_time() - began
    steps = found.stats.accepted.double()
    failed = int(found.failed.sum())
    note = f"steps {steps.mean():.0f}, at most {steps.max():.0f}" + (f", {failed} failed" if failed else "")
    return found.y.numpy(), seconds, note


def compare(batch: Batch, rtol: float, scipys: int) -> None:
    """One table."""
    rows = range(min(scipys, len(batch.y0)))
    exact, _ = scipy_rows(batch, "Radau", 1e-11, rows)
    allowed = rtol * (batch.atol + np.abs(exact))

    def line(name: str, seconds: float, ends: np.ndarray, note: str) -> None:
        errors = (np.abs(ends[: len(rows)] - exact) / allowed).max(1)
        print(f"  {name:14s}{seconds:10.2f}{np.median(errors):12.2g}{errors.max():12.2g}  {note}", flush=True)

    print(f"{batch.name}, {len(batch.y0)} rows, rtol {rtol:g}")
    print(f"  {'':14s}{'CPU s':>10s}{'median err':>12s}{'worst err':>12s}")
    for method in ("Radau", "BDF"):
        ends, seconds = scipy_rows(batch, method, rtol, rows)
        line(f"scipy {method}", seconds, ends, f"from {len(rows)} rows")
    for name in ("rodas5p", "kvaerno5", "auto", *(("rosenbrock23",) if rtol > 1e-5 else ())):
        ends, seconds, note = ours(batch, name, rtol)
        line(name, seconds, ends, note)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 rows and one tolerance")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for n in (64,) if quick else (256, 1024):
        for batch in (robertson(n), van_der_pol(n)):
            for rtol in (1e-6,) if quick else (1e-4, 1e-6):
                compare(batch, rtol, 3 if quick else 8)


if __name__ == "__main__":
    main()
