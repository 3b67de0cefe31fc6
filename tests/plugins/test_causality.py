import math

import pytest
import torch
from torch import nn

from worldsim import NotMeasurable
from worldsim.baselines import Constant, Persistence, Truth
from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.neural_ode import NeuralODE
from worldsim_plugins.metrics.causality import Causality
from worldsim_plugins.metrics.comparison import component_scale, within
from worldsim_plugins.metrics.interventions import Experiments
from worldsim_plugins.systems.mass_spring import DrivenMassSpring
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.transported_fields import Advection

torch.set_num_threads(1)
SYSTEM = DrivenMassSpring(bodies=1)
TIMES = 0.5 * torch.arange(9, dtype=torch.float64)


def simulated(system=SYSTEM, n=8, times=TIMES):
    generator = torch.Generator().manual_seed(0)
    actions = system.sample_actions(n, times, generator) if hasattr(system, "sample_actions") else None
    return system.simulate(system.sample(n, generator), times, actions, generator)


TRUTH = simulated()


def scored(model, system=SYSTEM, truth=TRUTH, **settings):
    return Causality(system, **settings).score(truth, truth, model)


def values(scores, *names):
    return [scores[name].value for name in names]


def test_the_truth_is_exact_and_its_own_floor():
    scores = scored(Truth(SYSTEM, TRUTH))
    errors = ("action_leak", "counterfactual_error", "effect_error", "ate_error")
    assert values(scores, *errors) == pytest.approx([0, 0, 0, 0], abs=1e-12)
    assert scores["action_leak"].value == 0
    assert [scores[name].floor for name in errors] == [0, 0, 0, 0]
    assert scores["action_sensitivity"].value == pytest.approx(1)
    assert "not differentiable" in scores["temporal_leak"].reason
    assert scores["effect_error"].n == 64


def test_who_ignores_the_action_misses_all_of_its_effect():
    scores = scored(Persistence(SYSTEM, TRUTH))
    assert values(scores, "effect_error", "ate_error", "action_sensitivity", "action_leak") == [1, 1, 0, 0]
    assert scores["counterfactual_error"].value > 0.3


def test_a_wrong_law_lies_between():
    wrong, null = (
        scored(model)
        for model in (Truth(DrivenMassSpring(bodies=1, stiffness=1.5), TRUTH), Persistence(SYSTEM, TRUTH))
    )
    for name in ("counterfactual_error", "effect_error", "ate_error"):
        assert 0 < wrong[name].value < null[name].value
    low, high = wrong["effect_error"].interval
    assert low < wrong["effect_error"].value < high


class Twice(DrivenMassSpring):
    """Answers each force with the motion of twice that force, less that of none: effects double exactly."""

    def simulate(self, start, times, actions, generator):
        return super().simulate(start, times, 2 * actions, generator).replace(actions=actions)


def test_a_linear_world_whose_model_feels_double_forces():
    scores = scored(Truth(Twice(bodies=1), TRUTH))
    assert values(scores, "action_sensitivity", "effect_error", "ate_error") == pytest.approx([2, 1, 1])


class Oracle(Truth):
    """The truth, moved by the mean of all actions, those to come included."""

    def rollout(self, context, times, actions, draws, generator):
        out = super().rollout(context, times, actions, draws, generator)
        states = out.states.clone()
        states[:, :, 1:] += 0.1 * actions.mean((1, 2))[:, None, None, None]
        return out.replace(states=states)


def test_a_forecast_that_knows_later_actions_is_caught():
    assert scored(Oracle(SYSTEM, TRUTH))["action_leak"].value > 1e-3


def test_a_neural_ode_is_causal_exactly():
    model = Wrapped(lambda truth: NeuralODE(truth, width=8), "component", TRUTH)
    scores = scored(model)
    assert values(scores, "temporal_leak", "action_leak") == [0, 0]
    assert scores["temporal_leak"].floor == 0
    assert scores["temporal_leak"].n == 4
    assert scores["effect_error"].value > 0.1


