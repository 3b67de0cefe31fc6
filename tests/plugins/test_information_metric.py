import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.dynamics.latent_sde import LatentSDE
from worldsim_plugins.generators.sequence import Sequence
from worldsim_plugins.metrics.information import Information
from worldsim_plugins.metrics.token_information import coded_bits
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.pendulum import Pendulum

torch.set_num_threads(1)
TIMES = torch.arange(6, dtype=torch.float64) * 0.25


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def simulated(system, n, seed, times=TIMES):
    generator = seeded(seed)
    return system.simulate(system.sample(n, generator), times, None, generator)


def walk(n=300, seed=1, **settings):
    return simulated(OrnsteinUhlenbeck(**settings), n, seed)


def test_two_frames_of_a_stationary_walk_share_what_their_correlation_says():
    """The correlation over 1 time unit is exp(-rate)."""
    system = OrnsteinUhlenbeck(rate=0.5)
    truth = simulated(system, 400, 1)
    scores = Information(system).score(truth, simulated(system, 400, 2), None)
    exact = -math.log(1 - math.exp(-2 * 0.5)) / 2
    for name in ("information", "copula_information", "information_truth", "copula_information_truth"):
        low, high = scores[name].interval
        error = (high - low) / 2 / 1.96
        assert abs(scores[name].value - exact) < 3 * error
    for name in ("information_error", "copula_information_error"):
        assert 0 < scores[name].floor < scores[f"{name}_floor_q95"].value
        assert scores[name].value < 1.5 * scores[f"{name}_floor_q95"].value
        assert scores[name].interval[0] <= scores[name].value <= scores[name].interval[1]


def test_a_forecast_that_forgets_is_told_from_the_truth():
    system, truth = OrnsteinUhlenbeck(rate=0.5), walk(400, rate=0.5)
    order = torch.randperm(400, generator=seeded(0))
    shuffled = truth.states.clone()
    shuffled[:, :, -1] = shuffled[order, :, -1]
    scores = Information(system).score(truth, truth.replace(states=shuffled), None)
    for name in ("information_error", "copula_information_error"):
        assert scores[name].interval[0] > scores[f"{name}_floor_q95"].value
    exact = Information(system).score(truth, truth, None)
    assert exact["information_error"].value == exact["copula_information_error"].value == 0


def test_a_constant_tells_nothing_and_a_copy_infinitely_much():
    system, truth = OrnsteinUhlenbeck(), walk()
    still = truth.replace(states=truth.states * 0 + 2)
    assert Information(system).score(truth, still, None)["information"].value == 0
    copied = truth.replace(states=truth.states[:, :, :1].expand(-1, -1, 6, -1))
    lost = Information(system).score(truth, copied, None)
    for name in ("information", "information_error", "copula_information_error"):
        assert math.isnan(lost[name].value)
        assert "determines another" in lost[name].reason


def test_many_dimensions_leave_the_copula_bound_alone():
    system = OrnsteinUhlenbeck(dim=3)
    scores = Information(system).score(walk(dim=3), walk(dim=3, seed=2), None)
    assert "6 dimensions together" in scores["information"].reason
    assert "6 dimensions together" in scores["information_error"].reason
    assert math.isfinite(scores["copula_information_error"].value)
    one = Information(system, components=[1]).score(walk(dim=3), walk(dim=3, seed=2), None)
    assert math.isfinite(one["information_error"].value)
    with pytest.raises(ValueError, match="components"):
        Information(system, components=[3]).score(walk(dim=3), walk(dim=3), None)


def test_a_deterministic_world_is_asked_about_components():
    system = Pendulum()
    truth = simulated(system, 120, 0)
    with pytest.raises(NotMeasurable, match="deterministic"):
        Information(system).score(truth, truth, None)
    scores = Information(system, components=[0]).score(truth, truth, None)
    assert scores["information"].value > 0
    assert scores["information_error"].value == 0


def test_what_cannot_be_measured_says_so():
    system, truth = OrnsteinUhlenbeck(), walk()
    few = truth.rows(slice(0, 50))
    with pytest.raises(NotMeasurable, match="50 trajectories"):
        Information(system).score(few, few, None)
    exploded = truth.states.clone()
    exploded[3, :, 4:] = math.inf
    lost = Information(system).score(truth, truth.replace(states=exploded), None)["information_error"]
    assert (lost.failed, math.isnan(lost.value)) == (1, True)
    length = torch.full((300, 1), 6)
    length[0] = 3
    with pytest.raises(NotMeasurable, match="different times"):
        Information(system).score(truth.replace(length=length), truth, None)


GOLDEN = Automaton(transitions={"A": {"1": "A", "0": "B"}, "B": {"1": "A"}})


def words(system, n=200, length=41, seed=0):
    return simulated(system, n, seed, torch.arange(length, dtype=torch.float64))


def test_tokens_have_the_entropies_of_their_machine():
    truth, other = words(GOLDEN), words(GOLDEN, seed=1)
    scores = Information(GOLDEN).score(truth, other, None)
    for name, exact in (("entropy_rate", 2 / 3), ("excess_entropy", 0.251629)):
        for end in ("", "_truth"):
            low, high = scores[name + end].interval
            assert abs(scores[name + end].value - exact) < 3 * (high - low) / 2 / 1.96
        error = scores[f"{name}_error"]
        assert 0 < error.floor < scores[f"{name}_error_floor_q95"].value
        assert error.value < 1.5 * scores[f"{name}_error_floor_q95"].value
    assert scores["statistical_complexity"].value == pytest.approx(0.918296, abs=0.02)
    assert scores["block_entropy"].dims == ("block",)
    assert scores["block_entropy"].value[0] == pytest.approx(0.918296, abs=0.02)
    assert scores["coding_overhead"].value >= 1


