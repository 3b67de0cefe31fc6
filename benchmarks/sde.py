"""Stochastic equations: our draw beside torch.randn, our loops beside a plain one and torchsde, in one run.

    python benchmarks/sde.py [--rows 4096] [--components 3] [--steps 256] [--quick]

Geometric Brownian motion dX = X / 2 dt + 0.8 X dW to t = 1, float64, one thread. The candidates take turns,
once each a round; the least processor time of this thread counts, so that other programs matter little.
`strong error` is the mean |Y - X| against the exact solution on the candidate's own path; `x draw` the time
over that of our own draw of all increments. torchsde is wanted by nothing else here: without it its rows say
NOT RUN.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import click
import torch
from measure import load_warning
from torch import Tensor

from worldsim_kernels.native import why_not
from worldsim_kernels.solve import SDE, Constant, Save
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.gradients import Reversible
from worldsim_kernels.solve.sde import as_stratonovich
from worldsim_kernels.solve.sde_solve import solve_sde

MU, SIGMA = 0.5, 0.8
ITO = SDE(lambda t, y: MU * y, lambda t, y: SIGMA * y)
OURS = ("euler_maruyama", "milstein", "stochastic_heun", "reversible_heun")
NATIVE = why_not("brownian")
BACKENDS = ("torch",) if NATIVE else ("torch", "native")
Candidate = Callable[[], tuple[Tensor, Callable[[], Tensor]] | None]
"""Runs; gives the end and what computes the Brownian motion there, both ``[row, component]``, or None for a
draw."""


def ours(name: str, backend: str, noise: Brownian, y0: Tensor, steps: int) -> Candidate:
    term = ITO if name in ("euler_maruyama", "milstein") else as_stratonovich(ITO)

    def run() -> tuple[Tensor, Callable[[], Tensor]]:
        step = Constant(1 / steps)
        found = solve_sde(term, y0, 0.0, 1.0, stepper=name, controller=step, noise=noise, backend=backend)
        return found.y, lambda: noise.normals(0, steps).sum(0) / math.sqrt(steps)

    return run


def timed(run: Candidate) -> float:
    begun = time.thread_time()
    run()
    return time.thread_time() - begun


def plain(y0: Tensor, steps: int) -> Candidate:
    """What one would write by hand: torch.randn in a loop."""
    generator = torch.Generator().manual_seed(0)
    h = 1 / steps

    def run() -> tuple[Tensor, Callable[[], Tensor]]:
        y, before = y0, generator.get_state()
        for _ in range(steps):
            move = math.sqrt(h) * torch.randn(y.shape, dtype=y.dtype, generator=generator)
            y = y + MU * y * h + SIGMA * y * move

        def path() -> Tensor:
            again = torch.Generator()
            again.set_state(before)
            moves = (torch.randn(y0.shape, dtype=y0.dtype, generator=again) for _ in range(steps))
            return math.sqrt(h) * sum(moves, torch.zeros_like(y0))

        return y, path

    return run


class Peer(torch.nn.Module):
    """The equation as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return MU * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return SIGMA * y


def torchsde(method: str, y0: Tensor, steps: int) -> Candidate:
    from torchsde import BrownianInterval, sdeint

    equation, times = Peer(), torch.tensor([0.0, 1.0], dtype=y0.dtype)

    def run() -> tuple[Tensor, Callable[[], Tensor]]:
        levy = "space-time" if method == "srk" else "none"
        motion = BrownianInterval(
            0.0, 1.0, size=y0.shape, dtype=y0.dtype, levy_area_approximation=levy, entropy=0
        )
        end = sdeint(equation, y0, times, bm=motion, method=method, dt=1 / steps)[-1]

        def path() -> Tensor:
            drawn = motion(0.0, 1.0)
            return drawn[0] if isinstance(drawn, tuple) else drawn

        return end, path

    return run


def candidates(rows: int, components: int, steps: int) -> dict[str, Candidate | None]:
    noise = Brownian(0, torch.arange(rows), components)
    y0 = torch.ones(rows, components, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def draw() -> None:
        noise.normals(0, steps)

    def randn() -> None:
        torch.randn(steps, rows, components, dtype=torch.float64, generator=generator)

    found: dict[str, Candidate | None] = {"our draw": draw, "torch.randn": randn}
    for name in OURS:
        for backend in BACKENDS:
            found[f"{name}, {backend}"] = ours(name, backend, noise, y0, steps)
    found["plain loop, Euler"] = plain(y0, steps)
    for method in ("euler", "milstein", "srk"):
        try:
            found[f"torchsde {method}"] = torchsde(method, y0, steps)
        except ImportError:
            found[f"torchsde {method}"] = None
    return found


def gradients(rows: int, steps: int) -> None:
    """Memory and time of a gradient of reversible Heun, through the steps and by going them back."""
    print(f"\ngradient of reversible Heun with a network 2-64-2, {rows} rows, {steps} steps")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(2, 64, dtype=torch.float64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, 2, dtype=torch.float64),
        )
    term = SDE(lambda t, y: network(y), lambda t, y: 0.1 * y, calculus="stratonovich")
    noise, y0 = Brownian(0, torch.arange(rows), 2), torch.ones(rows, 2, dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for name, gradient in (("through the steps", None), ("going back", Reversible())):
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        begun = time.thread_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
            options = {"stepper": "reversible_heun", "controller": Constant(1 / steps), "noise": noise}
            end = solve_sde(term, y0, 0.0, 1.0, gradient=gradient, save=Save(), **options).y
        kept = saved
        grads = torch.autograd.grad(end.square().sum(), list(network.parameters()))
        spent = time.thread_time() - begun
        found[name] = torch.cat([each.flatten() for each in grads])
        print(f"{name:22}{1e3 * spent:10.1f} ms{kept / 2**20:10.2f} MB kept between forward and backward")
    one, other = found.values()
    print(f"they differ by {float((one - other).norm() / one.norm()):.1e}")


@click.command()
@click.option("--rows", default=4096, help="rows of the batch")
@click.option("--components", default=3, help="components of each row")
@click.option("--steps", default=256, help="steps to t = 1")
@click.option("--rounds", default=7, help="rounds in which the candidates take turns")
@click.option("--quick", is_flag=True, help="two rounds")
def main(rows: int, components: int, steps: int, rounds: int, quick: bool) -> None:
    """Time draws and loops."""
    torch.set_num_threads(1)
    rounds = 2 if quick else rounds
    found = candidates(rows, components, steps)
    ready = {name: run for name, run in found.items() if run is not None}
    ends = {name: run() for name, run in ready.items()}
    best = dict.fromkeys(ready, math.inf)
    for _ in range(rounds):
        for name, run in ready.items():
            best[name] = min(best[name], timed(run))
    print(f"{rows} rows x {components}, {steps} steps, float64, one thread, native: {NATIVE or 'yes'}")
    print(f"{'':26}{'cpu ms':>10}{'ns/number':>11}{'x draw':>9}{'strong error':>14}")
    for name, run in found.items():
        if run is None:
            print(f"{name:26}   NOT RUN: pip install torchsde")
            continue
        spent = best[name]
        end, error = ends[name], ""
        if end is not None:
            y, path = end
            exact = torch.exp(MU - SIGMA**2 / 2 + SIGMA * path())
            error = f"{float((y - exact).detach().abs().mean()):.2e}"
        each = 1e9 * spent / rows / components / steps
        print(f"{name:26}{1e3 * spent:10.1f}{each:11.2f}{spent / best['our draw']:9.2f}{error:>14}")
    gradients(256, 1000)
    if warning := load_warning():
        print(warning)


if __name__ == "__main__":
    main()
