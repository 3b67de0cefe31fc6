"""Adaptive solvers by name: tolerances, saved times, actions, gradients, and trajectories on their own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from worldsim_kernels.native import why_not
from worldsim_plugins.solvers.adaptive import METHODS, worldsim_solvers

F64 = torch.float64
BUILDERS = worldsim_solvers()
UNEVEN = torch.tensor([0.0, 0.3, 0.4, 1.1, 2.0], dtype=F64)


class Driven(nn.Module):
    """An oscillator with a force as action: q' = p, p' = -w^2 q + u."""

    def __init__(self, frequency=2.0):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(frequency, dtype=F64))

    def drift(self, t, x, u):
        q, p = x.chunk(2, -1)
        force = -(self.frequency.to(x.dtype) ** 2) * q
        return torch.cat([p, force if u is None else force + u], -1)


class Explosive:
    """x' = x^2: infinite at t = 1 / x(0)."""

    def __init__(self, rate=1.0):
        self.rate = rate

    def drift(self, t, x, u):
        return self.rate * x * x


def swing(state, times, frequency, pushes=None):
    """``[trajectory, time, 2]`` in closed form; ``pushes[:, i]`` holds from the time i on."""
    out = [state]
    for i, h in enumerate(times.diff()):
        rest = 0.0 if pushes is None else pushes[:, i, 0] / frequency**2
        q, p = out[-1][:, 0] - rest, out[-1][:, 1]
        c, s = torch.cos(frequency * h), torch.sin(frequency * h)
        out.append(torch.stack([rest + q * c + p * s / frequency, p * c - q * frequency * s], -1))
    return torch.stack(out, 1)


def states(n=3):
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))


def built(name, tolerance=1e-6, **settings):
    return BUILDERS[name](rtol=tolerance, atol=tolerance, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_errors_follow_the_tolerance_at_all_saved_times(name):
    truth = swing(states(), UNEVEN, torch.tensor(2.0, dtype=F64))
    rough, fine = (3e-3, 3e-5) if name == "heun" else (1e-4, 1e-7)
    errors = []
    for tolerance in (rough, fine):
        out = built(name, tolerance).solve(Driven(), states(), UNEVEN, None, None).detach()
        assert torch.equal(out[:, 0], states())
        errors.append((out - truth).abs().max().item())
        assert errors[-1] < 30 * tolerance
    assert errors[1] < errors[0] / 10


@pytest.mark.skipif(why_not("brownian") is not None, reason=f"{why_not('brownian')}")
@pytest.mark.parametrize("name", METHODS)
def test_the_native_backend_gives_the_same_bits_and_gradients(name):
    found = []
    for backend in ("torch", "native"):
        model, pushes = Driven(), torch.linspace(-1, 1, 15, dtype=F64).reshape(3, 5, 1)
        solver = built(name, 1e-4, backend=backend)
        out = torch.cat([solver.solve(model, states(), UNEVEN, each, None) for each in (None, pushes)])
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), model.frequency)))
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_a_drift_that_cannot_be_printed_is_refused_with_the_reason():
    class Torn:
        def drift(self, t, x, u):
            return x if bool((x > 0).all()) else -x

    with pytest.raises(ValueError, match="control flow"):
        built("tsit5", backend="native").solve(Torn(), states(), UNEVEN, None, None)


@pytest.mark.parametrize("name", METHODS)
def test_an_action_is_held_and_never_met_inside_of_a_step(name):
    pushes = torch.randn(3, 5, 1, dtype=F64, generator=torch.Generator().manual_seed(2)) * 5
    truth = swing(states(), UNEVEN, torch.tensor(2.0, dtype=F64), pushes)
    tolerance = 1e-5 if name == "heun" else 1e-8
    out = built(name, tolerance).solve(Driven(), states(), UNEVEN, pushes, None).detach()
    assert (out - truth).abs().max() < 100 * tolerance


def test_backwards_and_one_time():
    solver = built("tsit5", 1e-9)
    there = solver.solve(Driven(), states(), UNEVEN, None, None)
    back = solver.solve(Driven(), there[:, -1], UNEVEN.flip(0), None, None)
    torch.testing.assert_close(back.flip(1), there, rtol=0, atol=1e-7)
    assert torch.equal(solver.solve(Driven(), states(), UNEVEN[:1], None, None), states()[:, None])


def test_shapes_and_dtypes():
    for dtype in (torch.float32, F64):
        state = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        out = built("dopri5", 1e-5).solve(Driven(), state, UNEVEN, None, None)
        assert out.shape == (4, 5, 3, 2)
        assert out.dtype is dtype


