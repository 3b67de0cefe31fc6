"""Lyapunov exponents of a map: the mean rates at which it stretches tangent vectors.

    x' = F(x),   DF(x) V = Q R,   V' = Q,   lambda_i = <log R_ii> / dt

(Benettin, Galgani, Giorgilli and Strelcyn 1980; Shimada and Nagashima 1979.) F may be a map or the flow of a
differential equation over a time dt. The exponents of one walk come with an error that falls as one over the
square root of its length, so many walks are made at once, one a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Advance: TypeAlias = Callable[[Tensor], Tensor]
"""``[row, n]`` to ``[row, n]``; no row may see another."""

Push: TypeAlias = Callable[[Advance, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(F, x ``[row, n]``, V ``[row, n, k]``) to (F(x), DF(x) V)."""


class NotDifferentiable(ValueError):
    """The graph from the image back to the state is broken somewhere."""


def lyapunov_rates(
    advance: Advance,
    state: Tensor,
    steps: int,
    *,
    exponents: int,
    push: Push,
    transient: int = 0,
    dt: float = 1.0,
) -> Tensor:
    """log R_ii / dt of each step, ``[row, steps, exponent]`` float64, from ``state`` ``[row, n]``.

    exponents  how many, the largest ones first; at most n
    push       how tangent vectors are carried: ``by_gradient`` or ``by_difference(size)``
    transient  steps made before, in which the vectors turn into their directions
    dt         the time that one ``advance`` takes
    A direction that the map destroys has the rate -inf; once a row is not finite, its rates are NaN.
    Raises ValueError for more exponents than directions, and NotDifferentiable from ``by_gradient``.
    """
    rows, n = state.shape
    if not 1 <= exponents <= n:
        raise ValueError(f"exponents must be between 1 and the {n} directions of the state, not {exponents}")
    draws = torch.randn(rows, n, exponents, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = torch.linalg.qr(draws).Q
    rates = []
    for index in range(transient + steps):
        state, pushed = push(advance, state, frame)
        lost = ~(pushed.isfinite().flatten(1).all(1) & state.isfinite().all(1))
        # LAPACK refuses what is not finite: such a row goes on from anywhere, and its rates are NaN.
        q, r = torch.linalg.qr(torch.where(lost[:, None, None], frame, pushed.double()))
        frame = q
        stretched = r.diagonal(dim1=-2, dim2=-1).abs().log() / dt
        if index >= transient:
            rates.append(stretched.masked_fill(lost[:, None], torch.nan))
    return torch.stack(rates, 1) if rates else frame.new_zeros(rows, 0, exponents)


def by_gradient(advance: Advance, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Push by the exact Jacobian, in reverse mode: whatever torch can differentiate, solvers included."""
    matrix, image = jacobian(advance, x)
    return image, matrix.double() @ frame


def jacobian(advance: Advance, x: Tensor) -> tuple[Tensor, Tensor]:
    """``[row, out, in]`` and the image ``[row, out]`` of ``x`` ``[row, in]``, whatever the grad mode is.

    Raises NotDifferentiable when the image has no graph, or none that leads to ``x``.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        image = advance(leaf)
        if not image.requires_grad:
            raise NotDifferentiable("the image does not remember how it came from the state")
        rows = []
        for i in range(image.shape[1]):
            (gradient,) = torch.autograd.grad(
                image[:, i].sum(), leaf, retain_graph=i + 1 < image.shape[1], allow_unused=True
            )
            if gradient is None:
                raise NotDifferentiable("the image's graph does not lead to the state")
            rows.append(gradient)
    return torch.stack(rows, 1), image.detach()


def by_difference(size: float) -> Push:
    """Push by central differences of ``size``, in the units of the state (Benettin's original way): for maps
    that cannot be differentiated. The relative error is of order ``size`` squared, and the map's rounding
    over ``size``."""

    def push(advance: Advance, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        rows, n, k = frame.shape
        shift = size * frame.mT.reshape(rows * k, n).to(x.dtype)
        around = x.repeat_interleave(k, 0)
        image = advance(torch.cat([x, around + shift, around - shift]))
        here, ahead, behind = torch.split(image, [rows, rows * k, rows * k])
        pushed = (ahead.double() - behind.double()) / (2 * size)
        return here, pushed.reshape(rows, k, n).mT

    return push


def kaplan_yorke(exponents: Tensor) -> float:
    """Dimension of the attractor, j + (lambda_1 + ... + lambda_j) / |lambda_j+1| with the largest j whose sum
    is not negative (Kaplan and Yorke 1979), from ``exponents`` ``[n]`` in descending order.

    n when no sum is negative, 0 when the first one is.
    """
    sums = exponents.double().cumsum(0)
    kept = int((sums >= 0).long().cumprod(0).sum())
    if kept in (0, len(sums)):
        return float(kept)
    return kept + float(sums[kept - 1] / exponents[kept].abs())
