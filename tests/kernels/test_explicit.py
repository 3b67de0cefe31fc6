"""Explicit steps: observed orders, the order of operations, and what a step promises."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels.solve import ODE, PID, Save, Separable, solve
from worldsim_kernels.solve.explicit import ExplicitRungeKutta, weighted
from worldsim_kernels.solve.recording import interpolated
from worldsim_kernels.solve.steppers import stepper_of
from worldsim_kernels.solve.tableaus import TABLEAUS

F64 = torch.float64
EMBEDDED = [name for name, method in TABLEAUS.items() if method.error is not None]
START = torch.tensor([[0.6, 0.4]], dtype=F64)


def forced(t, y):
    """y_1' = -y_2 + t^2 y_1 / 4, y_2' = y_1 y_2 - y_1 cos t: not linear, not autonomous, smooth."""
    a, b = y.unbind(-1)
    return torch.stack([-b + t * t * a / 4, a * b - a * torch.cos(t)], -1)


def march(name, span, count, start=0.0):
    """``count`` equal steps by hand; the last state."""
    stepper, term, h = ExplicitRungeKutta(name), ODE(forced), torch.tensor([span / count], dtype=F64)
    t, y = torch.tensor([start], dtype=F64), START
    carry = stepper.start(term, t, y)
    for n in range(count):
        step = stepper.step(term, torch.tensor([start + n * span / count], dtype=F64), h, y, carry)
        y, carry = step.y, step.carry
    return y


def one_step(name, h, start=0.3):
    """(stepper, t, h, step) of one step."""
    stepper, term = ExplicitRungeKutta(name), ODE(forced)
    t, h = torch.tensor([start], dtype=F64), torch.tensor([h], dtype=F64)
    return stepper, t, h, stepper.step(term, t, h, START, stepper.start(term, t, START))


def exponent(errors, ratio=2.0):
    return math.log(errors[0] / errors[1]) / math.log(ratio)


# Numbers of steps over two units of time, where theory's power of h is seen before rounding is.
COUNTS = {
    "euler": (128, 256),
    "midpoint": (128, 256),
    "heun": (64, 128),
    "fehlberg2": (128, 256),
    "ralston": (128, 256),
    "heun3": (64, 128),
    "bosh3": (256, 512),
    "rk4": (32, 64),
    "three_eighths": (64, 128),
    "dopri5": (64, 128),
    "tsit5": (64, 128),
    "dopri8": (4, 6),
}


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_order_of_fixed_steps(name):
    truth = march("dopri8", 2.0, 200)
    counts = COUNTS[name]
    errors = [(march(name, 2.0, count) - truth).norm().item() for count in counts]
    order = TABLEAUS[name].order
    within = 0.15 if order > 6 else 0.05
    assert exponent(errors, counts[1] / counts[0]) == pytest.approx(order, abs=within)


# Lengths of one step, halved, where its error is far from rounding and the next power is small.
LENGTHS = {"dopri8": 0.25, "dopri5": 0.125, "tsit5": 0.125}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_order_of_the_error_estimate(name):
    length = 0.25 if name == "dopri8" else 1 / 64
    errors = [one_step(name, h)[3].error.norm().item() for h in (length, length / 2)]
    wanted = TABLEAUS[name].error_order + 1
    assert exponent(errors) == pytest.approx(wanted, abs=0.15 if wanted > 6 else 0.05)


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_order_of_the_interpolant(name):
    length, term = LENGTHS.get(name, 1 / 64), ODE(forced)
    errors = []
    for h in (length, length / 2):
        stepper, t, span, step = one_step(name, h)
        worst = 0.0
        for theta in (0.2, 0.6, 0.85):
            found = interpolated(stepper, term, t, span, START, step, torch.tensor([theta], dtype=F64))
            worst = max(worst, (found - march("dopri8", theta * h, 10, 0.3)).norm().item())
        errors.append(worst)
    wanted = TABLEAUS[name].dense_order + 1
    assert exponent(errors) == pytest.approx(wanted, abs=0.3 if wanted > 6 else 0.07)


@pytest.mark.parametrize("name", TABLEAUS)
def test_an_interpolant_joins_both_ends(name):
    stepper, t, h, step = one_step(name, 0.2)
    term = ODE(forced)
    at = [interpolated(stepper, term, t, h, START, step, torch.tensor([x], dtype=F64)) for x in (0.0, 1.0)]
    assert torch.equal(at[0], START)
    assert torch.equal(at[1], step.y)
    near = torch.tensor([1 - 1e-9], dtype=F64)
    close = interpolated(stepper, term, t, h, START, step, near)
    assert (close - step.y).abs().max() < 1e-8


@pytest.mark.parametrize("name", [name for name in TABLEAUS if TABLEAUS[name].reuse])
def test_the_last_slope_is_the_first_of_the_next_step(name):
    _, t, h, step = one_step(name, 0.2)
    torch.testing.assert_close(step.carry[0], ODE(forced)(t + h, step.y), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", TABLEAUS)
def test_evaluations_are_what_is_said(name):
    calls = []

    def counted(t, y):
        calls.append(len(y))
        return forced(t, y)

    term, stepper = ODE(counted), ExplicitRungeKutta(name)
    t, h = torch.zeros(2, dtype=F64), torch.full((2,), 0.1, dtype=F64)
    y = START.repeat(2, 1)
    carry = stepper.start(term, t, y)
    assert len(calls) == stepper.start_evaluations
    step = stepper.step(term, t, h, y, carry)
    assert len(calls) - stepper.start_evaluations == step.evaluations
    before = len(calls)
    interpolated(stepper, term, t, h, y, step, torch.full((2,), 0.5, dtype=F64))
    assert len(calls) - before == len(TABLEAUS[name].more)


def by_hand(name, t, h, y):
    """The documented order of operations in Python floats, for the field y' = y1 (t - y0), y0 y1."""
    method = TABLEAUS[name]

    def field(t, y):
        return [y[1] * (t - y[0]), y[0] * y[1]]

    def total(weights, slopes, i):
        found = None
        for weight, slope in zip(weights, slopes):
            if weight:
                term = float(weight) * slope[i]
                found = term if found is None else found + term
        return 0.0 if found is None else found

    slopes = []
    for weights, node in zip(method.a, method.c):
        at = [y[i] + h * total(weights, slopes, i) for i in (0, 1)] if slopes else y
        slopes.append(field(t + float(node) * h, at))
    end = at if method.reuse else [y[i] + h * total(method.b, slopes, i) for i in (0, 1)]
    error = None if method.error is None else [h * total(method.error, slopes, i) for i in (0, 1)]
    return end, error


