import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.exact_transport import wasserstein2
from worldsim_plugins.metrics.transport import Wasserstein
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)
TIMES = torch.arange(11, dtype=torch.float64) * 0.5


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_a_translation_costs_exactly_its_square_and_not_half():
    x, m = normal(200, 3), tensor(0.3, 0.4, -1.2)
    found = wasserstein2(x, x + m)
    assert found.W2_squared == pytest.approx(float(m @ m), abs=1e-12)
    assert torch.equal(found.plan.argmax(1), torch.arange(200))


def test_on_the_line_the_optimum_sorts():
    x, y = normal(150, 1), normal(150, 1, seed=1).exp()
    expected = float((x.sort(0).values - y.sort(0).values).square().mean())
    assert wasserstein2(x, y).W2_squared == pytest.approx(expected, abs=1e-12)


def test_a_point_mass_against_the_uniform_law():
    n = 1000
    grid = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    found = wasserstein2(tensor([0.5]), grid)
    assert found.W2_squared == pytest.approx(1 / 12 - 1 / (12 * n**2), abs=1e-12)


def test_plan_and_potentials_prove_optimality():
    x, y = normal(40, 2), 1 + normal(60, 2, seed=1)
    found = wasserstein2(x, y)
    f, g = found.potentials
    slack = torch.cdist(x, y).square() - f[:, None] - g
    torch.testing.assert_close(found.plan.sum(1), torch.full((40,), 1 / 40, dtype=torch.float64))
    torch.testing.assert_close(found.plan.sum(0), torch.full((60,), 1 / 60, dtype=torch.float64))
    assert float(slack.min()) > -1e-10
    assert float(slack[found.plan > 1e-12].max()) < 1e-10
    assert float(f.mean() + g.mean()) == pytest.approx(found.W2_squared, abs=1e-10)


def test_uniform_samples_have_the_exact_floor():
    n, repeats = 16, 400
    draws = torch.rand(repeats, 2, n, 1, generator=seeded(0), dtype=torch.float64)
    found = tensor(*[wasserstein2(x, y).W2_squared for x, y in draws])
    error = float(found.std()) / repeats**0.5
    assert abs(float(found.mean()) - 1 / (3 * (n + 1))) < 3 * error


def test_the_standard_error_is_that_of_repeated_samples():
    found = [
        wasserstein2(normal(128, 2, seed=seed), 1.5 * normal(128, 2, seed=1000 + seed)) for seed in range(60)
    ]
    spread = float(tensor(*[one.W2_squared for one in found]).std())
    stated = float(tensor(*[one.standard_error for one in found]).mean())
    assert 0.75 < stated / spread < 1.33


@pytest.mark.parametrize(
    "samples",
    [
        (normal(3, 2), normal(3, 1)),
        (normal(0, 2), normal(3, 2)),
        (normal(3), normal(3)),
        (tensor([math.nan]), tensor([0.0])),
    ],
)
def test_bad_samples_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        wasserstein2(*samples)


def walk(n, seed, **settings):
    system = OrnsteinUhlenbeck(**settings)
    generator = seeded(seed)
    return system.simulate(system.sample(n, generator), TIMES, None, generator)


@pytest.mark.parametrize("feature", ["final_state", "trajectory", "state"])
def test_an_equal_law_is_at_the_floor_and_a_wrong_one_above(feature):
    metric = Wasserstein(OrnsteinUhlenbeck(), feature=feature, frames=2, points=128)
    truth = walk(128, 1)
    same = metric.score(truth, walk(128, 2), None)
    wrong = metric.score(truth, walk(128, 2, mean=2.5), None)
    assert 0.5 < same["W2_ratio"].value < 1.6
    assert wrong["W2_ratio"].value > 2
    assert wrong["W2"].floor == same["W2"].floor > 0
    assert same["W2_floor_q95"].value > same["W2"].floor
    assert same["W2"].n == 128
    assert same["W2"].value ** 2 == pytest.approx(same["W2_squared"].value)
    assert same["W2_dimension"].value == (2 if feature == "trajectory" else 1)
    interval = wrong["W2_squared"].interval
    assert (
        (interval is None) if feature == "state" else (interval[0] < wrong["W2_squared"].value < interval[1])
    )


def test_the_floor_is_the_uniform_one_where_that_is_known():
    class Uniform:
        def sample(self, n, generator):
            return torch.rand(n, 1, generator=generator, dtype=torch.float64)

        def simulate(self, start, times, actions, generator):
            return Trajectory(start[:, None, None].expand(-1, 1, len(times), 1), times)

    system, n = Uniform(), 64
    truth = system.simulate(system.sample(n, seeded(3)), TIMES, None, None)
    score = Wasserstein(system, feature="final_state", pairs=200).score(truth, truth, None)["W2_squared"]
    variance = float(truth.states[:, 0, 0].var(correction=0))
    # W2^2 of two such samples is close to half-normal in spread: its deviation is about its mean.
    assert score.floor * variance == pytest.approx(1 / (3 * (n + 1)), rel=3 / 200**0.5)
    assert score.value == pytest.approx(0, abs=1e-12)


