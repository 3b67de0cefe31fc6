"""Leapfrog whose time is a variable: the steps shorten near a centre, and stay symplectic.

With U = shift - V(q) > 0 and B = U - T along the orbit, the flow of

    Gamma(q, t, p, B) = ln(T(p) + B) - ln U(q)

is that of H = T + V in a time s with ds = U dt, and splits:

    drift  q' = v(p) / (T(p) + B), t' = 1 / (T(p) + B)          kick  p' = F(q) / U(q)

Leapfrogs of constant ds are symplectic in (q, t; p, B) and reversible; an error-controlled dt is neither. A
two-body orbit is followed on its exact ellipse, only its time errs. Sources: Mikkola and Tanikawa 1999,
*Explicit symplectic algorithms for time-transformed Hamiltonians*; Preto and Tremaine 1999, *A class of
symplectic integrators with adaptive time step for separable Hamiltonian systems*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.solve.hermite import CubicHermite
from worldsim_kernels.solve.splitting import check_halves
from worldsim_kernels.solve.stepper import Properties, Step
from worldsim_kernels.solve.terms import Separable, wide


@dataclass(frozen=True)
class Phase:
    """A point of the extended phase space, with the force and U there: ``q``, ``p``, ``force``
    ``[row, *half]``, ``time`` ``[row]`` float64, ``binding`` and ``depth`` (B and U) ``[row]``."""

    q: Tensor
    p: Tensor
    force: Tensor
    time: Tensor
    binding: Tensor
    depth: Tensor


class TimeTransformedLeapfrog(CubicHermite):
    """Order 2. The inner steps of constant ds never end on a requested time: a step of the solver from t to
    t + h takes all that end by then, and reaches t + h by one plain leapfrog that leads off the orbit (one
    force, an error of the third power of the inner step, once, not added up) and from which nothing goes on.
    Hence the orbit does not depend on the times that are saved. It is handed on from step to step
    (``carry``): it is part of the state.

    shift      U = shift - V: a number above the energy of every orbit, where V is not below 0 everywhere
    step       ds, in units of energy times time; None for h U(q) of the first step of the solver: then the
               first inner step lasts h, and the others as long as U allows
    max_inner  inner steps within one step, after which the row is given up (``settled`` False), as where U or
               T + B is not positive
    The term must have ``potential`` and ``kinetic``. Raises ValueError in ``start`` when it has not.
    """

    terms = (Separable,)
    start_evaluations = 1
    remembers = True
    """The carry is more than a function of y."""
    properties = Properties(2, symplectic=True, volume_preserving=True, reversible=True)

    def __init__(
        self,
        name: str = "adaptive_leapfrog",
        shift: float = 0.0,
        step: float | None = None,
        max_inner: int = 10_000,
    ) -> None:
        if step is not None and not step > 0:
            raise ValueError(f"step must be positive, not {step}")
        if max_inner < 1:
            raise ValueError(f"max_inner must be at least 1, not {max_inner}")
        self.name, self.shift, self.ds, self.max_inner = name, shift, step, max_inner

    def start(self, term: Separable, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The orbit's point, its force, t, B, U, and ds, which is 0 until the first step."""
        check_halves(self.name, y)
        if term.potential is None or term.kinetic is None:
            raise ValueError(f"{self.name} needs the potential and kinetic energy of the term: give both")
        q, p = y.chunk(2, -1)
        depth = self.shift - term.potential(q, *term.args)
        binding = depth - term.kinetic(p, *term.args)
        ds = torch.zeros_like(t) if self.ds is None else torch.full_like(t, self.ds)
        return y, term.force(q, *term.args), t, binding, depth, ds

    def step(self, term: Separable, t: Tensor, h: Tensor, y: Tensor, carry: tuple[Tensor, ...]) -> Step:
        """See ``Stepper.step``."""
        state, force, time, binding, depth, ds = carry
        ds = torch.where(ds > 0, ds, h.abs() * depth.detach().double())
        q, p = state.chunk(2, -1)
        at = Phase(q, p, force, time, binding, depth)
        signed, evaluations = h.sign() * ds, torch.ones_like(t).long()
        going = h != 0
        for _ in range(self.max_inner):
            p, dt = self.half_kicked(term, signed, at)
            going = going & (h.sign() * dt.double() > 0) & (h.sign() * (t + h - at.time - dt.double()) >= 0)
            # One flag from the device per inner step costs less than a force on rows that have arrived.
            if not bool(going.any()):
                break
            at = chosen(going, self.drifted(term, signed, at, p, dt), at)
            evaluations = evaluations + going
        good = (at.depth > 0) & (dt.double() * h >= 0) & ~going
        rest = wide(t + h - at.time, y)
        p = at.p + rest / 2 * at.force
        q = at.q + rest * term.velocity(p, *term.args)
        p = p + rest / 2 * term.force(q, *term.args)
        carry = (torch.cat([at.q, at.p], -1), at.force, at.time, at.binding, at.depth, ds)
        return Step(torch.cat([q, p], -1), carry=carry, settled=good, evaluations=evaluations)

    def inner(self, term: Separable, ds: Tensor, at: Phase) -> Phase:
        """One step of ``ds`` ``[row]`` in s."""
        return self.drifted(term, ds, at, *self.half_kicked(term, ds, at))

    def half_kicked(self, term: Separable, ds: Tensor, at: Phase) -> tuple[Tensor, Tensor]:
        """p in the middle of a step, and how long the step lasts ``[row]``."""
        p = at.p + wide(ds, at.p) / 2 * (at.force / wide(at.depth, at.p))
        return p, ds.to(p.dtype) / (term.kinetic(p, *term.args) + at.binding)  # type: ignore[misc]

    def drifted(self, term: Separable, ds: Tensor, at: Phase, p: Tensor, dt: Tensor) -> Phase:
        """The end of the step whose middle is ``p``, ``dt``."""
        q = at.q + wide(dt, p) * term.velocity(p, *term.args)
        force, depth = term.force(q, *term.args), self.shift - term.potential(q, *term.args)  # type: ignore[misc]
        p = p + wide(ds, p) / 2 * (force / wide(depth, p))
        return Phase(q, p, force, at.time + dt.double(), at.binding, depth)


def chosen(mask: Tensor, new: Phase, old: Phase) -> Phase:
    """``new`` in the rows of ``mask``, elsewhere ``old``."""

    def each(name: str) -> Any:
        one, other = getattr(new, name), getattr(old, name)
        return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)

    return Phase(**{name: each(name) for name in vars(old)})
