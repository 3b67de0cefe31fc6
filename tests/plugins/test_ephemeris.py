"""The ephemeris against orbits everybody knows and against ERFA's independent Earth."""

from __future__ import annotations

import math

import erfa
import pytest
import torch

from worldsim.protocols import (
    HasActions,
    HasDrift,
    HasEnergy,
    HasEquivalentHistories,
    HasObservables,
    Restartable,
)
from worldsim_plugins.systems.ephemeris import PLANETS, Ephemeris, julian_date


def days(end: float, count: int) -> torch.Tensor:
    return torch.linspace(0, end, count, dtype=torch.float64)


def simulated(system: Ephemeris, times: torch.Tensor, n: int = 1):
    generator = torch.Generator().manual_seed(0)
    return system.simulate(system.sample(n, generator), times, None, generator)


def test_the_record():
    found = simulated(Ephemeris(), days(100, 11), n=3)
    assert found.states.shape == (3, 1, 11, 8, 6)
    assert found.states.dtype == torch.float64
    assert found.axes == ("body", "component")
    assert found.labels["body"] == PLANETS
    assert found.units["x"] == "AU"
    assert found.units["vx"] == "AU d-1"
    assert found.units["time"] == "d"


@pytest.mark.parametrize(
    ("planet", "low", "high"),
    [("mercury", 0.3074, 0.4668), ("earth", 0.983, 1.017), ("mars", 1.381, 1.667)],
)
def test_distances_lie_between_perihelion_and_aphelion(planet, low, high):
    found = simulated(Ephemeris(planets=(planet,)), days(730, 731))
    distance = found.observables["distance"]
    assert low < distance.min() < low + 0.01
    assert high - 0.01 < distance.max() < high


@pytest.mark.parametrize(
    ("planet", "sidereal"),
    [("mercury", 87.969), ("venus", 224.701), ("earth", 365.256), ("mars", 686.980), ("jupiter", 4332.59)],
)
def test_periods(planet, sidereal):
    turns = 8
    times = torch.tensor([0.0, turns * sidereal], dtype=torch.float64)
    x, y = simulated(Ephemeris(planets=(planet,)), times).states[0, 0, :, 0, :2].unbind(-1)
    angle = torch.atan2(y, x)
    missed = math.remainder(float(angle[1] - angle[0]), 2 * math.pi)
    assert abs(missed) < (0.02 if planet == "jupiter" else 2e-3)


def test_velocities_are_the_rates_of_the_places():
    found = simulated(Ephemeris(), days(0.5, 3)).states[0, 0]
    slope = (found[2, :, :3] - found[0, :, :3]) / 0.5
    # Analytic velocities leave out the rates of some periodic terms: ERFA measures up to 27 m/s.
    assert (slope - found[1, :, 3:]).norm(dim=-1).max() < 27 * 86400 / 1.495978707e11


@pytest.mark.parametrize("day", ["1900-06-01", "2000-01-01", "2024-09-01"])
def test_the_earth_lies_where_another_theory_puts_it_within_the_stated_accuracy(day):
    system = Ephemeris(planets=("earth",), epoch=day)
    barycentre = simulated(system, days(0, 1)).states[0, 0, 0, 0, :3]
    earth = torch.from_numpy(erfa.epv00(julian_date(day), 0.0)[0]["p"])
    moon = torch.from_numpy(erfa.moon98(julian_date(day), 0.0)["p"])  # geocentric
    apart = (barycentre - (earth + 0.0121505844 * moon)).norm().item()
    assert 0 < apart < system.stated_accuracy()["earth"]
    assert apart < (barycentre - earth).norm().item()  # it is the barycentre


def test_stated_accuracies():
    accuracy = Ephemeris().stated_accuracy()
    assert tuple(accuracy) == PLANETS
    assert accuracy["earth"] == pytest.approx(3.02e-5, rel=0.01)
    assert accuracy["uranus"] == max(accuracy.values())


def test_starts_are_spaced_and_each_is_the_epoch_of_the_one_before_moved_on():
    system = Ephemeris(planets=("venus", "mars"), epoch="1990-05-01", spacing=10.0)
    found = simulated(system, days(20, 3), n=2)
    torch.testing.assert_close(found.states[0, 0, 1], found.states[1, 0, 0], rtol=0, atol=1e-13)
    assert julian_date("2000-01-01") == 2451544.5


def test_dates_outside_the_theory_are_refused():
    with pytest.raises(ValueError, match="1000 to 3000"):
        simulated(Ephemeris(epoch="2999-06-01"), days(800, 3))
    with pytest.raises(ValueError, match="1000 to 3000"):
        simulated(Ephemeris(epoch="0900-06-01"), days(1, 2))


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"planets": ("pluto",)}, "planets"),
        ({"planets": ()}, "planets"),
        ({"planets": ("mars", "mars")}, "planets"),
        ({"epoch": "J2000"}, "ISO date"),
    ],
)
def test_bad_parameters_are_refused(parameters, word):
    with pytest.raises(ValueError, match=word):
        Ephemeris(**parameters)


def test_capabilities():
    system = Ephemeris()
    assert isinstance(system, HasObservables)
    assert system.conserved == ()
    for capability in (Restartable, HasEnergy, HasDrift, HasActions, HasEquivalentHistories):
        assert not isinstance(system, capability)
