"""Squared and plain Euclidean distances between all pairs of points.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x . y

costs one matrix product, but loses the digits that the distance does not share with |x|^2 + |y|^2. Centring
takes away what all points have in common, and pairs that are still much nearer to each other than to the
centre are taken by differences; so are all pairs in few dimensions, where that is as fast. Whatever was done,
the gradient is that of the distance, 2 sum_j G_ij (x_i - y_j), by one more product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, same_dtype
from worldsim_kernels.precision import full

FEW = 4
LOSS = 16
"""The expansion's error is a few epsilons of |x|^2 + |y|^2, and may be so many times larger in a distance."""
CHUNK = 2**22
"""Numbers of the differences that are held at a time."""


def pairwise(x: Tensor, y: Tensor, *, squared: bool = True) -> Tensor:
    """Distances ``[..., n, m]`` between ``x`` ``[..., n, d]`` and ``y`` ``[..., m, d]``, in their dtype.

    squared  |x_i - y_j|^2 when set, else |x_i - y_j|

    Every entry is accurate relative to itself, however small. Half precision is computed in float32.
    Differentiable to any order in reverse mode; at coinciding points the gradient is 0, of the plain distance
    too. Under ``torch.compile`` all pairs are taken by differences, which the compiler fuses.
    Raises TypeError for dtypes and ValueError for shapes.
    """
    for name, points in (("x", x), ("y", y)):
        axes = [("...", None)] * (points.dim() - 2) if isinstance(points, Tensor) else []
        expect("pairwise", name, points, [*axes, ("points", None), ("d", None)], like=x)
    same_dtype("pairwise", "y", y, x, "x")
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        wanted = ", ".join(map(str, [*x.shape[:-2], "m", x.shape[-1]]))
        raise ValueError(f"pairwise: y has shape {list(y.shape)}; expected [{wanted}], as x")
    half = x.dtype in (torch.float16, torch.bfloat16)
    left, right = (x.float(), y.float()) if half else (x, y)
    found = pairwise_reference(left, right) if torch.compiler.is_compiling() else _squared(left, right)
    return (found if squared else _root(found)).to(x.dtype)


def pairwise_reference(x: Tensor, y: Tensor) -> Tensor:
    """The definition, |x_i - y_j|^2 ``[..., n, m]``, with all differences ``[..., n, m, d]``."""
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


def _root(squares: Tensor) -> Tensor:
    if not squares.requires_grad:
        return squares.sqrt()
    same = squares == 0
    return torch.where(same, 0, torch.where(same, 1, squares).sqrt())


def _squared(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = _Squared.apply(x, y)  # type: ignore[no-untyped-call]
    return found


class _Squared(torch.autograd.Function):
    """Its backward is made of tensor operations, so that it can be differentiated again."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _by_feature(x, y) if x.shape[-1] <= FEW else _expanded(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @full
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, y), (grad,) = ctx.saved_tensors, grads
        x, y = _centred(x, y)
        of_x = 2 * (grad.sum(-1)[..., None] * x - grad @ y) if ctx.needs_input_grad[0] else None
        of_y = 2 * (grad.sum(-2)[..., None] * y - grad.mT @ x) if ctx.needs_input_grad[1] else None
        return of_x, of_y

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
        joined = (
            each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip((x, y), in_dims, strict=True)
        )
        return _squared(*joined), 0


def _by_feature(x: Tensor, y: Tensor) -> Tensor:
    found = None
    for k in range(x.shape[-1]):
        difference = x[..., :, None, k] - y[..., None, :, k]
        found = difference.square_() if found is None else found.addcmul_(difference, difference)
    return x.new_zeros(*x.shape[:-1], y.shape[-2]) if found is None else found


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-2] == 0:
        return x, y
    # One point that is not finite must not make all others so.
    middle = torch.where(x.isfinite(), x, 0).mean(-2, keepdim=True)
    return x - middle, y - middle


@full
def _expanded(x: Tensor, y: Tensor) -> Tensor:
    """The expansion, and differences for the pairs whose distance is below its error's bound."""
    left, right = _centred(x, y)
    sums = left.square().sum(-1)[..., :, None] + right.square().sum(-1)[..., None, :]
    found = (sums - 2 * left @ right.mT).clamp_(min=0)
    lost = ((found < sums / LOSS) | sums.isinf()).nonzero()
    for pairs in torch.split(lost, max(1, CHUNK // x.shape[-1])):
        at = pairs.unbind(-1)
        found[at] = (x[at[:-1]] - y[*at[:-2], at[-1]]).square().sum(-1)
    return found
