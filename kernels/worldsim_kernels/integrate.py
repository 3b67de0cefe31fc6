"""One step of an ordinary differential equation, by the method of your choice.

Pure functions of tensors of any batch shape: they keep the dtype, are differentiable by autograd, and take a
step ``h`` (a number, or a tensor that broadcasts) which may be negative.

For a separable Hamiltonian H(q, p) = T(p) + V(q), ``velocity(p)`` is dT/dp and ``force(q)`` is -dV/dq.

Sources: Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*, chapters I, II.4 and VI.3;
Yoshida 1990, *Construction of higher order symplectic integrators*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]
TimeField = Callable[[Tensor, Tensor], Tensor]
Step = float | Tensor


@dataclass(frozen=True)
class Method:
    """What is known of a method.

    order       global error O(h^order)
    symplectic  the Jacobian J of a step of a Hamiltonian system obeys J^T Omega J = Omega
    reversible  a step of -h undoes a step of h
    """

    order: int
    symplectic: bool
    reversible: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "euler": Method(order=1, symplectic=False, reversible=False),
        "runge_kutta4": Method(order=4, symplectic=False, reversible=False),
        "symplectic_euler": Method(order=1, symplectic=True, reversible=False),
        "leapfrog": Method(order=2, symplectic=True, reversible=True),
        "yoshida4": Method(order=4, symplectic=True, reversible=True),
        "yoshida6": Method(order=6, symplectic=True, reversible=True),
        "implicit_midpoint": Method(order=2, symplectic=True, reversible=True),
    }
)

# Yoshida 1990: the triple jump, and solution A of order 6 (its table 1, to more digits). The order of the
# weights matters: another one keeps symplecticity and reversibility, and loses the order.
_OUTER = 1 / (2 - 2 ** (1 / 3))
_SIX = (0.784513610477557263819, 0.235573213359358133685, -1.177679984178871006946)
WEIGHTS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "leapfrog": (1.0,),
        "yoshida4": (_OUTER, 1 - 2 * _OUTER, _OUTER),
        "yoshida6": (*_SIX, 1 - 2 * sum(_SIX), *reversed(_SIX)),
    }
)


def euler(t: Tensor, x: Tensor, h: Step, field: TimeField) -> Tensor:
    """x' = x + h f(t, x), for ``x`` ``[..., d]``."""
    return _moved(x, h, field(t, x))


def runge_kutta4(t: Tensor, x: Tensor, h: Step, field: TimeField) -> Tensor:
    """The classical method of Kutta 1901, for ``x`` ``[..., d]``."""
    k1 = field(t, x)
    k2 = field(t + h / 2, _moved(x, h / 2, k1))
    k3 = field(t + h / 2, _moved(x, h / 2, k2))
    k4 = field(t + h, _moved(x, h, k3))
    return _moved(x, h / 6, k1 + 2 * (k2 + k3) + k4)


def symplectic_euler(q: Tensor, p: Tensor, h: Step, velocity: Field, force: Field) -> tuple[Tensor, Tensor]:
    """Kick, then drift: p' = p + h F(q), q' = q + h v(p'); ``q``, ``p`` ``[..., d]``."""
    p = _moved(p, h, force(q))
    return _moved(q, h, velocity(p)), p


def leapfrog(q: Tensor, p: Tensor, h: Step, velocity: Field, force: Field) -> tuple[Tensor, Tensor]:
    """Half a kick, a drift, half a kick (Stoermer-Verlet); ``q``, ``p`` ``[..., d]``."""
    return kick_drift_kick(q, p, force(q), h, velocity, force, WEIGHTS["leapfrog"])[:2]


def yoshida4(q: Tensor, p: Tensor, h: Step, velocity: Field, force: Field) -> tuple[Tensor, Tensor]:
    """Three leapfrogs in one step, order 4 (Yoshida 1990); ``q``, ``p`` ``[..., d]``."""
    return kick_drift_kick(q, p, force(q), h, velocity, force, WEIGHTS["yoshida4"])[:2]


