"""Ensembles as forecasts: the true system at its floor, others above; what cannot be measured says so."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.forecast import Forecast
from worldsim_plugins.metrics.rollout import Rollout
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)
TIMES = torch.arange(7, dtype=torch.float64) * 0.3
SYSTEM = OrnsteinUhlenbeck()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def truth(n=100, seed=104):
    generator = seeded(seed)
    return SYSTEM.simulate(SYSTEM.sample(n, generator), TIMES, None, generator)


def ensemble(of, draws=8, seed=504, **law):
    """Futures of the last given states under another law."""
    system = OrnsteinUhlenbeck(**law)
    rows = of.states[:, 0, 0].repeat_interleave(draws, 0)
    made = system.simulate(system.restart(rows), TIMES, None, seeded(seed)).states
    return of.replace(states=made[:, 0].reshape(len(of), draws, len(TIMES), -1))


def scored(prediction, of, **settings):
    return Forecast(SYSTEM, **settings).score(of, prediction, None)


def test_the_true_system_is_at_its_floor():
    scores = scored(ensemble(truth()), truth())
    for name in ("fair_crps", "energy_score"):
        one = scores[name]
        assert one.interval[0] < one.floor < one.interval[1]
        assert scores[f"{name}_floor_q95"].value > one.floor > 0
        assert scores[f"{name}_ratio"].value == pytest.approx(one.value / one.floor)
        assert one.n == 100
    assert scores["spread_skill"].interval[0] < 1 < scores["spread_skill"].interval[1]
    assert scores["spread_skill"].floor == pytest.approx(1, abs=0.05)
    assert scores["rank_chi_square"].floor == 8
    assert scores["rank_p_value"].value > 0.01
    assert scores["rank_histogram"].value.sum() == 100
    assert scores["fair_crps_time"].value.shape == (6,)


@pytest.mark.parametrize("law", [{"mean": 1.5}, {"rate": 20.0}], ids=["biased", "too sure"])
def test_a_wrong_law_is_above_it(law):
    right, wrong = (scored(ensemble(truth(), **each), truth()) for each in ({}, law))
    for name in ("fair_crps", "energy_score"):
        assert wrong[name].value > max(right[name].value, wrong[f"{name}_floor_q95"].value)
    assert wrong["rank_p_value"].value < 1e-3
    assert wrong["spread_skill_error"].value > right["spread_skill_error"].value
    assert wrong["rank_chi_square"].value > right["rank_chi_square"].value


def test_its_crps_is_that_of_rollout():
    prediction = ensemble(truth())
    found = Rollout(SYSTEM).score(truth(), prediction, None)["crps"]
    mine = scored(prediction, truth())["fair_crps"]
    assert mine.value == pytest.approx(found.value, rel=1e-12)
    assert mine.interval == pytest.approx(found.interval, rel=1e-12)


def test_a_world_without_noise_forecasts_itself_without_error():
    class Still(OrnsteinUhlenbeck):
        def simulate(self, start, times, actions, generator):
            states = start[:, None, None] * (-times).exp()[:, None]
            return Trajectory(states, times)

    system = Still()
    exact = system.simulate(torch.randn(30, 1, generator=seeded(0), dtype=torch.float64), TIMES, None, None)
    guess = exact.replace(states=exact.states.expand(-1, 4, -1, -1))
    scores = Forecast(system).score(exact, guess, None)
    assert scores["fair_crps"].value == scores["fair_crps"].floor == 0
    assert "no unit" in scores["fair_crps_ratio"].reason
    assert "no spread" in scores["spread_skill"].reason or "no error" in scores["spread_skill"].reason
    assert (scores["spread_skill"].better, scores["spread_skill_error"].better) == ("", "lower")


def test_ragged_ends_are_left_out_and_leave_no_floor():
    whole = truth(40)
    length = torch.full((40, 1), 7)
    length[::2] = 4
    states = whole.states.clone()
    states[::2, :, 4:] = math.nan
    ragged = whole.replace(states=states, length=length)
    scores = scored(ensemble(whole), ragged)
    assert math.isfinite(scores["fair_crps"].value)
    assert scores["fair_crps"].floor is None
    assert "different times" in scores["energy_score_ratio"].reason
    short = scored(ensemble(whole).rows(slice(0, 40, 2)).span(0, 4), whole.rows(slice(0, 40, 2)).span(0, 4))
    long = scored(ensemble(whole).rows(slice(1, 40, 2)), whole.rows(slice(1, 40, 2)))
    assert short["fair_crps"].value > 0
    assert long["fair_crps"].value > 0


def test_what_cannot_be_measured_says_so():
    of, guess = truth(), ensemble(truth())
    with pytest.raises(NotMeasurable, match="one draw is no ensemble"):
        scored(of, of)
    with pytest.raises(NotMeasurable, match="tokens"):
        scored(of, of.replace(states=of.states[..., 0].long()))
    broken = guess.states.clone()
    broken[2, 1, 3:] = math.inf
    lost = scored(guess.replace(states=broken), of)
    assert lost["fair_crps"].failed == 1
    assert all(math.isnan(one.value) for one in lost.values())
    few = scored(guess.rows(slice(0, 9)), of.rows(slice(0, 9)))
    assert "too few" in few["rank_chi_square"].reason

    class Once:
        sample, simulate = SYSTEM.sample, SYSTEM.simulate

    alone = Forecast(Once()).score(of, guess, None)
    assert "cannot be restarted" in alone["fair_crps_ratio"].reason
    assert alone["fair_crps"].floor is None


def test_the_same_seed_gives_the_same_scores_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second = (scored(ensemble(truth()), truth(), seed=3) for _ in range(2))
    assert first["fair_crps"] == second["fair_crps"]
    assert first["rank_chi_square"] == second["rank_chi_square"]
    assert torch.equal(before, torch.get_rng_state())
