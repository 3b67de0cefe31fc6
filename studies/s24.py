"""Neural ODE solvers: orders of convergence, adjoint gradients, and what accuracy costs.

Orders: the error of x'' = -x at t = 1 under halved steps. Gradients: the adjoint equation against
back-propagation through the steps, of a loss on a small network's flow, at three tolerances. Cost: field
evaluations and error of dopri5 on a pendulum over T = 20, against the system's own accurate flow.
"""

import math

import torch

from worldsim import Trajectory
from worldsim_kernels.solve import ODE, Constant, solve
from worldsim_plugins.dynamics.neural_ode import NeuralODE
from worldsim_plugins.solvers.torchdiffeq import TorchDiffEq
from worldsim_plugins.systems.pendulum import Pendulum

SEEDS = (0, 1, 2)
CLAIM = "orders 1, 2, 4 within 0.1; adjoint gap < 100 rtol; dopri5 error falls as evaluations rise"
F64 = torch.float64


class Oscillator:
    def drift(self, t, x, u):
        return torch.stack([x[..., 1], -x[..., 0]], dim=-1)


class Counted:
    """A system's field that counts how often it is asked."""

    def __init__(self, system):
        self.system, self.calls = system, 0

    def drift(self, t, x, u):
        self.calls += 1
        return self.system.drift(t, x, u)


def kernel_end(method, n):
    term, start = ODE(lambda t, x: Oscillator().drift(t, x, None)), torch.tensor([[1.0, 0.0]], dtype=F64)
    return solve(term, start, 0.0, 1.0, stepper=method, controller=Constant(1 / n)).check().y[0]


def solver_end(method, n):
    start, times = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    return TorchDiffEq(method=method, step=1 / n).solve(Oscillator(), start, times, None, None)[0, -1]


def order(end):
    """Slope of the error between 100 and 200 steps."""
    exact = torch.tensor([math.cos(1), -math.sin(1)], dtype=F64)
    coarse, fine = (float((end(n) - exact).norm()) for n in (100, 200))
    return math.log2(coarse / fine)


def gradient(model, start, times, rtol, adjoint):
    solver = TorchDiffEq(method="dopri5", rtol=rtol, atol=rtol, adjoint=adjoint)
    model.zero_grad()
    solver.solve(model, start, times, None, None)[:, -1].square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def adjoint_gaps(seed):
    """Tolerance -> relative distance of the two gradients."""
    rng = torch.Generator().manual_seed(seed)
    start, times = torch.randn(8, 2, generator=rng, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    truth = Trajectory(torch.randn(8, 1, 5, 2, generator=rng, dtype=F64), torch.linspace(0, 2, 5, dtype=F64))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NeuralODE(truth, width=16).double()
    gaps = {}
    for rtol in (1e-3, 1e-6, 1e-9):
        direct, adjoint = (gradient(model, start, times, rtol, way) for way in (False, True))
        gaps[rtol] = float((direct - adjoint).norm() / direct.norm())
    return gaps


def cost(rtol):
    """Field evaluations and final error on a pendulum from 1.5 rad at rest."""
    system = Pendulum()
    start, times = torch.tensor([[1.5, 0.0]], dtype=F64), torch.tensor([0.0, 20.0], dtype=F64)
    exact = system.simulate(start, times, None, None).states[0, 0, -1]
    field = Counted(system)
    end = TorchDiffEq(rtol=rtol, atol=rtol).solve(field, start, times, None, None)[0, -1]
    return field.calls, float((end - exact).norm())


def run(seed=0):
    ends = {
        "order euler": lambda n: kernel_end("euler", n),
        "order midpoint (torchdiffeq)": lambda n: solver_end("midpoint", n),
        "order rk4": lambda n: kernel_end("rk4", n),
        "order rk4 (torchdiffeq)": lambda n: solver_end("rk4", n),
    }
    figures = {name: order(end) for name, end in ends.items()}
    figures |= {f"adjoint gap {rtol:g}": gap for rtol, gap in adjoint_gaps(seed).items()}
    for rtol in (1e-3, 1e-5, 1e-7, 1e-9):
        figures[f"evaluations {rtol:g}"], figures[f"error {rtol:g}"] = cost(rtol)
    return figures


def check(figures):
    expected = {"euler": 1, "midpoint (torchdiffeq)": 2, "rk4": 4, "rk4 (torchdiffeq)": 4}
    for name, value in expected.items():
        assert abs(figures[f"order {name}"] - value) < 0.1
    for rtol in (1e-3, 1e-6, 1e-9):
        assert figures[f"adjoint gap {rtol:g}"] < 100 * rtol
    calls = [value for name, value in figures.items() if name.startswith("evaluations")]
    errors = [value for name, value in figures.items() if name.startswith("error")]
    assert calls == sorted(calls)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5
