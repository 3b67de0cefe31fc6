"""What scoring costs, on one thread, beside what it cannot do without.

    python benchmarks/scoring.py [--quick]

*Coherence over its rollouts*: 1,000 pairs of histories, horizon 64, divided by the time of the rollouts that
the score asks for: those of the model after both histories of every pair, and those of the truth, twice, once
to compare with and once in the place of a model (the floor). Building the pairs, distances between laws,
floors and intervals are the rest. An untrained Neural ODE on the pendulum; an untrained neural SDE, with 16
draws, on an Ornstein-Uhlenbeck process; and that process as its own model, than which nothing is cheaper to
roll out.

*Exact transport over POT*: W2 of 1,024 points, plan, potentials and standard error, over POT's ``emd2`` with
the same matrix of costs, which both compute.

*Growth*: the exponent p of seconds ~ n^p by least squares on logarithms, and its standard error.

All times are this process's own processor time. Calls take turns and the least of five counts; freed memory
is kept by the allocator (otherwise mapping fresh pages for what is n x n costs more than filling it).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import ot
import torch
from measure import fit, keep_freed_memory
from scipy.spatial.distance import cdist

from worldsim import Trajectory
from worldsim.baselines import Truth
from worldsim.wrapped import Wrapped
from worldsim_kernels import laws, sinkhorn
from worldsim_kernels.information import nearest_neighbours
from worldsim_plugins.dynamics.neural_ode import NeuralODE
from worldsim_plugins.dynamics.neural_sde import NeuralSDE
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.metrics.continuous_coherence import ranking
from worldsim_plugins.metrics.exact_transport import wasserstein2
from worldsim_plugins.metrics.minimisation import minimise
from worldsim_plugins.metrics.persistence import rips_diagrams
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import Pendulum

PAIRS, HORIZON, ROUNDS = 1000, 64, 5
Call = Callable[[], object]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def least(calls: Mapping[Any, Call], rounds: int = ROUNDS) -> dict[Any, float]:
    """The least processor seconds of each call over ``rounds`` in which they take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begun)
    return best


# Coherence ----------------------------------------------------------------------------------------------


class Counted:
    """Stands before a model and its world and adds up the time that their rollouts take."""

    def __init__(self) -> None:
        self.spent, self.depth = 0.0, 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            self.depth += 1
            begun = time.process_time()
            try:
                return call(*given)
            finally:
                self.depth -= 1
                if not self.depth:  # the truth as a model simulates: once is enough
                    self.spent += time.process_time() - begun

        return run


class Cost(NamedTuple):
    rollouts: float
    total: float


def pendulum() -> tuple[Any, Any, Trajectory, dict[str, Any]]:
    system = Pendulum()
    truth = simulated(system)
    return system, untrained(NeuralODE, truth), truth, {"kinds": ["window_shift"]}


def noise(dim: int, *, neural: bool = False) -> tuple[Any, Any, Trajectory, dict[str, Any]]:
    system = OrnsteinUhlenbeck(dim=dim)
    truth = simulated(system)
    model = untrained(NeuralSDE, truth) if neural else Truth(system, truth)
    return system, model, truth, {"kinds": ["common_end"], "draws": 16}


def untrained(build: Callable[[Trajectory], Any], truth: Trajectory) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Wrapped(build, "component", truth)


def simulated(system: Any) -> Trajectory:
    times = 0.1 * torch.arange(80, dtype=torch.float64)
    return system.simulate(system.sample(64, seeded()), times, None, seeded())


def coherence_cost(system: Any, model: Any, truth: Trajectory, options: dict[str, Any]) -> Cost:
    """The round with the least time in all."""
    metric, clock = Coherence(system, pairs=PAIRS, horizon=HORIZON, **options), Counted()
    # The pairs are built by ``simulate`` too: those calls are not rollouts, and are made before the clock.
    build, simulate = system.equivalent_histories, system.simulate

    def built(*given: Any) -> Any:
        system.simulate = simulate
        try:
            return build(*given)
        finally:
            system.simulate = clock.timed(simulate)

    system.equivalent_histories, system.simulate = built, clock.timed(simulate)
    model.rollout = clock.timed(model.rollout)
    best = Cost(float("inf"), float("inf"))
    for _ in range(ROUNDS):
        clock.spent, begun = 0.0, time.process_time()
        metric.score(truth, truth, model)
        best = min(best, Cost(clock.spent, time.process_time() - begun), key=lambda cost: cost.total)
    return best


def show_coherence() -> None:
    print(f"\ncoherence of {PAIRS:,} pairs, horizon {HORIZON}: seconds")
    print(f"{'':40}{'rollouts':>10}{'in all':>10}{'ratio':>8}")
    cases = {
        "pendulum, Neural ODE, one draw": pendulum(),
        "Ornstein-Uhlenbeck, neural SDE, 16 draws": noise(1, neural=True),
        "the same, itself as the model": noise(1),
        "the same in two dimensions": noise(2),
    }
    for name, case in cases.items():
        cost = coherence_cost(*case)
        ratio = cost.total / cost.rollouts
        print(f"{name:40}{cost.rollouts:10.3f}{cost.total:10.3f}{ratio:8.2f}", flush=True)


