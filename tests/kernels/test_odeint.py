"""``odeint`` beside torchdiffeq: the same calls give the same states and gradients; and what it has more."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
import torchdiffeq
from torch import nn

from worldsim_kernels.solve import SolveFailed
from worldsim_kernels.solve.call import ADAPTIVE, FIXED, IMPLICIT
from worldsim_kernels.solve.odeint import odeint, odeint_adjoint, odeint_dense, odeint_event

F64 = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
T = torch.linspace(0, 2, 7, dtype=F64)
METHODS = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", *FIXED]


class Spiral(nn.Module):
    """Chen et al. 2018: dy/dt = A^T y^3, with a push that depends on time."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64))

    def forward(self, t, y):
        return y**3 @ self.matrix + torch.sin(t) / 10


def starts():
    return torch.tensor([[0.8, 0.0], [0.4, 0.5]], dtype=F64)


def both(func, y0, t, **settings):
    return odeint(func, y0, t, **settings), torchdiffeq.odeint(func, y0, t, **settings)


@pytest.mark.parametrize(
    ("method", "backwards"), [*((method, False) for method in METHODS), ("dopri5", True), ("rk4", True)]
)
def test_states_and_gradients_are_those_of_torchdiffeq(method, backwards):
    tolerance = {"adaptive_heun": 1e-4, "fehlberg2": 1e-4, "bosh3": 1e-6}.get(method, 1e-9)
    found = []
    for solver in (odeint, torchdiffeq.odeint):
        func, y0 = Spiral(), starts().requires_grad_()
        t = (T.flip(0) if backwards else T).clone().requires_grad_()
        # torchdiffeq reads times off a quartic, whatever the order, unless a step ends there.
        options = {"step_t": T} if solver is torchdiffeq.odeint and method not in FIXED else None
        out = solver(func, y0, t, method=method, rtol=tolerance, atol=tolerance, options=options)
        weights = torch.randn(out.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((out * weights).sum(), (y0, func.matrix, t))
        found.append((out.detach(), *gradients))
    for ours, theirs in zip(*found, strict=True):
        within = 1e-13 if method in FIXED else 400 * tolerance
        torch.testing.assert_close(ours, theirs, rtol=within, atol=within * theirs.abs().max().item())


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_fixed_steps_follow_the_same_grid_to_the_last_digit(method, interp):
    for options in (
        {"step_size": 0.13},
        {"grid_constructor": lambda f, y, t: torch.linspace(0, 2, 12).to(t)},
    ):
        ours, theirs = both(Spiral(), starts(), T, method=method, options={"interp": interp, **options})
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_a_time_in_float32_costs_no_step_of_no_length():
    """0.3 in float32 is more than three steps of 0.1, by a rounding."""
    heard = []

    class Decay:
        def __call__(self, t, y):
            return -y

        def callback_step(self, t, y, h):
            heard.append(h.item())

    for end, steps in ((0.3, 3), (0.6, 6), (1.1, 11)):
        heard.clear()
        t = torch.tensor([0.0, end])
        odeint(Decay(), torch.ones(1), t, method="euler", options={"step_size": 0.1})
        assert len(heard) == steps


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_gradients_by_time_of_a_step_that_misses_the_solution_by_far(method):
    """The slope at its end is enormous and says nothing of how that end moves with the step."""
    found = []
    for solver in (odeint, torchdiffeq.odeint):
        t = torch.tensor([0.3, 1.9], dtype=F64, requires_grad=True)
        out = solver(lambda t, y: y**3 + t, torch.tensor([2.0, -5.0], dtype=F64), t, method=method)
        found.append(torch.autograd.grad(out[-1].sum(), t)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_a_fixed_grid_backwards():
    ours, theirs = both(Spiral(), starts(), T.flip(0), method="rk4", options={"step_size": 0.13})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", IMPLICIT)
def test_implicit_steps_of_the_callers_length(method):
    def stiff(t, y):
        return -1000 * (y - torch.cos(t)) - torch.sin(t)

    out = odeint(stiff, torch.ones(1, dtype=F64), T, method=method, options={"step_size": 0.05})
    torch.testing.assert_close(out, torch.cos(T)[:, None], rtol=0, atol=1e-3)
    found = []
    for settings in ({"method": method, "options": {"step_size": 0.025}}, {"method": "dopri8", **TIGHT}):
        func, y0 = Spiral(), starts().requires_grad_()
        end = odeint(func, y0, T.flip(0), **settings)[-1]
        found.append((end.detach(), *torch.autograd.grad(end.square().sum(), (y0, func.matrix))))
    for one, other in zip(*found, strict=True):
        within = {"implicit_euler": 1.5, "radauIIA3": 1e-4, "radauIIA5": 1e-7, "gl4": 2e-6, "gl6": 1e-7}
        bound = within.get(method, 0.03) * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=bound)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128])
