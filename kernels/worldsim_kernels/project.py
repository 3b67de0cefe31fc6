"""Gauss-Newton projection onto h(x) = 0, per sample, in float64.

    x' = x - J^T (J J^T + R)^-1 h(x),        J = dh/dx

One linear-Gaussian conditioning step of h(x) = 0 observed with noise variance R, under a unit metric on x.
R = 0 repeated to convergence is a hard projection (Gauss-Newton for under-determined equations, Ben-Israel
1966; used on generative models by Utkarsh et al. 2025, "Physics-constrained flow matching"); R > 0 once is
guidance.

What is sampled: projecting draws of a law gives the *projected* law, the image of that law under a map that
is nearest-point to first order. It is not the law conditioned on h(x) = 0, which also needs the density
factor det(J J^T)^(-1/2) and the covariance of x as the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Residual: TypeAlias = Callable[[Tensor], Tensor]
"""h: x ``[n, time, *state]`` -> ``[n, ...]``, samples independent, differentiable torch operations."""

Frames: TypeAlias = int | slice | Sequence[int] | Tensor
"""Which frames: an index, several, a slice, or a boolean mask ``[time]``."""

HALVINGS = 20


class Projection(NamedTuple):
    """What ``project`` found.

    x           ``[n, time, *state]`` float64: per sample the iterate with the smallest residual
    converged   ``[n]`` bool: ``violation <= tolerance``
    iterations  Gauss-Newton steps taken, the same for the whole batch
    violation   ``[n]`` float64: max |h| at ``x``; inf where h is not finite
    """

    x: Tensor
    converged: Tensor
    iterations: int
    violation: Tensor


def gauss_newton_step(
    residual: Residual,
    x: Tensor,
    *,
    damping: float = 0.0,
    local: bool = False,
    frozen: Frames | None = None,
) -> Tensor:
    """One full step ``x - J^T (J J^T + damping)^-1 h(x)``, in float64, returned in x's dtype.

    x        ``[n, time, *state]``
    damping  R, a variance in the units of h squared; 0 solves the linearised constraint exactly
    local    ``residual(x)[:, i]`` depends on frame i alone: J is block diagonal, and a scalar residual per
             frame costs one vector-Jacobian product for the whole batch
    frozen   frames that do not move

    Rows of h without a gradient, and repeated ones, are left out (pseudo-inverse); a sample whose h or J is
    not finite stays where it is. The result is detached: this is not to be differentiated through. Works
    under ``torch.no_grad``. Raises ValueError when h has the wrong shape or does not depend on x.
    """
    _check(x, damping=damping)
    start = x.detach().to(torch.float64)
    return (start + _direction(residual, start, damping, local, frozen)).to(x.dtype)


def project(
    residual: Residual,
    x: Tensor,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 20,
    local: bool = False,
    frozen: Frames | None = None,
) -> Projection:
    """Repeat the step with R = 0 until max |h| <= tolerance, halving it while |h| would grow.

    Arguments as in ``gauss_newton_step``. With ``local`` every frame has its own step length. Gauss-Newton
    is quadratic near a solution and not globally convergent: a sample that does not arrive (h = 0 may have
    no solution) keeps its best iterate and is flagged, and never changes what its neighbours become. Frozen
    frames count in the violation. The result is float64 and detached; works under ``torch.no_grad``.
    """
    _check(x, tolerance=tolerance, max_iterations=max_iterations)
    x = x.detach().to(torch.float64)
    h = _evaluate(residual, x, local)
    searching = _worst(h).isfinite() & (_worst(h) > tolerance)
    iterations = 0
    while iterations < max_iterations and searching.any():
        iterations += 1
        direction = _direction(residual, x, 0.0, local, frozen)
        x, h, moved = _line_search(residual, x, h, direction, local, searching)
        searching = moved & (_worst(h) > tolerance)
    violation = _worst(_evaluate(residual, x, local)).amax(1)
    return Projection(x, violation <= tolerance, iterations, violation)


def _check(x: Tensor, **settings: float) -> None:
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x has shape {list(x.shape)} and dtype {x.dtype}; give floating [n, time, *state]")
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be at least 0")


# A block is what has its own Jacobian and its own step length: one frame if local, else the whole sample.
# h is kept as [n, block, component].


def _blocks(h: Tensor, x: Tensor, local: bool) -> Tensor:
    lead = x.shape[: 2 if local else 1]
    if h.shape[: len(lead)] != lead:
        raise ValueError(
            f"the residual of x {list(x.shape)} has shape {list(h.shape)}; it must begin with {list(lead)}"
            + (" because local says one residual per frame" if local else "")
        )
    return h.reshape(x.shape[0], math.prod(lead[1:]), math.prod(h.shape[len(lead) :]))


def _evaluate(residual: Residual, x: Tensor, local: bool) -> Tensor:
    with torch.no_grad():
        return _blocks(residual(x), x, local).to(torch.float64)


def _worst(h: Tensor) -> Tensor:
    """max |h| of each block, ``[n, block]``; inf where h is not a number."""
    return h.abs().nan_to_num(nan=math.inf, posinf=math.inf).amax(-1)


def _direction(residual: Residual, x: Tensor, damping: float, local: bool, frozen: Frames | None) -> Tensor:
    h, jacobian = _linearise(residual, x, local, frozen)
    gram = jacobian @ jacobian.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(damping)
    step = -(jacobian.mT @ _solve(gram, h)[..., None]).reshape_as(x)
    return step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _linearise(residual: Residual, x: Tensor, local: bool, frozen: Frames | None) -> tuple[Tensor, Tensor]:
    """h ``[n, block, component]`` and J ``[n, block, component, coordinate]``, zero at frozen frames."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        h = _blocks(residual(leaf), leaf, local).to(torch.float64)
        if not h.requires_grad:
            raise ValueError("the residual does not depend on x through differentiable torch operations")
        rows = _vector_jacobian_products(h, leaf)
    if frozen is not None:
        rows[:, :, list(frozen) if isinstance(frozen, tuple) else frozen] = 0.0
    n, block, component = h.shape
    rows = rows.reshape(component, n, block, math.prod(x.shape[2 if local else 1 :]))
    return h.detach(), rows.permute(1, 2, 0, 3)


