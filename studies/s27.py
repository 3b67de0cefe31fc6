"""Neural SDEs and their solvers: orders of convergence, a known variance, and what a fit of steps finds.

Geometric Brownian motion dX = X / 2 dt + 0.8 X dW to t = 1, 20,000 paths of one Brownian path per row, 16 to
256 steps: slope of E|Y - X| (strong) and of |E Y - E X| (weak, the exact solution on the same path as
control). dX = (sin X - X) dt + 0.8 dW for the scheme of order 3/2. Ornstein-Uhlenbeck with variance 1/4. And
a neural SDE fitted to frames h = 0.1 apart of dX = -2 X dt + dW: its drift is to be (1 - exp(-2 h)) / h, its
rollout of the true variance.
"""

import math

import torch

from worldsim.fit import fit
from worldsim.scenario import FitSettings
from worldsim.seeds import forked
from worldsim.wrapped import Wrapped
from worldsim_kernels.solve import SDE, Constant
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.sde_solve import solve_sde
from worldsim_plugins.dynamics.neural_sde import NeuralSDE
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "strong orders 0.5, 1, 1.5 within 0.1; weak 1 within 0.25; variance within 2 %; fitted drift within 10 %"
)
MU, SIGMA = 0.5, 0.8
STEPS = (16, 32, 64, 128, 256)
WEAK_STEPS = (8, 16, 32)
GROWTH = SDE(lambda t, x: MU * x, lambda t, x: SIGMA * x)
ADDITIVE = SDE(lambda t, x: x.sin() - x, lambda t, x: torch.full_like(x, 0.8), noise="additive")


def ends(term, scheme, steps, noise):
    start = torch.ones(len(noise.rows), 1, dtype=torch.float64)
    return solve_sde(term, start, 0.0, 1.0, stepper=scheme, controller=Constant(1 / steps), noise=noise).y


def slope(steps, errors):
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def orders(seed, paths):
    noise = Brownian(seed, torch.arange(paths), cell=1 / STEPS[-1])
    w = noise.path(torch.ones(paths, 1))[0][:, 0]
    exact = torch.exp(MU - SIGMA**2 / 2 + SIGMA * w)
    errors = {
        scheme: [ends(GROWTH, scheme, n, noise) - exact for n in STEPS]
        for scheme in ("euler_maruyama", "milstein")
    }
    figures = {
        f"strong {s}": slope(STEPS, [float(e.abs().mean()) for e in each]) for s, each in errors.items()
    }
    # Milstein's error has the mean of Euler-Maruyama's, and a fraction of its spread.
    figures["weak milstein"] = slope(STEPS, [abs(float(e.mean())) for e in errors["milstein"]])
    bias = [abs(float((ends(GROWTH, "euler_maruyama", n, noise) - exact).mean())) for n in WEAK_STEPS]
    figures["weak euler_maruyama"] = slope(WEAK_STEPS, bias)
    return figures


def additive_order(seed, paths):
    noise, steps = Brownian(seed, torch.arange(paths), cell=1 / 16), (16, 32, 64)
    exact = ends(ADDITIVE, "sra1", 512, noise)
    return slope(steps, [float((ends(ADDITIVE, "sra1", n, noise) - exact).abs().mean()) for n in steps])


def variance(seed, paths):
    """Of dX = -2 X dt + dW, in the limit of long times 1/4, at t = 4 from 0."""
    term = SDE(lambda t, x: -2 * x, lambda t, x: torch.ones_like(x), noise="additive")
    noise, start = Brownian(seed, torch.arange(4 * paths)), torch.zeros(4 * paths, 1, dtype=torch.float64)
    return float(
        solve_sde(term, start, 0.0, 4.0, stepper="sra1", controller=Constant(0.05), noise=noise).y.var()
    )


def fitted(seed):
    """Drift at one standard deviation over what Euler-Maruyama's likelihood has as its best, and variance."""
    system, h = OrnsteinUhlenbeck(rate=2.0), 0.1
    rng = torch.Generator().manual_seed(seed)
    times = h * torch.arange(101, dtype=torch.float64)
    truth = system.simulate(system.sample(256, rng), times, None, rng)
    settings = FitSettings(steps=400, batch=2048, window=2, learning_rate=5e-3, schedule="cosine")
    with forked(seed):
        model = Wrapped(lambda scaled: NeuralSDE(scaled, width=16), "component", truth, window=2, block=1024)
    fit(model, truth, None, settings, seed)
    x = torch.tensor([[-1.0], [1.0]])
    with torch.no_grad():
        drift = model.inner.drift(times[0], x, None)
        start = system.sample(1024, rng)[:, None, None]
        start = truth.replace(states=start, times=times[:1])
        rolled = model.rollout(start, times[:41], None, 4, rng).states[:, :, -1]
    best = -math.expm1(-2 * h) / h
    return float((drift[0] - drift[1]) / 2) / best, float(rolled.var())


def run(seed=0, paths=20_000):
    figures = orders(seed, paths)
    figures["strong sra1"] = additive_order(seed, paths // 4)
    figures["variance"] = variance(seed, paths)
    figures["fitted drift"], figures["fitted variance"] = fitted(seed)
    return figures


def check(figures):
    for scheme, order in (("euler_maruyama", 0.5), ("milstein", 1.0), ("sra1", 1.5)):
        assert abs(figures[f"strong {scheme}"] - order) < 0.1
    for scheme in ("euler_maruyama", "milstein"):
        assert abs(figures[f"weak {scheme}"] - 1) < 0.25
    assert abs(figures["variance"] / 0.25 - 1) < 0.02
    assert abs(figures["fitted drift"] - 1) < 0.1
    assert abs(figures["fitted variance"] / 0.25 - 1) < 0.1