class Smoothed(nn.Module):
    """A window model: each frame is moved by the mean of all actions, by gradient too."""

    scaling = "none"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def rollout(self, context, times, actions, draws, generator):
        last = context.states[:, :1, -1:].expand(-1, draws, len(times), -1)
        pushed = self.weight * actions.mean((1, 2)).to(last)
        return context.replace(states=last + pushed[:, None, None, None], times=times)


def test_the_jacobian_has_the_leak_of_a_mean():
    model = Wrapped(lambda truth: Smoothed(), "none", TRUTH)
    scores = scored(model)
    scale = component_scale(TRUTH.states[:, 0], within(TRUTH))  # of all frames, as the metric has it
    spread = Experiments.designed(SYSTEM, TRUTH, scale, 4, 16, 0).first[:1].std()
    expected = float(spread / len(TIMES) / scale.min())
    assert scores["temporal_leak"].value == pytest.approx(expected, rel=1e-5)
    assert scores["action_leak"].value > 1e-3


class Noisy(DrivenMassSpring):
    """Ends of the chain jitter."""

    def simulate(self, start, times, actions, generator):
        exact = super().simulate(start, times, actions, generator)
        noise = torch.randn(exact.states.shape, generator=generator, dtype=torch.float64)
        return exact.replace(states=exact.states + 0.1 * noise)


def test_the_floor_of_a_stochastic_world_is_its_noise():
    system = Noisy(bodies=1)
    scores = scored(Truth(system, TRUTH), system, simulated(system))
    floor = scores["counterfactual_error"].floor
    assert floor > 0.05
    # Effects are of one noise, which cancels: its floor is rounding.
    assert scores["effect_error"].floor < 1e-9


def test_a_longer_context_has_one_past_for_both_plans():
    model = Persistence(SYSTEM, TRUTH)
    scores = scored(model, truth=TRUTH.span(3))
    assert scores["effect_error"].value == 1


def test_what_breaks_is_counted():
    class Broken(Persistence):
        def rollout(self, context, times, actions, draws, generator):
            out = super().rollout(context, times, actions, draws, generator)
            return out.replace(states=out.states / 0)

    scores = scored(Broken(SYSTEM, TRUTH))
    assert scores["effect_error"].failed == 64
    assert math.isnan(scores["action_leak"].value)
    assert "not finite" in scores["action_leak"].reason
    assert (scores["action_sensitivity"].better, scores["effect_error"].better) == ("", "lower")


FIELD = Advection(points=32, length=1.0, speed=1.0)
FRAMES = torch.arange(6, dtype=torch.float64) / 16  # two cells a frame
WAVE = simulated(FIELD, times=FRAMES)


def cone(model, **settings):
    return Causality(FIELD, **settings).score(WAVE, WAVE, model)["light_cone_leak"]


def test_a_transported_field_stays_in_its_cone():
    right = cone(Truth(FIELD, WAVE), speed=1.0, stencil=0)
    assert right.value == pytest.approx(0, abs=1e-20)
    assert right.floor == right.value
    fast = cone(Truth(Advection(points=32, length=1.0, speed=2.0), WAVE), speed=1.0)
    assert fast.value > 0.7
    assert fast.floor < 1e-20
    assert cone(Truth(FIELD, WAVE), speed=0.5).value > 0.5


def test_who_does_not_respond_has_no_cone():
    found = cone(Constant(FIELD, WAVE), speed=1.0)
    assert math.isnan(found.value)
    assert found.failed == 16
    assert "do not respond" in found.reason
    assert cone(Persistence(FIELD, WAVE), speed=1.0).value == 0


def test_what_it_cannot_be_asked_of_is_refused():
    with pytest.raises(ValueError, match="takes no actions"):
        Causality(Pendulum())
    with pytest.raises(ValueError, match="takes no actions"):
        Causality(FIELD)
    with pytest.raises(ValueError, match="no field"):
        Causality(OrnsteinUhlenbeck(), speed=1.0)
    with pytest.raises(NotMeasurable, match="two frames"):
        scored(Persistence(SYSTEM, TRUTH), truth=TRUTH.span(7))
