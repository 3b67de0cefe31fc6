"""The one-step defect: 0 for who follows the true flow from wherever he is, and a known number for others."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim.protocols import System
from worldsim_plugins.metrics.one_step import OneStep, steps_of
from worldsim_plugins.systems.mass_spring import MassSpring
from worldsim_plugins.systems.n_body import Kepler
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import DrivenPendulum
from worldsim_plugins.systems.unseen_start import UnseenStart

TIMES = torch.arange(0, 2.01, 0.25, dtype=torch.float64)


def simulated(system: System, n: int = 12, seed: int = 0, actions=None) -> Trajectory:
    rng = torch.Generator().manual_seed(seed)
    return system.simulate(system.sample(n, rng), TIMES, actions, rng)


def scored(system: System, prediction: Trajectory, truth: Trajectory | None = None):
    return OneStep(system).score(truth or simulated(system), prediction, None)


def test_another_true_trajectory_has_none():
    system = MassSpring()
    scores = scored(system, simulated(system, seed=1))
    assert scores["one_step_defect"].value < 1e-12
    assert scores["one_step_defect_worst"].floor < 1e-12


def test_a_wrong_clock_has_the_defect_of_its_step():
    """An oscillator read 10 % fast turns by 0.1 h too far in each step."""
    system = MassSpring(bodies=1, ends="fixed", energy=(0.5, 0.5))
    truth, rng = simulated(system), torch.Generator().manual_seed(0)
    fast = system.simulate(system.sample(12, rng), 1.1 * TIMES, None, rng).replace(times=TIMES)
    rate = float(system.frequencies[0])
    found = scored(system, fast, truth)["one_step_defect"].value
    spread = truth.states[:, 0].flatten(0, 1).std(0, correction=0)
    unit = torch.tensor([1.0, rate], dtype=torch.float64) / spread
    angle = torch.linspace(0, 2 * math.pi, 1001)[:-1].double()
    radius = 1.0 / rate
    states = radius * torch.stack([angle.cos(), -angle.sin()], -1)
    turned = radius * torch.stack([(angle + 0.025 * rate).cos(), -(angle + 0.025 * rate).sin()], -1)
    expected = float(((turned - states) * unit).square().mean().sqrt())
    assert found == pytest.approx(expected, rel=0.05)


def test_an_unseen_start_is_asked_from_its_own_first_frame_on():
    system = UnseenStart(system=MassSpring())
    prediction = simulated(system, seed=2)
    assert scored(system, prediction)["one_step_defect"].value < 1e-12
    prediction.states[:, :, 0] = 7.0
    assert scored(system, prediction)["one_step_defect"].value < 1e-12
    prediction.states[:, :, 1] += 1.0
    assert scored(system, prediction)["one_step_defect"].value > 0.1


def test_actions_are_those_of_the_trajectory():
    system = DrivenPendulum()
    rng = torch.Generator().manual_seed(3)
    actions = system.sample_actions(12, TIMES, rng)
    truth = simulated(system, actions=actions)
    assert scored(system, truth, truth)["one_step_defect"].value < 1e-6
    assert scored(system, truth.replace(actions=actions.flip(1)), truth)["one_step_defect"].value > 1e-3


@pytest.mark.trial(7)
def test_what_is_not_finite_is_counted_and_not_left_out():
    system = MassSpring()
    prediction = simulated(system, seed=1)
    prediction.states[3, 0, 4] = torch.nan
    score = scored(system, prediction)["one_step_defect"]
    assert math.isnan(score.value)
    assert score.failed == 1
    assert "1 of 12 predictions" in score.reason


def test_a_state_that_the_true_system_refuses_leaves_nothing_to_measure():
    system = Kepler()
    truth = simulated(system)
    prediction = truth.replace(states=truth.states.clone())
    prediction.states[2, 0, 3] *= 3.0
    score = scored(system, prediction, truth)["one_step_defect"]
    assert math.isnan(score.value)
    assert "cannot be followed from a state that is predicted: kepler starts only from bound" in score.reason


def test_what_lies_after_a_ragged_end_is_not_looked_at():
    system = MassSpring()
    truth = simulated(system)
    length = torch.full((12, 1), len(TIMES))
    length[5] = 4
    prediction = simulated(system, seed=1)
    prediction.states[5, :, 4:] = torch.nan
    assert scored(system, prediction, truth.replace(length=length))["one_step_defect"].value < 1e-12


def test_a_world_that_draws_where_it_goes_has_none_to_measure():
    system = OrnsteinUhlenbeck()
    with pytest.raises(NotMeasurable, match="draws where it goes"):
        scored(system, simulated(system, seed=1))


def test_steps_that_differ_by_rounding_are_one():
    assert [frames for _, frames in steps_of(torch.tensor([0.0, 0.1, 0.2, 0.5]).double())] == [[0, 1], [2]]