@pytest.mark.parametrize("name", TABLEAUS)
def test_bits_follow_the_documented_order_of_operations(name):
    generator = torch.Generator().manual_seed(3)
    n = 37
    y = torch.randn(n, 2, dtype=F64, generator=generator)
    t, h = torch.rand(2, n, dtype=F64, generator=generator)
    stepper = ExplicitRungeKutta(name)
    term = ODE(lambda t, y: torch.stack([y[:, 1] * (t - y[:, 0]), y[:, 0] * y[:, 1]], -1))
    step = stepper.step(term, t, h, y, stepper.start(term, t, y))
    for row in range(n):
        end, error = by_hand(name, t[row].item(), h[row].item(), y[row].tolist())
        assert step.y[row].tolist() == end
        assert error is None or step.error[row].tolist() == error
    shuffled = torch.randperm(n, generator=generator)[:19]
    alone = stepper.step(
        term, t[shuffled], h[shuffled], y[shuffled], stepper.start(term, t[shuffled], y[shuffled])
    )
    assert torch.equal(alone.y, step.y[shuffled])


def test_interpolants_follow_the_documented_order_of_operations():
    stepper, _, h, step = one_step("dopri5", 0.2)
    theta = 0.37
    found = stepper.interpolate(torch.tensor([theta], dtype=F64), h, START, step)[0].tolist()
    for i in (0, 1):
        total = None
        for polynomial, slope in zip([p for p in TABLEAUS["dopri5"].dense if any(p)], step.dense):
            weight = float(polynomial[-1]) * theta
            for coefficient in reversed(polynomial[:-1]):
                weight = (weight + float(coefficient)) * theta
            part = weight * slope[0, i].item()
            total = part if total is None else total + part
        assert found[i] == START[0, i].item() + h.item() * total


def test_states_keep_their_shape_dtype_and_times_their_digits():
    seen = []

    def field(t, y):
        seen.append((t.dtype, t.shape))
        return -y

    y = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    out = solve(ODE(field), y, 0.0, 1.0, stepper="tsit5", controller=PID(1e-4, 1e-4))
    assert out.y.dtype is torch.float32
    assert out.t.dtype is F64
    assert set(seen) <= {(torch.float32, torch.Size([k])) for k in (1, 2, 3)}
    torch.testing.assert_close(out.y, y * math.exp(-1), rtol=1e-4, atol=1e-5)


def test_a_separable_hamiltonian_is_a_field_like_any_other():
    term = Separable(lambda p: p, lambda q: -q)
    y = torch.tensor([[1.0, 0.0]], dtype=F64)
    end = solve(term, y, 0.0, math.pi, stepper="dopri8", controller=PID(1e-10, 1e-10)).y
    torch.testing.assert_close(end, -y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TABLEAUS)
def test_gradients_through_a_step(name):
    def run(y, h):
        stepper, term = ExplicitRungeKutta(name), ODE(forced)
        t = torch.full((2,), 0.3, dtype=F64)
        step = stepper.step(term, t, h, y, stepper.start(term, t, y))
        theta = torch.full((2,), 0.4, dtype=F64)
        return step.y, interpolated(stepper, term, t, h, y, step, theta)

    y = torch.tensor([[0.6, 0.4], [0.1, -0.5]], dtype=F64, requires_grad=True)
    h = torch.tensor([0.2, -0.1], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (y, h))


def test_saved_times_between_steps_are_as_exact_as_the_tolerance():
    times = torch.linspace(0, 2, 12, dtype=F64)
    truth = torch.cat([START, *(march("dopri8", t, 30) for t in times[1:].tolist())])
    for name, tolerance in (("bosh3", 1e-6), ("tsit5", 1e-8), ("dopri5", 1e-8), ("dopri8", 1e-10)):
        control = PID(tolerance, tolerance)
        out = solve(ODE(forced), START, 0.0, 2.0, stepper=name, controller=control, save=Save(times))
        assert (out.saved[0] - truth).abs().max() < 20 * tolerance, name


def test_a_sum_of_nothing_is_nothing():
    assert torch.equal(weighted((0, 0), [START, START]), torch.zeros_like(START))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no explicit method 'rk5'; there are euler, midpoint"):
        ExplicitRungeKutta("rk5")
    for name in TABLEAUS:
        assert stepper_of(name).name == name