def test_any_shape_and_dtype(shape, dtype):
    y0 = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    seen = []

    def func(t, y):
        seen.append((t.shape, y.shape, y.dtype))
        return y * (-0.5 + 1j) if dtype.is_complex else -0.5 * y

    out = odeint(func, y0, T, rtol=1e-5, atol=1e-6)
    assert out.shape == (7, *shape)
    assert out.dtype is dtype
    assert set(seen) == {(torch.Size([]), torch.Size(shape), dtype)}
    rate = -0.5 + 1j if dtype.is_complex else -0.5
    exact = y0 * torch.exp(rate * T).to(dtype).reshape(-1, *[1] * len(shape))
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)


def test_tuples_their_tolerances_and_their_norm():
    def func(t, y):
        a, b = y
        return -a, torch.stack([b[1], -b[0] * 9])

    y0 = (torch.ones(2, 3, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64))
    for tolerances in (TIGHT, {"rtol": (1e-7, 1e-9), "atol": (1e-7, 1e-9)}):
        ours, theirs = both(func, y0, T, **tolerances)
        assert isinstance(ours, tuple)
        assert [each.shape for each in ours] == [(7, 2, 3), (7, 2)]
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_the_norm_of_a_tuple_is_of_its_worst_part():
    """A hundred thousand still numbers must not dilute the error of one that moves."""

    def func(t, y):
        return torch.zeros_like(y[0]), torch.stack([y[1][1], -25 * y[1][0]])

    y0 = (torch.zeros(100_000, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64))
    out = odeint(func, y0, T, rtol=1e-6, atol=1e-6)[1]
    alone = odeint(lambda t, y: torch.stack([y[1], -25 * y[0]]), y0[1], T, rtol=1e-6, atol=1e-6)
    error, least = ((each[:, 0] - torch.cos(5 * T)).abs().max() for each in (out, alone))
    assert error < 1.3 * least < 1e-4
    joined = odeint(lambda t, y: torch.cat(func(t, (y[:-2], y[-2:]))), torch.cat(y0), T, rtol=1e-6, atol=1e-6)
    assert (joined[:, -2] - torch.cos(5 * T)).abs().max() > 3e-4


def test_tolerances_by_component_and_a_norm_of_ones_own():
    def func(t, y):
        return torch.stack([y[1], -y[0], y[3], -y[2]])

    y0 = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=F64)
    loose = torch.tensor([1e-2, 1e-2, 1e-10, 1e-10], dtype=F64)
    for settings in (
        {"rtol": 0.0, "atol": loose},
        {"rtol": 0.0, "atol": 1e-10, "options": {"norm": lambda e: e[2:].abs().max()}},
    ):
        out = odeint(func, y0, T, **settings)
        assert (out[:, 2] - torch.cos(T)).abs().max() < 1e-8
    calls = []

    def counted(t, y):
        calls.append(1)
        return func(t, y)

    odeint(counted, y0, T, rtol=0.0, atol=loose, options={"norm": lambda e: e[:2].abs().max()})
    assert len(calls) < 60