def yoshida6(q: Tensor, p: Tensor, h: Step, velocity: Field, force: Field) -> tuple[Tensor, Tensor]:
    """Seven leapfrogs in one step, order 6 (Yoshida 1990, solution A); ``q``, ``p`` ``[..., d]``."""
    return kick_drift_kick(q, p, force(q), h, velocity, force, WEIGHTS["yoshida6"])[:2]


def kick_drift_kick(
    q: Tensor, p: Tensor, f: Tensor, h: Step, velocity: Field, force: Field, weights: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Leapfrogs of lengths ``weights * h`` in turn, from ``q``, ``p`` and ``f = force(q)``, all ``[..., d]``.

    Returns q', p' and force(q'): given back as ``f``, it makes the next step one force cheaper. Where two
    leapfrogs meet, their half-kicks have the same force and are one kick.
    """
    before = 0.0
    for weight in weights:
        p = _moved(p, (before + weight) / 2 * h, f)
        q = _moved(q, weight * h, velocity(p))
        f, before = force(q), weight
    return q, _moved(p, before / 2 * h, f), f


def _moved(x: Tensor, h: Step, slope: Tensor) -> Tensor:
    """x + h slope, in one pass over memory where the arguments let it."""
    if not isinstance(x, Tensor) or not isinstance(slope, Tensor):
        return x + h * slope
    if isinstance(h, Tensor):
        return torch.addcmul(x, h, slope) if h.dtype == x.dtype == slope.dtype else x + h * slope
    return torch.add(x, slope, alpha=h)


def implicit_midpoint(
    x: Tensor, h: Step, field: Field, tolerance: float | None = None, max_iterations: int = 50
) -> Tensor:
    """x' = x + h f((x + x') / 2) for ``x`` ``[..., d]``, by fixed-point iteration on the slope.

    Symplectic for every Hamiltonian, separable or not (Hairer, Lubich, Wanner 2006, theorem VI.3.5). Each row
    (all axes but the last) stops when its x' moves by no more than ``tolerance * max(1, |x|)``, and is frozen
    there, so that no row depends on its companions. The iteration contracts when h |df/dx| < 2.

    tolerance  32 machine epsilons of the dtype when None
    Raises RuntimeError when a row has not settled after ``max_iterations``. Stopping early reads one flag
    from the device per iteration, which costs less than the evaluations it saves.
    """
    tolerance = 32 * torch.finfo(x.dtype).eps if tolerance is None else tolerance
    allowed = tolerance * x.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    slope = field(x)
    moving = torch.ones_like(allowed, dtype=torch.bool)
    for _ in range(max_iterations):
        better = field(x + h / 2 * slope)
        change = (h * (better - slope)).detach().abs().amax(-1, keepdim=True)
        slope = torch.where(moving, better, slope)
        moving = moving & ~(change <= allowed)  # not "change > allowed", which lets a NaN pass
        if not moving.any():
            return x + h * slope
    raise RuntimeError(
        f"implicit midpoint: {int(moving.sum())} of {moving.numel()} rows did not settle within "
        f"{max_iterations} iterations; take a smaller step, or check that the field is finite there"
    )


def substeps(times: Tensor, longest: float | None = None) -> list[tuple[float, int]]:
    """For each interval of ``times`` ``[time]``: the step, and how many of them end on the next time.

    longest  no step is longer than this; None for one step per interval
    Raises ValueError unless ``times`` are finite and strictly monotone.
    """
    gaps = times.double().diff()
    if times.dim() != 1 or len(times) == 0 or not times.isfinite().all() or not _one_sign(gaps):
        raise ValueError("times must be a vector of at least one finite number, strictly rising or falling")
    # The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1.
    counts = [1 if longest is None else math.ceil(abs(gap) / longest * (1 - 1e-9)) for gap in gaps.tolist()]
    return [(gap / max(count, 1), max(count, 1)) for gap, count in zip(gaps.tolist(), counts)]


def _one_sign(gaps: Tensor) -> bool:
    return bool((gaps > 0).all() or (gaps < 0).all())
