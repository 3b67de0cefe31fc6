"""Leapfrog whose time is a variable: the steps shorten near a centre, and stay symplectic.

With U = shift - V(q) > 0 and B = U - T along the orbit, the flow of

    Gamma(q, t, p, B) = ln(T(p) + B) - ln U(q)

is that of H = T + V in a time s with ds = U dt, and splits:

    drift  q' = v(p) / (T(p) + B), t' = 1 / (T(p) + B)          kick  p' = F(q) / U(q)

Leapfrogs of constant ds are symplectic in (q, t; p, B) and reversible; an error-controlled dt is neither.
Half a drift, a kick, half a drift: in this order, and not in the other, they follow a two-body orbit on its
exact ellipse, and only its time errs. Sources: Mikkola and Tanikawa 1999, *Explicit symplectic algorithms for
time-transformed Hamiltonians*; Preto and Tremaine 1999, *A class of symplectic integrators with adaptive time
step for separable Hamiltonian systems*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.splitting import check_halves
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import Separable, wide


@dataclass(frozen=True)
class Phase:
    """A point of the extended phase space: ``q`` and ``p`` ``[row, *half]``, ``time`` ``[row]`` float64,
    ``binding``, B ``[row]``, and the ``shift`` ``[row]``, which stays."""

    q: Tensor
    p: Tensor
    time: Tensor
    binding: Tensor
    shift: Tensor


class TimeTransformedLeapfrog(CubicHermite):
    """Order 2, one force per inner step.

    The inner steps of constant ds never end on a requested time: a step of the solver from t to t + h takes
    all that end by then, and reaches t + h by one plain leapfrog that leads off the orbit and from which
    nothing goes on. That costs two forces (one of them shows that the next inner step ends too late), and an
    error of the third power of an inner step, which does not add up. The orbit does not depend on the times
    that are saved; it is handed on from step to step (``carry``), and is part of the state.

    shift      U = shift - V: a number above the energy of every orbit; None for 0 where the energy is below
               0, else twice the energy
    first      how long an inner step lasts where the orbit starts, about, in units of time: ds = first U(q);
               None for h of the first step of the solver
    max_inner  inner steps within one step, after which the row is given up (``settled`` False), as it is
               where U or T + B is not positive
    The term must have ``potential`` and ``kinetic``. Raises ValueError in ``start`` when it has not.
    """

    terms = (Separable,)
    remembers = True
    """The carry is more than a function of y."""
    properties = Properties(2, symplectic=True, volume_preserving=True, reversible=True)

    def __init__(
        self,
        name: str = "adaptive_leapfrog",
        shift: float | None = None,
        first: float | None = None,
        max_inner: int = 10_000,
    ) -> None:
        if first is not None and not first > 0:
            raise ValueError(f"first must be positive, not {first}")
        if max_inner < 1:
            raise ValueError(f"max_inner must be at least 1, not {max_inner}")
        self.name, self.shift, self.first, self.max_inner = name, shift, first, max_inner

    def start(self, term: Separable, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The orbit's point, its t and ds ``[row, 2]`` (0 until the first step), and its B and shift
        ``[row, 2]``."""
        at = self.phase(term, t, y)
        ds = (self.first or 0.0) * self.depth(term, at).detach().to(t)
        return y, torch.stack([t, ds], 1), torch.stack([at.binding, at.shift], 1)

    def phase(self, term: Separable, t: Tensor, y: Tensor) -> Phase:
        """The point of the extended phase space where an orbit starts."""
        check_halves(self.name, y)
        if term.potential is None or term.kinetic is None:
            raise ValueError(f"{self.name} needs the potential and kinetic energy of the term: give both")
        q, p = y.chunk(2, -1)
        potential, kinetic = term.potential(q, *term.args), term.kinetic(p, *term.args)
        shift = self.shifted(potential.detach(), kinetic.detach())
        return Phase(q, p, t, shift - potential - kinetic, shift)

    def shifted(self, potential: Tensor, kinetic: Tensor) -> Tensor:
        """The shift ``[row]`` of orbits that start with these energies."""
        if self.shift is not None:
            return torch.full_like(potential, self.shift)
        twice = 2 * (potential + kinetic)
        # At rest where V = 0 any positive number will do: all steps are alike.
        shift = torch.where(twice > potential, twice, 1.0)
        return torch.where(twice < 0, 0.0, shift)

    def step(self, term: Separable, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        (q, p), (time, ds) = carry[0].chunk(2, -1), carry[1].unbind(1)
        at = Phase(q, p, time, *carry[2].unbind(1))
        ds = torch.where(ds > 0, ds, h.abs() * self.depth(term, at).detach().double())
        way, end, going = h.sign(), t + h, h != 0
        evaluations = going.long()
        for _ in range(self.max_inner):
            ahead = self.inner(term, way * ds, at)
            going = going & (way * (end - ahead.time) >= 0) & (ahead.time != at.time)
            # One flag from the device per inner step costs less than a force on rows that have arrived.
            if not bool(going.any()):
                break
            at, evaluations = chosen(going, ahead, at), evaluations + going
        settled = ahead.time.isfinite() & ~going
        rest = wide(end - at.time, y)
        q = at.q + rest / 2 * term.velocity(at.p, *term.args)
        p = at.p + rest * term.force(q, *term.args)
        q = q + rest / 2 * term.velocity(p, *term.args)
        orbit, clock = torch.cat([at.q, at.p], -1), torch.stack([at.time, ds], 1)
        return Step(
            torch.cat([q, p], -1),
            carry=(orbit, clock, carry[2]),
            settled=settled,
            evaluations=evaluations + 1,
        )

    def inner(self, term: Separable, ds: Tensor, at: Phase) -> Phase:
        """One step of ``ds`` ``[row]`` in s; its time is NaN where U or T + B is not positive."""
        first = self.lasts(term, ds / 2, at.p, at.binding)
        q = at.q + wide(first, at.q) * term.velocity(at.p, *term.args)
        depth = self.depth(term, replace(at, q=q))
        p = at.p + wide(ds, q) * (term.force(q, *term.args) / wide(depth, q))
        second = self.lasts(term, ds / 2, p, at.binding)
        q = q + wide(second, q) * term.velocity(p, *term.args)
        forward = (depth > 0) & (first * second >= 0) & (first * ds >= 0)
        time = at.time + (first.double() + second.double())
        return replace(at, q=q, p=p, time=torch.where(forward, time, float("nan")))

    def depth(self, term: Separable, at: Phase) -> Tensor:
        """U ``[row]``."""
        assert term.potential is not None
        return at.shift - term.potential(at.q, *term.args)

    def lasts(self, term: Separable, ds: Tensor, p: Tensor, binding: Tensor) -> Tensor:
        """How long a drift of ``ds`` with the momenta ``p`` lasts ``[row]``."""
        assert term.kinetic is not None
        return ds.to(p.dtype) / (term.kinetic(p, *term.args) + binding)


def chosen(mask: Tensor, new: Phase, old: Phase) -> Phase:
    """``new`` in the rows of ``mask``, elsewhere ``old``."""
    pairs = {name: (value, getattr(old, name)) for name, value in vars(new).items()}
    return Phase(
        **{
            name: torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)
            for name, (one, other) in pairs.items()
        }
    )
