import math

import pytest
import torch

from worldsim_kernels.information import (
    gaussian_copula,
    gaussian_information,
    info_nce,
    nearest_neighbours,
)

torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pair(rho, n, seed, d=1):
    """Samples of d independent pairs of standard normals with correlation rho."""
    z = torch.randn(2, n, d, generator=seeded(seed), dtype=torch.float64)
    return z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]


def exact(rho, d=1):
    return -d * math.log(1 - rho**2) / 2


@pytest.mark.parametrize(("rho", "expected"), [(0.75, 0.4133392866), (0.9, 0.8303656034)])
def test_gaussians_have_their_closed_form(rho, expected):
    c = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    assert gaussian_information(c, 1) == pytest.approx(expected, abs=5e-11)
    scale = torch.tensor([3.0, 0.1], dtype=torch.float64)
    assert gaussian_information(scale[:, None] * c * scale, 1) == pytest.approx(expected, abs=5e-11)
    twice = torch.kron(c, torch.eye(2, dtype=torch.float64))
    assert gaussian_information(twice, 2) == pytest.approx(2 * expected, abs=1e-10)
    with pytest.raises(ValueError, match="determines another"):
        gaussian_information(torch.ones(2, 2, dtype=torch.float64), 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.75, 0.9, 0.99])
def test_both_estimators_are_within_three_standard_errors(rho):
    x, y = pair(rho, 1000, 0)
    for found in (nearest_neighbours(x, y, generator=seeded(1)), gaussian_copula(x, y)):
        bias = 0.02  # of both at this n, far below what 0.05 allows
        assert abs(found.value - exact(rho)) < 3 * found.standard_error + bias
        assert found.n == 1000


def test_the_standard_errors_are_those_of_repeated_samples():
    samples = [pair(0.75, 240, seed) for seed in range(50)]
    for estimate in (lambda x, y: nearest_neighbours(x, y, generator=seeded(0)), gaussian_copula):
        found = [estimate(*each) for each in samples]
        spread = float(torch.tensor([one.value for one in found]).std())
        stated = sum(one.standard_error for one in found) / len(found)
        assert 0.75 < stated / spread < 1.33


def test_the_copula_bound_of_independent_numbers_is_known_no_better_than_chi_square_says():
    found = [gaussian_copula(*pair(0.0, 100, seed)) for seed in range(200)]
    values = torch.tensor([one.value for one in found])
    assert float(values.std()) == pytest.approx(2**0.5 / 200, rel=0.25)
    assert min(one.standard_error for one in found) >= 2**0.5 / 200


def test_neighbours_see_what_a_gaussian_copula_cannot():
    x = torch.rand(1000, 1, generator=seeded(0), dtype=torch.float64) * 2 - 1
    y = x.abs() + 0.1 * torch.rand(1000, 1, generator=seeded(1), dtype=torch.float64)
    assert nearest_neighbours(x, y, generator=seeded(0)).value > 1.5
    assert gaussian_copula(x, y).value < 0.05


def test_a_monotone_map_of_either_changes_the_copula_bound_by_nothing():
    x, y = pair(0.75, 300, 0)
    assert gaussian_copula(x.exp(), y**3).value == gaussian_copula(x, y).value


def test_neighbours_are_refused_in_more_than_four_dimensions():
    x, y = pair(0.9, 100, 0, d=3)
    with pytest.raises(ValueError, match="6 dimensions together"):
        nearest_neighbours(x, y, generator=seeded(0))
    assert abs(gaussian_copula(*pair(0.75, 2000, 0, d=3)).value - exact(0.75, 3)) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(9, 1), torch.zeros(8, 1), "samples"),
        (torch.ones(40, 1), torch.randn(40, 1, generator=seeded(0)), "never varies"),
        (torch.full((40, 1), math.nan), torch.ones(40, 1), "x is not finite"),
        ((torch.arange(40) % 2)[:, None], (torch.arange(40) % 2)[:, None], "repeat"),
        (torch.arange(20.0)[:, None], torch.arange(20.0)[:, None], "at least 24 samples"),
    ],
)
def test_bad_samples_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(x, y, generator=seeded(0))


def test_the_contrastive_bound_stays_below_its_cap_and_says_when_it_is_at_it():
    settings = {"batch": 8, "steps": 150, "width": 16, "learning_rate": 1e-2}
    before = torch.get_rng_state()
    with torch.no_grad():
        low = info_nce(*pair(0.75, 512, 0), **settings, generator=seeded(0))
        high = info_nce(*pair(0.99, 512, 0, d=4), **settings, generator=seeded(0))
    assert torch.equal(before, torch.get_rng_state())
    assert low.cap == high.cap == math.log(8)
    assert 0.2 < low.value < exact(0.75) + 3 * low.standard_error
    assert not low.capped
    assert high.value < high.cap < exact(0.99, 4)
    assert high.capped
    assert low == info_nce(*pair(0.75, 512, 0), **settings, generator=seeded(0))
    with pytest.raises(ValueError, match="give 64"):
        info_nce(*pair(0.5, 63, 0), **settings, generator=seeded(0))
