import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.comparison import compare, component_scale, mean_interval, median_interval
from worldsim_plugins.metrics.rollout import Rollout
from worldsim_plugins.systems.automaton import Automaton

torch.set_num_threads(1)
N, TIMES = 40, 10 + torch.arange(9, dtype=torch.float64) / 2


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def trajectory(states, **more):
    return Trajectory(states, TIMES[: states.shape[2]], units={"time": "s"}, **more)


TRUTH = trajectory(torch.tensor([1.0, 1e6], dtype=torch.float64) * normal(N, 1, 9, 2) + 3)


def scored(states, truth=TRUTH, **settings):
    return Rollout(None, **settings).score(truth, truth.replace(states=states, length=None), None)


def test_the_truth_itself_scores_zero_and_is_valid_to_the_horizon():
    scores = scored(TRUTH.states)
    assert scores["nrmse"].value == 0
    assert scores["valid_time"].value == 4
    assert scores["valid_time"].units == "s"
    assert scores["valid_to_horizon"].value == 1


def test_the_mean_scores_one_and_an_independent_sample_root_two():
    mean = TRUTH.states[:, :, 1:].mean((0, 2), keepdim=True).expand_as(TRUTH.states)
    growth = torch.as_tensor(scored(mean)["nrmse_time"].value)
    assert float(growth.square().mean()) == pytest.approx(1, abs=1e-12)
    independent = normal(4000, 1, 9, 2, seed=1)
    again = scored(normal(4000, 1, 9, 2, seed=2), trajectory(independent))
    assert again["nrmse"].value == pytest.approx(2**0.5, abs=0.02)


def test_the_context_frame_counts_nowhere():
    states = TRUTH.states.clone()
    states[:, :, 0] = 1e9
    assert scored(states)["nrmse"].value == 0
    assert scored(states)["valid_to_horizon"].value == 1
    assert scored(states)["nrmse_time"].value.shape == (8,)


def test_error_growth_is_what_was_put_in():
    scale = component_scale(TRUTH.states[:, 0, 1:], torch.ones(N, 8, dtype=torch.bool))
    error = torch.linspace(0, 0.8, 9, dtype=torch.float64)
    scores = scored(TRUTH.states + scale * error[:, None])
    torch.testing.assert_close(torch.as_tensor(scores["nrmse_time"].value), error[1:])
    assert scores["nrmse"].value == pytest.approx(0.45)
    assert scores["nrmse"].interval == pytest.approx((0.45, 0.45))
    assert list(scores["nrmse_time"].coords["time"]) == TIMES[1:].tolist()
    assert scored(TRUTH.states + scale * error[:, None], threshold=0.45)["valid_time"].value == 2.5


def test_the_interval_covers_the_population_value():
    covered = 0
    for seed in range(100):
        truth = trajectory(normal(60, 1, 4, 1, seed=seed))
        interval = scored(normal(60, 1, 4, 1, seed=1000 + seed), truth)["nrmse"].interval
        covered += interval[0] < 2**0.5 < interval[1]
    assert 85 <= covered <= 100


def test_valid_time_is_the_median_over_trajectories_and_counts_those_that_never_cross():
    states = TRUTH.states.clone()
    for row in range(24):
        states[row, :, 3:] = 1e9
    scores = scored(states)
    assert scores["valid_time"].value == 1.5
    assert scores["valid_to_horizon"].value == pytest.approx(16 / 40)
    assert scores["valid_time"].interval == (1.5, 4.0)


def test_one_trajectory_is_measured_by_its_spread_in_time():
    one = trajectory(torch.arange(9.0, dtype=torch.float64).reshape(1, 1, 9, 1))
    scores = scored(one.states + 1, one)
    assert scores["nrmse"].value == pytest.approx(1 / math.sqrt(63 / 12))
    assert scores["nrmse"].interval is None
    assert scores["nrmse"].n == 1


def test_a_component_that_never_varies_takes_the_scale_of_the_others():
    states = normal(N, 1, 9, 2)
    states[..., 1] = 7
    scores = scored(states + torch.tensor([0.0, 1.0]), trajectory(states))
    assert scores["nrmse"].value == pytest.approx(2**-0.5 / float(states[:, :, 1:, 0].std(correction=0)))
    with pytest.raises(NotMeasurable, match="never varies"):
        scored(torch.ones(3, 1, 9, 1), trajectory(torch.ones(3, 1, 9, 1)))


def test_draws_are_scored_by_their_mean_and_by_the_fair_crps():
    truth = trajectory(normal(3000, 1, 2, 1))
    expected = 1 / math.sqrt(math.pi)
    for draws in (2, 10):
        scores = scored(normal(3000, draws, 2, 1, seed=1), truth)
        low, high = scores["crps"].interval
        assert scores["crps"].value == pytest.approx(expected, abs=3 * (high - low) / 4)
        assert scores["nrmse"].value == pytest.approx(math.sqrt(1 + 1 / draws), abs=0.05)
    assert "crps" not in scored(TRUTH.states)


def test_crps_of_two_draws_by_hand():
    truth = trajectory(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64).reshape(1, 1, 3, 1))
    draws = torch.tensor([[0, 1, 1], [0, 4, 1]], dtype=torch.float64).reshape(1, 2, 3, 1)
    # The spread of the truth after frame 0 is 1: ((1 + 4) / 2 - 3 / 2, 1 - 0) over the two times.
    assert scored(draws, truth)["crps"].value == pytest.approx(1.0)


