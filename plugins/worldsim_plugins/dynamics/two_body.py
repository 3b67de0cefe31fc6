"""Every body on its own conic around a fixed centre: the Kepler problem as a baseline for planets.

d^2 r / dt^2 = -mu r / |r|^3, solved in closed form by universal variables, one formula for ellipses,
parabolas and hyperbolas (Bate, Mueller, White 1971, *Fundamentals of Astrodynamics*, chapter 4; Curtis 2014,
*Orbital Mechanics for Engineering Students*, section 3.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from worldsim import Trajectory, hookimpl
from worldsim.protocols import Dynamics

ITERATIONS = 200
SERIES = [1 / math.factorial(2 * k + 3) for k in range(10)]  # of S(z), to rounding for |z| < 1


class TwoBody:
    """Nothing is learned: each body keeps the orbit that its last known position and velocity define.

    States are ``[body, (position, velocity)]`` relative to the centre, in two or three dimensions; float64.
    """

    trainable = False
    scaling = "none"

    def __init__(
        self,
        *,
        mu: Annotated[
            float,
            Field(
                gt=0,
                description="gravitational parameter of the centre, in the units of the states; the default "
                "is the Sun's, the square of the Gaussian gravitational constant, au3 d-2",
            ),
        ] = 0.00029591220828559115,
        masses: Annotated[
            list[float] | None,
            Field(
                description="mass of each body over that of the centre, added to it: mu (1 + m); null for 0"
            ),
        ] = None,
    ) -> None:
        ratios = torch.tensor([0.0] if masses is None else masses, dtype=torch.float64)
        if not ratios.isfinite().all() or (ratios < 0).any() or len(ratios) == 0:
            raise ValueError(f"masses must be one number >= 0 for each body, not {masses}")
        self.mu = mu * (1 + ratios)

    def drift(self, t: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """(v, -mu r / |r|^3), ``[..., body, (position, velocity)]``; ValueError for another shape."""
        position, velocity = self._halves(x)
        cube = position.norm(dim=-1, keepdim=True) ** 3
        return torch.cat([velocity, -self.mu[:, None].to(x) * position / cube], -1)

    def loss(self, truth: Trajectory) -> Tensor:
        """Zero: there is nothing to train."""
        return torch.zeros(())

    def rollout(
        self,
        context: Trajectory,
        times: Tensor,
        actions: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> Trajectory:
        """``[trajectory, draw, time, body, (position, velocity)]``, float64, all draws alike.

        Raises ValueError for states that are not of this shape, not finite, or fall into the centre.
        """
        position, velocity = self._halves(context.states[:, 0, -1].double())
        elapsed = (times - times[0]).to(position)
        # [trajectory, time, body, ...], the times and the parameters broadcast
        states = propagate(position[:, None], velocity[:, None], elapsed[:, None], self.mu.to(position))
        return context.replace(
            states=states.unsqueeze(1).expand(-1, draws, *states.shape[1:]),
            times=times,
            actions=actions,
            observables={},
            length=None,
        )

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() < 2 or x.shape[-1] not in (4, 6) or len(self.mu) not in (1, x.shape[-2]):
            raise ValueError(
                "two_body needs states [body, (position, velocity)] in 2 or 3 dimensions and one mass per "
                f"body; the state ends in {list(x.shape[-2:])}, and there are {len(self.mu)} masses"
            )
        position, velocity = x.chunk(2, -1)
        return position, velocity


def propagate(position: Tensor, velocity: Tensor, elapsed: Tensor, mu: Tensor) -> Tensor:
    """The state ``elapsed`` later on the conic: ``[..., (position, velocity)]`` for vectors ``[..., d]``.

    ``elapsed`` and ``mu`` broadcast over ``[...]``. Raises ValueError when a vector is not finite or the
    orbit meets the centre, RuntimeError when the iteration does not settle.
    """
    start = torch.broadcast_tensors(position, velocity, elapsed[..., None], mu[..., None])
    r, v = start[0], start[1]
    t, mu = start[2][..., 0], start[3][..., 0]
    distance, inverse_axis, pericentre = orbit(r, v, mu)
    t = within_half_a_period(t, inverse_axis, mu)
    root = mu.sqrt()
    radial = (r * v).sum(-1) / root
    chi = universal_anomaly(root * t, distance, radial, inverse_axis, pericentre)
    c, s = stumpff(inverse_axis * chi**2)
    f = 1 - chi**2 * c / distance
    g = t - chi**3 * s / root
    end = f[..., None] * r + g[..., None] * v
    far = end.norm(dim=-1)
    f_dot = root / (far * distance) * (inverse_axis * chi**3 * s - chi)
    g_dot = 1 - chi**2 * c / far
    return torch.cat([end, f_dot[..., None] * r + g_dot[..., None] * v], -1)


def orbit(r: Tensor, v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|r|, 1/a (negative for a hyperbola) and the pericentre distance, each ``[...]``."""
    distance, speed2 = r.norm(dim=-1), v.square().sum(-1)
    across = v - ((r * v).sum(-1) / distance**2)[..., None] * r
    momentum2 = distance**2 * across.square().sum(-1)
    inverse_axis = 2 / distance - speed2 / mu
    parameter = momentum2 / mu
    eccentricity = (1 - parameter * inverse_axis).clamp(min=0).sqrt()
    pericentre = parameter / (1 + eccentricity)
    if not (torch.isfinite(pericentre) & (pericentre > 1e-14 * distance)).all():
        raise ValueError(
            "two_body: a state is not finite, at the centre, or falls straight into it, where the orbit ends"
        )
    return distance, inverse_axis, pericentre