def test_parts_of_a_slope_may_have_other_axes_of_the_same_size():
    def func(t, y):
        return [-y[0].reshape(1), y[1].reshape(4)]

    y0 = (torch.tensor(1.0, dtype=F64), torch.ones(2, 2, dtype=F64))
    for mine, other in zip(*both(func, y0, T, **TIGHT), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_evaluations_are_about_those_of_torchdiffeq(method):
    """One more to see what a field depends on, and one for the estimate of the first step."""
    counts = []
    for solver in (odeint, torchdiffeq.odeint):
        func, calls = Spiral(), []

        def counted(t, y, func=func, calls=calls):
            calls.append(1)
            return func(t, y)

        solver(counted, starts(), T, method=method, rtol=1e-5, atol=1e-5)
        counts.append(len(calls))
    assert counts[0] <= counts[1] + (1 if method == "rk4" else 2 + 7)  # and a step, where they round apart


def test_callbacks_hear_of_every_attempt_once():
    class Heard(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(-1.0, dtype=F64))
            self.said = []

        def forward(self, t, y):
            return self.rate * y * (1 + 20 * (t > 1))

        def callback_step(self, t, y, h):
            self.said.append(("step", t.item(), h.item(), y.shape))

        def callback_accept_step(self, t, y, h):
            self.said.append(("accept", t.item(), h.item(), y.shape))

        def callback_reject_step(self, t, y, h):
            self.said.append(("reject", t.item(), h.item(), y.shape))

    func = Heard()
    out = odeint(func, torch.ones(2, dtype=F64), T, rtol=1e-6, atol=1e-8)
    before = len(func.said)
    out.sum().backward()  # which takes the steps again
    assert len(func.said) == before
    assert {each[3] for each in func.said} == {torch.Size([2])}
    steps, said = func.said[::2], func.said[1::2]
    assert {each[0] for each in steps} == {"step"}
    assert [each[1:] for each in steps] == [each[1:] for each in said]
    accepted = [each for each in said if each[0] == "accept"]
    assert any(each[0] == "reject" for each in said)
    ends = [t + h for _, t, h, _ in accepted]
    assert ends[:-1] == pytest.approx([t for _, t, _, _ in accepted[1:]], abs=1e-15)
    assert ends[-1] == 2.0

    backwards = Heard()
    odeint(backwards, torch.ones(2, dtype=F64), T.flip(0))
    assert all(h > 0 for _, _, h, _ in backwards.said)
    assert backwards.said[0][1] == 2.0


def test_fixed_steps_call_one_callback_and_warn_of_the_others():
    class Heard:
        said = 0

        def __call__(self, t, y):
            return -y

        def callback_step(self, t, y, h):
            Heard.said += 1

        def callback_accept_step(self, t, y, h):
            raise AssertionError

    with pytest.warns(UserWarning, match="rk4 does not call callback_accept_step"):
        odeint(Heard(), torch.ones(1, dtype=F64), T, method="rk4")
    assert Heard.said == 6


def test_jumps_of_the_field_are_met_exactly():
    def func(t, y):
        return torch.where(t < 1.0, 1.0, -3.0) * torch.ones_like(y)

    y0 = torch.zeros(1, dtype=F64)
    exact = torch.where(T < 1, T, 1 - 3 * (T - 1))[:, None]
    for t, right in ((T, exact), (T.flip(0), exact.flip(0) - exact[-1])):
        out = odeint(func, y0, t, rtol=1e-3, atol=1e-3, options={"jump_t": torch.tensor([1.0])})
        torch.testing.assert_close(out, right, rtol=0, atol=1e-13)
    options = {"jump_t": torch.tensor([1.0]), "step_t": torch.tensor([0.5, 1.7])}
    out, theirs = both(func, y0, T, rtol=1e-3, atol=1e-3, options=options)
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-13)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="repeated"):
        odeint(func, y0, T, options={"jump_t": torch.tensor([1.0]), "step_t": torch.tensor([1.0])})


def test_gradients_through_a_jump():
    def run(y0, height):
        return odeint(
            lambda t, y: torch.where(t < 1.0, 1.0, height) * y, y0, T, options={"jump_t": torch.tensor([1.0])}
        )

    y0 = torch.tensor([1.5], dtype=F64, requires_grad=True)
    height = torch.tensor(-0.5, dtype=F64, requires_grad=True)
    out = run(y0, height)
    (slope,) = torch.autograd.grad(out[-1, 0], height)
    assert slope.item() == pytest.approx(1.5 * math.exp(1 - 0.5), rel=1e-6)