@pytest.mark.trial(7)
def test_a_rollout_that_explodes_is_counted_and_never_averaged_away():
    states = TRUTH.states.clone()
    states[5, :, 4:] = math.nan
    states[6, :, 6] = math.inf
    scores = scored(states)
    assert math.isnan(scores["nrmse"].value)
    assert scores["nrmse"].failed == 2
    assert scores["nrmse"].reason == "2 of 40 rollouts are not finite from t=12"
    assert scores["nrmse_time"].value[:3].tolist() == [0, 0, 0]
    assert all(math.isnan(value) for value in scores["nrmse_time"].value[3:])
    assert scores["valid_to_horizon"].value == pytest.approx(38 / 40)
    assert scores["valid_time"].failed == 2


def test_what_has_no_finite_square_is_not_finite():
    states = TRUTH.states.clone()
    states[2, :, 5:] = 1e200
    scores = scored(states)
    assert scores["nrmse"].failed == 1
    assert "not finite from t=" in scores["nrmse"].reason


def test_ragged_ends_are_masked():
    length = torch.full((N, 1), 9)
    length[:20] = 5
    states = TRUTH.states.clone()
    states[:20, :, 5:] = math.nan
    ragged = TRUTH.replace(states=states, length=length)
    scores = scored(TRUTH.states, ragged)
    assert scores["nrmse"].value == 0
    assert scores["nrmse"].failed == 0
    assert scores["valid_time"].value == 3
    scale = component_scale(states[:, 0, 1:], torch.arange(1, 9) < length)
    assert scored(TRUTH.states + scale, ragged)["nrmse"].value == pytest.approx(1)
    with pytest.raises(ValueError, match="length"):
        scored(TRUTH.states, ragged.replace(length=None))


def test_what_does_not_match_is_refused():
    with pytest.raises(ValueError, match="may differ in draw alone"):
        scored(TRUTH.states[..., :1])
    with pytest.raises(ValueError, match="times"):
        Rollout(None).score(TRUTH, TRUTH.replace(times=TIMES + 1), None)
    with pytest.raises(NotMeasurable, match="longer horizon"):
        Rollout(None).score(TRUTH.span(8), TRUTH.span(8), None)


class Stated:
    def stated_accuracy(self):
        return {"earth": 1e-5, "mars": 2e-5}


def test_bodies_have_position_errors_in_their_own_units():
    labels = {"body": ("mars", "earth"), "component": ("x", "y", "z", "vx", "vy", "vz")}
    truth = Trajectory(
        normal(3, 1, 5, 2, 6), TIMES[:5], axes=("body", "component"), labels=labels, units={"x": "AU"}
    )
    moved = truth.states.clone()
    moved[..., 1, :3] += torch.tensor([3.0, 0.0, 4.0]) * torch.arange(5.0)[:, None]
    moved[..., 3:] += 100
    scores = Rollout(Stated()).score(truth, truth.replace(states=moved), None)
    assert scores["position_error"].value.tolist() == pytest.approx([0, 12.5])
    assert scores["position_error"].coords == {"body": ["mars", "earth"]}
    assert scores["position_error"].units == "AU"
    assert scores["position_error_time"].value[1].tolist() == pytest.approx([5, 10, 15, 20])
    assert scores["position_floor"].value.tolist() == [2e-5, 1e-5]
    assert "position_floor" not in Rollout(None).score(truth, truth, None)
    assert "position_error" not in scored(TRUTH.states)


def test_tokens_have_validity_alone_and_nothing_is_legal_after_an_illegal_one():
    system = Automaton(preset="lattice", states=3)
    generator, times = seeded(0), torch.arange(6, dtype=torch.float64)
    truth = system.simulate(system.sample(30, generator), times, None, generator)
    assert Rollout(system).score(truth, truth, None) == {
        "token_validity": Rollout(system).score(truth, truth, None)["token_validity"]
    }
    assert Rollout(system).score(truth, truth, None)["token_validity"].value == 1
    right = truth.replace(states=torch.full_like(truth.states, system.alphabet.index("R")))
    room = 2 - truth.observables["automaton_state"][:, 0, 0].double()
    score = Rollout(system).score(truth, right, None)["token_validity"]
    assert score.value == pytest.approx(float(room.mean() / 5))
    assert score.better == "higher"
    assert (
        Rollout(system).score(truth, truth.replace(states=truth.states + 9), None)["token_validity"].value
        == 0
    )
    with pytest.raises(NotMeasurable, match="automaton"):
        Rollout(None).score(truth, truth, None)


def test_intervals_need_enough_values():
    assert mean_interval(torch.ones(1)) is None
    assert mean_interval(torch.tensor([1.0, 3.0])) == pytest.approx((2 - 12.706205, 2 + 12.706205))
    assert median_interval(torch.arange(5.0)) is None
    assert median_interval(torch.arange(6.0)) == (0, 5)
    assert median_interval(torch.arange(20.0)) == (5, 14)


def test_a_state_without_axes_is_one_component():
    states = normal(4, 1, 9)
    assert compare(trajectory(states), trajectory(states)).truth.shape == (4, 8, 1)
