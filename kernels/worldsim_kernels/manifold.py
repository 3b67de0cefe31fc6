"""A Metropolis walk on a surface h(x) = 0, for the law of x given h(x) = 0.

From x on the surface, v ~ N(0, scale^2) in its tangent space, and

    y = x + v + J(x)^T a,   h(y) = 0,   by Newton's method in a
    accept with min(1, f(y) p(v' | y) / f(x) p(v | x)),   v' the tangent at y that leads back to x

f is a density with respect to area. That of the conditional law of a density p is p(x) det(J J^T)^(-1/2). A
proposal is refused where Newton's method does not arrive, or does not arrive back at x from y: without the
second check the walk is not reversible. Source: Zappa, Holmes-Cerfon and Goodman 2018, *Monte Carlo on
manifolds: sampling densities and integrating functions*.

The projection of a sample is in no such way a draw from that law; a walk is, at the price of many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.gram import Residual, linearised

ITERATIONS = 12


class Walk(NamedTuple):
    """x ``[step, n, d]`` float64, the start left out; accepted ``[n]``, the share of each walker's steps that
    were accepted."""

    x: Tensor
    accepted: Tensor


class _Place(NamedTuple):
    """Points ``[n, d]``, J ``[n, m, d]``, an orthonormal basis of its rows ``[n, d, m]``, log f ``[n]``."""

    x: Tensor
    jacobian: Tensor
    normal: Tensor
    log_density: Tensor


def walk(
    residual: Residual,
    log_density: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    steps: int,
    scale: float,
    generator: torch.Generator,
    tolerance: float = 1e-10,
) -> Walk:
    """``steps`` steps of every walker.

    residual     h: ``[n, d]`` -> ``[n, m]`` or ``[n]``, differentiable, of full rank where walkers go
    log_density  log p, ``[n, d]`` -> ``[n]``, up to a constant, with respect to volume: the walk samples the
                 law of x given h(x) = 0
    x            starts ``[n, d]``, on the surface: ``project`` finds some
    scale        standard deviation of a step
    generator    draws the steps and what is accepted

    Raises ValueError for a start that is off the surface.
    """
    at = _place(residual, log_density, x.detach().to(torch.float64))
    if not bool((_values(residual, at.x).abs() <= tolerance).all()):
        raise ValueError("a walk must start on the surface: project the starts first")
    accepted = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    path = []
    for _ in range(steps):
        noise = torch.randn(at.x.shape, dtype=torch.float64, generator=generator).to(x.device)
        chance = torch.rand(len(x), dtype=torch.float64, generator=generator).to(x.device)
        tangent = _tangent(at, scale * noise)
        end, arrived = _onto(residual, at.x + tangent, at.jacobian, tolerance)
        there = _place(residual, log_density, torch.where(arrived[:, None], end, at.x))
        back = _tangent(there, at.x - there.x)
        origin, returned = _onto(residual, there.x + back, there.jacobian, tolerance)
        same = (origin - at.x).abs().amax(1) <= 1e-6 * (1 + at.x.abs().amax(1))
        lengths = back.square().sum(1) - tangent.square().sum(1)
        log_ratio = there.log_density - at.log_density - lengths / (2 * scale**2)
        taken = arrived & returned & same & (chance.log() < log_ratio)
        at = _Place(*(torch.where(_wide(taken, new), new, old) for new, old in zip(there, at, strict=True)))
        accepted = accepted + taken
        path.append(at.x)
    return Walk(torch.stack(path), accepted / steps)


def _place(residual: Residual, log_density: Callable[[Tensor], Tensor], x: Tensor) -> _Place:
    _, rows = linearised(residual, x, False)
    jacobian = rows.transpose(0, 1)
    normal, triangle = torch.linalg.qr(jacobian.mT)
    coarea = -triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    with torch.no_grad():
        return _Place(x, jacobian, normal, log_density(x) + coarea)


def _tangent(place: _Place, vector: Tensor) -> Tensor:
    return vector - (place.normal @ (place.normal.mT @ vector[..., None]))[..., 0]


def _onto(residual: Residual, x: Tensor, along: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """x + J^T a on the surface, for rows J ``along`` ``[n, m, d]``, and where it was found."""
    x, left = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(ITERATIONS):
        h, rows = linearised(residual, x[left], False)
        away = ~(h.abs() <= tolerance).flatten(1).all(1)
        left, h, jacobian = left[away], h[away, 0], rows.transpose(0, 1)[away]
        if not len(left):
            break
        step, info = torch.linalg.solve_ex(jacobian @ along[left].mT, h[..., None])
        moved = x[left] - (along[left].mT @ step)[..., 0]
        good = (info == 0) & moved.isfinite().all(1)
        left = left[good]
        x[left] = moved[good]
    return x, (_values(residual, x).abs() <= tolerance).all(1)


def _values(residual: Residual, x: Tensor) -> Tensor:
    with torch.no_grad():
        return residual(x).reshape(len(x), -1)


def _wide(mask: Tensor, values: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (values.ndim - 1))
