"""How an error falls with a budget: laws fitted, compared where they were not fitted, and refused.

    power        D + a x^-b        the error of a solver of order b at x evaluations, above a floor D
    exponential  D + a 2^(-2 b x)  rate and distortion: b = 1 for a Gaussian source at rate x (Shannon 1959)
    logarithmic  D - a ln x        which falls below 0 sooner or later: never to be extrapolated

An error cannot be negative, so a law that says so within the range that is asked for is refused there. Laws
are compared by AIC of their relative errors (Akaike 1974) and on budgets that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]


class Infeasible(ValueError):
    """A law says that an error is negative."""


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    parameters  by name
    intervals   95 % intervals by Student's t, by name; infinite where the data do not tell
    aic         Akaike's criterion of the relative errors; the lower the better
    """

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    aic: float

    def __call__(self, x: Array) -> Array:
        """The error at budgets ``x``. Raises Infeasible where it would not be positive."""
        values = LAWS[self.law][0](np.asarray(x, dtype=np.float64), *self.parameters.values())
        if not (values > 0).all():
            raise Infeasible(
                f"the {self.law} law falls to {float(values.min()):.3g} there: an error is above 0"
            )
        return values


def _power(x: Array, floor: float, scale: float, order: float) -> Array:
    return floor + scale * x**-order


def _exponential(x: Array, floor: float, scale: float, order: float) -> Array:
    return floor + scale * 2 ** (-2 * order * x)


def _logarithmic(x: Array, floor: float, scale: float) -> Array:
    return floor - scale * np.log(x)


LAWS: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "power": (_power, ("floor", "scale", "order")),
    "exponential": (_exponential, ("floor", "scale", "order")),
    "logarithmic": (_logarithmic, ("floor", "scale")),
}


def fit_law(law: str, x: Array, error: Array, *, floored: bool = True) -> Fit:
    """Fit ``law`` to the positive ``error`` ``[n]`` at positive budgets ``x`` ``[n]``, by relative errors.

    Without ``floored`` D is 0. Raises ValueError for data that are not positive or fewer than the parameters
    of the law, and RuntimeError when no fit is found.
    """
    x, error = np.asarray(x, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if x.shape != error.shape or x.ndim != 1 or not (x > 0).all() or not (error > 0).all():
        raise ValueError("give positive budgets [n] and their positive errors [n]")
    function, names = LAWS[law]
    fixed = law != "logarithmic" and not floored
    free = names[1:] if fixed else names
    if len(x) <= len(free):
        raise ValueError(f"{len(x)} points do not tell {', '.join(free)}: give at least {len(free) + 1}")

    def curve(at: Array, *given: float) -> Array:
        return function(at, 0.0, *given) if fixed else function(at, *given)

    bounds = {"floor": (-np.inf if law == "logarithmic" else 0.0, np.inf), "scale": (0.0, np.inf)}
    low, high = zip(*(bounds.get(name, (0.0, 20.0)) for name in free))
    best, covariance = optimize.curve_fit(
        curve, x, error, p0=_first_guess(law, x, error, fixed), sigma=error, bounds=(low, high), maxfev=20_000
    )
    rest = float((((curve(x, *best) - error) / error) ** 2).sum())
    n, k = len(x), len(free)
    half = float(stats.t.ppf(0.975, n - k)) * np.sqrt(np.diag(covariance))
    found = {**({"floor": 0.0} if fixed else {}), **dict(zip(free, map(float, best)))}
    intervals = {name: (float(v - h), float(v + h)) for name, v, h in zip(free, best, half)}
    return Fit(law, found, intervals, n * math.log(max(rest / n, 1e-300)) + 2 * k)


def _first_guess(law: str, x: Array, error: Array, fixed: bool) -> list[float]:
    floor, at = 0.5 * float(error.min()), (np.log(x) if law != "exponential" else 2 * math.log(2) * x)
    if law == "logarithmic":
        slope, level = np.polyfit(at, error, 1)
        return [float(level), max(-float(slope), 1e-12)]
    slope, level = np.polyfit(at, np.log(error - (0 if fixed else floor)), 1)
    guess = [float(np.exp(level)), min(max(-float(slope), 1e-3), 19.0)]
    return guess if fixed else [floor, *guess]


@dataclass(frozen=True)
class Choice:
    """Laws fitted to one set and judged on another: ``held_out`` is the root mean square relative error
    there; ``refused`` says why a law is out of the question. ``best`` is the least wrong of the others."""

    fits: dict[str, Fit]
    held_out: dict[str, float]
    refused: dict[str, str]

    @property
    def best(self) -> Fit:
        return self.fits[min(self.held_out, key=self.held_out.__getitem__)]


def choose_law(x: Array, error: Array, held_x: Array, held_error: Array) -> Choice:
    """Fit every law to ``x``, ``error`` and judge it at ``held_x``. Raises ValueError when none is left."""
    fits, held_out, refused = {}, {}, {}
    for law in LAWS:
        try:
            fits[law] = fit_law(law, x, error)
            guess = fits[law](held_x)
        except (ValueError, RuntimeError) as reason:
            refused[law] = str(reason)
        else:
            held_out[law] = float(np.sqrt(np.mean(((guess - held_error) / held_error) ** 2)))
    if not held_out:
        raise ValueError(f"no law is left: {refused}")
    return Choice(fits, held_out, refused)
