"""J C J^T of a residual h(x), by its structure: what a Gauss-Newton step and a density on h = 0 are made of.

    dense      J C J^T of a whole sample
    local      h_t depends on x_t alone: one small block for each frame
    anchored   h_t = (v(x_t) - v(x_a)) / s for t > a:  diagonal blocks A_t = G_t C G_t^T, G = dv/dx, and
               A_a in every block, of rank k; with c = A_a sum_t A_t^-1 (s h_t - c),
               (J C J^T)^-1 h = A_t^-1 (s h_t - c)                 (Sherman, Morrison and Woodbury 1950)

The last two cost as much as the number of frames; the first its cube.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Residual: TypeAlias = Callable[[Tensor], Tensor]
"""h: x ``[n, time, *state]`` -> ``[n, ...]``, samples independent, differentiable torch operations."""

Frames: TypeAlias = int | slice | Sequence[int] | Tensor
"""Which frames: an index, several, a slice, or a boolean mask ``[time]``."""

Metric: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""C, how freely each number of a sample moves: variances that broadcast to x, a covariance ``[d, d]`` or
``[n, d, d]`` of flattened samples, or a function of cotangents ``[row, *x]`` that returns as many vectors."""


@dataclass(frozen=True)
class Anchor:
    """Of a residual h_t = (value(x_t) - value(x_frame)) / scale for t > frame, 0 up to it.

    value  x ``[n, time, *state]`` -> ``[n, time, ...]``, entry t a function of x_t alone
    """

    value: Residual
    frame: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Structure:
    """What is known of a residual (``local``, ``anchor``) and asked of a step (``frozen``, ``metric``)."""

    local: bool = False
    frozen: Frames | None = None
    anchor: Anchor | None = None
    metric: Metric | None = None

    def check(self, x: Tensor) -> None:
        """Raises ValueError for what does not go together, or with ``x``."""
        if self.local and self.anchor is not None:
            raise ValueError("a residual is local in time or anchored, not both")
        if self.anchor is not None and not 0 <= self.anchor.frame < x.shape[1]:
            raise ValueError(f"the anchor is frame {self.anchor.frame}, and x has {x.shape[1]} frames")
        if self.anchor is not None and self.frozen is not None:
            after = torch.zeros(x.shape[1], dtype=torch.bool)
            after[_index(self.frozen)] = True
            if bool(after[self.anchor.frame + 1 :].any()):
                raise ValueError("frames after the anchor cannot be frozen: use no anchor")
        if self.metric is None or self.diagonal(x) is not None:
            return
        if self.local or self.anchor is not None:
            raise ValueError(
                "a metric that couples frames leaves no structure: give variances, or no local and no anchor"
            )

    def diagonal(self, x: Tensor) -> Tensor | None:
        """The metric's variances as ``x``, where it is given by them."""
        size = math.prod(x.shape[1:])
        if not isinstance(self.metric, Tensor) or (size > 1 and self.metric.shape[-2:] == (size, size)):
            return None
        return self.metric.to(x).expand_as(x)

    def moved(self, rows: Tensor, x: Tensor) -> Tensor:
        """C of cotangents ``[row, *x]``; frozen frames do not move."""
        if self.metric is None:
            return rows
        variances = self.diagonal(x)
        if variances is not None:
            return rows * variances
        if isinstance(self.metric, Tensor):
            moved = (self.metric.to(x) @ rows.flatten(2)[..., None])[..., 0].view_as(rows)
        else:
            moved = self.metric(rows).to(rows)
        return self.held(moved)

    def held(self, rows: Tensor) -> Tensor:
        """Cotangents ``[row, *x]`` with nothing at frozen frames."""
        if self.frozen is not None:
            rows = rows.clone()
            rows[:, :, _index(self.frozen)] = 0.0
        return rows


def _index(frozen: Frames) -> Frames:
    return list(frozen) if isinstance(frozen, tuple) else frozen


# A block is what has its own Jacobian and its own step length: one frame if local, else the whole sample.
# h is kept as [n, block, component].


def blocks(h: Tensor, x: Tensor, local: bool) -> Tensor:
    """h as ``[n, block, component]``. Raises ValueError unless it begins with the sample, and the frame."""
    lead = x.shape[: 2 if local else 1]
    if h.shape[: len(lead)] != lead:
        raise ValueError(
            f"the residual of x {list(x.shape)} has shape {list(h.shape)}; it must begin with {list(lead)}"
            + (" because local says one residual per frame" if local else "")
        )
    return h.reshape(x.shape[0], math.prod(lead[1:]), math.prod(h.shape[len(lead) :]))


def direction(residual: Residual, x: Tensor, damping: float, structure: Structure) -> Tensor:
    """-C J^T (J C J^T + damping)^-1 h ``[n, time, *state]``; 0 where h or J is not finite."""
    if structure.anchor is not None:
        step = _anchored_direction(residual, x, damping, structure, structure.anchor)
    else:
        h, jacobian, moved = _linearise(residual, x, structure)
        gram = jacobian @ moved.mT
        gram.diagonal(dim1=-2, dim2=-1).add_(damping)
        step = -(moved.mT @ _solve(gram, h)[..., None]).reshape_as(x)
    return step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def log_volume(residual: Residual, x: Tensor, structure: Structure) -> Tensor:
    """log det J C J^T of each sample ``[n]``. Rows of h without a gradient in any sample are constants, and
    left out; -inf where the others are dependent."""
    if structure.anchor is not None:
        return _anchored_log_volume(x, structure, structure.anchor)
    _, jacobian, moved = _linearise(residual, x, structure)
    gram = jacobian @ moved.mT
    constant = ~(jacobian != 0).any(0).any(-1)
    gram.diagonal(dim1=-2, dim2=-1).add_(constant.to(gram))
    return _log_det(gram).sum(1)


