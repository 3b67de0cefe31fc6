import math

import pytest
import torch

from worldsim_kernels.attractors import hellinger, occupation_divergence, power_spectrum, wasserstein1

torch.set_num_threads(1)


def column(values):
    return torch.as_tensor(values, dtype=torch.float64)[:, None]


def midpoints(n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_w1_has_its_closed_forms():
    n = 20000
    uniform = midpoints(n)
    arcsine = (1 - torch.cos(math.pi * uniform)) / 2
    assert float(wasserstein1(column(uniform), column(arcsine))) == pytest.approx(
        1 / math.pi - 0.25, abs=1e-8
    )
    assert float(wasserstein1(column(uniform), column(2 * uniform))) == pytest.approx(0.5, abs=1e-12)
    assert float(wasserstein1(column([0.5]), column(uniform))) == pytest.approx(0.25, abs=1e-12)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    found = float(wasserstein1(column(normal), column(2 * normal)))
    assert found == pytest.approx(0.7978845608, abs=5e-4)  # the tails beyond the last midpoint


def test_w1_of_samples_of_different_size_and_of_columns():
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]], dtype=torch.float64)
    # Shares 1/2, 1/2 against 1/3, 1/3, 1/3: 1/6 is carried over [0, 1] and 1/3 over [1, 2].
    torch.testing.assert_close(wasserstein1(x, y), torch.tensor([0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(wasserstein1(x, x), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="samples"):
        wasserstein1(x, y[:, :1])


def test_the_occupation_divergence_of_known_laws():
    low, high = torch.zeros(1), torch.ones(1)
    x = column([0.1, 0.1, 0.1, 0.9])
    y = column([0.1, 0.9, 0.9, 0.9])
    expected = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert occupation_divergence(x, y, 2, low, high) == pytest.approx(expected, abs=1e-5)
    assert occupation_divergence(x, x, 2, low, high) == 0
    # Nobody there: log of the share over the smoothing.
    away = occupation_divergence(x, column([0.6] * 4), 10, low, high)
    assert away == pytest.approx(-math.log(1e-6) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), abs=1e-3)


def test_what_leaves_the_grid_is_no_less_wrong():
    low, high = torch.zeros(2), torch.ones(2)
    x = torch.full((5, 2), 0.5, dtype=torch.float64)
    far = occupation_divergence(x, x + 10, 4, low, high)
    assert far == pytest.approx(occupation_divergence(x, x * 0 + 0.1, 4, low, high))
    assert occupation_divergence(x, x.fill_(math.nan), 4, low, high) >= 0


def test_the_spectrum_of_a_wave_is_one_line():
    t = torch.arange(64, dtype=torch.float64)
    wave = torch.stack([torch.sin(2 * math.pi * 8 * t / 64), torch.full_like(t, 3.0)], -1)[None]
    spectrum = power_spectrum(wave)
    assert spectrum.shape == (32, 2)
    assert float(spectrum[7, 0]) == pytest.approx(1, abs=1e-12)
    assert float(spectrum[:, 1].abs().max()) == 0


def test_hellinger_is_zero_for_equal_laws_and_one_for_disjoint_ones():
    t = torch.arange(64, dtype=torch.float64)
    one, two = (power_spectrum(torch.sin(2 * math.pi * k * t / 64)[None, :, None]) for k in (3, 5))
    assert float(hellinger(one, one)) < 1e-7
    assert float(hellinger(one, two)) == pytest.approx(1, abs=1e-7)
    half = (one + two) / 2
    assert float(hellinger(one, half)) == pytest.approx(math.sqrt(1 - math.sqrt(0.5)), abs=1e-7)
