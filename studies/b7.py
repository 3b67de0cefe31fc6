"""Scores of a chaotic world: what an error of single trajectories says, and what a distance of laws does.

Lorenz's system, 1,000 starts on its attractor, T = 20 (18 Lyapunov times): the true system restarted with an
error of 1e-6 in each start, the system with rho 26 for 28 from the same starts, and the mean of the
attractor. The root mean square error at T, and exact W2 against another 1,000 true states, which are what a
sample of the truth is worth.
"""

import torch

from worldsim_kernels import native
from worldsim_kernels.solve import ODE, Constant, solve
from worldsim_plugins.metrics.exact_transport import wasserstein2
from worldsim_plugins.systems.lorenz import Lorenz

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "W2: truth < wrong rho < mean; RMSE: mean < perturbed truth"
STARTS, HORIZON, STEP, WARM_UP = 1000, 20.0, 0.01, 15.0


def flown(system, x, length):
    """``x`` ``[start, 3]`` after ``length``."""
    term = ODE(lambda t, y: system.drift(t, y, None))
    return solve(term, x, 0.0, length, stepper="dopri5", controller=Constant(STEP), backend=backend()).y


def backend():
    """C where there is a compiler; torch takes the same steps."""
    return "native" if native.compiler() else "torch"


def run(seed, starts=STARTS):
    draws, true = torch.Generator().manual_seed(seed), Lorenz()
    noise = torch.randn(2 * starts, 3, dtype=torch.float64, generator=draws)
    begin = flown(true, 10 * noise + torch.tensor([0.0, 0.0, 27.0]), WARM_UP)
    here, other = begin.split(starts)
    error = 1e-6 * torch.randn(starts, 3, dtype=torch.float64, generator=draws)
    # One batch for the three runs of the true system.
    after, perturbed, independent = flown(true, torch.cat([here, here + error, other]), HORIZON).split(starts)
    forecasts = {
        "truth": perturbed,
        "wrong rho": flown(Lorenz(rho=26.0), here, HORIZON),
        "mean": after.mean(0).expand(starts, 3),
    }
    figures = {}
    for name, guess in forecasts.items():
        figures[f"RMSE, {name}"] = float((guess - after).square().sum(1).mean().sqrt())
        figures[f"W2, {name}"] = wasserstein2(independent, guess).W2_squared ** 0.5
    return figures


def check(figures):
    assert figures["W2, truth"] < figures["W2, wrong rho"] < figures["W2, mean"]
    assert figures["RMSE, mean"] < figures["RMSE, truth"]
