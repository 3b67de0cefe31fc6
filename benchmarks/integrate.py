"""Fixed steps of a batch of pendulums: ours beside torchdiffeq's and the machine's limit, in one process; and
gravity of all pairs of bodies beside broadcasting.

    python benchmarks/integrate.py [--rows 4096] [--steps 200] [--bodies 1024]

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

from worldsim_kernels.solve import Hamiltonian, Separable, stepper_of
from worldsim_kernels.solve.nbody import nbody_forces

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


SPLIT = Separable(velocity, force)
WHOLE = Hamiltonian(energy, gradient=lambda x: torch.stack([torch.sin(x[..., 0]), x[..., 1]], -1))


def ours(name: str, term: Separable | Hamiltonian) -> Callable[[Tensor, int], Tensor]:
    """Bare steps of one method, without the loop of ``solve``."""

    def run(x: Tensor, steps: int) -> Tensor:
        stepper = stepper_of(name)
        t, h = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), H, dtype=torch.float64)
        carry = stepper.start(term, t, x)
        for _ in range(steps):
            step = stepper.step(term, t, h, x, carry)
            x, carry = step.y, step.carry
        return x

    return run


def peer(method: str) -> Callable[[Tensor, int], Tensor]:
    def run(x: Tensor, steps: int) -> Tensor:
        times = torch.arange(steps + 1, dtype=x.dtype) * H
        return odeint(field, x, times, method=method)[-1]

    return run


METHODS: dict[str, tuple[Callable[[Tensor, int], Tensor], int]] = {
    "symplectic Euler": (ours("symplectic_euler", SPLIT), 1),
    "leapfrog": (ours("leapfrog", SPLIT), 1),
    "Yoshida 4": (ours("yoshida4", SPLIT), 3),
    "Yoshida 8": (ours("yoshida8", SPLIT), 17),
    "implicit midpoint": (ours("implicit_midpoint", SPLIT), 1),
    "Gauss 4": (ours("gauss4", SPLIT), 2),
    "discrete gradient": (ours("discrete_gradient", WHOLE), 1),
    "Tao": (ours("tao", WHOLE), 3),
    "RK4": (ours("rk4", SPLIT), 4),
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


def broadcast(x: Tensor, m: Tensor, soft: float) -> Tensor:
    """Accelerations ``[body, 3]`` as one writes them in torch."""
    apart = x[None] - x[:, None]
    square = apart.square().sum(-1) + soft * soft
    return ((m / (square * square.sqrt()))[..., None] * apart).sum(1)


def gravity(count: int) -> None:
    """Milliseconds of the forces of so many bodies, and of forces and gradients."""
    rng = torch.Generator().manual_seed(0)
    print(f"gravity of {count} bodies, one thread, ms")
    print(f"{'':16}{'broadcast':>12}{'ours':>8}{'ratio':>8}{'with backward':>16}{'ours':>8}{'ratio':>8}")
    for dtype in (torch.float32, torch.float64):
        x, m = (
            torch.randn(count, 3, generator=rng, dtype=dtype),
            torch.rand(count, generator=rng, dtype=dtype),
        )
        leaf = x.clone().requires_grad_()
        calls = (
            lambda x=x, m=m: broadcast(x, m, 0.1),
            lambda x=x, m=m: nbody_forces(x[None], m, 1.0, 0.1),
            lambda x=leaf, m=m: broadcast(x, m, 0.1).sum().backward(),
            lambda x=leaf, m=m: nbody_forces(x[None], m, 1.0, 0.1).sum().backward(),
        )
        for call in calls:
            call()
        a, b, c, d = (1e3 * min(_seconds(call) for _ in range(7)) for call in calls)
        name = str(dtype).removeprefix("torch.")
        print(f"{name:16}{a:12.2f}{b:8.2f}{a / b:8.1f}{c:16.2f}{d:8.2f}{c / d:8.1f}")


@click.command()
@click.option("--rows", default=4096, help="pendulums in the batch")
@click.option("--steps", default=200, help="steps of 0.1")
@click.option("--bodies", default=1024, help="bodies that attract one another")
def main(rows: int, steps: int, bodies: int) -> None:
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
    gravity(bodies)


if __name__ == "__main__":
    main()
