import math

import pytest
import torch

from worldsim import Trajectory
from worldsim_plugins.metrics.climate import Climate
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)
TIMES = 0.5 * torch.arange(17, dtype=torch.float64)
DISTANCES = ("marginal_w1", "state_divergence", "spectrum_distance")


def walk(seed, n=24, **settings):
    system, generator = OrnsteinUhlenbeck(**settings), torch.Generator().manual_seed(seed)
    return system.simulate(system.sample(n, generator), TIMES, None, generator)


def test_an_equal_law_is_at_the_floor_and_others_are_above():
    metric, truth = Climate(OrnsteinUhlenbeck(), bins=10), walk(1)
    same = metric.score(truth, walk(2), None)
    shifted = metric.score(truth, walk(2, mean=2.0), None)
    faster = metric.score(truth, walk(2, rate=8.0), None)
    for name in DISTANCES:
        assert 0.3 < same[name].value / same[name].floor < 2.5
        assert same[name].floor < same[f"{name}_floor_q95"].value
    assert shifted["marginal_w1"].value > 3 * same["marginal_w1"].floor
    assert shifted["state_divergence"].value > 3 * same["state_divergence"].floor
    # The spectrum sees no mean, and the marginal no order in time.
    assert shifted["spectrum_distance"].value == pytest.approx(same["spectrum_distance"].value)
    assert faster["spectrum_distance"].value > faster["spectrum_distance_floor_q95"].value


def test_the_truth_itself_is_at_zero():
    scores = Climate(OrnsteinUhlenbeck()).score(walk(1), walk(1), None)
    assert [scores[name].value for name in DISTANCES] == pytest.approx([0, 0, 0], abs=1e-7)
    assert scores["blow_up_rate"].value == scores["blow_up_rate"].floor == 0


def test_a_shuffled_truth_has_the_climate_of_the_truth():
    truth = walk(1)
    scores = Climate(OrnsteinUhlenbeck()).score(truth, truth.rows(torch.arange(23, -1, -1)), None)
    assert [scores[name].value for name in DISTANCES] == pytest.approx([0, 0, 0], abs=1e-7)


def test_a_constant_is_far_away():
    metric, truth = Climate(OrnsteinUhlenbeck(), bins=10), walk(1)
    mean = truth.replace(states=truth.states * 0 + truth.states.mean())
    scores = metric.score(truth, mean, None)
    assert all(scores[name].value > 3 * scores[name].floor for name in DISTANCES)
    assert scores["spectrum_distance"].value == 1


@pytest.mark.trial(7)
def test_blow_ups_are_counted_and_what_is_lost_is_not_measured():
    truth, states = walk(1), walk(2).states.clone()
    states[0, 0, 9:] = 1e3
    far = Climate(OrnsteinUhlenbeck()).score(truth, truth.replace(states=states), None)
    assert far["blow_up_rate"].value == 1 / 24
    assert far["marginal_w1"].failed == 0
    states[1, 0, 5:] = math.nan
    lost = Climate(OrnsteinUhlenbeck()).score(truth, truth.replace(states=states), None)
    assert lost["blow_up_rate"].value == 2 / 24
    assert math.isnan(lost["marginal_w1"].value)
    assert lost["marginal_w1"].failed == 1


def test_too_many_dimensions_for_bins_and_ragged_ends_for_spectra():
    scores = Climate(OrnsteinUhlenbeck(dim=4)).score(walk(1, dim=4), walk(2, dim=4), None)
    assert "at most 3 components" in scores["state_divergence"].reason
    assert scores["marginal_w1"].floor > 0
    assert len(scores["marginal_w1_component"].value) == 4
    length = torch.full((24, 1), 17)
    length[0] = 5
    scores = Climate(OrnsteinUhlenbeck()).score(walk(1).replace(length=length), walk(2), None)
    assert "different times" in scores["spectrum_distance"].reason
    assert scores["state_divergence"].value > 0


def test_fixed_starts_leave_no_floor():
    class Fixed(OrnsteinUhlenbeck):
        def sample(self, n, generator):
            return torch.zeros(n, 1, dtype=torch.float64)

        def simulate(self, start, times, actions, generator):
            return Trajectory(times.sin().expand(len(start), 1, -1)[..., None], times)

    truth = Fixed().simulate(torch.zeros(20, 1), TIMES, None, None)
    scores = Climate(Fixed()).score(truth, truth, None)
    assert scores["marginal_w1"].floor is None
    assert "fixed" in scores["marginal_w1_floor_q95"].reason


def test_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        Climate(Automaton(preset="lattice"))
