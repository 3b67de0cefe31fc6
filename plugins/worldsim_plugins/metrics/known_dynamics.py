"""What ``worldsim score --selftest`` holds metrics of motion to: integrators of a harmonic oscillator, a map
and a flow whose exponents are known, and responses that are exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worldsim import Trajectory
from worldsim.protocols import GroundTruth, Metric
from worldsim_kernels.attractors import wasserstein1
from worldsim_kernels.causality import cells_from, cone_leak, temporal_leak
from worldsim_kernels.lyapunov import by_difference, by_gradient, lyapunov_rates

Builder = Callable[..., Metric]

STEP, STEPS = 0.1, 1000
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
ONE = torch.eye(2, dtype=torch.float64)


class Oscillator:
    """H = (q^2 + p^2) / 2."""

    conserved = ("energy",)

    def observe(self, states: Tensor) -> Mapping[str, Tensor]:
        return {"energy": states.square().sum(-1, keepdim=True) / 2}


def _steps() -> dict[str, Tensor]:
    """One step of each method, a matrix on (q, p)."""
    a, half = STEP * TURN, STEP / 2 * TURN
    kick, drift = ONE + STEP * TURN.tril(), ONE + STEP * TURN.triu()
    half_kick = (ONE + kick) / 2
    return {
        "explicit Euler": ONE + a,
        "implicit Euler": torch.linalg.inv(ONE - a),
        "implicit midpoint": torch.linalg.solve(ONE - half, ONE + half),
        "Runge-Kutta 4": ONE + a + a @ a / 2 + a @ a @ a / 6 + a @ a @ a @ a / 24,
        "Verlet": half_kick @ drift @ half_kick,
        "symplectic Euler": drift @ kick,
    }


def of_invariants(metric: Builder) -> list[GroundTruth]:
    """The energy of 1,000 steps of 0.1 from (1, 0)."""
    times = STEP * torch.arange(STEPS + 1, dtype=torch.float64)
    truth = Trajectory(torch.stack([times.cos(), -times.sin()], -1)[None, None], times)
    found: dict[str, Tensor] = {}
    for name, step in _steps().items():
        frames = [truth.states[0, 0, 0]]
        for _ in range(STEPS):
            frames.append(step @ frames[-1])
        made = truth.replace(states=torch.stack(frames)[None, None])
        drift = metric(Oscillator()).score(truth, made, None)["drift_energy_time"]
        found[name] = torch.as_tensor(drift.value)
    rk4 = 1 - (1 - STEP**6 / 72 + STEP**8 / 576) ** STEPS
    end = {name: float(drift[-1]) for name, drift in found.items()}
    source, hairer = "powers of the step", "Hairer, Lubich and Wanner 2006"
    return [
        GroundTruth("explicit Euler, E / E0", 1 + end["explicit Euler"], 20959.1556378, 1e-7, source),
        GroundTruth("implicit Euler, the same", 1 - end["implicit Euler"], 4.77118457e-5, 5e-14, source),
        GroundTruth("Runge-Kutta 4, 1 - E / E0", end["Runge-Kutta 4"], rk4, 1e-12, source),
        GroundTruth("implicit midpoint, |E / E0 - 1|", end["implicit midpoint"], 0.0, 1e-12, hairer),
        GroundTruth("Verlet, largest |E / E0 - 1|", float(found["Verlet"].max()), 0.0025, 1e-7, hairer),
        GroundTruth(
            "symplectic Euler, the same", float(found["symplectic Euler"].max()), 0.0526316, 5e-6, hairer
        ),
    ]


def of_chaos() -> list[GroundTruth]:
    """Exponents of the logistic map and of Lorenz's flow."""
    start = torch.rand(64, 1, generator=_seeded(1), dtype=torch.float64)
    rates = lyapunov_rates(
        lambda x: 4 * x * (1 - x), start, 400, exponents=1, push=by_gradient, transient=20
    ).mean(1)[:, 0]
    state = 10 * torch.randn(512, 3, generator=_seeded(0), dtype=torch.float64)
    state[:, 2] += 27
    for _ in range(500):
        state = _lorenz_step(state, 0.02)
    short = lyapunov_rates(
        lambda x: _lorenz_step(x, 0.005), state, 20, exponents=3, push=by_gradient, dt=0.005
    )
    way = {"push": by_difference(1e-5), "transient": 100, "dt": 0.02}
    long = lyapunov_rates(lambda x: _lorenz_step(x, 0.02), state, 500, exponents=1, **way).mean(1)[:, 0]
    total, near = float(short.sum(-1).mean()), 3 * _error(rates) + 1e-3
    largest, width = float(long.mean()), 3 * _error(long)
    return [
        GroundTruth(
            "exponent of the logistic map at r = 4", float(rates.mean()), math.log(2), near, "Ruelle"
        ),
        GroundTruth("sum of the exponents of Lorenz's flow", total, -41 / 3, 5e-5, "its divergence"),
        GroundTruth("largest exponent of Lorenz's flow", largest, 0.9056, width, "Sprott 2003"),
    ]


