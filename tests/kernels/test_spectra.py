"""Bands of a spectrum sum to the mean square, and the errors that benchmarks of fields give."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels.spectra import band_power, crmse, fourier_rmse, shells, vrmse

torch.set_num_threads(1)
F64 = torch.float64
EDGES = (4, 12)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("grid", [(64,), (33,), (16, 24), (8, 9, 10)])
def test_bands_sum_to_the_mean_square(grid):
    fields = normal(3, 2, *grid)
    power = band_power(fields, EDGES, dims=len(grid))
    assert power.shape == (3, 2, 3)
    torch.testing.assert_close(
        power.sum(-1), fields.square().mean(tuple(range(-len(grid), 0))), rtol=1e-12, atol=0
    )


def test_a_wave_is_in_its_band_alone():
    """A sin(8 x) on 64 points: fRMSE low 0, middle A / 16, high 0."""
    amplitude = 3.0
    wave = amplitude * torch.sin(2 * math.pi * 8 * torch.arange(64, dtype=F64) / 64)
    torch.testing.assert_close(
        band_power(wave, EDGES), torch.tensor([0, amplitude**2 / 2, 0], dtype=F64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        fourier_rmse(wave[None], EDGES), torch.tensor([0, amplitude / 16, 0], dtype=F64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(
    ("wave", "band"),
    [((0, 3), 0), ((3, 0), 0), ((3, 3), 1), ((0, 4), 1), ((11, 3), 1), ((12, 0), 2), ((9, 9), 2)],
)
def test_bands_of_a_plane_are_radial(wave, band):
    x = 2 * math.pi * torch.arange(32, dtype=F64) / 32
    field = torch.cos(wave[0] * x[:, None] + wave[1] * x)
    power = band_power(field, EDGES, dims=2)
    assert float(power[band]) == pytest.approx(0.5, abs=1e-12)
    assert float(power.sum()) == pytest.approx(0.5, abs=1e-12)


def test_whole_wavenumbers_stay_whole():
    assert shells((64,)).tolist() == [*range(33), *range(31, 0, -1)]
    assert int(shells((64, 64))[6, 8]) == 10


def test_vrmse_of_the_mean_is_one_and_of_an_independent_truth_root_two():
    truth, other = normal(4, 200, 200), normal(4, 200, 200, seed=1)
    mean = truth.mean((1, 2), keepdim=True).expand_as(truth)
    torch.testing.assert_close(
        vrmse(mean, truth, dims=2, epsilon=0), torch.ones(4, dtype=F64), rtol=1e-12, atol=0
    )
    assert float(vrmse(other, truth, dims=2).mean()) == pytest.approx(math.sqrt(2), abs=0.01)
    unbiased = (mean - truth).square().mean((1, 2)).sqrt() / truth.std((1, 2))
    torch.testing.assert_close(unbiased, torch.full((4,), math.sqrt(1 - 1 / 40_000), dtype=F64))
    zero = vrmse(torch.zeros_like(truth), truth - mean, dims=2, epsilon=0)
    torch.testing.assert_close(zero, torch.ones(4, dtype=F64), rtol=1e-12, atol=0)


def test_the_epsilon_of_vrmse_is_the_one_that_is_given():
    flat = torch.ones(5, dtype=F64)
    assert float(vrmse(flat + 1, flat, epsilon=1e-2)) == pytest.approx(10)
    assert float(vrmse(flat + 1, flat)) == pytest.approx(10**3.5)


def test_crmse_of_a_constant_is_the_constant():
    truth = normal(6, 8, 8)
    assert float(crmse(truth - 0.7, truth, dims=2)) == pytest.approx(0.7, abs=1e-12)
    wave = torch.sin(2 * math.pi * torch.arange(8, dtype=F64) / 8)
    assert float(crmse(truth + wave, truth, dims=2)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("edges", [(), (4, 4), (12, 4), (0, 4)])
def test_edges_must_rise(edges):
    with pytest.raises(ValueError, match="must rise"):
        band_power(normal(8), edges)


def test_fields_need_their_axes():
    with pytest.raises(ValueError, match="no 2 grid axes"):
        band_power(normal(8), EDGES, dims=2)
