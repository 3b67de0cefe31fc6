import math

import numpy as np
import pytest

from worldsim_plugins.metrics.scaling_law import Infeasible, choose_law, fit_law

X = np.array([4, 8, 16, 32, 64, 128.0])


@pytest.mark.parametrize(
    ("law", "parameters", "error"),
    [
        ("power", {"floor": 0.02, "scale": 3.0, "order": 1.5}, 0.02 + 3 * X**-1.5),
        ("exponential", {"floor": 0.1, "scale": 2.0, "order": 0.05}, 0.1 + 2 * 2 ** (-0.1 * X)),
        ("logarithmic", {"floor": 7.0, "scale": 0.5}, 7 - 0.5 * np.log(X)),
    ],
)
def test_a_law_is_found_again(law, parameters, error):
    fit = fit_law(law, X, error)
    for name, value in parameters.items():
        assert fit.parameters[name] == pytest.approx(value, rel=1e-4)
        low, high = fit.intervals[name]
        assert low <= fit.parameters[name] <= high
    np.testing.assert_allclose(fit(X), error, rtol=1e-5)


def test_intervals_cover_as_often_as_they_say():
    rng, covered, repeats = np.random.default_rng(0), 0, 200
    for _ in range(repeats):
        error = 2 * X**-1.0 * (1 + 0.02 * rng.standard_normal(len(X)))
        low, high = fit_law("power", X, error, floored=False).intervals["order"]
        covered += low <= 1 <= high
    assert abs(covered / repeats - 0.95) < 3 * math.sqrt(0.95 * 0.05 / repeats)


def test_a_law_that_says_that_errors_are_negative_is_refused_there():
    fit = fit_law("logarithmic", X[:4], 1 - 0.25 * np.log(X[:4]) + 0.2)
    with pytest.raises(Infeasible, match="an error is above 0"):
        fit(np.array([1e3]))
    error = 0.05 + X**-1.2
    choice = choose_law(X[:4], error[:4], X[4:], error[4:])
    assert choice.best.law == "power"
    assert choice.held_out["power"] < 1e-3
    assert "logarithmic" in choice.refused
    assert choice.fits["power"].aic < choice.fits["exponential"].aic


def test_data_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match="give at least 4"):
        fit_law("power", X[:3], X[:3])
    with pytest.raises(ValueError, match="positive"):
        fit_law("power", X, -X)
