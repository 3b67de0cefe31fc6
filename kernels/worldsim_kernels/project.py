"""Gauss-Newton projection onto h(x) = 0, per sample, in float64.

    x' = x - C J^T (J C J^T + R)^-1 h(x),        J = dh/dx

One linear-Gaussian conditioning step of h(x) = 0 observed with noise variance R, x having the covariance C.
R = 0 repeated to convergence is a hard projection (Gauss-Newton for under-determined equations, Ben-Israel
1966; used on generative models by Utkarsh et al. 2025, "Physics-constrained flow matching"); R > 0 once is
guidance. C = 1 moves the shortest way; C = the covariance of a Gaussian law and a linear h give that law's
condition.

What is sampled: projecting draws of a law gives the *projected* law, the image of that law under a map that
is nearest-point to first order. It is not the law conditioned on h(x) = 0, whose density on the surface is
p(x) det(J J^T)^(-1/2), see ``log_coarea`` (the co-area formula, Federer 1959).

An inequality g(x) >= 0 is projected as h = relu(-g): rows that hold have no gradient and are left out, so a
linear one is met on its edge in one step.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim_kernels.gram import Anchor as Anchor
from worldsim_kernels.gram import Frames, Metric, Residual, Structure, blocks, direction, log_volume

HALVINGS = 20
SLOW = 0.9
"""A last step that leaves more than this part of |h| is one of a search that has come to rest."""


class Status(enum.IntEnum):
    """How the projection of a sample ended."""

    CONVERGED = 0
    UNREACHABLE = 1
    NOT_FINITE = 2
    ITERATIONS = 3


REASONS: Mapping[Status, str] = MappingProxyType(
    {
        Status.CONVERGED: "it obeys",
        Status.UNREACHABLE: "no step lessens the violation further: nothing near it obeys, or a frame that "
        "is held does not",
        Status.NOT_FINITE: "the residual is not finite there",
        Status.ITERATIONS: "the iterations ran out while the violation was still falling: allow more",
    }
)


def reasons(status: Tensor) -> str:
    """How many samples did not arrive, and why, in one sentence; "" when all did."""
    parts = [
        f"{int((status == code).sum())} of {status.numel()}: {REASONS[code]}"
        for code in Status
        if code is not Status.CONVERGED and bool((status == code).any())
    ]
    return "; ".join(parts)


class Projection(NamedTuple):
    """What ``project`` found.

    x           ``[n, time, *state]`` float64: per sample the iterate with the smallest residual
    converged   ``[n]`` bool: ``violation <= tolerance``
    iterations  Gauss-Newton steps taken, the same for the whole batch
    violation   ``[n]`` float64: max |h| at ``x``; inf where h is not finite
    status      ``[n]`` int8, of ``Status``
    """

    x: Tensor
    converged: Tensor
    iterations: int
    violation: Tensor
    status: Tensor


def gauss_newton_step(
    residual: Residual,
    x: Tensor,
    *,
    damping: float = 0.0,
    local: bool = False,
    frozen: Frames | None = None,
    anchor: Anchor | None = None,
    metric: Metric | None = None,
) -> Tensor:
    """One full step ``x - C J^T (J C J^T + damping)^-1 h(x)``, in float64, returned in x's dtype.

    x        ``[n, time, *state]``
    damping  R, a variance in the units of h squared; 0 solves the linearised constraint exactly
    local    ``residual(x)[:, i]`` depends on frame i alone: J is block diagonal, and a scalar residual per
             frame costs one vector-Jacobian product for the whole batch
    frozen   frames that do not move
    anchor   ``residual`` compares each later frame with that one, see ``Anchor``; its cost grows as the
             number of frames, not as its cube
    metric   C; left out, the identity. With ``local`` or ``anchor`` it must be variances

    Rows of h without a gradient, and repeated ones, are left out (pseudo-inverse); a sample whose h or J is
    not finite stays where it is. The result is detached: this is not to be differentiated through. Works
    under ``torch.no_grad``. Raises ValueError when h has the wrong shape or does not depend on x, and for a
    structure that does not fit.
    """
    structure = _checked(x, Structure(local, frozen, anchor, metric), damping=damping)
    start = x.detach().to(torch.float64)
    return (start + direction(residual, start, damping, structure)).to(x.dtype)


def project(
    residual: Residual,
    x: Tensor,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 20,
    local: bool = False,
    frozen: Frames | None = None,
    anchor: Anchor | None = None,
    metric: Metric | None = None,
) -> Projection:
    """Repeat the step with R = 0 until max |h| <= tolerance, halving it while |h| would grow.

    Arguments as in ``gauss_newton_step``. With ``local`` every frame has its own step length. Gauss-Newton
    is quadratic near a solution and not globally convergent: a sample that does not arrive (h = 0 may have
    no solution) keeps its best iterate and has a status that says why, and never changes what its neighbours
    become. Frozen frames count in the violation. The result is float64 and detached; works under
    ``torch.no_grad``.
    """
    structure = _checked(
        x, Structure(local, frozen, anchor, metric), tolerance=tolerance, max_iterations=max_iterations
    )
    x = x.detach().to(torch.float64)
    h = _evaluate(residual, x, local)
    searching = _worst(h).isfinite() & (_worst(h) > tolerance)
    resting = torch.zeros_like(searching)
    iterations = 0
    while iterations < max_iterations and searching.any():
        iterations += 1
        before = torch.linalg.vector_norm(h, dim=-1)
        step = direction(residual, x, 0.0, structure)
        x, h, moved = _line_search(residual, x, h, step, local, searching)
        slow = torch.linalg.vector_norm(h, dim=-1) > SLOW * before
        resting = torch.where(searching, slow, resting)
        searching = moved & (_worst(h) > tolerance)
    worst = _worst(_evaluate(residual, x, local))
    violation = worst.amax(1)
    return Projection(x, violation <= tolerance, iterations, violation, _status(worst, resting, tolerance))


def log_coarea(
    residual: Residual,
    x: Tensor,
    *,
    local: bool = False,
    frozen: Frames | None = None,
    anchor: Anchor | None = None,
) -> Tensor:
    """-1/2 log det J J^T of each sample, ``[n]`` float64: what turns a density with respect to volume into
    that of the law conditioned on h = 0, with respect to area on the surface.

    Arguments as in ``gauss_newton_step``. Rows of h without a gradient in any sample are constants, and left
    out; inf where the gradients of a sample are dependent (the surface has a corner, or repeated rows).
    """
    structure = _checked(x, Structure(local, frozen, anchor))
    return -0.5 * log_volume(residual, x.detach().to(torch.float64), structure)


def _checked(x: Tensor, structure: Structure, **settings: float) -> Structure:
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x has shape {list(x.shape)} and dtype {x.dtype}; give floating [n, time, *state]")
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be at least 0")
    structure.check(x)
    return structure


def _evaluate(residual: Residual, x: Tensor, local: bool) -> Tensor:
    with torch.no_grad():
        return blocks(residual(x), x, local).to(torch.float64)


def _worst(h: Tensor) -> Tensor:
    """max |h| of each block, ``[n, block]``; inf where h is not a number."""
    return h.abs().nan_to_num(nan=math.inf, posinf=math.inf).amax(-1)


def _status(worst: Tensor, resting: Tensor, tolerance: float) -> Tensor:
    """Of each sample, from its blocks' ``[n, block]``."""
    status = torch.full(worst.shape[:1], Status.ITERATIONS, dtype=torch.int8, device=worst.device)
    away = worst > tolerance
    status[(away & resting).any(1)] = Status.UNREACHABLE
    status[~worst.isfinite().all(1)] = Status.NOT_FINITE
    status[~away.any(1)] = Status.CONVERGED
    return status


def _line_search(
    residual: Residual, x: Tensor, h: Tensor, direction: Tensor, local: bool, searching: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Move each searching block by the longest halved step that shrinks |h|; says which blocks moved."""
    wanted, norm = searching, torch.linalg.vector_norm(h, dim=-1)
    for _ in range(HALVINGS + 1):
        trial = x + direction * _per_frame(searching, x)
        h_trial = _evaluate(residual, trial, local)
        better = searching & (torch.linalg.vector_norm(h_trial, dim=-1) < norm)
        x = torch.where(_per_frame(better, x), trial, x)
        h = torch.where(better[..., None], h_trial, h)
        searching = searching & ~better
        if not searching.any():
            break
        direction = direction / 2
    return x, h, wanted & ~searching


def _per_frame(block: Tensor, x: Tensor) -> Tensor:
    """``[n, block]`` to a mask that broadcasts over x ``[n, time, *state]``."""
    return block.reshape(*block.shape, *[1] * (x.ndim - 2))
