import math

import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.metrics.order_of_events import OrderOfEvents, order
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.bouncing_balls import BouncingBalls
from worldsim_plugins.systems.pendulum import Pendulum

torch.set_num_threads(1)
TIMES = torch.arange(101, dtype=torch.float64) * 0.05


def simulated(system, n=12, times=TIMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return system.simulate(system.sample(n, generator), times, None, generator)


BALLS = BouncingBalls(balls=2, restitution=1.0)
TRUTH = simulated(BALLS)


def scored(prediction, truth=TRUTH, system=BALLS, **settings):
    settings = {"of": ["p1", "p2"], "direction": "up"} | settings
    return OrderOfEvents(system, **settings).score(truth, prediction, None)


def test_the_truth_has_its_own_events_in_order():
    scores = scored(TRUTH)
    assert scores["order_of_events"].value == scores["order_of_events"].floor == 1
    assert scores["event_time_error"].value == scores["event_time_error"].floor == 0
    assert scores["events_missed"].value == scores["events_spurious"].value == 0
    assert scores["events"].value > 2
    assert scores["event_time_error"].units == "s"


def test_bounces_are_where_they_are():
    """Dropped at rest from h, a ball without loss is on the floor at (2 k + 1) sqrt(2 h / g)."""
    start = torch.tensor([[0.5, 1.3, 0.0, 0.0]], dtype=torch.float64)
    truth = BALLS.simulate(start, TIMES, None, None)
    scores = OrderOfEvents(BALLS, of=["p1"], direction="up")
    (found,) = scores._events(truth.states[:, 0], truth, torch.ones(1, 101, dtype=torch.bool), TIMES)
    # A jump of the momentum is met somewhere in its frame.
    assert found["p1 up"] == pytest.approx([1.0, 3.0, 5.0], abs=0.05)


def test_a_delay_keeps_the_order_and_is_the_error_in_time():
    system = Pendulum(energy=(0.5, 0.5))
    truth = simulated(system)
    late = truth.replace(states=truth.states.roll(4, 2))
    late.states[:, :, :4] = truth.states[:, :, :1]
    scores = OrderOfEvents(system, of=["q"]).score(truth.span(0, 80), late.span(0, 80), None)
    assert scores["event_time_error"].value == pytest.approx(0.2, abs=0.01)
    low, high = scores["event_time_error"].interval
    assert low <= scores["event_time_error"].value <= high


def test_balls_that_change_places_bounce_in_the_wrong_order():
    swapped = TRUTH.replace(states=TRUTH.states[..., [1, 0, 3, 2]])
    scores = scored(swapped)
    assert scores["order_of_events"].value < 0.5
    shuffled = scored(TRUTH.rows(torch.arange(1, 13) % 12))
    assert shuffled["order_of_events"].value < 0.5
    assert shuffled["event_time_error"].value > 0.1


def test_what_never_happens_is_missed_and_what_happens_too_often_spurious():
    still = TRUTH.replace(states=TRUTH.states[:, :, :1].expand_as(TRUTH.states))
    scores = scored(still)
    assert scores["events_missed"].value == 1
    assert math.isnan(scores["event_time_error"].value)
    assert "counterpart" in scores["event_time_error"].reason
    high = BouncingBalls(balls=2, restitution=1.0, gravity=0.25)
    slow = high.simulate(TRUTH.states[:, 0, 0], TIMES, None, None)
    assert scored(TRUTH, slow)["events_spurious"].value > 0.2


def test_an_observable_may_be_watched_and_a_level_named():
    lossy = BouncingBalls(balls=1, restitution=0.5)
    truth = simulated(lossy)
    # From 0.5 or more the first bounce leaves a quarter, at most 0.41.
    scores = OrderOfEvents(lossy, of=["energy"], level=0.45, direction="down").score(truth, truth, None)
    assert scores["events"].value == 1
    with pytest.raises(ValueError, match="has no speed; it has q1, q2, p1, p2, energy"):
        scored(TRUTH, of=["speed"])


def test_events_at_one_time_are_in_no_order():
    assert order({"a": [1.0, 2.0], "b": [1.0]}, 1e-9) == order({"a": [1.0, 2.0], "b": [1.0 + 1e-12]}, 1e-9)
    assert order({"a": [1.0], "b": [1.1]}, 1e-9) != order({"a": [1.1], "b": [1.0]}, 1e-9)


def test_no_event_no_score_and_no_tokens():
    with pytest.raises(NotMeasurable, match="another level"):
        scored(TRUTH, level=1e9)
    with pytest.raises(ValueError, match="tokens"):
        OrderOfEvents(Automaton(preset="lattice"), of=["x"])


@pytest.mark.trial(7)
def test_a_rollout_that_is_lost_is_counted():
    states = TRUTH.states.clone()
    states[2, 0, 9] = math.nan
    assert scored(TRUTH.replace(states=states))["order_of_events"].failed == 1
