"""Newton's equations with actions, by velocity Verlet (leapfrog).

Two bodies on a spring of rest length 1, step 0.01, 2000 steps: the spread of the energy by explicit and by
semi-implicit Euler, and the total momentum of both. A pendulum with a random torque that is held for 0.5 time
units, leapfrog, 64 runs of T = 20 at steps 0.02, 0.01 and 0.005: |change of energy - work of the torque| over
the sum of |work|, on average, which falls as the square of the step. (The work of a held torque u over a step
is u times the change of the angle, exactly.)
"""

import torch

from worldsim_kernels.solve import ODE, Constant, Save, Separable, solve

CLAIM = "work-energy residual < 1e-4 at h = .01, falling 3.5-4.5 fold per halving; momentum 0 to rounding"
SEEDS = (0, 1, 2, 3, 4)
HELD, HORIZON, RUNS = 0.5, 20.0, 64


def spring(q):
    """Force on each of two bodies ``[row, 2, 3]``, flattened."""
    apart = q[:, :3] - q[:, 3:]
    length = apart.norm(dim=1, keepdim=True)
    pull = -(length - 1) * apart / length
    return torch.cat([pull, -pull], 1)


def spread(term, stepper, start):
    steps = solve(
        term, start, 0.0, 20.0, stepper=stepper, controller=Constant(0.01), save=Save(steps=True)
    ).steps
    q, p = steps.y[0].chunk(2, -1)
    energy = p.square().sum(1) / 2 + ((q[:, :3] - q[:, 3:]).norm(dim=1) - 1).square() / 2
    momentum = (p[:, :3] + p[:, 3:]) - (p[0, :3] + p[0, 3:])
    return ((energy.max() - energy.min()) / energy[0]).item(), momentum.abs().max().item()


def residual(step, torque, start):
    """Mean of |dE - W| / sum |W| over the runs."""
    state, work, total = start, torch.zeros(RUNS, dtype=torch.float64), torch.zeros(RUNS, dtype=torch.float64)

    def energy(y):
        return y[:, 1].square() / 2 - torch.cos(y[:, 0])

    for i in range(torque.shape[1]):
        u = torque[:, i]
        term = Separable(lambda p, u: p, lambda q, u: u[:, None] - torch.sin(q), (u,))
        steps = solve(
            term, state, 0.0, HELD, stepper="leapfrog", controller=Constant(step), save=Save(steps=True)
        ).steps.y
        done = u[:, None] * steps[:, :, 0].diff(dim=1)
        work, total, state = work + done.sum(1), total + done.abs().sum(1), steps[:, -1]
    return ((energy(state) - energy(start) - work).abs() / total).mean().item()


def run(seed, horizon=HORIZON):
    draws = torch.Generator().manual_seed(seed)
    q = torch.tensor([0.7, 0.0, 0.0, -0.7, 0.0, 0.0], dtype=torch.float64)
    start = torch.cat([q, 0.3 * torch.randn(6, dtype=torch.float64, generator=draws)])[None]
    whole = Separable(lambda p: p, spring)
    explicit, lost = spread(ODE(whole), "euler", start)
    implicit, kept = spread(whole, "symplectic_euler", start)
    torque = torch.randn(RUNS, round(horizon / HELD), dtype=torch.float64, generator=draws)
    pendulum = torch.randn(RUNS, 2, dtype=torch.float64, generator=draws)
    found = [residual(step, torque, pendulum) for step in (0.02, 0.01, 0.005)]
    return {
        "energy spread, explicit": explicit,
        "semi-implicit": implicit,
        "momentum": max(lost, kept),
        "residual .02": found[0],
        "residual .01": found[1],
        "residual .005": found[2],
    }


def check(figures):
    assert figures["momentum"] < 1e-12
    assert figures["semi-implicit"] < 0.1 * figures["energy spread, explicit"]
    assert figures["residual .01"] < 1e-4
    for coarse, fine in ((".02", ".01"), (".01", ".005")):
        assert 3.5 <= figures[f"residual {coarse}"] / figures[f"residual {fine}"] <= 4.5
