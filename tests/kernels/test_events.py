"""Events: where and when they fire, what they cost a neighbour, and their derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from worldsim_kernels.solve import (
    ODE,
    PID,
    SDE,
    Constant,
    Event,
    Replay,
    Reversible,
    Save,
    Separable,
    SolveFailed,
    Status,
    ThroughSteps,
    solve,
)
from worldsim_kernels.solve.itp import last_positive

D = torch.float64
FINE = PID(1e-9, 1e-9)


def falling(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -g], 1)


def height(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return y[:, 0]


def bounce(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return torch.stack([y[:, 0], -e * y[:, 1]], 1)


def balls(n: int = 3, restitution: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    """Heights, gravities and restitutions."""
    ramp = torch.linspace(0, 1, n, dtype=D)
    return 1 + ramp, 9.81 - 5 * ramp, restitution - 0.1 * ramp


def dropped(h: Tensor) -> Tensor:
    return torch.stack([h, torch.zeros_like(h)], 1)


def bounced(h: Tensor, g: Tensor, e: Tensor, t: float) -> Tensor:
    """Closed form, one ball at a time."""
    rows = []
    for height, gravity, kept in zip(h, g, e):
        start, speed = (2 * height / gravity).sqrt(), (2 * height * gravity).sqrt()
        row = torch.stack([height - gravity * t * t / 2, -gravity * t])
        while start < t:
            speed, since = kept * speed, t - start
            row = torch.stack([speed * since - gravity * since**2 / 2, speed - gravity * since])
            start = start + 2 * speed / gravity
        rows.append(row)
    return torch.stack(rows)


def oscillator(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -y[:, 0]], 1)


CIRCLE = torch.tensor([[1.0, 0.0]], dtype=D)  # (cos t, -sin t)


@pytest.mark.parametrize(
    ("stepper", "controller"),
    [("dopri5", FINE), ("tsit5", FINE), ("dopri8", FINE), ("rk4", Constant(0.1)), ("rodas5p", FINE)],
)
def test_a_falling_ball_lands_in_time_with_the_right_derivatives(stepper, controller):
    h, g, e = (each.requires_grad_() for each in balls())
    landing = [Event(height)]
    found = solve(
        ODE(falling, (g, e)), dropped(h), 0.0, 10.0, stepper=stepper, controller=controller, events=landing
    )
    wanted = (2 * h / g).sqrt()
    assert (found.status == Status.EVENT).all()
    torch.testing.assert_close(found.t, wanted, rtol=1e-13, atol=1e-13)
    assert (found.y[:, 0].abs() < 1e-13).all()
    assert (found.y[:, 0] >= 0).all()  # never below its floor
    torch.testing.assert_close(found.y[:, 1], -(2 * h * g).sqrt(), rtol=1e-13, atol=1e-13)
    for value, exact in ((found.t, wanted), (found.y[:, 1], -(2 * h * g).sqrt())):
        slopes, exact_slopes = (
            torch.autograd.grad((each * each).sum(), (h, g), retain_graph=True) for each in (value, exact)
        )
        torch.testing.assert_close(slopes, exact_slopes, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", [ThroughSteps(), Replay(), Replay(every=3)], ids=str)
@pytest.mark.parametrize("controller", [FINE, Constant(0.13)], ids=["adaptive", "constant"])
def test_bouncing_balls_are_the_closed_form_with_its_derivatives(way, controller):
    h, g, e = (each.requires_grad_() for each in balls())
    times = torch.linspace(0, 2.2, 9, dtype=D)
    found = solve(
        ODE(falling, (g, e)),
        dropped(h),
        0.0,
        2.2,
        stepper="dopri5",
        controller=controller,
        events=[Event(height, reset=bounce)],
        save=Save(times=times, dense=True),
        gradient=way,
    )
    exact = torch.stack([bounced(h, g, e, float(t)) for t in times], 1)
    assert (found.status == Status.DONE).all()
    torch.testing.assert_close(found.saved, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.dense(times), exact, rtol=0, atol=1e-12)
    assert found.events.count.tolist() == [3, 2, 2]
    first = (2 * h / g).sqrt()
    torch.testing.assert_close(found.events.t[:, 0], first, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.events.t[:, 1], first * (1 + 2 * e), rtol=1e-12, atol=1e-12)
    second = (found.events.t[:, 1], first * (1 + 2 * e))
    weights = torch.randn(exact.shape, dtype=D, generator=torch.Generator().manual_seed(0))
    for value, wanted in (((found.saved * weights), exact * weights), second):
        slopes, wanted_slopes = (
            torch.autograd.grad(each.sum(), (h, g, e), retain_graph=True) for each in (value, wanted)
        )
        torch.testing.assert_close(slopes, wanted_slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", [ThroughSteps(), Replay()], ids=str)
def test_gradcheck_through_events_of_every_kind(way):
    """A field that depends on time, an event that does too, a reset, and crossings that are only noted."""
    y0 = torch.tensor([[1.0, 0.3], [0.7, -0.2]], dtype=D, requires_grad=True)
    a = torch.tensor([[1.1, 0.2], [0.8, -0.1]], dtype=D, requires_grad=True)
    t0, t1 = (torch.tensor(each, dtype=D, requires_grad=True) for each in ([0.0, 0.1], [3.0, 2.5]))

    def field(t, y, a):
        return torch.stack([y[:, 1], -a[:, 0] * y[:, 0] + 0.3 * torch.sin(t)], 1)

    def back(t, y, a):
        return torch.stack([y[:, 0], -(0.9 + 0.1 * t * a[:, 0]) * y[:, 1]], 1)

    wall = Event(lambda t, y, a: y[:, 0] - a[:, 1] - 0.1 * t, reset=back)
    noted = Event(lambda t, y, a: y[:, 1] - 0.1 * a[:, 1], terminal=False)

    def solved(y0, a, t0, t1):
        found = solve(
            ODE(field, (a,)),
            y0,
            t0,
            t1,
            stepper="dopri8",
            controller=PID(1e-10, 1e-10),
            events=[wall, noted],
            gradient=way,
        )
        assert found.events.count.tolist() == [3, 1]
        seen = found.events.which >= 0
        return found.y, found.events.t[seen], found.events.y[seen]

    assert gradcheck(solved, (y0, a, t0, t1), atol=1e-6, fast_mode=True)


def test_second_derivatives_of_an_event_time():
    h, g, e = (each.requires_grad_() for each in balls())

    def hessians(value):
        (slope,) = torch.autograd.grad(value.sum(), g, create_graph=True)
        return torch.autograd.grad(slope.sum(), (h, g))

    found = solve(
        ODE(falling, (g, e)),
        dropped(h),
        0.0,
        10.0,
        stepper="dopri5",
        controller=FINE,
        events=[Event(height)],
        gradient=ThroughSteps(),
    )
    torch.testing.assert_close(hessians(found.t), hessians((2 * h / g).sqrt()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("direction", "wanted"), [(0, [1, 3, 5]), (1, [3]), (-1, [1, 5])])
def test_direction(direction, wanted):
    noted = Event(lambda t, y: y[:, 0], direction=direction, terminal=False)
    found = solve(ODE(oscillator), CIRCLE, 0.0, 9.0, stepper="dopri8", controller=FINE, events=[noted])
    assert found.status.item() == Status.DONE
    times = torch.tensor(wanted, dtype=D) * math.pi / 2
    torch.testing.assert_close(found.events.t[0], times, rtol=0, atol=1e-7)


def test_direction_is_along_the_solve():
    """Backwards in time, cos t rises where it falls forwards."""
    event = Event(lambda t, y: y[:, 0], direction=-1)
    found = solve(ODE(oscillator), CIRCLE, 0.0, -9.0, stepper="dopri8", controller=FINE, events=[event])
    torch.testing.assert_close(found.t, torch.tensor([-math.pi / 2], dtype=D), rtol=0, atol=1e-8)


def test_zero_at_the_start_does_not_fire():
    event = Event(lambda t, y: y[:, 1])  # -sin t
    found = solve(ODE(oscillator), CIRCLE, 0.0, 9.0, stepper="dopri8", controller=FINE, events=[event])
    torch.testing.assert_close(found.t, torch.tensor([math.pi], dtype=D), rtol=0, atol=1e-8)


def test_events_choose_among_themselves_by_direction():
    """Two lines of slope 1, the second looked at upside down."""
    start = torch.tensor([[0.0, 1.0]], dtype=D)
    ends = {(1, 1): 5.0, (-1, -1): 4.0, (1, -1): 4.0, (-1, 1): 10.0, (-1, 0): 4.0, (0, 1): 5.0}
    for (first, second), end in ends.items():
        events = [
            Event(lambda t, y: y[:, 0] - 5, direction=first),
            Event(lambda t, y: 5 - y[:, 1], direction=second),
        ]
        for sign in (1, -1):  # and backwards, along which the same signs change
            line = ODE(lambda t, y, sign=sign: torch.full_like(y, sign))
            found = solve(line, start, 0.0, 10.0 * sign, events=events)
            assert found.t.item() == pytest.approx(end * sign, abs=1e-12)
            assert found.status.item() == (Status.DONE if end == 10 else Status.EVENT)


def test_an_event_at_the_very_end_and_what_is_kept_after_one():
    line, start = ODE(lambda t, y: torch.ones_like(y)), torch.zeros(1, 1, dtype=D)
    at_end = solve(line, start, 0.0, 1.0, events=[Event(lambda t, y: y[:, 0] - 1 + 1e-12)])
    assert at_end.status.item() == Status.EVENT
    save = Save(times=torch.tensor([0.5, 3.0, 5.5], dtype=D), steps=True, dense=True)
    found = solve(line, start, 0.0, 10.0, events=[Event(lambda t, y: y[:, 0] - 3.5)], save=save)
    torch.testing.assert_close(found.saved[0, :2, 0], save.times[:2], rtol=0, atol=1e-12)
    assert found.saved[0, 2].isnan().all()
    assert found.steps.t[0, -1] == found.t[0]
    after = found.dense(torch.tensor([3.4, 3.6], dtype=D))[0, :, 0]
    assert after[0].item() == pytest.approx(3.4, abs=1e-12)
    assert after[1].isnan()


def test_touching_zero_is_no_crossing():
    touches = Event(lambda t, y: y[:, 0])
    field = ODE(lambda t, y: (2 * (t - 1))[:, None])
    start = torch.ones(1, 1, dtype=D)  # (t - 1)^2
    found = solve(field, start, 0.0, 2.0, stepper="rk4", controller=Constant(0.25), events=[touches])
    assert found.status.item() == Status.DONE


def test_of_several_events_in_one_step_the_first_stops_the_row():
    events = [Event(lambda t, y, level=level: y[:, 0] - level) for level in (0.7, 0.3, 0.5)]
    noted = [Event(lambda t, y, level=level: y[:, 0] - level, terminal=False) for level in (0.1, 0.4, 0.2)]
    field, start = ODE(lambda t, y: torch.ones_like(y)), torch.zeros(1, 1, dtype=D)
    found = solve(field, start, 0.0, 1.0, stepper="rk4", controller=Constant(1.0), events=[*events, *noted])
    torch.testing.assert_close(found.t, torch.tensor([0.3], dtype=D), rtol=1e-14, atol=1e-14)
    assert found.events.which.tolist() == [[3, 5, 1]]
    assert found.stats.accepted.item() == 1


def test_two_walls_at_one_corner_both_turn_the_ball():
    """Simultaneous crossings fire one after the other, and neither is lost."""
    y0 = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 0.5]], dtype=D)
    turn = torch.tensor([[1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, -1.0]], dtype=D)
    walls = [
        Event(lambda t, y, axis=axis: 1 - y[:, axis], reset=lambda t, y, axis=axis: y * turn[axis])
        for axis in (0, 1)
    ]
    term = Separable(lambda p: p, lambda q: torch.zeros_like(q))
    found = solve(term, y0, 0.0, 0.8, stepper="leapfrog", controller=Constant(0.8), events=walls)
    assert found.events.count.tolist() == [2, 1]
    wanted = torch.tensor([[0.7, 0.7, -1.0, -1.0], [0.7, 0.9, -1.0, 0.5]], dtype=D)
    torch.testing.assert_close(found.y, wanted, rtol=0, atol=1e-14)


def test_what_a_reset_carries_through_zero_does_not_fire():
    """The speed jumps from below zero to above at the floor, and crosses zero at the top alone."""
    h, g, e = balls(1)
    top = Event(lambda t, y, g, e: y[:, 1], terminal=False)
    found = solve(
        ODE(falling, (g, e)),
        dropped(h),
        0.0,
        1.4,
        stepper="rk4",
        controller=Constant(0.5),
        events=[Event(height, reset=bounce), top],
    )
    first = (2 * h / g).sqrt()
    assert found.events.which.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(
        found.events.t, torch.stack([first, first * 1.8, first * 2.6], 1), rtol=1e-12, atol=1e-12
    )


def test_a_ball_that_comes_to_rest_ends_with_advice():
    h, g, e = balls(3, 0.4)
    events = [Event(height, reset=bounce)]
    found = solve(
        ODE(falling, (g, e)), dropped(h), 0.0, 20.0, stepper="rk4", controller=Constant(2.0), events=events
    )
    assert (found.status == Status.ZENO).all()
    assert found.y.isnan().all()
    rest = (2 * h / g).sqrt() * (1 + e) / (1 - e)
    torch.testing.assert_close(found.t, rest, rtol=1e-9, atol=1e-9)
    with pytest.raises(SolveFailed, match="comes to rest"):
        found.check()


@pytest.mark.parametrize("end", [1e2, 1e12])
def test_a_far_end_does_not_make_bounces_an_instant(end):
    h, g, _ = balls(3)
    e = torch.ones_like(h)
    bell = Event(lambda t, y, *a: t - 30)
    controller = PID(1e-9, 1e-9, largest=0.5)
    found = solve(
        ODE(falling, (g, e)),
        dropped(h),
        0.0,
        end,
        controller=controller,
        events=[Event(height, reset=bounce), bell],
    )
    assert (found.status == Status.EVENT).all()
    flight = (2 * h / g).sqrt()
    assert found.events.count.tolist() == (((30 - flight) / (2 * flight)).floor().long() + 2).tolist()


def test_a_limit_of_crossings():
    noted = Event(lambda t, y: y[:, 0], terminal=False, limit=2)
    start = torch.cat([CIRCLE, 0 * CIRCLE + 1e-3])
    field = ODE(lambda t, y: oscillator(t, y) * (y.square().sum(1, keepdim=True) > 0.1))
    found = solve(field, start, 0.0, 9.0, stepper="rk4", controller=Constant(0.1), events=[noted])
    assert found.status.tolist() == [Status.ZENO, Status.DONE]


def arithmetic(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    """Falling with drag, by the four operations alone."""
    return torch.stack([y[:, 1], -g - y[:, 1] * y[:, 1] * y[:, 1] / 50], 1)


@pytest.mark.parametrize("bad", [None, "state", "event", "field"])
def test_a_row_has_the_same_bits_in_every_batch_and_beside_a_row_that_fails(bad):
    h, g, e = balls(6)
    start = dropped(h)
    if bad == "state":
        start[2, 1] = float("nan")
    if bad == "field":
        g = torch.where(torch.arange(6) == 2, float("nan"), g)

    def watched(t, y, g, e):
        wrong = (e == e_bad) & (t > 0.2) if bad == "event" else torch.zeros_like(t).bool()
        return torch.where(wrong, float("nan"), y[:, 0])

    e_bad = e[2]

    def solved(rows):
        times = torch.linspace(0, 2.0, 5, dtype=D)
        leaf = start[rows].clone().requires_grad_()
        found = solve(
            ODE(arithmetic, (g[rows], e[rows])),
            leaf,
            0.0,
            2.0,
            stepper="dopri5",
            events=[Event(watched, reset=bounce), Event(lambda t, y, g, e: y[:, 1], terminal=False)],
            save=Save(times=times),
        )
        fine = ~found.failed
        (slope,) = torch.autograd.grad(found.saved[fine].square().sum() + found.y[fine].sum(), leaf)
        return found, slope

    whole, slope = solved(torch.arange(6))
    assert whole.failed.tolist() == [False, False, bad is not None, False, False, False]
    for rows in (torch.tensor([0]), torch.tensor([5, 3]), torch.tensor([4, 0, 1])):
        part, own = solved(rows)
        assert torch.equal(part.saved, whole.saved[rows])
        assert torch.equal(part.y, whole.y[rows])
        assert torch.equal(part.stats.evaluations, whole.stats.evaluations[rows])
        most = part.events.t.shape[1]
        for i, row in enumerate(rows.tolist()):
            count = int(part.events.count[i])
            assert count == int(whole.events.count[row]) <= most
            assert torch.equal(part.events.t[i, :count], whole.events.t[row, :count])
        assert torch.equal(own, slope[rows])


def test_saved_times_after_a_terminal_event_are_not_numbers():
    h, g, e = balls()
    times = torch.tensor([0.0, 0.1, 5.0], dtype=D)
    found = solve(
        ODE(falling, (g, e)),
        dropped(h),
        0.0,
        9.0,
        stepper="dopri5",
        events=[Event(height)],
        save=Save(times=times),
    )
    assert found.saved[:, :2].isfinite().all()
    assert found.saved[:, 2].isnan().all()


def test_what_is_no_event_is_refused():
    field, start = ODE(oscillator), CIRCLE
    with pytest.raises(ValueError, match="direction must be"):
        Event(height, direction=2)
    with pytest.raises(ValueError, match="takes no reset"):
        Event(height, terminal=True, reset=bounce)
    with pytest.raises(ValueError, match="limit must be"):
        Event(height, limit=0)
    with pytest.raises(TypeError, match="sequence of Event"):
        solve(field, start, 0.0, 1.0, stepper="rk4", controller=Constant(0.1), events=[height])
    for wrong, kind in (
        (lambda t, y: y[:, 0] > 0, "bool"),
        (lambda t, y: y[:, 0] + 0j, "complex128"),
        (lambda t, y: 1.0, "float"),
    ):
        with pytest.raises(TypeError, match=f"real numbers.*{kind}"):
            solve(ODE(oscillator), CIRCLE, 0.0, 9.0, events=[Event(wrong)])
    with pytest.raises(ValueError, match="function must give"):
        solve(field, start, 0.0, 1.0, stepper="dopri5", events=[Event(lambda t, y: y)])
    jump = Event(lambda t, y: y[:, 0], reset=lambda t, y: y[:, :1])
    with pytest.raises(ValueError, match="reset must give"):
        solve(field, start, 0.0, 9.0, stepper="dopri5", events=[jump])
    noisy = SDE(oscillator, lambda t, y: y)
    with pytest.raises((ValueError, TypeError), match="event"):
        solve(noisy, start, 0.0, 1.0, stepper="euler_maruyama", controller=Constant(0.1), events=[jump])
    leaf = start.clone().requires_grad_()
    term = Separable(lambda p: p, lambda q: -q)
    with pytest.raises(ValueError, match="cannot be undone"):
        solve(
            term,
            leaf,
            0.0,
            1.0,
            stepper="leapfrog",
            controller=Constant(0.1),
            events=[jump],
            gradient=Reversible(),
        )


def test_the_root_finder_brackets_to_rounding():
    low, high = torch.zeros(4, dtype=D), torch.ones(4, dtype=D)
    roots = torch.tensor([0.3, 1e-9, 1 - 1e-9, 0.5], dtype=D)
    calls = 0

    def value(x: Tensor, asked: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        away = roots - x
        return torch.stack([away[0], away[1] ** 3, torch.expm1(away[2]), torch.sign(away[3])])

    found = last_positive(value, low, high)
    assert (value(found, found > 0) > 0).all()
    assert ((roots - found) <= 2.0**-50).all()
    assert calls <= 60
