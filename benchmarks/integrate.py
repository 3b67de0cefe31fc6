"""Fixed steps of a batch of pendulums: ours beside torchdiffeq's and the machine's limit, in one process.

    python benchmarks/integrate.py [--rows 4096] [--steps 200]

Prints nanoseconds a row and step (minimum of five rounds, the methods taking turns), the ratio to
torchdiffeq's RK4 (which is the 3/8 rule), the largest relative energy error, and the limit: the time to read
and write the state once for each evaluation of the force, at the copy bandwidth that is measured in the same
run. One thread, float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor
from torchdiffeq import odeint

from worldsim_kernels.integrate import (
    WEIGHTS,
    implicit_midpoint,
    leapfrog,
    runge_kutta4,
    symplectic_euler,
    yoshida4,
)

H = 0.1


def field(t: Tensor | float, x: Tensor) -> Tensor:
    q, p = x.unbind(-1)
    return torch.stack([p, -torch.sin(q)], -1)


def force(q: Tensor) -> Tensor:
    return -torch.sin(q)


def velocity(p: Tensor) -> Tensor:
    return p


def energy(x: Tensor) -> Tensor:
    return x[..., 1].square() / 2 + 1 - torch.cos(x[..., 0])


def split(step: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Tensor, int], Tensor]:
    def run(x: Tensor, steps: int) -> Tensor:
        q, p = x.unbind(-1)
        for _ in range(steps):
            q, p = step(q, p, H, velocity, force)
        return torch.stack([q, p], -1)

    return run


def unfused(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same method as it is written: two passes for each multiply and add, and no kicks merged."""

    def step(q: Tensor, p: Tensor, h: float, velocity: Callable[..., Tensor], force: Callable[..., Tensor]):
        f = force(q)
        for weight in WEIGHTS[name]:
            p = p + weight * h / 2 * f
            q = q + weight * h * velocity(p)
            f = force(q)
            p = p + weight * h / 2 * f
        return q, p

    return step


def whole(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    def run(x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = step(x)
        return x

    return run


def peer(method: str) -> Callable[[Tensor, int], Tensor]:
    def run(x: Tensor, steps: int) -> Tensor:
        times = torch.arange(steps + 1, dtype=x.dtype) * H
        return odeint(field, x, times, method=method)[-1]

    return run


METHODS: dict[str, tuple[Callable[[Tensor, int], Tensor], int]] = {
    "symplectic Euler": (split(symplectic_euler), 1),
    "leapfrog": (split(leapfrog), 2),
    "Yoshida 4": (split(yoshida4), 4),
    "leapfrog, unfused": (split(unfused("leapfrog")), 2),
    "Yoshida 4, unfused": (split(unfused("yoshida4")), 4),
    "implicit midpoint": (whole(lambda x: implicit_midpoint(x, H, lambda y: field(0.0, y))), 1),
    "RK4": (whole(lambda x: runge_kutta4(0.0, x, H, field)), 4),
    "torchdiffeq RK4": (peer("rk4"), 4),
    "torchdiffeq midpoint": (peer("midpoint"), 2),
}
"""Name -> how to run it, and its evaluations of the force in a step (the least, for an implicit one)."""


def copy_seconds_per_byte() -> float:
    source = torch.zeros(2**24, dtype=torch.float64)
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(7))
    return best / (2 * source.nbytes)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@click.command()
@click.option("--rows", default=4096, help="pendulums in the batch")
@click.option("--steps", default=200, help="steps of 0.1")
def main(rows: int, steps: int) -> None:
    """Time the fixed-step integrators."""
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(rows, 2, dtype=torch.float64, generator=rng)
    best = dict.fromkeys(METHODS, float("inf"))
    ends = {name: run(start, steps) for name, (run, _) in METHODS.items()}
    for _ in range(5):
        for name, (run, _) in METHODS.items():
            best[name] = min(best[name], _seconds(lambda run=run: run(start, steps)))
    byte = copy_seconds_per_byte()
    print(f"{rows} rows, {steps} steps, float64, one thread, copy {1e-9 / byte:.1f} GB/s")
    print(f"{'method':22}{'ns/row/step':>12}{'x torchdiffeq RK4':>19}{'limit ns':>10}{'energy error':>14}")
    for name, (_, evaluations) in METHODS.items():
        spent = best[name] / rows / steps
        limit = evaluations * 2 * 16 * byte
        drift = ((energy(ends[name]) - energy(start)).abs() / energy(start)).max()
        ratio = best["torchdiffeq RK4"] / best[name]
        print(f"{name:22}{1e9 * spent:12.1f}{ratio:19.2f}{1e9 * limit:10.2f}{float(drift):14.1e}")


if __name__ == "__main__":
    main()