def of_causality() -> list[GroundTruth]:
    """What cannot have been heard of is not answered, exactly."""
    x = torch.randn(3, 16, 2, generator=_seeded(0), dtype=torch.float64)
    running = float(temporal_leak(lambda x: x.cumsum(1), x).max())
    centred = float(temporal_leak(lambda x: x - x.mean(1, keepdim=True), x).max())
    rows = [
        GroundTruth("leak of a running sum", running, 0.0, 0.0, "it is causal"),
        GroundTruth("leak of taking off a mean of 16", centred, 1 / 16, 1e-12, "its derivative"),
    ]
    distance = cells_from((64,), (10,))
    for courant in (1.0, 0.5):
        wave, k = _wave(courant), torch.arange(21, dtype=torch.float64)
        leak = float(cone_leak(wave, distance, k))
        what = f"leapfrog wave, Courant number {courant:g}: response beyond k cells"
        rows.append(GroundTruth(what, leak, 0.0, 0.0, "Courant, Friedrichs and Lewy 1928"))
    return rows


def of_climate() -> list[GroundTruth]:
    """The invariant law of the logistic map from a uniform one."""
    uniform = (torch.arange(20_000, dtype=torch.float64)[:, None] + 0.5) / 20_000
    found = float(wasserstein1(uniform, (1 - (math.pi * uniform).cos()) / 2))
    return [GroundTruth("W1 of a uniform and the arcsine law", found, 1 / math.pi - 0.25, 1e-8, "1/pi - 1/4")]


def of_rollout(metric: Builder) -> list[GroundTruth]:
    """Who knows the mean has an error of 1, another draw of the truth one of sqrt(2)."""
    times = torch.arange(9, dtype=torch.float64)
    one, other = torch.randn(2, 4000, 1, 9, 1, generator=_seeded(0), dtype=torch.float64)
    truth, same = Trajectory(one, times), metric(None)
    mean = same.score(truth, truth.replace(states=one[:, :, 1:].mean().expand_as(one)), None)["nrmse_time"]
    apart = same.score(truth, truth.replace(states=other), None)["nrmse"]
    assert apart.interval is not None
    late = same.score(truth, truth.replace(states=one + 0.1 * times[:, None]), None)["valid_time"]
    power = float(torch.as_tensor(mean.value).square().mean())
    width = 3 * (apart.interval[1] - apart.interval[0]) / (2 * 1.96)
    return [
        GroundTruth("mean square error of the mean", power, 1.0, 1e-12, "variance over variance"),
        GroundTruth("error of another draw of the truth", float(apart.value), 2**0.5, width, "sqrt(1 + 1)"),
        GroundTruth("first time an error of 0.1 t is above 0.4", float(late.value), 5.0, 0.0, "by hand"),
    ]


def _wave(courant: float, cells: int = 64, steps: int = 20) -> Tensor:
    """u'' = c^2 d2u/dx2 from a displaced cell, ``[1, step, cell, 1]``."""

    def bent(u: Tensor) -> Tensor:
        return courant**2 * (u.roll(1, 1) - 2 * u + u.roll(-1, 1))

    before = torch.zeros(1, cells, dtype=torch.float64)
    before[0, 10] = 1.0
    frames = [before, before + bent(before) / 2]
    for _ in range(steps - 1):
        frames.append(2 * frames[-1] - frames[-2] + bent(frames[-1]))
    return torch.stack(frames, 1)[..., None]


def _lorenz(x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def _lorenz_step(x: Tensor, h: float) -> Tensor:
    k1 = _lorenz(x)
    k2 = _lorenz(x + h / 2 * k1)
    k3 = _lorenz(x + h / 2 * k2)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + _lorenz(x + h * k3))


def _error(rows: Tensor) -> float:
    return float(rows.std()) / len(rows) ** 0.5


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
