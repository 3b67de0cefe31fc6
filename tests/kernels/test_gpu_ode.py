"""The Triton solver, run by Triton's interpreter, against the loop in torch."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import math

import pytest
import torch

from worldsim_kernels.backends import interpreted, missing_triton
from worldsim_kernels.solve import ODE, PID, Constant, Save, Status, solve

pytestmark = pytest.mark.skipif(
    missing_triton() is not None or not interpreted(), reason="NOT RUN: no Triton interpreter"
)
D = torch.float64


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack([v, mu * (1 - x * x) * v - x * t.sign()], -1)


def rows(n, dtype):
    generator = torch.Generator().manual_seed(0)
    mu = 5 * torch.rand(n, generator=generator, dtype=D)
    y = torch.randn(n, 2, generator=generator, dtype=D)
    times = torch.rand(n, 4, generator=generator, dtype=D).sort(1).values
    times[1, 2:], times[2], times[3, 0] = math.nan, math.nan, 0.0
    y[4] = math.nan
    return ODE(van_der_pol, (mu.to(dtype),)), y.to(dtype), times


def assert_same_bits(found, expected):
    for name in ("t", "y", "status", "saved"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7)), name
    for name, value in vars(expected.stats).items():
        assert torch.equal(getattr(found.stats, name), value), name
    if expected.steps is not None:
        for name, value in vars(expected.steps).items():
            assert torch.equal(getattr(found.steps, name).nan_to_num(7e7), value.nan_to_num(7e7)), name


def both(term, y, *times, **options):
    expected = solve(term, y, *times, **options)
    found = solve(term, y, *times, backend="triton", **options)
    assert found.backend == "triton"
    assert_same_bits(found, expected)
    return found


@pytest.mark.parametrize(
    ("method", "dtype"), [("heun", torch.float32), ("dopri5", torch.float32), ("dopri5", D)], ids=str
)
def test_adaptive_steps_have_the_bits_of_the_loop_in_torch(method, dtype):
    term, y, times = rows(35 if method == "dopri5" else 6, dtype)  # more than a block, or less
    control = PID(rtol=0.1, atol=0.1)
    found = both(term, y, 0.0, 1.0, stepper=method, controller=control, save=Save(times=times, steps=True))
    assert found.status[4] == Status.NOT_FINITE
    assert (found.status == Status.DONE).sum() == len(y) - 1


def test_bounds_on_steps_and_exact_times():
    term, y, times = rows(6, torch.float32)
    control = PID(rtol=1e-3, atol=1e-3, first=0.05, largest=0.2, proportional=0.3, integral=0.6)
    both(term, y, 0.0, 1.0, stepper="bosh3", controller=control, save=Save(times=times, exact=True))
    found = both(term, y, 0.0, 1.0, stepper="bosh3", controller=control, max_steps=3)
    assert (found.status == Status.MAX_STEPS).sum() == 5
    t0, t1 = torch.linspace(0, 1, 6, dtype=D), torch.linspace(0.4, 0.6, 6, dtype=D)
    both(term, y, t0, t1, stepper="bosh3", controller=PID(rtol=1e-3, atol=1e-3, smallest=0.02))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_constant_steps(method):
    term, y, times = rows(5, torch.float32)
    both(term, y, 0.0, 1.0, stepper=method, controller=Constant(0.13), save=Save(times=times, steps=True))


def test_functions():
    names = ("exp", "expm1", "log1p", "sin", "cos", "tanh", "erf", "sqrt", "floor", "abs", "sigmoid", "exp2")

    def field(t, y):
        x = y[:, 0].abs()
        values = [
            getattr(torch, name)(x * (1 - 2 * (k % 2 == 0) * (name != "sqrt")))
            for k, name in enumerate(names)
        ]
        return torch.stack([*values, torch.where(x > 0.5, x.clamp(max=1), torch.maximum(x, y[:, 1]))], -1)

    y = torch.randn(9, len(names) + 1, generator=torch.Generator().manual_seed(0), dtype=D)
    y[0, 0], y[1, 0] = 1e-9, 1e-20
    options = {"stepper": "euler", "controller": Constant(1.0)}
    expected = solve(ODE(field), 0 * y + y, 0.0, 1.0, **options).y - y
    found = solve(ODE(field), y, 0.0, 1.0, backend="triton", **options).y - y
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_what_it_refuses():
    y = torch.ones(2, 2)
    with pytest.raises(ValueError, match="atan2 has no Triton form"):
        solve(ODE(lambda t, y: torch.atan2(y, y)), y, 0.0, 1.0, stepper="dopri5", backend="triton")
    matrix = torch.ones(40, 40)
    with pytest.raises(ValueError, match="scalar operations, at most"):
        solve(ODE(lambda t, y: y @ matrix), torch.ones(2, 40), 0.0, 1.0, stepper="dopri5", backend="triton")
