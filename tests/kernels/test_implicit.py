"""Implicit Runge-Kutta steps: their coefficients, orders, damping and derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels.solve import ODE, PID, Constant, Status, ThroughSteps, solve
from worldsim_kernels.solve.gauss import COLLOCATIONS
from worldsim_kernels.solve.implicit import METHODS, ImplicitRungeKutta

F64 = torch.float64
START = torch.tensor([[0.5, 1.0, 0.3], [-0.2, 0.4, 1.1]], dtype=F64)
DAMPING = ("implicit_euler", "radau3", "radau5", "sdirk2", "trbdf2")


def forced(t, y):
    """Not autonomous, not linear, not stiff."""
    a, b, c = y.unbind(-1)
    return torch.stack([b * c + torch.sin(t), -a * c + 0.3 * t * b, -0.51 * a * b + torch.cos(2 * t) * c], -1)


def test_coefficients_are_those_of_the_book():
    """Hairer and Wanner 1996, tables IV.5.5 and IV.5.6."""
    radau = METHODS["radau3"]
    assert sum(radau.a, ()) == pytest.approx((5 / 12, -1 / 12, 3 / 4, 1 / 4), abs=1e-15)
    root = math.sqrt(6)
    assert METHODS["radau5"].a[0] == pytest.approx(
        ((88 - 7 * root) / 360, (296 - 169 * root) / 1800, (-2 + 3 * root) / 225), abs=1e-15
    )
    assert METHODS["radau5"].b == pytest.approx(((16 - root) / 36, (16 + root) / 36, 1 / 9), abs=1e-15)
    for name, other in COLLOCATIONS.items():
        assert sum(METHODS[name].a, ()) == pytest.approx(sum(other.a, ()), abs=1e-15)
    for method in METHODS.values():
        assert [sum(row) for row in method.a] == pytest.approx(method.c, abs=1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_fixed_steps(name):
    stepper = ImplicitRungeKutta(name)
    order = stepper.properties.order
    counts = (8, 16) if order > 4 else (32, 64)
    truth = solve(ODE(forced), START, 0.0, 1.0, stepper="dopri8", controller=PID(1e-13, 1e-13)).y
    errors = [
        (solve(ODE(forced), START, 0.0, 1.0, stepper=stepper, controller=Constant(1 / n)).y - truth).norm()
        for n in counts
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_infinitely_stiff_components_vanish_in_one_step_or_do_not(name):
    rate = torch.tensor([1e4, 1e6, 1e8], dtype=F64)
    term = ODE(lambda t, y, rate: -rate[:, None] * y, (rate,))
    step = ImplicitRungeKutta(name).step(
        term, torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64), torch.ones(3, 1, dtype=F64), ()
    )
    assert bool(step.settled.all())
    left = step.y[:, 0].abs()
    if name in DAMPING:
        assert (left * rate).max() < 10
    else:
        assert left[-1].item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_derivatives_to_the_second(name):
    rate = torch.tensor([[0.7], [1.3]], dtype=F64, requires_grad=True)
    start = START[:, :2].clone().requires_grad_()

    def end(start, rate):
        def field(t, y, k):
            return torch.stack([y[:, 1], -k[:, 0] * torch.sin(y[:, 0]) * (1 + t)], 1)

        term = ODE(field, (rate,))
        way = ThroughSteps()
        stepper, controller = ImplicitRungeKutta(name), Constant(0.5)
        return solve(term, start, 0.0, 0.5, stepper=stepper, controller=controller, gradient=way).y

    assert torch.autograd.gradcheck(end, (start, rate), fast_mode=True)
    assert torch.autograd.gradgradcheck(end, (start, rate), fast_mode=True)


def test_a_row_does_not_know_its_companions():
    """One that takes its steps with the Jacobians of its stages, one that has none that is finite."""
    fields = torch.tensor([0.0, 1.0, 2.0], dtype=F64)

    def field(t, y, kind):
        kind = kind[:, None]
        steep = -1e4 * (y**3 - 1 - t[:, None])
        return torch.where(kind == 0, -y, torch.where(kind == 1, steep, y / (kind - 2)))

    y0 = torch.tensor([[1.0], [0.3], [1.0]], dtype=F64)
    settings = {"stepper": ImplicitRungeKutta("radau5"), "controller": Constant(0.5)}
    both = solve(ODE(field, (fields,)), y0, 0.0, 1.0, **settings)
    assert both.status.tolist() == [Status.DONE, Status.DONE, Status.NOT_FINITE]
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = solve(ODE(field, (fields[one],)), y0[one], 0.0, 1.0, **settings)
        assert torch.equal(alone.y, both.y[one])
        assert torch.equal(alone.stats.evaluations, both.stats.evaluations[one])
    assert both.stats.evaluations[1] > both.stats.evaluations[0]


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="no implicit method 'radau'; there are implicit_euler"):
        ImplicitRungeKutta("radau")