def test_the_coupling_carries_each_point_to_its_match():
    truth = walk(32, 1, dim=2)
    order = torch.randperm(32, generator=seeded(5))
    shifted = truth.rows(order).replace(states=truth.states[order] + 0.25)
    scores = Wasserstein(OrnsteinUhlenbeck(dim=2), feature="final_state").score(truth, shifted, None)
    match = torch.as_tensor(scores["coupling_match"].value).long()
    assert torch.equal(order[match], torch.arange(32))
    assert scores["coupling_truth"].value.shape == scores["coupling_prediction"].value.shape == (32, 2)
    moved = torch.as_tensor(scores["coupling_prediction"].value)[match] - torch.as_tensor(
        scores["coupling_truth"].value
    )
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))


def test_the_same_seed_gives_the_same_floor_and_the_global_generator_is_left_alone():
    truth, before = walk(32, 1), torch.get_rng_state()
    first, second = (Wasserstein(OrnsteinUhlenbeck(), seed=4).score(truth, truth, None) for _ in range(2))
    assert first["W2"] == second["W2"]
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_measured_says_so():
    system, truth = OrnsteinUhlenbeck(), walk(32, 1)
    with pytest.raises(NotMeasurable, match="5 trajectories"):
        Wasserstein(system).score(truth.rows(slice(0, 5)), truth.rows(slice(0, 5)), None)
    tokens = truth.replace(states=truth.states[..., 0].long())
    with pytest.raises(NotMeasurable, match="tokens"):
        Wasserstein(system).score(tokens, tokens, None)
    exploded = truth.states.clone()
    exploded[3, :, 4:] = math.inf
    lost = Wasserstein(system).score(truth, truth.replace(states=exploded), None)["W2"]
    assert math.isnan(lost.value)
    assert lost.failed == 1
    assert "1 of 32 rollouts are not finite from t=2" in lost.reason


def test_high_dimension_without_a_floor_is_refused_and_low_is_marked():
    class Fixed(OrnsteinUhlenbeck):
        def sample(self, n, generator):
            return torch.linspace(0, 1, 32, dtype=torch.float64).repeat(n // 32)[:, None].expand(-1, self.dim)

        def simulate(self, start, times, actions, generator):
            return (
                super()
                .simulate(start, times, actions, seeded(0))
                .replace(states=start[:, None, None].expand(-1, 1, len(times), -1))
            )

    low = Wasserstein(Fixed(dim=2), feature="final_state").score(walk(32, 1, dim=2), walk(32, 2, dim=2), None)
    assert low["W2"].floor is None
    assert "are fixed" in low["W2_ratio"].reason
    with pytest.raises(NotMeasurable, match="without its floor"):
        Wasserstein(Fixed(dim=5), feature="final_state").score(walk(32, 1, dim=5), walk(32, 2, dim=5), None)


def test_a_context_before_the_scored_frames_does_not_move_the_floor_to_other_times():
    class Brownian(OrnsteinUhlenbeck):
        def sample(self, n, generator):
            return torch.zeros(n, 1, dtype=torch.float64)

    system = Brownian(rate=1e-6)
    truth = system.simulate(system.sample(64, seeded(0)), TIMES, None, seeded(0)).span(6)
    other = system.simulate(system.sample(64, seeded(1)), TIMES, None, seeded(1)).span(6)
    score = Wasserstein(system, feature="final_state").score(truth, other, None)
    assert 0.3 < score["W2_ratio"].value < 2


def test_a_driven_system_is_simulated_on_its_own_grid():
    class Driven(OrnsteinUhlenbeck):
        def sample_actions(self, n, times, generator):
            torch.testing.assert_close(times, TIMES)
            return torch.randn(n, len(times), 1, generator=generator, dtype=torch.float64)

        def simulate(self, start, times, actions, generator):
            walked = super().simulate(start, times, None, generator)
            return walked.replace(states=walked.states + actions[:, None])

    system = Driven()
    generator = seeded(1)
    actions = system.sample_actions(64, TIMES, generator)
    truth, other = (
        system.simulate(system.sample(64, generator), TIMES, actions, generator).span(4) for _ in range(2)
    )
    score = Wasserstein(system, feature="final_state").score(truth, other, None)
    assert 0.3 < score["W2_ratio"].value < 2


@pytest.mark.parametrize("feature", ["final_state", "state"])
def test_ragged_ends_are_left_out(feature):
    truth = walk(40, 1)
    length = torch.full((40, 1), 11)
    length[::2] = 7
    states = truth.states.clone()
    states[::2, :, 7:] = math.nan
    ragged = truth.replace(states=states, length=length)
    score = Wasserstein(OrnsteinUhlenbeck(), feature=feature).score(ragged, truth, None)
    assert score["W2_squared"].value == pytest.approx(0, abs=1e-12)
    with pytest.raises(NotMeasurable, match="different times"):
        Wasserstein(OrnsteinUhlenbeck()).score(ragged, truth, None)


def test_a_sample_that_a_constant_would_beat_measures_nothing():
    """In 200 dimensions 16 points are about as far from 16 others as any two are: sqrt(2) spreads."""
    system, times = OrnsteinUhlenbeck(dim=25, rate=50.0), TIMES
    rng = torch.Generator().manual_seed(0)
    truth = system.simulate(system.sample(16, rng), times, None, rng)
    with pytest.raises(NotMeasurable, match="a constant at the truth's mean would lie below the floor"):
        Wasserstein(system).score(truth, truth, None)
    low = OrnsteinUhlenbeck(dim=1, rate=50.0)
    truth = low.simulate(low.sample(16, rng), times, None, rng)
    assert Wasserstein(low, feature="final_state").score(truth, truth, None)["W2"].value == 0