def test_a_coin_is_told_from_the_golden_mean():
    truth = words(GOLDEN)
    coin = truth.replace(states=torch.randint(2, truth.states.shape, generator=seeded(5)))
    scores = Information(GOLDEN).score(truth, coin, None)
    for name in ("entropy_rate_error", "excess_entropy_error", "statistical_complexity_error"):
        assert scores[name].value > 3 * scores[f"{name}_floor_q95"].value
    assert scores["entropy_rate_error"].interval[0] > scores["entropy_rate_error_floor_q95"].value


def test_words_that_were_not_seen_often_are_not_counted():
    with pytest.raises(NotMeasurable, match="too many different words of 8"):
        Information(GOLDEN, length=8).score(words(GOLDEN, 4), words(GOLDEN, 4), None)
    with pytest.raises(NotMeasurable, match="hold no two words"):
        Information(GOLDEN, length=20).score(words(GOLDEN, length=15), words(GOLDEN, length=15), None)


def test_a_coder_needs_at_least_the_entropy():
    law = torch.tensor([0.5, 0.25, 0.125, 0.125])
    tokens = torch.multinomial(law, 40_000, replacement=True, generator=seeded(0)).reshape(40, 1000)
    assert 1.75 < coded_bits(tokens, 4) < 2.1
    assert coded_bits(tokens * 0, 4) < 0.05
    assert 9 < coded_bits(torch.randint(500, (40, 1000), generator=seeded(0)), 500) < 16


class Lossy:
    """A latent that is the last state seen through noise."""

    def __init__(self, noise):
        self.noise = noise

    def latent_of(self, context, generator):
        last = context.states[:, 0, -1].double()
        return last + self.noise * torch.randn(last.shape, generator=generator, dtype=torch.float64)


def test_a_latent_that_forgets_keeps_less_and_tells_less():
    system, truth = OrnsteinUhlenbeck(rate=0.5), walk(100, rate=0.5)
    metric = Information(system, latent=True, history=2, samples=1024, steps=120)
    scores = {noise: metric.score(truth, truth, Lossy(noise)) for noise in (0.3, 3.0)}
    variance = float(truth.states.var())
    for noise, found in scores.items():
        kept = found["latent_information_past"]
        exact = math.log(1 + variance / noise**2) / 2
        assert 0.3 * exact - 0.1 < kept.value < exact + 0.15
        assert found["latent_information_cap"].value == math.log(64)
        assert found["latent_information_future"].floor is not None
    past, future = ("latent_information_past", "latent_information_future")
    assert scores[3.0][past].value < scores[0.3][past].value
    assert scores[3.0][future].value < scores[0.3][future].value


def test_a_latent_that_is_a_function_of_the_history_keeps_no_finite_amount():
    system, truth = OrnsteinUhlenbeck(), walk(100)
    metric = Information(system, latent=True, samples=512, steps=30)
    found = metric.score(truth, truth, Lossy(0.0))
    assert "function of the history" in found["latent_information_past"].reason
    assert math.isfinite(found["latent_information_future"].value)
    with pytest.raises(NotMeasurable, match="offers no latent"):
        metric.score(truth, truth, object())


def test_a_model_whose_latent_fails_is_counted():
    class Broken:
        def latent_of(self, context, generator):
            raise RuntimeError("out of order")

    system, truth = OrnsteinUhlenbeck(), walk(100)
    lost = Information(system, latent=True, samples=512, steps=30).score(truth, truth, Broken())
    assert lost["latent_information_past"].failed == 512
    assert "out of order" in lost["latent_information_future"].reason


def test_the_global_generator_is_left_alone_and_the_seed_decides():
    system, truth, before = OrnsteinUhlenbeck(), walk(120), torch.get_rng_state()
    one, two = (Information(system, seed=3).score(truth, walk(120, 2), None) for _ in range(2))
    assert one == two
    assert torch.equal(before, torch.get_rng_state())


def test_vectors_of_whole_numbers_are_no_tokens():
    states = torch.zeros(200, 1, 6, 2, dtype=torch.int64)
    truth = Trajectory(states, TIMES)
    with pytest.raises(NotMeasurable, match="no tokens"):
        Information(OrnsteinUhlenbeck()).score(truth, truth, None)


def test_models_with_a_latent_offer_it():
    past = walk(6)
    sde = LatentSDE(past, latent=3, width=8)
    first, again, other = (sde.latent_of(past, seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (6, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    tokens = words(GOLDEN, 6, 9)
    model = Sequence(GOLDEN, tokens, width=8)
    features = model.latent_of(tokens, seeded(0))
    assert features.shape == (6, 8)
    law = model.head(features).double().softmax(-1)
    torch.testing.assert_close(law, model.next_token(tokens.states[:, 0]), atol=1e-6, rtol=1e-5)


def test_a_single_given_token_tells_nothing():
    system = Automaton(preset="lattice")
    truth = simulated(system, 30, 1, torch.arange(1, dtype=torch.float64))
    with pytest.raises(NotMeasurable, match="0 tokens after the given context"):
        Information(system).score(truth, truth, None)