def _vector_jacobian_products(h: Tensor, leaf: Tensor) -> Tensor:
    """d h[..., k] / dx ``[component, *x]``; blocks do not mix, so one product serves them all."""
    component = h.shape[-1]
    if component == 1:
        return torch.autograd.grad(h, leaf, torch.ones_like(h))[0][None]
    one_hot = torch.eye(component, dtype=h.dtype, device=h.device)[:, None, None]
    return torch.autograd.grad(h, leaf, one_hot.expand(component, *h.shape), is_grads_batched=True)[0]


def _solve(gram: Tensor, h: Tensor) -> Tensor:
    """The multipliers gram^+ h, ``[n, block, component]``; 0 for blocks that are not finite."""
    finite = gram.isfinite().flatten(2).all(-1) & h.isfinite().all(-1)
    # One bad matrix would make the batched factorisation fail for every sample.
    gram = torch.where(finite[..., None, None], gram, 0.0)
    h = torch.where(finite[..., None], h, 0.0)
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    inverse_norm = torch.where(norm > 0, 1 / norm, 0.0)
    if h.shape[-1] == 1:
        return h * inverse_norm**2
    # Rows are equilibrated first, so that the rank cut-off does not drop a constraint for being small.
    unit = inverse_norm[..., :, None] * gram * inverse_norm[..., None, :]
    inverse: Tensor = torch.linalg.pinv(unit, hermitian=True)
    return inverse_norm * (inverse @ (inverse_norm * h)[..., None])[..., 0]


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