def test_time_is_one_number_for_each_row_in_any_subset():
    seen = []

    class Clock:
        def drift(self, t, x, u):
            seen.append((t.shape, len(x)))
            return torch.cos(t)[:, None] * torch.ones_like(x)

    out = built("tsit5", 1e-8).solve(Clock(), states() * 0, UNEVEN, None, None)
    torch.testing.assert_close(out[..., 0], torch.sin(UNEVEN).expand(3, 5), rtol=0, atol=1e-7)
    assert all(shape == (rows,) for shape, rows in seen)


def test_a_trajectory_has_its_own_steps_and_bits():
    class VanDerPol:
        def drift(self, t, x, u):
            q, p = x.unbind(-1)
            return torch.stack([p, 20 * (1 - q * q) * p - q], -1)

    start = torch.tensor([[2.0, 0.0], [0.1, 0.3], [float("nan"), 0.0], [-1.0, 5.0]], dtype=F64)
    solver = built("dopri5")
    together = solver.solve(VanDerPol(), start, UNEVEN, None, None)
    for row in (0, 1, 3):
        alone = solver.solve(VanDerPol(), start[row : row + 1], UNEVEN, None, None)
        assert torch.equal(alone[0], together[row])
    assert together[2, 1:].isnan().all()


def test_a_trajectory_that_fails_is_nan_from_there_on_and_harms_nobody():
    start = torch.tensor([[0.1], [1.25], [0.2]], dtype=F64)  # the middle one explodes at t = 0.8
    actions = torch.zeros(3, 5, 1, dtype=F64)
    for given in (None, actions):
        out = built("tsit5").solve(Explosive(), start, UNEVEN, given, None)
        exact = start / (1 - start * UNEVEN)
        assert out[1, 3:].isnan().all()
        assert out.isnan().sum() == 2
        torch.testing.assert_close(out[:, :3, 0], exact[:, :3], rtol=1e-4, atol=0)
        torch.testing.assert_close(out[::2, :, 0], exact[::2], rtol=1e-4, atol=0)


def test_with_a_gradient_a_failure_is_said():
    start = torch.tensor([[0.1], [1.25]], dtype=F64, requires_grad=True)
    for given in (None, torch.zeros(2, 5, 1, dtype=F64)):
        with pytest.raises(RuntimeError, match=r"1 of 2 rows ended with .*row 1; row 1 at t = 0\.8"):
            built("tsit5").solve(Explosive(), start, UNEVEN, given, None)


def test_too_many_steps_are_a_failure_too():
    with torch.no_grad():
        out = built("bosh3", 1e-8, max_steps=5).solve(Driven(), states(), UNEVEN, None, None)
    assert out[:, -1].isnan().all()


@pytest.mark.parametrize("driven", [False, True])
def test_gradients_of_parameters_state_and_actions(driven):
    pushes = torch.ones(3, 5, 1, dtype=F64, requires_grad=True)
    model, start = Driven(), states().requires_grad_()
    given = pushes if driven else None
    weights = torch.randn(3, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
    wanted = [model.frequency, start, *([pushes] if driven else [])]
    out = built("dopri8", 1e-10).solve(model, start, UNEVEN, given, None)
    ours = torch.autograd.grad((out * weights).sum(), wanted)
    exact = swing(start, UNEVEN, model.frequency, given)
    book = torch.autograd.grad((exact * weights).sum(), wanted)
    for mine, other in zip(ours, book, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)


def test_a_longest_step_is_kept():
    calls = []

    class Counted(Driven):
        def drift(self, t, x, u):
            calls.append(1)
            return super().drift(t, x, u)

    with torch.no_grad():
        built("tsit5", 1e-3, step=0.01).solve(Counted(), states(), UNEVEN, None, None)
    assert len(calls) >= 6 * 200


def test_orders_are_declared_and_noise_is_refused():
    assert {name: build().order for name, build in BUILDERS.items()} == {
        "tsit5": 5,
        "dopri5": 5,
        "dopri8": 8,
        "bosh3": 3,
        "heun": 2,
    }
    assert not any(build().symplectic for build in BUILDERS.values())

    class Noisy(Driven):
        def diffusion(self, t, x, u):
            return x

    with pytest.raises(ValueError, match="tsit5 solves ordinary differential equations"):
        built("tsit5").solve(Noisy(), states(), UNEVEN, None, None)
    with pytest.raises(ValueError, match="monotone"):
        built("tsit5").solve(Driven(), states(), UNEVEN[[0, 2, 1, 3]], None, None)
    assert math.isinf(built("tsit5").controller.largest)