def within_half_a_period(t: Tensor, inverse_axis: Tensor, mu: Tensor) -> Tensor:
    """``t`` less whole periods of the ellipses: later turns would only lose digits."""
    closed = inverse_axis.clamp(min=torch.finfo(t.dtype).tiny ** 0.5)
    period = 2 * math.pi / (mu.sqrt() * closed**1.5)
    turns = torch.where(inverse_axis > 0, torch.round(t / period), 0.0)
    return torch.where(turns == 0, t, t - turns * period)


def universal_anomaly(
    target: Tensor, distance: Tensor, radial: Tensor, inverse_axis: Tensor, pericentre: Tensor
) -> Tensor:
    """The root chi of Kepler's universal equation, all ``[...]``; ``target`` is sqrt(mu) t.

        radial chi^2 C(z) + (1 - distance / a) chi^3 S(z) + distance chi = target,   z = chi^2 / a

    The left side rises with slope r(chi) >= the pericentre, so that the root lies between 0 and
    target / pericentre. Newton's steps are taken while they stay in that bracket and halve at least; a
    hyperbola's exponential makes them crawl, and then the bracket is halved instead.
    """
    bound = 1.01 * target / pericentre  # a pericentre that is rounded must not shut the root out
    low, high = bound.clamp(max=0), bound.clamp(min=0)
    chi = (target / distance).clamp(low, high)
    last = high - low
    moving = torch.ones_like(chi, dtype=torch.bool)
    for _ in range(ITERATIONS):
        value, slope, rounding = kepler_equation(chi, distance, radial, inverse_axis)
        finite = value.isfinite() & slope.isfinite()  # else an overflow: too far, on whichever side
        excess = torch.where(finite, value - target, chi.sign() * math.inf)
        low = torch.where(excess < 0, chi, low)
        high = torch.where(excess > 0, chi, high)
        newton = chi - excess / slope
        narrow = high - low <= 4 * torch.finfo(chi.dtype).eps * chi.abs()
        settled = finite & ((excess.abs() <= rounding) | narrow)
        good = (newton >= low) & (newton <= high) & ((newton - chi).abs() <= last / 2)
        better = torch.where(settled | good, newton, (low + high) / 2)
        last = (better - chi).abs()
        chi = torch.where(moving, better, chi)
        moving = moving & ~settled
        if not moving.any():
            return chi
    raise RuntimeError(
        f"two_body: Kepler's equation did not settle for {int(moving.sum())} of {moving.numel()} states"
    )


def kepler_equation(
    chi: Tensor, distance: Tensor, radial: Tensor, inverse_axis: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The left side of Kepler's universal equation, its slope r(chi), and a bound on its rounding error."""
    z = inverse_axis * chi**2
    c, s = stumpff(z)
    lean = 1 - distance * inverse_axis
    terms = torch.stack([radial * chi**2 * c, lean * chi**3 * s, distance * chi])
    slope = radial * chi * (1 - z * s) + lean * chi**2 * c + distance
    rounding = 8 * torch.finfo(chi.dtype).eps * (1 + z.abs().sqrt()) * terms.abs().sum(0)
    return terms.sum(0), slope, rounding


def stumpff(z: Tensor) -> tuple[Tensor, Tensor]:
    """Stumpff's C(z) = (1 - cos sqrt z) / z and S(z) = (sqrt z - sin sqrt z) / sqrt(z)^3, z of any sign."""
    root = z.abs().clamp(min=1e-30).sqrt()
    half = root / 2
    c = 2 * torch.where(z > 0, half.sin(), half.sinh()).square() / root**2
    far = torch.where(z > 0, root - root.sin(), root.sinh() - root) / root**3
    near = torch.zeros_like(z)
    for coefficient in reversed(SERIES):
        near = coefficient - z * near
    return c, torch.where(z.abs() < 1, near, far)


@hookimpl
def worldsim_dynamics() -> dict[str, Callable[..., Dynamics]]:
    return {"two_body": TwoBody}
