import math

import pytest
import torch
from torch import nn

from worldsim import NotMeasurable, Trajectory
from worldsim.baselines import Constant, Persistence, Truth
from worldsim.wrapped import Wrapped
from worldsim_plugins.metrics.chaos import Chaos
from worldsim_plugins.metrics.comparison import compare
from worldsim_plugins.metrics.rollout import valid_time
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.lorenz import Lorenz
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import DrivenPendulum

torch.set_num_threads(1)
TIMES = torch.arange(31, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Logistic:
    """x' = r x (1 - x); lambda_1 = log 2 at r = 4 (Ruelle), from its density 1 / (pi sqrt(x (1 - x)))."""

    axes = ("component",)

    def __init__(self, rate=4.0):
        self.rate = rate

    def sample(self, n, generator):
        u = torch.rand(n, 1, dtype=torch.float64, generator=generator)
        return (1 - torch.cos(math.pi * u)) / 2

    def restart(self, states):
        return states

    def simulate(self, start, times, actions, generator):
        frames = [start]
        for _ in times[1:]:
            frames.append(self.rate * frames[-1] * (1 - frames[-1]))
        return Trajectory(torch.stack(frames, 1)[:, None], times, axes=self.axes, units={"time": "s"})


def simulated(system, n=20, times=TIMES, seed=0):
    generator = seeded(seed)
    return system.simulate(system.sample(n, generator), times, None, generator)


def scored(system, truth, model, **settings):
    guess = model.rollout(truth.span(0, 1), truth.times, None, 1, seeded(3))
    return Chaos(system, **settings).score(truth, guess, model)


def test_the_logistic_map_has_the_exponent_log_2():
    truth = simulated(Logistic())
    scores = scored(Logistic(), truth, Truth(Logistic(), truth))
    found = scores["lyapunov_max"]
    assert found.floor == pytest.approx(math.log(2), abs=5e-3)
    assert found.interval[0] < math.log(2) < found.interval[1]
    assert found.units == scores["lyapunov_error"].units == "(s)-1"
    assert scores["lyapunov_error"].value < 3 * scores["lyapunov_error"].floor
    assert scores["lyapunov_spectrum_truth"].value.tolist() == [found.floor]
    # The truth holds for ever: 30 frames of ln 2 each.
    assert scores["valid_lyapunov_times"].value == pytest.approx(30 * found.floor)
    assert scores["correlation_time"].value == scores["correlation_time"].floor == 30


def test_a_wrong_rate_has_another_exponent_and_a_shorter_horizon():
    truth = simulated(Logistic())
    scores = scored(Logistic(), truth, Truth(Logistic(3.8), truth))
    assert scores["lyapunov_error"].value > 5 * scores["lyapunov_error"].floor
    assert scores["valid_lyapunov_times"].value < scores["valid_lyapunov_times"].floor / 4
    assert scores["correlation_time"].value < 5


def test_persistence_is_not_chaotic_and_a_constant_has_no_derivative():
    truth = simulated(Logistic())
    scores = scored(Logistic(), truth, Persistence(Logistic(), truth))
    assert scores["lyapunov_max"].value == pytest.approx(0, abs=1e-9)
    scores = scored(Logistic(), truth, Constant(Logistic(), truth))
    assert math.isnan(scores["lyapunov_error"].value)
    assert "no derivative but 0" in scores["lyapunov_error"].reason


def test_a_period_is_no_chaos():
    system = Logistic(3.2)
    truth = simulated(system)
    scores = scored(system, truth, Truth(system, truth))
    assert math.isnan(scores["valid_lyapunov_times"].value)
    assert "not chaotic" in scores["valid_lyapunov_times"].reason
    # |F'(x1) F'(x2)| = |4 + 2 r - r^2| on the cycle of two.
    assert scores["lyapunov_max"].floor == pytest.approx(math.log(abs(4 + 2 * 3.2 - 3.2**2)) / 2, abs=0.02)


@pytest.mark.parametrize(("bits", "horizon"), [(10, 7), (20, 17), (30, 27)])
def test_the_doubling_map_holds_for_the_closed_form_horizon(bits, horizon):
    """floor(log2(eta / delta0)) + 1 at eta = 0.1; every even binary digit of 2/3 is 0, so nothing carries."""
    start = torch.tensor([[2 / 3], [2 / 3 + 2.0**-bits]], dtype=torch.float64)
    frames = [start]
    for _ in range(30):
        frames.append((2 * frames[-1]) % 1)
    states = torch.stack(frames, 1)[:, None]
    both = compare(Trajectory(states[:1], TIMES), Trajectory(states[1:], TIMES))
    distance = (both.mean - both.truth).norm(dim=-1)
    assert valid_time(both, distance, 0.1, "1")["valid_time"].value == horizon


def test_the_flow_of_lorenz_contracts_by_its_divergence():
    system = Lorenz(warm_up=5.0)
    truth = simulated(system, times=0.1 * torch.arange(4, dtype=torch.float64))
    scores = scored(system, truth, Persistence(system, truth), walkers=2, steps=10, transient=0)
    found = scores["lyapunov_spectrum_truth"].value
    assert found.sum() == pytest.approx(-13.6667, abs=5e-5)
    assert found[0] > 0 > found[1] - 1
    assert found[2] < -10


class Turning(nn.Module):
    """x' = A x, with the derivative that torch sees in its own units."""

    scaling = "component"

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def rollout(self, context, times, actions, draws, generator):
        frames = [context.states[:, 0, -1]]
        for _ in times[1:]:
            frames.append(frames[-1] @ self.matrix.to(frames[-1]).T)
        states = torch.stack(frames, 1)[:, None]
        return context.replace(states=states.expand(-1, draws, -1, -1), times=times)


class Folded(Logistic):
    """Two logistic maps."""

    def sample(self, n, generator):
        return super().sample(2 * n, generator).reshape(n, 2)


@pytest.mark.parametrize("context", [1, 2])
def test_a_linear_model_has_the_logarithms_of_its_moduli(context):
    system = Folded()
    whole = simulated(system, times=torch.arange(12, dtype=torch.float64))
    matrix = torch.tensor([[0.9, 0.0], [0.5, -0.3]])
    model = Wrapped(lambda truth: Turning(matrix), "component", whole)
    truth = whole.span(context - 1)
    guess = model.rollout(whole.span(0, context), truth.times, None, 1, seeded(0))
    scores = Chaos(system, steps=20).score(truth, guess, model)
    expected = torch.tensor([0.9, 0.3], dtype=torch.float64).log()
    torch.testing.assert_close(
        torch.as_tensor(scores["lyapunov_spectrum"].value), expected, rtol=0, atol=1e-5
    )
    assert scores["lyapunov_max"].failed == 0


def test_a_stochastic_truth_has_no_exponent():
    system = OrnsteinUhlenbeck()
    truth = simulated(system, times=TIMES[:6])
    scores = scored(system, truth, Persistence(system, truth))
    assert "stochastic" in scores["lyapunov_error"].reason
    assert math.isnan(scores["valid_lyapunov_times"].value)
    assert scores["correlation_time"].value > 0


def test_a_model_that_breaks_is_counted():
    class Broken(Persistence):
        def rollout(self, context, times, actions, draws, generator):
            raise RuntimeError("no forecast")

    truth = simulated(Logistic())
    scores = Chaos(Logistic(), steps=20).score(truth, truth, Broken(Logistic(), truth))
    assert scores["lyapunov_error"].failed == 8
    assert "no forecast" in scores["lyapunov_error"].reason
    assert (scores["lyapunov_max"].better, scores["lyapunov_error"].better) == ("", "lower")
    assert scores["valid_lyapunov_times"].value > 10


def test_what_it_cannot_be_asked_of_is_refused():
    with pytest.raises(ValueError, match="driven"):
        Chaos(DrivenPendulum())
    with pytest.raises(ValueError, match="tokens"):
        Chaos(Automaton(preset="lattice"))
    truth = simulated(Logistic(), times=TIMES[:1])
    with pytest.raises(NotMeasurable, match="no frame is left"):
        Chaos(Logistic()).score(truth, truth, None)
