"""The planets as an approximate ephemeris gives them: ``plan94`` of ERFA, no network, no fitted parameter.

Keplerian elements with the largest periodic terms (Simon, Bretagnon, Chapront, Chapront-Touze, Francou and
Laskar 1994, *Astron. Astrophys.* 282, 663). "earth" is the Earth-Moon barycentre. The stated accuracy is the
floor of every comparison with this truth: no model can be shown to be better than it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Literal

import erfa
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import System
from worldsim_plugins.systems import integrated

Planet = Literal["mercury", "venus", "earth", "mars", "jupiter", "saturn", "uranus", "neptune"]

AU_KM = 149_597_870.7
ARCSECOND = math.pi / 648_000
GAUSS = 0.01720209895  # au^1.5 / day, the square root of the Sun's gravity
# Semi-major axis (au), then the largest errors over 1800-2050 that Simon et al. (1994) state: heliocentric
# longitude and latitude (arcsec) and distance (km).
STATED = {
    "mercury": (0.3871, 4, 1, 300),
    "venus": (0.7233, 5, 1, 800),
    "earth": (1.0000, 6, 1, 1_000),
    "mars": (1.5237, 17, 1, 7_700),
    "jupiter": (5.2026, 71, 5, 76_000),
    "saturn": (9.5549, 81, 13, 267_000),
    "uranus": (19.2184, 86, 7, 712_000),
    "neptune": (30.1104, 11, 1, 253_000),
}
PLANETS: tuple[Planet, ...] = ("mercury", "venus", "earth", "mars", "jupiter", "saturn", "uranus", "neptune")


class Ephemeris:
    """States ``[trajectory, body, (x, y, z, vx, vy, vz)]``: heliocentric, equator and equinox of J2000, au
    and au per day, times in days. Start i is ``epoch`` + i * ``spacing``; no start can be chosen freely."""

    axes = ("body", "component")
    conserved: tuple[str, ...] = ()
    units: Mapping[str, str] = {
        **dict.fromkeys(("x", "y", "z", "distance"), "AU"),
        **dict.fromkeys(("vx", "vy", "vz"), "AU d-1"),
        "heliocentric_energy": "AU2 d-2",
        "time": "d",
    }

    def __init__(
        self,
        *,
        planets: Annotated[
            tuple[Planet, ...], Field(description="which planets; earth is the Earth-Moon barycentre")
        ] = PLANETS,
        epoch: Annotated[
            str, Field(description="date of the first start, 0h TDB, as 1980-01-01")
        ] = "1980-01-01",
        spacing: Annotated[float, Field(gt=0, description="days between one start and the next")] = 365.25,
    ) -> None:
        wrong = [name for name in planets if name not in STATED]
        if wrong or not planets or len(set(planets)) != len(planets):
            raise ValueError(f"planets must be one or more, each once, of {', '.join(STATED)}; not {planets}")
        self.planets, self.spacing = tuple(planets), spacing
        self.epoch = julian_date(epoch)
        self.labels: Mapping[str, tuple[str, ...]] = {
            "body": self.planets,
            "component": ("x", "y", "z", "vx", "vy", "vz"),
        }

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Epochs ``[n, 2]``: the Julian date (TDB) in two parts. Nothing is random."""
        days = self.spacing * torch.arange(n, dtype=torch.float64)
        return torch.stack([torch.full_like(days, self.epoch), days], dim=1)

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, body, 6]`` at ``start`` + ``times`` - ``times[0]``;
        raises ValueError outside the years 1000 to 3000."""
        if actions is not None:
            raise ValueError("ephemeris is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        days = (start[:, 1:] + (times - times[0])).numpy()[..., None]
        numbers = np.array([PLANETS.index(planet) + 1 for planet in self.planets])
        vectors, status = erfa.ufunc.plan94(start[:, :1].numpy()[..., None], days, numbers)
        if (status != 0).any():
            raise ValueError(
                "the ephemeris holds from the year 1000 to 3000 only, and this grid leaves it: "
                "choose an earlier or later epoch, fewer starts, a smaller spacing or a shorter horizon"
            )
        states = torch.from_numpy(np.concatenate([vectors["p"], vectors["v"]], axis=-1)).unsqueeze(1)
        return Trajectory(
            states=states,
            times=times,
            observables=self.observe(states),
            axes=self.axes,
            labels=self.labels,
            units=self.units,
        )

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """Distance from the Sun and v^2 / 2 - k^2 / r, ``[..., body]``; neither is conserved exactly."""
        distance = states[..., :3].norm(dim=-1)
        energy = states[..., 3:].square().sum(-1) / 2 - GAUSS**2 / distance
        return {"distance": distance, "heliocentric_energy": energy}

    def stated_accuracy(self) -> dict[str, float]:
        """Planet -> largest error of position over 1800-2050, au, stated by Simon et al. (1994)."""
        return {planet: position_error(*STATED[planet]) for planet in self.planets}


def position_error(semi_major: float, longitude: float, latitude: float, distance: float) -> float:
    """au, from au, arcsec, arcsec and km."""
    across = semi_major * ARCSECOND
    return math.hypot(across * longitude, across * latitude, distance / AU_KM)


def julian_date(day: str) -> float:
    """The Julian date of 0h on an ISO date; raises ValueError when it is none."""
    try:
        return date.fromisoformat(day).toordinal() + 1_721_424.5
    except ValueError as error:
        raise ValueError(f"epoch must be an ISO date such as 1980-01-01, not {day!r}") from error


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"ephemeris": Ephemeris}
