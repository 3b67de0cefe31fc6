"""Errors of observables: closed numbers, broken rollouts, and what is refused."""

import pytest
import torch

from worldsim import NotMeasurable
from worldsim_plugins.metrics.observables import Observables
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.van_der_pol import VanDerPol

torch.set_num_threads(1)
SYSTEM, TIMES = Pendulum(damping=0.3), torch.arange(11, dtype=torch.float64) / 2
GENERATOR = torch.Generator().manual_seed(0)
TRUTH = SYSTEM.simulate(SYSTEM.sample(20, GENERATOR), TIMES, None, GENERATOR)


def faster(factor):
    states = TRUTH.states.clone()
    states[..., 1] *= factor
    return TRUTH.replace(states=states)


def test_the_error_is_that_of_the_true_energy_in_its_units():
    guess = faster(torch.linspace(1, 2, 11, dtype=torch.float64))
    apart = (SYSTEM.energy(guess.states) - SYSTEM.energy(TRUTH.states))[:, 0, 1:]
    scores = Observables(SYSTEM, of=["energy"]).score(TRUTH, guess, None)
    found = scores["error_energy"]
    assert found.value == pytest.approx(float(apart.square().mean().sqrt()))
    assert (found.units, found.floor, found.n) == ("J", 0.0, 20)
    assert found.interval[0] < found.value < found.interval[1]
    torch.testing.assert_close(
        torch.as_tensor(scores["error_energy_time"].value), apart.square().mean(0).sqrt()
    )
    own = Observables(SYSTEM, of=["energy"]).score(TRUTH, TRUTH, None)["error_energy"]
    assert own.value == 0.0


@pytest.mark.trial(7)
def test_a_broken_rollout_has_no_number_and_keeps_its_curve_until_then():
    guess = TRUTH.replace(states=TRUTH.states.clone())
    guess.states[3, 0, 5:] = torch.nan
    scores = Observables(SYSTEM, of=["energy"]).score(TRUTH, guess, None)
    assert scores["error_energy"].value != scores["error_energy"].value
    assert "not finite from t=2.5" in scores["error_energy"].reason
    curve = torch.as_tensor(scores["error_energy_time"].value)
    assert curve[:4].isfinite().all()
    assert curve[4:].isnan().all()


def test_what_a_system_does_not_observe_is_refused():
    with pytest.raises(ValueError, match="no observable heat; there are energy"):
        Observables(SYSTEM, of=["heat"])
    with pytest.raises(NotMeasurable, match="no observables"):
        Observables(VanDerPol(), of=["energy"]).score(TRUTH, TRUTH, None)