# Exact transport, automata -------------------------------------------------------------------------------


def show_transport(n: int = 1024) -> None:
    print(f"\nexact W2 of {n:,} points: milliseconds")
    print(f"{'dimension':40}{'POT emd2':>10}{'ours':>10}{'ratio':>8}")
    for d in (2, 16, 64):
        x, y = torch.randn(2, n, d, dtype=torch.float64, generator=seeded())
        y = 1.5 * y
        spent = least({"pot": lambda x=x, y=y: pot(x, y), "ours": lambda x=x, y=y: wasserstein2(x, y)})
        ratio = spent["ours"] / spent["pot"]
        print(f"{d:<40}{1e3 * spent['pot']:10.1f}{1e3 * spent['ours']:10.1f}{ratio:8.2f}", flush=True)


def pot(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = ot.unif(len(x)), ot.unif(len(y))
    return float(ot.emd2(a, b, cdist(x.numpy(), y.numpy(), "sqeuclidean"), numItermax=10_000_000))


def automaton(states: int) -> torch.Tensor:
    """Two edges from every state, of two tokens of four: those are legal that its number says, and lead
    anywhere, but that every state can be reached."""
    rng, row = seeded(), torch.arange(states)
    first = torch.randint(4, (states,), generator=rng)
    second = (first + 1 + torch.randint(3, (states,), generator=rng)) % 4
    table = torch.full((states, 4), -1)
    table[row, first] = (row + 1) % states
    table[row, second] = torch.randint(states, (states,), generator=rng)
    return table


def show_automata(states: int = 5000) -> None:
    table = automaton(states)
    spent = least({"": lambda: minimise(table, 0)})[""]
    kept, edges = len(minimise(table, 0).transitions), int((table >= 0).sum())
    print(f"\nminimal automaton of {states:,} states and {edges:,} edges ({kept:,} left): {spent:.3f} s")


# Growth --------------------------------------------------------------------------------------------------


def growing() -> dict[str, tuple[Callable[[int], Call], Sequence[int]]]:
    """By name: what to call at n, and which n."""

    def points(n: int, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = torch.randn(2, n, d, dtype=torch.float64, generator=seeded())
        return x, 1.5 * y

    def of_points(call: Callable[..., object], d: int = 2) -> Callable[[int], Call]:
        def prepared(n: int) -> Call:
            x, y = points(n, d)
            return lambda: call(x, y)

        return prepared

    directions = laws.random_directions(64, 2, seeded())
    paths = {
        n: 0.2 * torch.randn(2 * n, 16, 2, generator=seeded(), dtype=torch.float64) for n in (16, 32, 64, 128)
    }
    return {
        "W2, exact": (of_points(wasserstein2), (256, 512, 1024, 2048)),
        "sliced W2, 64 directions": (
            of_points(lambda x, y: laws.sliced_wasserstein(x, y, directions)),
            (4096, 8192, 16384, 32768),
        ),
        "Sinkhorn divergence": (
            of_points(lambda x, y: sinkhorn(x, y, epsilon=0.5, debias=True)),
            (512, 1024, 2048, 4096),
        ),
        "energy distance": (of_points(laws.energy_distance_squared), (512, 1024, 2048)),
        "MMD": (of_points(lambda x, y: laws.mmd_squared(x, y, 1.0)), (512, 1024, 2048)),
        "signature MMD, 16 frames": (
            lambda n: lambda: laws.two_sample(laws.signature_gram(paths[n]), n),
            (16, 32, 64, 128),
        ),
        "coherence_auc, ranks": (
            of_points(lambda x, y: ranking(x[:, 0], y[:, 0])),
            (2**16, 2**17, 2**18, 2**19),
        ),
        "mutual information, neighbours": (
            of_points(lambda x, y: nearest_neighbours(x[:, :1], x[:, :1] + y[:, :1], generator=seeded())),
            (512, 1024, 2048, 4096),
        ),
        "persistence, Rips, loops": (of_points(lambda x, y: rips_diagrams(x, 1)), (64, 128, 256, 512)),
    }


def show_growth(quick: bool) -> None:
    print("\ngrowth: milliseconds at so many points")
    for name, (prepared, sizes) in growing().items():
        sizes = sizes[:-1] if quick else sizes
        spent = least({n: prepared(n) for n in sizes}, 3 if quick else ROUNDS)
        exponent, error = fit(sizes, list(spent.values()))
        cells = "".join(f"{n:>9}:{1e3 * spent[n]:8.1f}" for n in sizes)
        print(f"{name:32}{cells}   n^{exponent:.2f} +- {error:.2f}", flush=True)


@click.command()
@click.option("--quick", is_flag=True, help="the three goals, and growth over one size less")
def main(quick: bool) -> None:
    """Time scoring."""
    torch.set_num_threads(1)
    keep_freed_memory(True)
    warnings.simplefilter("ignore")
    show_coherence()
    show_transport()
    show_automata()
    show_growth(quick)


if __name__ == "__main__":
    main()