def count_steps(options, **settings):
    sizes = []

    class Func:
        def __call__(self, t, y):
            return torch.stack([y[1], -y[0]])

        def callback_accept_step(self, t, y, h):
            sizes.append(h.item())

    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    odeint(Func(), y0, T, options=options, **settings)
    return sizes


def test_step_options():
    free = count_steps({})
    assert count_steps({"first_step": 1e-4})[0] == 1e-4 != free[0]
    assert max(count_steps({"max_step": 0.01})) <= 0.01 + 1e-12 < max(free)
    steady = count_steps({"min_step": 0.25, "first_step": 0.25})
    assert min(steady[:-1]) >= 0.25 > max(free)
    assert max(b / a for a, b in pairwise(free)) > 1.5
    slow = count_steps({"ifactor": 1.5, "first_step": 1e-4})
    assert max(b / a for a, b in pairwise(slow)) < 1.5 + 1e-9
    assert len(count_steps({"safety": 0.3})) > len(free)
    with pytest.raises(SolveFailed, match="MAX_STEPS"):
        count_steps({"max_num_steps": 3})


def test_unknown_options_are_named_and_wrong_ones_refused():
    func, y0 = Spiral(), starts()
    with pytest.warns(UserWarning, match="dopri5 knows no options frist_step"):
        odeint(func, y0, T, options={"frist_step": 0.1})
    with pytest.warns(UserWarning, match="rk4 knows no options max_step"):
        odeint(func, y0, T, method="rk4", options={"max_step": 0.1})
    for settings, says in (
        ({"method": "dopri6"}, "no method 'dopri6'; there are adaptive_heun, .*tsit5"),
        ({"method": "leapfrog"}, "no method 'leapfrog'"),
        ({"method": "implicit_adams"}, "no method 'implicit_adams' here: use dopri5"),
        ({"method": "scipy_solver"}, "no method 'scipy_solver' here: use auto"),
        ({"method": "rk4", "options": {"interp": "quartic"}}, "linear or cubic"),
        ({"method": "rk4", "options": {"step_size": 0.0}}, "step_size"),
        ({"rtol": -1e-3}, "rtol must be finite and not negative"),
        ({"rtol": 0.0, "atol": 0.0}, "both 0"),
        ({"atol": (1e-3, 1e-3)}, "atol must be a number or a tuple of 1"),
        ({"atol": torch.ones(5)}, "does not broadcast"),
    ):
        with pytest.raises(ValueError, match=says):
            odeint(func, y0, T, **settings)


@pytest.mark.parametrize(
    ("y0", "t", "error", "says"),
    [
        (starts(), torch.tensor([0.0, 1.0, 1.0]), ValueError, "strictly increasing or decreasing"),
        (starts(), torch.tensor([0.0, 1.0, 0.5]), ValueError, "strictly increasing or decreasing"),
        (starts(), torch.tensor([0.0, float("nan")]), ValueError, "finite"),
        (starts(), torch.tensor([[0.0, 1.0]]), ValueError, "one dimensional"),
        (starts(), torch.tensor([0, 1]), TypeError, "floating-point"),
        (starts(), [0.0, 1.0], TypeError, "floating-point"),
        (torch.tensor([1, 2]), T, ValueError, "floating-point or complex"),
        ([1.0, 2.0], T, TypeError, "a tensor or a tuple of tensors"),
    ],
)
def test_wrong_starts_and_times_are_refused(y0, t, error, says):
    with pytest.raises(error, match=says):
        odeint(lambda t, y: -y, y0, t)


def test_fields_of_another_shape_and_fields_that_fail():
    with pytest.raises(ValueError, match=r"what func gives must have the shape of y0: \[2, 2\], not \[2\]"):
        odeint(lambda t, y: y[0], starts(), T)
    with pytest.raises(TypeError, match="what func gives must be a tuple of 2 tensors"):
        odeint(lambda t, y: y[0], (starts(), starts()), T)
    with pytest.raises(SolveFailed, match=r"STEP_TOO_SMALL|NOT_FINITE"):
        odeint(lambda t, y: y * y, torch.ones(1, dtype=F64), T)  # infinite at t = 1


def test_one_time_is_the_start():
    out = odeint(lambda t, y: -y, starts(), T[:1])
    assert torch.equal(out, starts()[None])


# Events.


