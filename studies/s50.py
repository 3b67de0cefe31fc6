"""Symplectic integrators on a pendulum from rest at 1.5 rad, H = p^2 / 2 + 1 - cos q, step 0.1.

Largest relative energy error over 10^5 steps, its growth from 10^3 to 10^5, orders of convergence, and the
defect |J' Omega J - Omega| of one step.
"""

import math

import torch

from worldsim_kernels import integrate

SEEDS = (0,)
CLAIM = "symplectic defect < 1e-12; leapfrog energy error < 0.003, <= 1.2x that at 10^3 steps"
SPLIT = ("symplectic_euler", "leapfrog", "yoshida4")
STEPS = 100_000


def velocity(p):
    return p


def stepper(name, sine=math.sin):
    """x -> x after one step of 0.1, x the pair (q, p). Plain floats serve: they are double precision, and a
    hundred times quicker than tensors of one number."""
    advance = getattr(integrate, name)
    if name in SPLIT:
        return lambda q, p, h: advance(q, p, h, velocity, lambda q: -sine(q))

    def field(t, x):
        return complex(x.imag, -math.sin(x.real))

    def step(q, p, h):
        x = advance(0.0, complex(q, p), h, field)
        return x.real, x.imag

    return step


def energy_errors(name, steps):
    """Largest relative energy error within 10^3 and within ``steps`` steps."""
    step, q, p, worst, early = stepper(name), 1.5, 0.0, 0.0, 0.0
    start = 1 - math.cos(1.5)
    for i in range(steps):
        q, p = step(q, p, 0.1)
        worst = max(worst, abs((p * p / 2 + 1 - math.cos(q)) / start - 1))
        early = worst if i < 1000 else early
    return early, worst


def end(name, n):
    """The state at t = 5 after ``n`` steps."""
    step, q, p = stepper(name), 1.5, 0.0
    for _ in range(n):
        q, p = step(q, p, 5 / n)
    return complex(q, p)


def order(name):
    exact = end("yoshida4", 20_000)
    return math.log2(abs(end(name, 400) - exact) / abs(end(name, 800) - exact))


def defect(name):
    """Largest entry of J' Omega J - Omega for one step from (1.1, 0.4)."""

    def step(x):
        if name in SPLIT:
            return torch.stack(stepper(name, torch.sin)(x[0], x[1], 0.1))
        field = torch.stack([x[1], -torch.sin(x[0])])
        if name == "implicit_midpoint":
            return integrate.implicit_midpoint(x, 0.1, lambda x: torch.stack([x[1], -torch.sin(x[0])]))
        return x + 0.1 * field

    point = torch.tensor([1.1, 0.4], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(step, point)
    omega = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    return float((jacobian.T @ omega @ jacobian - omega).abs().max())


def run(seed=0, steps=STEPS):
    figures = {}
    for name in ("euler", "symplectic_euler", "leapfrog", "runge_kutta4"):
        figures[f"early error {name}"], figures[f"error {name}"] = energy_errors(name, steps)
    figures |= {f"order {name}": order(name) for name in SPLIT}
    figures |= {f"defect {name}": defect(name) for name in (*SPLIT, "implicit_midpoint", "euler")}
    return figures


def check(figures):
    for name, expected in zip(SPLIT, (1, 2, 4)):
        assert abs(figures[f"order {name}"] - expected) < 0.1
        assert figures[f"defect {name}"] < 1e-12
    assert figures["defect implicit_midpoint"] < 1e-12
    assert figures["defect euler"] > 1e-4
    assert figures["error leapfrog"] < 0.003
    assert figures["error leapfrog"] <= 1.2 * figures["early error leapfrog"]
    assert figures["error runge_kutta4"] > 50 * figures["early error runge_kutta4"]
    assert figures["error euler"] > 100
    assert figures["error symplectic_euler"] < 0.1