def _linearise(residual: Residual, x: Tensor, structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """h ``[n, block, component]``, J and J C ``[n, block, component, coordinate]``, 0 at frozen frames."""
    local = structure.local
    h, rows = linearised(residual, x, local)
    rows = structure.held(rows)
    moved = structure.moved(rows, x)
    n, block, component = h.shape

    def by_block(rows: Tensor) -> Tensor:
        rows = rows.reshape(component, n, block, math.prod(x.shape[2 if local else 1 :]))
        return rows.permute(1, 2, 0, 3)

    jacobian = by_block(rows)
    return h, jacobian, jacobian if structure.metric is None else by_block(moved)


def linearised(function: Residual, x: Tensor, local: bool) -> tuple[Tensor, Tensor]:
    """h ``[n, block, component]`` and d h[..., k] / dx ``[component, *x]``; blocks do not mix, so one
    vector-Jacobian product serves them all."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        h = blocks(function(leaf), leaf, local).to(torch.float64)
        if not h.requires_grad:
            raise ValueError("the residual does not depend on x through differentiable torch operations")
        component = h.shape[-1]
        if component == 1:
            rows = torch.autograd.grad(h, leaf, torch.ones_like(h))[0][None]
        else:
            one_hot = torch.eye(component, dtype=h.dtype, device=h.device)[:, None, None]
            given = one_hot.expand(component, *h.shape)
            rows = torch.autograd.grad(h, leaf, given, is_grads_batched=True)[0]
    return h.detach(), rows


def _solve(gram: Tensor, h: Tensor) -> Tensor:
    """The multipliers gram^+ h, ``[n, block, component]``; 0 for blocks that are not finite."""
    finite = gram.isfinite().flatten(2).all(-1) & h.isfinite().all(-1)
    h = torch.where(finite[..., None], h, 0.0)
    return (_inverse(torch.where(finite[..., None, None], gram, 0.0)) @ h[..., None])[..., 0]


def _inverse(gram: Tensor) -> Tensor:
    """The pseudo-inverse of symmetric ``[..., component, component]``, which must be finite: one bad matrix
    would make the batched factorisation fail for every sample."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    inverse_norm = torch.where(norm > 0, 1 / norm, 0.0)
    if gram.shape[-1] == 1:
        return inverse_norm[..., None].square()
    # Rows are equilibrated first, so that the rank cut-off does not drop a constraint for being small.
    both = inverse_norm[..., :, None] * inverse_norm[..., None, :]
    inverse: Tensor = both * torch.linalg.pinv(both * gram, hermitian=True)
    return inverse


# Anchored residuals. Values are v ``[n, time, k]``, rows G ``[n, time, k, coordinate]``.


def _anchored_rows(x: Tensor, structure: Structure, anchor: Anchor) -> tuple[Tensor, Tensor, Tensor]:
    """G C ``[n, time, k, coordinate]``, G C G^T at each frame, and which frames are after the anchor."""
    _, rows = linearised(anchor.value, x, True)
    rows = structure.held(rows)
    moved = structure.moved(rows, x)
    rows, moved = (r.flatten(3).permute(1, 2, 0, 3) for r in (rows, moved))
    after = torch.arange(x.shape[1], device=x.device) > anchor.frame
    return moved, rows @ moved.mT, after


def _anchored_direction(
    residual: Residual, x: Tensor, damping: float, structure: Structure, anchor: Anchor
) -> Tensor:
    with torch.no_grad():
        h = blocks(residual(x), x, True).to(torch.float64)
    moved, gram, after = _anchored_rows(x, structure, anchor)
    if h.shape != gram.shape[:3]:
        raise ValueError(
            f"the anchor's value has {gram.shape[2]} numbers in each of {gram.shape[1]} frames, and the "
            f"residual is {list(h.shape)}"
        )
    finite = (gram.isfinite().all(-1) & h.isfinite())[:, anchor.frame :].flatten(1).all(1)
    gram = torch.where(finite[:, None, None, None] & _from(anchor, gram), gram, 0.0)
    h = torch.where(finite[:, None, None], h, 0.0) * anchor.scale
    common = gram[:, anchor.frame].clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(damping * anchor.scale**2)
    inverse = torch.where(after[:, None, None], _inverse(gram), 0.0)
    pulled = (inverse @ h[..., None]).sum(1)
    shift = torch.linalg.solve(_one_plus(common @ inverse.sum(1)), common @ pulled)
    multiplier = (inverse @ (h[..., None] - shift[:, None]))[..., 0]
    multiplier[:, anchor.frame] = -multiplier.sum(1)
    step = -(moved.mT @ multiplier[..., None])[..., 0]
    return torch.where(finite[:, None, None], step, 0.0).reshape_as(x)


def _anchored_log_volume(x: Tensor, structure: Structure, anchor: Anchor) -> Tensor:
    _, gram, _ = _anchored_rows(x, structure, anchor)
    gram = gram[:, anchor.frame :]
    common, own = gram[:, 0], gram[:, 1:]
    total = _log_det(own).sum(1) + _log_det(_one_plus(common @ torch.linalg.inv(own).sum(1)))
    return total - 2 * math.log(anchor.scale) * own.shape[1] * own.shape[2]


def _log_det(matrix: Tensor) -> Tensor:
    logarithm: Tensor = torch.linalg.slogdet(matrix).logabsdet
    return logarithm


def _from(anchor: Anchor, gram: Tensor) -> Tensor:
    time = torch.arange(gram.shape[1], device=gram.device)
    return (time >= anchor.frame)[:, None, None]


def _one_plus(matrix: Tensor) -> Tensor:
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
