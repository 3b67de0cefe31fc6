"""Spectra by band, over space and over time: Parseval, smoothing that an error hides, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable, Trajectory
from worldsim_plugins.metrics.spectra import Spectra
from worldsim_plugins.systems.ornstein_uhlenbeck import OrnsteinUhlenbeck
from worldsim_plugins.systems.transported_fields import Advection

torch.set_num_threads(1)
F64 = torch.float64
TIMES = torch.arange(5, dtype=F64) * 0.1
BANDS = ("low", "mid", "high")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Rough(Advection):
    """White noise that moves: power in every band."""

    def sample(self, n, generator):
        return torch.randn(n, self.points, 1, generator=generator, dtype=F64)


SYSTEM = Rough(points=64)


def truth(n=12, seed=0):
    return SYSTEM.simulate(SYSTEM.sample(n, seeded(seed)), TIMES, None, None)


def scored(prediction, of, system=SYSTEM, **settings):
    return Spectra(system, **settings).score(of, prediction, None)


def test_bands_sum_to_the_mean_squared_error():
    of = truth()
    guess = of.replace(states=of.states + torch.randn(of.states.shape, generator=seeded(5), dtype=F64))
    scores = scored(guess, of)
    total = sum(scores[f"spectral_mse_{band}"].value for band in BANDS)
    variance = float(of.states[:, 0, 1:].var(correction=0))
    expected = float((guess.states - of.states)[:, :, 1:].square().mean()) / variance
    assert total == pytest.approx(expected, rel=1e-10)
    assert scores["vrmse"].value == pytest.approx(math.sqrt(expected), rel=0.1)
    assert scores["vrmse"].interval[0] < scores["vrmse"].value < scores["vrmse"].interval[1]


def test_a_wave_that_is_missed_is_an_error_of_its_band_alone():
    of = truth()
    wave = 2 * torch.sin(2 * math.pi * 8 * torch.arange(64, dtype=F64) / 64)[:, None]
    scores = scored(of.replace(states=of.states + wave), of)
    spread = float(of.states[:, 0, 1:].std(correction=0))
    assert scores["spectral_mse_mid"].value == pytest.approx(2 / spread**2)
    assert scores["frmse_mid"].value == pytest.approx(2 / 16 / spread)
    for band in ("low", "high"):
        assert scores[f"spectral_mse_{band}"].value == pytest.approx(0, abs=1e-12)
        assert scores[f"frmse_{band}"].value == pytest.approx(0, abs=1e-12)
    shifted = scored(of.replace(states=of.states + 0.5), of)
    assert shifted["crmse"].value == pytest.approx(0.5 / spread)


def test_smoothing_is_seen_in_the_high_band():
    of = truth()
    v = torch.fft.rfft(of.states, dim=3)
    v[:, :, :, 12:] = 0.3 * v[:, :, :, 12:]
    scores = scored(of.replace(states=torch.fft.irfft(v, n=64, dim=3)), of)
    assert scores["power_ratio_low"].value == pytest.approx(1)
    assert scores["power_ratio_high"].value == pytest.approx(0.09)
    assert scores["power_log_ratio_high"].value == pytest.approx(-math.log(0.09))
    assert scores["power_log_ratio_high"].value > scores["power_log_ratio_high_floor_q95"].value


def test_another_truth_is_at_the_floor():
    scores = scored(truth(seed=1), truth())
    for band in BANDS:
        one = scores[f"power_log_ratio_{band}"]
        assert one.value < 3 * one.floor
        assert scores[f"power_log_ratio_{band}_floor_q95"].value > one.floor > 0
        assert scores[f"power_ratio_{band}"].floor == 1
        low, high = scores[f"power_ratio_{band}"].interval
        assert low < scores[f"power_ratio_{band}"].value < high
    assert scores["vrmse"].value == pytest.approx(math.sqrt(2), abs=0.1)


def test_the_mean_of_the_draws_blurs_and_single_draws_do_not():
    of = truth()
    other = torch.cat([truth(seed=s).states for s in range(2, 8)], 1)
    scores = scored(of.replace(states=other), of)
    assert scores["power_ratio_high"].value == pytest.approx(1, abs=0.1)
    assert scores["vrmse"].value == pytest.approx(math.sqrt(1 + 1 / 6), abs=0.1)


def test_states_without_a_grid_have_frequencies():
    system, times = OrnsteinUhlenbeck(dim=2), torch.arange(33, dtype=F64) * 0.2
    of, other = (system.simulate(system.sample(40, seeded(s)), times, None, seeded(s)) for s in (0, 1))
    scores = scored(other, of, system)
    assert "vrmse" not in scores
    total = sum(scores[f"spectral_mse_{band}"].value for band in BANDS)
    spread = of.states[:, 0, 1:].flatten(0, 1).var(0, correction=0)
    expected = float(((other.states - of.states)[:, 0, 1:].square() / spread).mean())
    assert total == pytest.approx(expected, rel=1e-10)
    smooth = other.replace(states=(other.states + other.states.roll(1, 2) + other.states.roll(-1, 2)) / 3)
    found = scored(smooth, of, system)
    assert found["power_log_ratio_high"].value > scores["power_log_ratio_high_floor_q95"].value
    assert found["power_ratio_high"].value < 0.6


def test_other_bands_are_numbered():
    scores = scored(truth(seed=1), truth(), edges=[2, 5, 9])
    assert [name for name in scores if name.startswith("spectral_mse")] == [
        f"spectral_mse_band{i}" for i in (1, 2, 3, 4)
    ]
    with pytest.raises(ValueError, match="must rise"):
        Spectra(SYSTEM, edges=[5, 2])


def test_a_band_without_power_is_not_measured():
    system = Advection(points=64)
    of, other = (system.simulate(system.sample(12, seeded(s)), TIMES, None, None) for s in (0, 1))
    scores = scored(other, of, system)
    assert math.isfinite(scores["power_log_ratio_low"].value)
    assert "no power in the high band" in scores["power_ratio_high"].reason
    # A number that has no better end has none where it is not measurable either.
    assert scores["power_ratio_high"].better == scores["power_ratio_low"].better == ""
    still = scored(of.replace(states=of.states * 0), of)
    assert "prediction has no power" in still["power_log_ratio_low"].reason


def test_a_band_beyond_the_grid_is_not_measured():
    """It holds nothing whatever is forecast, and an error of 0 would be met by everyone."""
    of, other = truth(), truth(seed=1)
    for over, first in (("space", 33), ("time", 3)):
        scores = scored(other, of, over=over, edges=[1, first])
        assert scores["spectral_mse_mid"].value > 0
        assert f"begins at wavenumber {first}" in scores["spectral_mse_high"].reason
        inside = scored(other, of, over=over, edges=[1, first - 1])
        assert inside["spectral_mse_high"].value > 0


def test_what_cannot_be_measured_says_so():
    of = truth()
    ragged = of.replace(length=torch.tensor([[3]] + [[5]] * 11))
    with pytest.raises(NotMeasurable, match="different times"):
        scored(of, ragged)
    line = OrnsteinUhlenbeck().simulate(torch.zeros(12, 1, dtype=F64), TIMES, None, seeded(0))
    with pytest.raises(NotMeasurable, match="no grid"):
        scored(line, line, OrnsteinUhlenbeck(), over="space")
    uneven = Trajectory(line.states, TIMES**2)
    with pytest.raises(NotMeasurable, match="equally far apart"):
        scored(uneven, uneven, OrnsteinUhlenbeck())
    with pytest.raises(NotMeasurable, match="tokens"):
        scored(of, of.replace(states=of.states.long()))
    broken = of.states.clone()
    broken[2, :, 3:] = math.nan
    lost = scored(of.replace(states=broken), of)
    assert lost["spectral_mse_low"].failed == 1
    assert all(math.isnan(one.value) for one in lost.values())
