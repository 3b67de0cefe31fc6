"""Structure-preserving integrators on a pendulum from rest at 1.5 rad, H = p^2 / 2 + 1 - cos q, step 0.1.

Largest relative energy error over 10^5 steps (10^4 for implicit ones) beside that of the first 10^3, orders
of convergence, the defect |J' Omega J - Omega| of one step, how far a march there and back ends, and what
five orbits of eccentricity 0.9 cost with time-transformed and with equal steps.
"""

import math

import torch

from worldsim_kernels.solve import Constant, Hamiltonian, Separable, solve, stepper_of
from worldsim_kernels.solve.time_transformed import TimeTransformedLeapfrog

SEEDS = (0,)
CLAIM = (
    "symplectic defect < 1e-12; leapfrog energy error < 0.003, <= 1.2x that at 10^3 steps; discrete gradient "
    "< 1e-12; time-transformed steps >= 100x less energy error on narrow ellipses"
)
F64 = torch.float64
EXPLICIT = ("euler", "symplectic_euler", "leapfrog", "yoshida4", "rk4")
IMPLICIT = ("implicit_midpoint", "gauss4", "discrete_gradient")
ORDERS = {"symplectic_euler": 1, "leapfrog": 2, "yoshida4": 4, "implicit_midpoint": 2, "gauss4": 4}
ORDERS |= {"discrete_gradient": 2, "rk4": 4}
SYMPLECTIC = ("symplectic_euler", "leapfrog", "yoshida4", "implicit_midpoint", "gauss4")
REVERSIBLE = ("leapfrog", "yoshida4", "implicit_midpoint", "gauss4", "discrete_gradient")
STEPS = 100_000


def energy(x):
    return x[..., 1].square() / 2 + 1 - x[..., 0].cos()


PENDULUM = Separable(lambda p: p, lambda q: -q.sin())
WHOLE = Hamiltonian(energy, gradient=lambda x: torch.stack([x[..., 0].sin(), x[..., 1]], -1))


def marched(name, x, h, steps):
    """The states ``[step + 1, row, 2]``."""
    stepper, term = stepper_of(name), WHOLE if name == "discrete_gradient" else PENDULUM
    t, length = torch.zeros(len(x), dtype=F64), torch.full((len(x),), h, dtype=F64)
    carry, states = stepper.start(term, t, x), [x]
    for _ in range(steps):
        step = stepper.step(term, t, length, states[-1], carry)
        carry = step.carry
        states.append(step.y)
    return torch.stack(states)


@torch.no_grad()
def energy_errors(name, steps):
    """Largest relative energy error within the first 10^3 steps (or half of them), and within all."""
    states = marched(name, torch.tensor([[1.5, 0.0]], dtype=F64), 0.1, steps)
    errors = (energy(states) / energy(states[0]) - 1).abs()
    return float(errors[: early_steps(steps)].max()), float(errors.max())


def early_steps(steps):
    return min(1000, steps // 2)


@torch.no_grad()
def order(name):
    start = torch.tensor([[1.5, 0.0]], dtype=F64)
    exact = marched("yoshida8", start, 5 / 200, 200)[-1]
    errors = [(marched(name, start, 5 / n, n)[-1] - exact).norm() for n in (100, 200)]
    return float(torch.log2(errors[0] / errors[1]))


def defect(name):
    """Largest entry of J' Omega J - Omega for one step from (1.1, 0.4)."""
    point = torch.tensor([[1.1, 0.4]], dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: marched(name, x, 0.1, 1)[-1, 0], point)[:, 0]
    omega = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    return float((jacobian.T @ omega @ jacobian - omega).abs().max())


@torch.no_grad()
def returned(name):
    """Distance after 200 steps of 0.1 and 200 of -0.1."""
    start = torch.tensor([[1.5, 0.0]], dtype=F64)
    there = marched(name, start, 0.1, 200)[-1]
    return float((marched(name, there, -0.1, 200)[-1] - start).abs().max())


def narrow_ellipse():
    """Relative energy error after five orbits of eccentricity 0.9, and forces that it took: equal steps,
    and time-transformed ones."""

    def potential(q):
        return -1 / q.square().sum(-1).sqrt()

    def force(q):
        return q * potential(q)[:, None] ** 3

    def kinetic(p):
        return p.square().sum(-1) / 2

    term = Separable(lambda p: p, force, potential=potential, kinetic=kinetic)
    y, end = torch.tensor([[0.1, 0.0, 0.0, math.sqrt(19)]], dtype=F64), 10 * math.pi
    figures = {}
    for name, stepper, step in (
        ("equal", "leapfrog", end / 5_000),
        ("transformed", TimeTransformedLeapfrog(first=2e-3), end),
    ):
        found = solve(term, y, 0.0, end, stepper=stepper, controller=Constant(step)).check()
        q, p = found.y.chunk(2, -1)
        figures[f"ellipse error {name}"] = float((kinetic(p) + potential(q) + 0.5).abs() / 0.5)
        figures[f"ellipse forces {name}"] = int(found.stats.evaluations)
    return figures


def run(seed=0, steps=STEPS):
    figures = {}
    for name in (*EXPLICIT, *IMPLICIT):
        count = steps if name in EXPLICIT else steps // 10
        figures[f"early error {name}"], figures[f"error {name}"] = energy_errors(name, count)
    # 1 when the error of rk4 grows in proportion to time.
    growth = figures["error rk4"] / figures["early error rk4"]
    figures["growth rk4"] = growth * early_steps(steps) / steps
    figures |= {f"order {name}": order(name) for name in ORDERS}
    figures |= {f"defect {name}": defect(name) for name in (*SYMPLECTIC, "discrete_gradient", "rk4", "euler")}
    figures |= {f"returned {name}": returned(name) for name in (*REVERSIBLE, "rk4")}
    return figures | narrow_ellipse()


def check(figures):
    for name, expected in ORDERS.items():
        assert abs(figures[f"order {name}"] - expected) < 0.1
    for name in SYMPLECTIC:
        assert figures[f"defect {name}"] < 1e-12
    assert figures["defect euler"] > 1e-4
    assert figures["defect rk4"] > 1e-10
    for name in REVERSIBLE:
        assert figures[f"returned {name}"] < 1e-11
    assert figures["returned rk4"] > 1e-7
    for name in ("leapfrog", "yoshida4", "implicit_midpoint", "gauss4"):
        assert figures[f"error {name}"] <= 1.2 * figures[f"early error {name}"]
    assert figures["error leapfrog"] < 0.003
    assert figures["error symplectic_euler"] < 0.1
    assert figures["error discrete_gradient"] < 1e-12
    assert figures["growth rk4"] > 0.5
    assert figures["error euler"] > 1
    assert figures["ellipse error equal"] > 100 * figures["ellipse error transformed"]
    assert figures["ellipse forces equal"] > 2 * figures["ellipse forces transformed"]
