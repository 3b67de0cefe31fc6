"""Systems with impacts: against closed forms, and against the event solver."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldsim.protocols import HasEnergy, HasEquivalentHistories, HasObservables, Restartable
from worldsim_kernels.solve import ODE, PID, Constant, Event, Save, Separable, solve
from worldsim_plugins.systems.billiards import Billiards
from worldsim_plugins.systems.bouncing_balls import BouncingBalls

D = torch.float64
SYSTEMS = {
    "bouncing_balls": BouncingBalls(balls=2),
    "elastic_balls": BouncingBalls(balls=3, restitution=1.0, mass=2.0, gravity=9.81),
    **{
        table: Billiards(table=table, length=3.0, speed=(0.5, 2.0))
        for table in ("rectangle", "circle", "stadium")
    },
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(end: float, count: int) -> Tensor:
    return torch.linspace(0, end, count, dtype=D)


def truth(system, start: Tensor, times: Tensor) -> Tensor:
    return system.simulate(start, times, None, seeded(9)).states[:, 0]


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_record_and_its_invariants(name):
    system, times = SYSTEMS[name], grid(40, 81)
    for capability in (HasEnergy, HasObservables, HasEquivalentHistories, Restartable):
        assert isinstance(system, capability)
    found = system.simulate(system.sample(6, seeded(0)), times, None, seeded(1))
    assert found.states.dtype == D
    assert found.states.shape[:3] == (6, 1, 81)
    assert {*found.labels["component"], *found.observables, "time"} <= set(found.units)
    assert ("energy" in system.conserved) == (name != "bouncing_balls")
    for observable in system.conserved:
        value = found.observables[observable]
        torch.testing.assert_close(value, value[:, :, :1].expand_as(value), rtol=0, atol=1e-12 * 50)
    if name == "bouncing_balls":
        assert (found.observables["energy"].diff(dim=2) <= 1e-14).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_trajectory_has_the_same_bits_in_every_batch(name):
    system, times = SYSTEMS[name], grid(10, 21)
    start = system.sample(7, seeded(0))
    whole = truth(system, start, times)
    for rows in (slice(2, 3), slice(1, 6)):
        assert torch.equal(truth(system, start[rows], times), whole[rows])


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_restart_goes_on(name):
    system, times = SYSTEMS[name], grid(6, 13)
    whole = truth(system, system.sample(5, seeded(0)), times)
    later = truth(system, system.restart(whole[:, 4]), times[4:])
    torch.testing.assert_close(later, whole[:, 4:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_equivalent_histories_have_one_future(name):
    system, times = SYSTEMS[name], grid(3, 7)
    for kind in system.history_kinds:
        pairs = system.equivalent_histories(kind, 4, times, seeded(3))
        ends = [each.states[:, 0, -1] for each in (pairs.first, pairs.second)]
        one, other = (truth(system, end, grid(2, 5)) for end in ends)
        torch.testing.assert_close(pairs.align(other), one, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="unknown kind"):
        system.equivalent_histories("forced", 4, times, seeded(3))


@pytest.mark.parametrize("restitution", [0.0, 0.5, 0.8, 1.0])
def test_bouncing_balls_agree_with_the_event_solver(restitution):
    system = BouncingBalls(restitution=restitution, mass=2.0, gravity=1.7, momentum=(-1.0, 1.0))
    start, times = system.sample(5, seeded(0)), grid(3.0, 16)
    last = 8 if restitution == 0 else 16  # at rest there is no event any more
    bounce = Event(lambda t, y: y[:, 0], reset=lambda t, y: torch.stack([y[:, 0], -restitution * y[:, 1]], 1))
    if restitution == 0:
        bounce = Event(lambda t, y: y[:, 0])
    field = ODE(lambda t, y: torch.stack([y[:, 1] / 2, torch.full_like(y[:, 0], -3.4)], 1))
    found = solve(
        field, start, 0.0, 3.0, stepper="rk4", controller=Constant(0.2), events=[bounce], save=Save(times)
    )
    exact = truth(system, start, times)
    assert not found.failed.any()
    reached = found.saved.isfinite()
    assert reached[:, :last].any()
    torch.testing.assert_close(found.saved[reached], exact[reached], rtol=0, atol=1e-10)


def test_a_ball_comes_to_rest_when_the_series_says():
    system = BouncingBalls(restitution=0.5, height=(1.0, 1.0), momentum=(0.0, 0.0))
    rest = math.sqrt(2) * (1 + 0.5) / (1 - 0.5)
    times = torch.tensor([0.0, math.sqrt(2), rest * (1 - 1e-6), rest * (1 + 1e-9), 100.0], dtype=D)
    states = truth(system, system.sample(1, seeded(0)), times)[0]
    assert (states[:, 0] >= 0).all()
    torch.testing.assert_close(
        states[1].abs(), torch.tensor([0.0, math.sqrt(2) / 2], dtype=D), rtol=0, atol=1e-12
    )
    assert states[2].abs().max() > 1e-7
    assert torch.equal(states[3:], torch.zeros(2, 2, dtype=D))
    still = torch.zeros(1, 2, dtype=D)
    assert torch.equal(truth(system, still, grid(5, 3)), still[:, None].expand(1, 3, 2))


def test_an_elastic_ball_is_periodic_for_long():
    system = BouncingBalls(restitution=1.0, height=(1.0, 1.0), momentum=(0.0, 0.0))
    period = 2 * math.sqrt(2)
    states = truth(system, system.sample(1, seeded(0)), period * torch.tensor([0.0, 0.25, 1000.25], dtype=D))
    torch.testing.assert_close(states[0, 2], states[0, 1], rtol=0, atol=1e-10)


def triangle(x: Tensor, half: float) -> Tensor:
    """``x`` folded back and forth between -half and half."""
    phase = torch.remainder(x + half, 4 * half)
    return torch.where(phase <= 2 * half, phase, 4 * half - phase) - half


def test_a_rectangle_is_two_folded_lines():
    system, times = SYSTEMS["rectangle"], grid(100, 41)
    start = system.sample(20, seeded(1))
    found = truth(system, start, times)
    for axis, half in ((0, 1.5), (1, 1.0)):
        free = start[:, axis, None] + start[:, 2 + axis, None] * times
        torch.testing.assert_close(found[:, :, axis], triangle(free, half), rtol=0, atol=1e-10)
        torch.testing.assert_close(found[:, :, 2 + axis].abs(), start[:, 2 + axis, None].abs().expand(-1, 41))


def test_a_circle_turns_its_chord_by_one_angle():
    """With angular momentum L, a chord sees the angle 2 acos(L / (r v)) from the middle."""
    system, times = Billiards(table="circle", width=2.0), grid(100, 41)
    start = system.sample(20, seeded(1))
    found = truth(system, start, times)
    speed = start[:, 2:].norm(dim=1)
    spin = (start[:, 0] * start[:, 3] - start[:, 1] * start[:, 2])[:, None]
    distance = spin.abs() / speed[:, None]
    chord = 2 * (1 - distance**2).sqrt()
    direction = start[:, 2:] / speed[:, None]
    along = (start[:, :2] * direction).sum(1, keepdim=True) + speed[:, None] * times
    bounces = (along / chord + 0.5).floor()
    turn = bounces * 2 * torch.acos(distance) * spin.sign()
    at = along - bounces * chord
    cos, sin = turn.cos(), turn.sin()
    d = torch.stack(
        [cos * direction[:, :1] - sin * direction[:, 1:], sin * direction[:, :1] + cos * direction[:, 1:]], -1
    )
    foot = (spin / speed[:, None])[..., None] * torch.stack([d[..., 1], -d[..., 0]], -1)
    wanted = torch.cat([at[..., None] * d + foot, speed[:, None, None] * d], -1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_the_stadium_agrees_with_the_event_solver():
    system, times = SYSTEMS["stadium"], grid(5.0, 11)
    start = system.sample(5, seeded(2))

    def away(y):
        return y[:, :2] - torch.stack([y[:, 0].clamp(-1.5, 1.5), 0 * y[:, 1]], 1)

    def reflected(t, y):
        normal = away(y) / away(y).norm(dim=1, keepdim=True)
        return torch.cat([y[:, :2], y[:, 2:] - 2 * (y[:, 2:] * normal).sum(1, keepdim=True) * normal], 1)

    wall = Event(lambda t, y: 1 - away(y).norm(dim=1), reset=reflected)
    term = Separable(lambda p: p, lambda q: 0 * q)
    found = solve(
        term, start, 0.0, 5.0, stepper="leapfrog", controller=Constant(1.0), events=[wall], save=Save(times)
    )
    assert int(found.events.count.min()) >= 1
    torch.testing.assert_close(found.saved, truth(system, start, times), rtol=0, atol=1e-10)


def test_neighbours_part_in_a_stadium_and_not_in_a_circle():
    apart = {}
    for table in ("circle", "stadium"):
        system = SYSTEMS[table]
        start = Billiards(table=table, length=3.0).sample(20, seeded(4))
        near = start + torch.tensor([1e-9, 0, 0, 0], dtype=D)
        times = grid(30, 2)
        apart[table] = (truth(system, near, times) - truth(system, start, times))[:, -1].norm(dim=1).median()
    assert apart["circle"] < 1e-6
    assert apart["stadium"] > 1e3 * apart["circle"]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="restitution must be 1 or at most"):
        BouncingBalls(restitution=0.99995)
    with pytest.raises(ValueError, match="below the floor"):
        BouncingBalls().restart(torch.tensor([[-1.0, 0.0]]))
    with pytest.raises(ValueError, match="outside of the table"):
        Billiards().restart(torch.tensor([[5.0, 0.0, 1.0, 0.0]]))
    with pytest.raises(ValueError, match="speed must be positive"):
        Billiards(speed=(0.0, 1.0))
    times, actions = grid(1, 3), torch.zeros(1, 3, 1)
    for system in (BouncingBalls(), Billiards()):
        with pytest.raises(ValueError, match="not driven"):
            system.simulate(system.sample(1, seeded(0)), times, actions, seeded(0))
    grazing = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=D)
    with pytest.raises(ValueError, match="grazes a curved wall"):
        truth(Billiards(table="circle"), grazing, times)


def test_adaptive_steps_bounce_as_well():
    system = BouncingBalls(restitution=0.9)
    start, times = system.sample(3, seeded(5)), grid(4, 5)
    bounce = Event(lambda t, y: y[:, 0], reset=lambda t, y: torch.stack([y[:, 0], -0.9 * y[:, 1]], 1))
    field = ODE(lambda t, y: torch.stack([y[:, 1], torch.full_like(y[:, 0], -1.0)], 1))
    found = solve(
        field, start, 0.0, 4.0, stepper="tsit5", controller=PID(1e-9, 1e-9), events=[bounce], save=Save(times)
    )
    torch.testing.assert_close(found.saved, truth(system, start, times), rtol=0, atol=1e-10)
