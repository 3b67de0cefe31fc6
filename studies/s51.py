"""Energy conservation as a constraint, on pendulums.

A batch that conserves many different energies must have residual 0, where the variance of the energy over
time and batch, a common mistake, is large. A system whose starts share one energy gives 0/0, which must be
refused. And explicit Euler, h = 0.1, 32 pendulums, projected onto its starting energy after every step, must
stay there. The projection mends the energy and not the phase.
"""

import torch

from worldsim_kernels.project import project
from worldsim_plugins.constraints.energy import Energy
from worldsim_plugins.systems.pendulum import Pendulum

SEEDS = (0,)
CLAIM = "projected |E - E0| / E0 < 1e-9; residual 0 for different conserved energies; 0/0 refused"
STEPS = 10_000


def simulated(system, seed, horizon=10.0):
    rng = torch.Generator().manual_seed(seed)
    times = torch.arange(0, horizon, 0.5, dtype=torch.float64)
    return system.simulate(system.sample(32, rng), times, None, rng)


def constant_energy_is_refused():
    try:
        Energy(Pendulum(energy=(1.0, 1.0)))
    except ValueError:
        return True
    return False


def projected_euler(system, x, steps):
    """Largest relative energy error, and the mean number of Gauss-Newton steps per step of Euler."""
    target = system.energy(x)
    # The scale makes the tolerance relative to each pendulum's own energy.
    scale = target[:, None]
    worst, iterations = 0.0, 0
    for _ in range(steps):
        x = x + 0.1 * system.drift(torch.zeros(()), x, None)
        found = project(
            lambda frames: (system.energy(frames) - scale) / scale, x[:, None], tolerance=1e-13, local=True
        )
        x = found.x[:, 0]
        iterations += found.iterations
        worst = max(worst, float((system.energy(x) / target - 1).abs().max()))
    return worst, iterations / steps


def run(seed=0, steps=STEPS):
    system = Pendulum()
    truth = simulated(system, seed)
    figures = {
        "residual of the truth": float(Energy(system).residual(truth).abs().max()),
        "variance over time and batch": float(system.energy(truth.states).var()),
        "constant energy refused": constant_energy_is_refused(),
    }
    start = truth.states[:, 0, 0]
    figures["projected error"], figures["iterations"] = projected_euler(system, start, steps)
    return figures


def check(figures):
    assert figures["residual of the truth"] < 1e-12
    assert figures["variance over time and batch"] > 0.05
    assert figures["constant energy refused"]
    assert figures["projected error"] < 1e-9
    assert figures["iterations"] <= 5