def fall(t, state):
    speed = state[1]
    return speed, -torch.ones_like(speed) * 9.81


def test_a_falling_body_lands_as_in_torchdiffeq_and_as_in_the_book():
    height = torch.tensor(10.0, dtype=F64, requires_grad=True)
    speed = torch.tensor(0.5, dtype=F64, requires_grad=True)
    times = []
    for library in (odeint, torchdiffeq.odeint):
        if library is odeint:
            time, states = odeint_event(
                fall, (height, speed), torch.tensor(0.0, dtype=F64), event_fn=lambda t, y: y[0], **TIGHT
            )
        else:
            time, states = torchdiffeq.odeint_event(
                fall, (height, speed), torch.tensor(0.0, dtype=F64), event_fn=lambda t, y: y[0], **TIGHT
            )
        impact = states[1][-1]
        times.append((time, impact, *torch.autograd.grad(time + 2 * impact, (height, speed))))
    for ours, theirs in zip(*times, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    root = math.sqrt(0.5**2 + 2 * 9.81 * 10)
    assert times[0][0].item() == pytest.approx((0.5 + root) / 9.81, abs=1e-10)
    # t = (v + r) / g and the impact -r, with r^2 = v^2 + 2 g h.
    assert times[0][2].item() == pytest.approx(1 / root - 2 * 9.81 / root, abs=1e-8)
    assert times[0][3].item() == pytest.approx((1 + 0.5 / root) / 9.81 - 2 * 0.5 / root, abs=1e-8)


def test_events_backwards_several_at_once_and_in_fixed_steps():
    def wave(t, y):
        return torch.stack([y[1], -y[0]])

    y0, t0 = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor(0.3, dtype=F64)
    crossing = {"event_fn": lambda t, y: torch.stack([y[0] - 2, y[1], y[0] + 0.5])}
    time, states = odeint_event(wave, y0, t0, **crossing, **TIGHT)
    assert time.item() == pytest.approx(0.3 + math.pi / 2, abs=1e-7)
    assert states.shape == (2, 2)
    assert torch.equal(states[0], y0)
    time, _ = odeint_event(wave, y0, t0, reverse_time=True, **crossing, **TIGHT)
    assert time.item() == pytest.approx(0.3 - math.pi / 6, abs=1e-7)
    time, _ = odeint_event(wave, y0, t0, **crossing, method="rk4", options={"step_size": 0.05})
    assert time.item() == pytest.approx(0.3 + math.pi / 2, abs=1e-6)


def test_an_event_that_never_comes_is_said():
    with pytest.raises(SolveFailed):
        odeint_event(
            lambda t, y: torch.zeros_like(y),
            torch.ones(1, dtype=F64),
            torch.tensor(0.0, dtype=F64),
            event_fn=lambda t, y: y[0],
        )
    with pytest.raises(ValueError, match="step_size"):
        odeint(lambda t, y: -y, torch.ones(1), T[:2], event_fn=lambda t, y: y[0], method="rk4")
    with pytest.raises(ValueError, match="start, direction"):
        odeint(lambda t, y: -y, torch.ones(1), T, event_fn=lambda t, y: y[0])


# Rows.


def test_rows_have_their_own_steps_and_times():
    stiffness = torch.logspace(0, 2, 5, dtype=F64)
    y0 = torch.tensor([[1.0, 0.0]], dtype=F64).repeat(5, 1)

    def func(t, y, k):
        assert t.shape == (len(y), 1)
        return torch.stack([y[:, 1], -k * y[:, 0]], -1) + 0 * t

    out = odeint(func, y0, T, rows=True, args=(stiffness,), **TIGHT)
    assert out.shape == (7, 5, 2)
    exact = torch.cos(T[:, None] * stiffness.sqrt())
    torch.testing.assert_close(out[..., 0], exact, rtol=0, atol=1e-6)
    alone = odeint(func, y0[1:2], T, rows=True, args=(stiffness[1:2],), **TIGHT)
    assert torch.equal(alone[:, 0], out[:, 1])

    ragged = T.repeat(5, 1)
    ragged[2, 3:] = float("nan")
    own = odeint(func, y0, ragged, rows=True, args=(stiffness,), **TIGHT)
    torch.testing.assert_close(own[:3, 2, 0], exact[:3, 2], rtol=0, atol=1e-6)
    assert own[3:, 2].isnan().all()
    fixed = odeint(func, y0[:1], ragged[:1], rows=True, args=(stiffness[:1],), method="rk4")
    shared = odeint(func, y0[:1], T, rows=True, args=(stiffness[:1],), method="rk4")
    assert torch.equal(fixed, shared)


def test_rows_in_tuples_numbers_and_gradients():
    rate = torch.tensor([0.5, 1.0, 3.0], dtype=F64, requires_grad=True)
    y0 = (torch.ones(3, dtype=F64), torch.ones(3, 2, dtype=F64))

    def func(t, y, k):
        return -k * y[0], k[:, None] * y[1] + 0 * t

    first, second = odeint(func, y0, T, rows=True, args=(rate,), **TIGHT)
    assert first.shape == (7, 3)
    assert second.shape == (7, 3, 2)
    torch.testing.assert_close(first, torch.exp(-rate * T[:, None]), rtol=1e-6, atol=1e-8)
    (slope,) = torch.autograd.grad(first[-1].sum(), rate)
    torch.testing.assert_close(slope, -2 * torch.exp(-2 * rate.detach()), rtol=1e-5, atol=1e-7)
    plain = odeint(lambda t, y: -y * (1 + 0 * t), torch.ones(4, dtype=F64), T, rows=True)
    assert plain.shape == (7, 4)


def test_rows_meet_their_own_events():
    height = torch.tensor([[1.0, 0.0], [5.0, 1.0], [20.0, -2.0]], dtype=F64, requires_grad=True)

    def func(t, y):
        return torch.stack([y[:, 1], -9.81 * torch.ones_like(y[:, 1])], -1)

    time, states = odeint(func, height, T[:2], event_fn=lambda t, y: y[:, 0], rows=True, **TIGHT)
    h, v = height.unbind(-1)
    torch.testing.assert_close(time, (v + (v * v + 19.62 * h).sqrt()) / 9.81, rtol=0, atol=1e-9)
    assert states.shape == (2, 3, 2)
    (ours,) = torch.autograd.grad(time.sum(), height, retain_graph=True)
    (book,) = torch.autograd.grad(((v + (v * v + 19.62 * h).sqrt()) / 9.81).sum(), height)
    torch.testing.assert_close(ours, book, rtol=0, atol=1e-8)


def test_what_does_not_go_with_rows():
    class Heard:
        def __call__(self, t, y):
            return -y

        def callback_step(self, t, y, h):
            pass

    with pytest.raises(ValueError, match="callbacks"):
        odeint(Heard(), starts(), T, rows=True)
    with pytest.raises(ValueError, match="norm"):
        odeint(Spiral(), starts(), T, rows=True, options={"norm": torch.norm})
    with pytest.raises(ValueError, match="one number of rows"):
        odeint(lambda t, y: y, (torch.ones(2, 1), torch.ones(3, 1)), T, rows=True)


# The adjoint, the dense solution.


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_the_adjoint_gives_the_gradients_of_torchdiffeq(method):
    found = []
    for solver in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        func, y0 = Spiral(), starts().requires_grad_()
        t = T.clone().requires_grad_()
        options = {"step_size": 1 / 30} if method == "rk4" else {}
        out = solver(func, y0, t, method=method, options=options, **TIGHT)
        out[2:].square().sum().backward()
        found.append((out.detach(), y0.grad, func.matrix.grad, t.grad))
    for ours, theirs in list(zip(*found, strict=True))[: 3 if method == "rk4" else 4]:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-5)


