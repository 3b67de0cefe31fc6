"""Backward passes that are not to be differentiated, and say so.

``torch.autograd.function.once_differentiable`` says so only where the cotangent itself requires a gradient:
the gradient of a sum, of which a penalty is then taken, would be a constant without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Sequence[Tensor | None]]


def first_only(advice: str) -> Callable[[Backward], Backward]:
    """A decorator for ``backward(ctx, *cotangents)``: its results raise RuntimeError, with ``advice``, when
    they are differentiated."""

    def decorated(backward: Backward) -> Backward:
        @wraps(backward)
        def once(ctx: Any, *bars: Tensor | None) -> Sequence[Tensor | None]:
            with torch.no_grad():
                found = list(backward(ctx, *bars))
            if not torch.is_grad_enabled():
                return tuple(found)
            places = [i for i, each in enumerate(found) if each is not None]
            if places:
                mark = torch.zeros((), requires_grad=True)
                function: Callable[..., tuple[Tensor, ...]] = Refused.apply
                for i, each in zip(places, function(advice, mark, *(found[i] for i in places))):
                    found[i] = each
            return tuple(found)

        return once

    return decorated


class Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, advice: str, mark: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.advice = advice
        return tuple(each.view_as(each) for each in values)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[None, ...]:
        raise RuntimeError(f"there are first derivatives alone: {ctx.advice}")
