"""Newtonian gravity: one body around a fixed centre (kepler, in closed form) and several bodies (n_body).

    kepler   H = p^2 / 2 - mu / |q|                                          (unit mass)
    n_body   H = sum_i p_i^2 / (2 m_i) - sum_{i<j} G m_i m_j / sqrt(|q_i - q_j|^2 + softening^2)

The Kepler truth advances by the difference of eccentric anomaly (Battin 1999, *An Introduction to the
Mathematics and Methods of Astrodynamics*, section 4.3), measured at 1e-12 over 100 time units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import HistoryPairs, System
from worldsim_plugins.systems import integrated

Dim = Annotated[Literal[2, 3], Field(description="dimension of space")]


class Kepler:
    """States ``[trajectory, (x, y, .., px, py, ..)]`` of bound orbits; random orientation and phase."""

    axes = ("component",)
    conserved: tuple[str, ...] = ("energy", "angular_momentum", "laplace_runge_lenz")
    history_kinds: tuple[str, ...] = ("window_shift", "rotation", "mirror")

    def __init__(
        self,
        *,
        dim: Dim = 2,
        mu: Annotated[float, Field(gt=0, description="strength of the centre, length^3 time^-2")] = 1.0,
        semi_major: Annotated[
            tuple[float, float], Field(description="lowest and highest semi-major axis of the starts")
        ] = (1.0, 1.0),
        eccentricity: Annotated[
            tuple[float, float], Field(description="lowest and highest eccentricity of the starts, below 1")
        ] = (0.0, 0.6),
    ) -> None:
        self.dim, self.mu = dim, mu
        self.semi_major = integrated.ordered("semi_major", semi_major, 0.0)
        self.eccentricity = integrated.ordered("eccentricity", eccentricity, 0.0, 1.0)
        if semi_major[0] == 0:
            raise ValueError("semi_major must be above 0")
        self.labels: Mapping[str, tuple[str, ...]] = {"component": components(dim)}
        self.units: Mapping[str, str] = dict.fromkeys((*components(dim), *self.conserved, "time"), "1")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, 2 * dim]``: semi-major axis, eccentricity and mean anomaly uniform."""
        a = integrated.between(self.semi_major, n, generator)
        e = integrated.between(self.eccentricity, n, generator)
        anomaly = integrated.between((-math.pi, math.pi), n, generator)
        cos, sin = on_circle(eccentric_anomaly(torch.zeros_like(e), e, anomaly))
        minor, speed = (1 - e.square()).sqrt(), (self.mu / a).sqrt() / (1 - e * cos)
        along, across = a * (cos - e), a * minor * sin
        plane = torch.randn(n, self.dim, self.dim, dtype=torch.float64, generator=generator)
        x, y = torch.linalg.qr(plane)[0][..., :2].unbind(-1)
        q = along[:, None] * x + across[:, None] * y
        p = (-speed * sin)[:, None] * x + (speed * minor * cos)[:, None] * y
        return torch.cat([q, p], dim=1)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, 2 * dim]``; raises ValueError unless every orbit is bound
        and keeps clear of the centre (eccentricity below 1)."""
        states = integrated.checked(states, (2 * self.dim,))
        q, p = states.chunk(2, dim=-1)
        straight = added(q.square()) * added(p.square()) - added(q * p).square() <= 0
        if (self.energy(states) >= 0).any() or straight.any() or not self.energy(states).isfinite().all():
            raise ValueError(
                "kepler starts only from bound orbits that miss the centre: energy < 0, |q x p| > 0"
            )
        return states

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, 2 * dim]``, with the conserved quantities and derivative as observables."""
        if actions is not None:
            raise ValueError("kepler is not driven: it takes no actions; leave them out")
        times = integrated.ascending(times)
        states = self.after(start[:, None], times - times[0])
        return integrated.recorded(self, states.unsqueeze(1), times, None)

    def after(self, states: Tensor, elapsed: Tensor) -> Tensor:
        """``[trajectory, time, 2 * dim]`` from states ``[trajectory, 1, 2 * dim]``, by Lagrange's f, g."""
        q, p = states.chunk(2, dim=-1)
        radius = added(q.square()).sqrt()
        a = -self.mu / (2 * self.energy(states))
        rate = (self.mu / a.pow(3)).sqrt()
        turned = torch.remainder(rate * elapsed + math.pi, 2 * math.pi) - math.pi
        alpha, beta = added(q * p) / (self.mu * a).sqrt(), 1 - radius / a
        angle = eccentric_anomaly(alpha, beta, turned)
        cos, sin = on_circle(angle)
        reached = a * (1 - beta * cos + alpha * sin)
        f, g = 1 - a / radius * (1 - cos), (turned - angle + sin) / rate
        f_dot, g_dot = -(self.mu * a).sqrt() / (reached * radius) * sin, 1 - a / reached * (1 - cos)
        f, g, f_dot, g_dot = (value[..., None] for value in (f, g, f_dot, g_dot))
        later = torch.cat([f * q + g * p, f_dot * q + g_dot * p], dim=-1)
        return torch.where(elapsed[:, None] == 0, states, later)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., 2 * dim]``."""
        q, p = x.chunk(2, dim=-1)
        return torch.cat([p, -self.mu * q / added(q.square()).pow(1.5)[..., None]], dim=-1)

    def energy(self, states: Tensor) -> Tensor:
        """H, ``[...]`` for ``[..., 2 * dim]``."""
        q, p = states.chunk(2, dim=-1)
        return added(p.square()) / 2 - self.mu / added(q.square()).sqrt()

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """Energy ``[...]``, angular momentum ``[...]`` (``[..., 3]`` in space), and the Laplace-Runge-Lenz
        vector ``[..., dim]``, (p^2 - mu / r) q - (q.p) p."""
        q, p = states.chunk(2, dim=-1)
        along_q = added(p.square()) - self.mu / added(q.square()).sqrt()
        return {
            "energy": self.energy(states),
            "angular_momentum": moment(q, p),
            "laplace_runge_lenz": along_q[..., None] * q - added(q * p)[..., None] * p,
        }

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``rotation``: one random rotation about the centre;
        ``mirror``: the last coordinate and its momentum reversed."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        if kind == "rotation":
            return rotated(self, history, self.dim, generator)
        signs = torch.tensor([*[1.0] * (self.dim - 1), -1.0] * 2, dtype=torch.float64)
        return integrated.image(self, history, lambda x: x * signs, lambda x: x * signs.to(x))


class NBody:
    """States ``[trajectory, body, (x, y, .., px, py, ..)]`` in the frame of the centre of mass. Starts have
    normally distributed places and velocities, scaled to ``size`` and to the ratio ``virial``."""

    axes = ("body", "component")
    conserved: tuple[str, ...] = ("energy", "momentum", "angular_momentum")

    def __init__(
        self,
        *,
        dim: Dim = 2,
        masses: Annotated[tuple[float, ...], Field(description="masses of the bodies, two or more")] = (
            1.0,
            1.0,
            1.0,
        ),
        gravity: Annotated[float, Field(gt=0, description="gravitational constant")] = 1.0,
        softening: Annotated[float, Field(ge=0, description="length below which gravity is softened")] = 0.1,
        size: Annotated[float, Field(gt=0, description="standard deviation of starting places")] = 1.0,
        virial: Annotated[
            float, Field(ge=0, description="starting kinetic over potential energy; bound below 1")
        ] = 0.5,
    ) -> None:
        if len(masses) < 2 or min(masses) <= 0:
            raise ValueError(f"masses must be two or more positive numbers, not {tuple(masses)}")
        self.dim, self.masses = dim, torch.tensor(masses, dtype=torch.float64)
        self.gravity, self.softening, self.size, self.virial = gravity, softening, size, virial
        self.twins = [(i, j) for j in range(len(masses)) for i in range(j) if masses[i] == masses[j]]
        self.history_kinds: tuple[str, ...] = ("window_shift", "rotation", "translation")
        self.history_kinds += ("swap",) if self.twins else ()
        bodies = tuple(f"body{i + 1}" for i in range(len(masses)))
        self.labels: Mapping[str, tuple[str, ...]] = {"body": bodies, "component": components(dim)}
        self.units: Mapping[str, str] = dict.fromkeys((*components(dim), *self.conserved, "time"), "1")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n, body, 2 * dim]``."""
        shape = (2, n, len(self.masses), self.dim)
        q, v = torch.randn(shape, dtype=torch.float64, generator=generator)
        q, v = self.size * self.centred(q), self.centred(v)
        rest = torch.cat([q, torch.zeros_like(q)], dim=-1)
        p = self.masses[:, None] * v
        kinetic = self.energy(torch.cat([q, p], dim=-1)) - self.energy(rest)
        scale = (self.virial * -self.energy(rest) / kinetic).sqrt()
        return torch.cat([q, scale[:, None, None] * p], dim=-1)

    def centred(self, x: Tensor) -> Tensor:
        weights = (self.masses / self.masses.sum())[:, None]
        return x - (weights * x).sum(-2, keepdim=True)

    def restart(self, states: Tensor) -> Tensor:
        """The start at ``states`` ``[trajectory, body, 2 * dim]``."""
        return integrated.checked(states, (len(self.masses), 2 * self.dim))

    def simulate(
        self, start: Tensor, times: Tensor, actions: Tensor | None, generator: torch.Generator
    ) -> Trajectory:
        """``[trajectory, 1, time, body, 2 * dim]``, conserved quantities and derivative as observables.
        Close encounters take shorter steps; raises ValueError at a collision."""
        return integrated.simulated(self, start, times, actions)

    def separations(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """q_i - q_j ``[..., body, body, dim]`` and its softened square ``[..., body, body]``, 1 for i = j."""
        apart = q.unsqueeze(-2) - q.unsqueeze(-3)
        itself = torch.eye(len(self.masses), dtype=q.dtype, device=q.device)
        return apart, added(apart.square()) + self.softening**2 * (1 - itself) + itself

    def products(self, q: Tensor) -> Tensor:
        """G m_i m_j ``[body, body]``, 0 for i = j."""
        products = self.gravity * self.masses[:, None] * self.masses
        return (products - products.diag().diag()).to(q)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """dx/dt at ``x`` ``[..., body, 2 * dim]``."""
        q, p = x.chunk(2, dim=-1)
        apart, square = self.separations(q)
        pulls = -(self.products(q) / (square * square.sqrt())).unsqueeze(-1) * apart
        return torch.cat([p / self.masses[:, None].to(p), added(pulls.movedim(-2, -1))], dim=-1)

    def energy(self, states: Tensor) -> Tensor:
        """H, ``[...]`` for ``[..., body, 2 * dim]``."""
        q, p = states.chunk(2, dim=-1)
        kinetic = (added(p.square()) / (2 * self.masses.to(p))).sum(-1)
        return kinetic - (self.products(q) / self.separations(q)[1].sqrt()).sum((-2, -1)) / 2

    def observe(self, states: Tensor) -> dict[str, Tensor]:
        """Energy ``[...]``, momentum ``[..., dim]``, angular momentum ``[...]`` (``[..., 3]`` in space)."""
        q, p = states.chunk(2, dim=-1)
        turning = moment(q, p).sum(-1 if self.dim == 2 else -2)
        return {"energy": self.energy(states), "momentum": p.sum(-2), "angular_momentum": turning}

    def places_and_momenta(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Places and momenta ``[..., body, dim]``."""
        q, p = states.chunk(2, dim=-1)
        return q, p

    def of_places_and_momenta(self, places: Tensor, momenta: Tensor) -> Tensor:
        """The inverse of ``places_and_momenta``."""
        return torch.cat([places, momenta], dim=-1)

    def equivalent_histories(
        self, kind: str, n: int, times: Tensor, generator: torch.Generator
    ) -> HistoryPairs:
        """``window_shift``: a longer and a shorter past; ``rotation`` and ``translation``: one random motion
        of the whole; ``swap``: two bodies of equal mass, drawn at random, exchanged."""
        if kind not in self.history_kinds:
            raise integrated.unknown_kind(kind, self.history_kinds)
        history = self.simulate(self.sample(n, generator), times, None, generator)
        if kind == "window_shift":
            return integrated.window_shift(history)
        if kind == "rotation":
            return rotated(self, history, self.dim, generator)
        if kind == "translation":
            shift = self.size * torch.randn(self.dim, dtype=torch.float64, generator=generator)
            shift = torch.cat([shift, torch.zeros_like(shift)])
            return integrated.image(self, history, lambda x: x + shift, lambda x: x - shift.to(x))
        first, second = self.twins[int(torch.randint(len(self.twins), (1,), generator=generator))]
        order = list(range(len(self.masses)))
        order[first], order[second] = second, first
        return integrated.image(self, history, lambda x: x[..., order, :], lambda x: x[..., order, :])


def components(dim: int) -> tuple[str, ...]:
    places = "xyz"[:dim]
    return (*places, *(f"p{place}" for place in places))


def added(terms: Tensor) -> Tensor:
    """The sum over the last axis in a fixed order, so that the bits of a row do not depend on the others."""
    first, *rest = terms.unbind(-1)
    return sum(rest, first)


def moment(q: Tensor, p: Tensor) -> Tensor:
    """q x p: a number in the plane, a vector in space."""
    if q.shape[-1] == 3:
        return torch.linalg.cross(q, p)
    return q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]


def on_circle(angle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(angle), torch.sin(angle)


def eccentric_anomaly(alpha: Tensor, beta: Tensor, mean: Tensor) -> Tensor:
    """The root x of x + alpha (1 - cos x) - beta sin x = mean, for alpha^2 + beta^2 < 1.

    Kepler's equation from any point of the orbit (alpha = e sin E, beta = e cos E there; alpha = 0, beta = e
    from pericentre), by Newton's method kept inside a bracket that bisection shrinks.
    """
    low, high = mean - 2, mean + 2
    x = mean.expand(torch.broadcast_shapes(alpha.shape, mean.shape))
    for _ in range(40):
        cos, sin = on_circle(x)
        excess = x + alpha * (1 - cos) - beta * sin - mean
        low, high = torch.where(excess < 0, x, low), torch.where(excess > 0, x, high)
        newton = x - excess / (1 + alpha * sin - beta * cos)
        x = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    return x


def rotated(
    system: Kepler | NBody, history: Trajectory, dim: int, generator: torch.Generator
) -> HistoryPairs:
    """A history and its image under one random rotation of places and momenta."""
    turn = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))[0]
    turn[:, 0] = turn[:, 0] * turn.det().sign()
    both = torch.block_diag(turn, turn)
    return integrated.image(system, history, lambda x: x @ both.T, lambda x: x @ both.to(x))


@hookimpl
def worldsim_systems() -> dict[str, Callable[..., System]]:
    return {"kepler": Kepler, "n_body": NBody}
