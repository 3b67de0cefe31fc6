"""Every distance that `transport` can name, through the metric: floors, ratios, tests, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.law_distances import DISTANCES, Setting
from worldsim_plugins.metrics.transport import Wasserstein
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)
F64 = torch.float64
TIMES = torch.arange(9, dtype=F64) * 0.5
ROOTED = {"W2", "sliced", "max_sliced", "bures", "gromov"}
TESTED = {"mmd", "energy", "signature_mmd"}
QUICK = {"projections": 16, "permutations": 99, "frames": 3}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def walk(n, seed, **settings):
    system = OrnsteinUhlenbeck(**settings)
    generator = seeded(seed)
    return system.simulate(system.sample(n, generator), TIMES, None, generator)


def setting(reference, **changes):
    given = {"epsilon": 0.05, "reach": 1.0, "projections": 32, "permutations": 99, "seed": 0}
    return Setting(reference, True, **{**given, **changes})


@pytest.mark.parametrize("name", DISTANCES)
def test_an_equal_law_is_at_the_floor_and_a_wrong_one_above(name):
    metric = Wasserstein(OrnsteinUhlenbeck(), distance=name, **QUICK)
    truth, wrong = walk(64, 1), {"rate": 6.0} if name == "gromov" else {"mean": 3.0}
    equal, other = (metric.score(truth, walk(64, 2, **law), None) for law in ({}, wrong))
    key = DISTANCES[name].name
    low, high = equal[key], other[key]
    assert high.value > other[f"{key}_floor_q95"].value
    assert high.floor == low.floor
    assert other[f"{key}_ratio"].value > max(1.3, equal[f"{key}_ratio"].value)
    assert high.n == 64
    assert other[f"{key}_dimension"].value == 3
    assert low.better == "lower"
    assert low.units == "1"
    assert (f"{key}_squared" in other) == (name in ROOTED)
    squared = other[f"{key}_squared"] if name in ROOTED else high
    assert squared.interval[0] < squared.value < squared.interval[1]
    assert other[f"{key}_standard_error"].value == pytest.approx(
        (squared.interval[1] - squared.value) / 1.959964, rel=1e-6
    )
    assert (f"{key}_p_value" in other) == (name in TESTED)
    if name in TESTED:
        assert other[f"{key}_p_value"].value == 0.01
        assert equal[f"{key}_p_value"].value > 0.01
    assert (f"{key}_gap" in other) == (name in {"sinkhorn", "unbalanced"})
    assert (f"{key}_epsilon" in other) == (name == "sinkhorn")


@pytest.mark.parametrize("name", DISTANCES)
def test_a_sample_is_at_no_distance_from_itself(name):
    x = normal(40, 4, 3) if name == "signature_mmd" else normal(40, 3)
    found = DISTANCES[name].measure(x, x, setting(x))
    assert found.value == pytest.approx(0, abs=1e-9)
    assert math.isnan(found.p_value) == (name not in TESTED)
    if name in TESTED:
        assert found.p_value == 1


SQUARE = 0.3**2 + 0.4**2 + 1.2**2
MOVED = {
    "W2": SQUARE,
    "W1": SQUARE**0.5,
    "max_sliced": SQUARE,
    "sinkhorn": SQUARE,
    "bures": SQUARE,
    "gromov": 0.0,
}


@pytest.mark.parametrize(("name", "expected"), MOVED.items())
def test_a_translation_costs_its_square_and_not_half_or_twice(name, expected):
    x = normal(60, 3)
    y = x + torch.tensor([0.3, 0.4, -1.2], dtype=F64)
    found = DISTANCES[name].measure(x, y, setting(x))
    assert found.value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 1.0])
def test_the_entropic_distance_is_certified_at_every_epsilon(epsilon):
    """Where kernels that are not in the logarithm underflow, at 1e-3 of the median cost, too."""
    x, y = normal(80, 2), 1.5 * normal(80, 2, seed=1) + 1
    found = DISTANCES["sinkhorn"].measure(x, y, setting(x, epsilon=epsilon))
    assert 0 < found.value < DISTANCES["W2"].measure(x, y, setting(x)).value * 1.05
    assert 0 <= found.gap < 2e-3 * found.value + 1e-3
    assert found.epsilon == pytest.approx(epsilon * setting(x).median ** 2)


def test_a_rotated_law_is_another_law_that_gromov_does_not_see():
    x = normal(64, 2) * torch.tensor([1.0, 3.0], dtype=F64)
    turned = x.flip(1)
    assert DISTANCES["W2"].measure(x, turned, setting(x)).value > 1
    assert DISTANCES["gromov"].measure(x, turned, setting(x)).value == pytest.approx(0, abs=1e-9)


def test_signatures_see_the_order_where_occupation_is_the_same():
    """A wheel that turns backwards has the same law at every single time."""

    class Wheel:
        def __init__(self, speed=1.0):
            self.speed = speed

        def sample(self, n, generator):
            return 2 * math.pi * torch.rand(n, 1, generator=generator, dtype=F64)

        def simulate(self, start, times, actions, generator):
            angle = start + self.speed * times
            return Trajectory(torch.stack([angle.cos(), angle.sin()], -1)[:, None], times)

    truth, backwards = (
        wheel.simulate(wheel.sample(40, seeded(seed)), TIMES, None, None)
        for seed, wheel in enumerate((Wheel(), Wheel(-1.0)))
    )
    energy = Wasserstein(Wheel(), distance="energy", feature="final_state", permutations=99)
    assert energy.score(truth, backwards, None)["energy_distance_squared_p_value"].value > 0.05
    paths = Wasserstein(Wheel(), distance="signature_mmd", frames=4, permutations=99)
    assert paths.score(truth, backwards, None)["signature_MMD_squared_p_value"].value == 0.01


def test_signatures_take_trajectories_of_any_length():
    truth = walk(40, 1)
    length = torch.full((40, 1), 9)
    length[::2] = 5
    states = truth.states.clone()
    states[::2, :, 5:] = math.nan
    ragged = truth.replace(states=states, length=length)
    metric = Wasserstein(OrnsteinUhlenbeck(), distance="signature_mmd", **QUICK)
    same = metric.score(ragged, truth, None)["signature_MMD_squared"]
    assert same.value == pytest.approx(0, abs=1e-9)
    # The floor is that of trajectories which never end early: these are another law.
    assert same.floor is not None
    with pytest.raises(ValueError, match="leave feature out"):
        Wasserstein(OrnsteinUhlenbeck(), distance="signature_mmd", feature="state")


class Fixed(OrnsteinUhlenbeck):
    """No two samples of it differ."""

    def sample(self, n, generator):
        return torch.linspace(0, 1, 32, dtype=F64).repeat(n // 32)[:, None].expand(-1, self.dim)

    def simulate(self, start, times, actions, generator):
        states = start[:, None, None].expand(-1, 1, len(times), -1)
        return super().simulate(start, times, actions, seeded(0)).replace(states=states)


@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "signature_mmd"])
def test_without_a_floor_biased_distances_are_refused_in_five_dimensions(name):
    metric = Wasserstein(Fixed(dim=5), distance=name, feature="final_state", permutations=99)
    truth, other = walk(32, 1, dim=5), walk(32, 2, dim=5)
    if DISTANCES[name].biased:
        with pytest.raises(NotMeasurable, match="without its floor"):
            metric.score(truth, other, None)
        return
    scores, key = metric.score(truth, other, None), DISTANCES[name].name
    assert math.isfinite(scores[key].value)
    for what in ("ratio", "p_value"):
        assert "are fixed" in scores[f"{key}_{what}"].reason


def test_points_of_one_trajectory_are_not_tested_as_if_independent():
    metric = Wasserstein(OrnsteinUhlenbeck(), distance="energy", feature="state", points=64)
    scores = metric.score(walk(32, 1), walk(32, 2), None)
    assert scores["energy_distance_squared"].interval is None
    assert "energy_distance_squared_p_value" not in scores
    assert scores["energy_distance_squared"].floor is not None


def test_a_law_whose_points_coincide_has_no_unit():
    class Still(OrnsteinUhlenbeck):
        def simulate(self, start, times, actions, generator):
            found = super().simulate(start, times, actions, generator)
            states = found.states.clone()
            states[:, :, 1:] = torch.linspace(0, 1, len(times) - 1, dtype=F64)[:, None]
            return found.replace(states=states)

    system = Still()
    truth = system.simulate(torch.zeros(32, 1, dtype=F64), TIMES, None, seeded(0))
    with pytest.raises(NotMeasurable, match="coincide"):
        Wasserstein(system, distance="mmd", feature="final_state").score(truth, truth, None)