def test_the_adjoint_takes_the_parameters_that_are_named():
    left = torch.tensor(-0.5, dtype=F64, requires_grad=True)
    right = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def func(t, y):
        return left * y + right

    y0 = torch.ones(2, dtype=F64)
    with pytest.raises(ValueError, match="adjoint_params"):
        odeint_adjoint(func, y0, T)
    odeint_adjoint(func, y0, T, adjoint_params=(left,), **TIGHT)[-1].sum().backward()
    assert right.grad is None
    # y = (1 - c) e^(a t) + c with c = -b / a: its derivative by a at t = 2.
    a, b, t = -0.5, 0.2, 2.0
    slope = (1 + b / a) * t * math.exp(a * t) - b / a**2 * (math.exp(a * t) - 1)
    assert left.grad.item() == pytest.approx(2 * slope, rel=1e-6)
    with pytest.warns(UserWarning, match="takes no options first_step"):
        odeint_adjoint(func, y0, T, adjoint_params=(), adjoint_options={"first_step": 0.1}, rows=True)
    with pytest.raises(ValueError, match="give them too"):
        odeint_adjoint(
            func, y0, T, adjoint_params=(), method="rk4", adjoint_method="dopri5", options={"step_size": 0.1}
        )
    with pytest.raises(ValueError, match="function or 'seminorm'"):
        odeint_adjoint(func, y0, T, adjoint_params=(), adjoint_options={"norm": "l2"})


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_the_adjoint_of_a_tuple_takes_options_of_its_own(method):
    found = []
    for solver in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
        y0 = tuple(torch.full(shape, 0.5, dtype=F64, requires_grad=True) for shape in ((), (2, 2)))
        fixed = {"step_size": 1 / 8} if method != "dopri5" else {}
        out = solver(
            lambda t, y, rate=rate: (-rate * y[0] * t, y[0] - rate * y[1]),
            y0,
            T,
            method=method,
            adjoint_params=(rate,),
            options={**fixed},
            adjoint_options={**fixed} if fixed else {"norm": "seminorm"},
            rtol=1e-9,
            atol=1e-9,
        )
        sum(each[2:].abs().square().sum() for each in out).backward()
        found.append([*(each.detach() for each in out), *(each.grad for each in y0), rate.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["implicit_midpoint", "radauIIA3"])
def test_the_adjoint_goes_back_in_implicit_steps(method):
    found = []
    for solver in (odeint_adjoint, odeint):
        func, y0 = Spiral(), starts().requires_grad_()
        out = solver(func, y0, T[:2], method=method, options={"step_size": 1 / 24})
        out[1:].square().sum().backward()
        found.append((y0.grad, func.matrix.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("tupled", [False, True])
def test_the_adjoint_of_complex_states_is_the_gradient_of_the_steps(tupled):
    """torchdiffeq's fails beside real parameters."""
    found = []
    for solver in (odeint_adjoint, odeint):
        turn = torch.tensor(0.7, dtype=F64, requires_grad=True)
        y0 = torch.tensor([0.5 + 0.2j, 1.0 - 1.0j], dtype=torch.complex128, requires_grad=True)
        t = T.clone().requires_grad_()
        given = {"adjoint_params": (turn,)} if solver is odeint_adjoint else {}
        if tupled:
            out = solver(
                lambda t, y, a=turn: (1j * a * y[0] * t, -y[1]),
                (y0, torch.ones(1, dtype=F64)),
                t,
                **TIGHT,
                **given,
            )[0]
        else:
            out = solver(lambda t, y, a=turn: 1j * a * y * t, y0, t, **TIGHT, **given)
        (out[2:] * (1 + 2j)).real.square().sum().backward()
        found.append([out.detach(), y0.grad, turn.grad, t.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_way_back_has_its_grid_its_norm_and_its_listeners():
    grids, seen, heard = [], [], []

    class Falling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([0.5, 1.0], dtype=F64))

        def forward(self, t, y):
            return -self.rate * y

        def callback_step_adjoint(self, t, y, h):
            heard.append((float(t), len(y)))

    def grid(func, y, t):
        grids.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11).to(t)

    def norm(z):
        seen.append([each.shape for each in z])
        return torch.stack([each.abs().max() for each in z]).max()

    start, ends = torch.ones(2, dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=F64)
    odeint_adjoint(Falling(), start, ends, method="euler", options={"grid_constructor": grid})[
        -1
    ].sum().backward()
    assert grids == [[0.0, 1.0], [1.0, 0.0]]
    # Euler's rule for the adjoint equation on that grid, backwards.
    torch.testing.assert_close(start.grad, (1 - 0.1 * Falling().rate.detach()) ** 10)
    assert [at for at, _ in heard] == pytest.approx([1 - 0.1 * i for i in range(10)])
    assert {parts for _, parts in heard} == {4}
    start = (torch.ones((), dtype=F64, requires_grad=True), torch.ones(2, dtype=F64))
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    out = odeint_adjoint(
        lambda t, y: (-rate * y[0], -y[1]),
        start,
        ends,
        adjoint_params=(rate,),
        adjoint_options={"norm": norm},
    )
    out[0][-1].backward()
    assert seen[0] == [torch.Size(each) for each in ((), (), (2,), (), (2,), ())]
    assert rate.grad.item() == pytest.approx(-math.exp(-0.5), rel=1e-6)


@pytest.mark.parametrize("method", FIXED)
def test_a_perturbed_grid_sees_no_jump_from_its_wrong_side(method):
    """y' = 1 up to t = 1 and 3 from there: with the jump on the grid each method is exact, if it looks from
    within."""
    times = []

    def jumps(t, y):
        times.append(float(t))
        return torch.where(t < 1, 1.0, 3.0) * torch.ones_like(y)

    start = torch.zeros(1, dtype=F64)
    for t, exact in ((T, 4.0), (T.flip(0), -4.0)):
        options = {"step_size": 0.5, "perturb": True}
        found = odeint(jumps, start, t, method=method, options=options)[-1]
        torch.testing.assert_close(found, torch.tensor([exact], dtype=F64), rtol=0, atol=1e-12)
    assert not {0.0, 0.5, 1.0, 1.5, 2.0} & set(times)


def test_a_dense_solution_is_a_function_of_time():
    dense = odeint_dense(lambda t, y: -y, starts(), torch.tensor(0.0), torch.tensor(2.0), **TIGHT)
    torch.testing.assert_close(dense(T), starts() * torch.exp(-T)[:, None, None], rtol=0, atol=1e-7)
    assert dense(T[1]).shape == (2, 2)
    pair = odeint_dense(lambda t, y: (-y[0], y[1]), (starts(), starts()), 0.0, 2.0)
    assert [each.shape for each in pair(T)] == [(7, 2, 2), (7, 2, 2)]
    assert dense(torch.tensor([0.5, 2.5], dtype=F64)).isnan().all((1, 2)).tolist() == [False, True]
    with pytest.raises(ValueError, match="rk4 is one of fixed steps"):
        odeint_dense(lambda t, y: -y, starts(), 0.0, 2.0, method="rk4", options={"step_size": 0.1})


def test_a_dense_solution_has_the_gradients_of_a_solve():
    """At times in any order, some of them beyond the end."""
    func, y0 = Spiral(), starts().requires_grad_()
    weights = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    found = []
    for dense in (True, False):
        times = torch.tensor([1.9, 0.2, 2.5, 1.1], dtype=F64, requires_grad=True)
        if dense:
            out = odeint_dense(func, y0, 0.0, 2.0, **TIGHT)(times)[[1, 3, 0]]
        else:
            t = torch.cat([torch.zeros(1, dtype=F64), times[[1, 3, 0]]])
            out = odeint(func, y0, t, **TIGHT)[1:]
        found.append(torch.autograd.grad((out * weights).sum(), (y0, func.matrix, times)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_gradient_can_be_differentiated_as_that_of_torchdiffeq(method):
    found = []
    for solver in (odeint, torchdiffeq.odeint):
        func, y0 = Spiral(), starts().requires_grad_()
        out = solver(func, y0, T, method=method, **TIGHT)
        slopes = torch.autograd.grad(out[-1].sum(), (y0, func.matrix), create_graph=True)
        penalty = sum(each.square().sum() for each in slopes)
        found.append(torch.autograd.grad(penalty, (y0, func.matrix)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_adjoint_refuses_second_derivatives():
    y0 = starts().requires_grad_()
    out = odeint_adjoint(Spiral(), y0, T, rtol=1e-3, atol=1e-3)
    (slope,) = torch.autograd.grad(out[-1].sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="odeint differentiates to any order"):
        slope.square().sum().backward()


def test_nothing_is_warned_of_in_a_plain_call():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(Spiral(), starts(), T.float(), options={"dtype": F64})
    assert set(ADAPTIVE) == {"adaptive_heun"}
