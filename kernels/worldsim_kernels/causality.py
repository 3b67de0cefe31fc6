"""Does an output at a time depend on an input after it? And how much of a response leaves its light cone?

leak = max over t and t' > t of |d y_t / d x_t'|,  exactly 0 for a causal function
leak = sum of |response|^2 outside |x - x_0| <= c t + stencil, over the sum of all
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim_kernels.lyapunov import NotDifferentiable


def temporal_leak(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    delay: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """max over t and t' >= t + ``delay`` of |d y_t / d x_t'| of each row, ``[row]``, exact.

    function   ``[row, time, *in]`` to ``[row, time, *out]``, no row seeing another
    delay      1 when y_t may depend on x_t, 0 when only on what came before it
    generator  with it the outputs of a frame are not taken one by one but in one random combination, as many
               times as cheap and right with probability 1 about whether there is a leak, not about its size

    Works in any grad mode. Raises NotDifferentiable when the output does not lead back to ``x``.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)
        # Parameters alone give an output a graph; a path to x that is cut would look like no leak.
        led = y.requires_grad and torch.autograd.grad(y.sum(), leaf, retain_graph=True, allow_unused=True)[0]
        if led is False or led is None:
            raise NotDifferentiable("no graph leads from the output back to the input")
        flat = y.flatten(2)
        if generator is not None:
            mix = torch.randn(flat.shape[2], 1, generator=generator, dtype=torch.float64).to(flat)
            flat = flat @ mix
        leak = x.new_zeros(len(x))
        for t in range(flat.shape[1]):
            if t + delay >= x.shape[1]:
                break
            for i in range(flat.shape[2]):
                (gradient,) = torch.autograd.grad(
                    flat[:, t, i].sum(), leaf, retain_graph=True, allow_unused=True
                )
                if gradient is not None:
                    leak = torch.maximum(leak, gradient[:, t + delay :].abs().flatten(1).amax(1))
    return leak.detach()


def cells_from(shape: tuple[int, ...], place: tuple[int, ...]) -> Tensor:
    """Distance of each point of a periodic grid of ``shape`` from ``place``, in cells, ``[*shape]``."""
    squares = torch.zeros(shape, dtype=torch.float64)
    for axis, (size, at) in enumerate(zip(shape, place, strict=True)):
        apart = (torch.arange(size) - at).abs()
        apart = torch.minimum(apart, size - apart).double()
        squares = squares + apart.square().reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return squares.sqrt()


def cone_leak(response: Tensor, distance: Tensor, reach: Tensor) -> Tensor:
    """Share of a response's energy that lies outside its cone, ``[row]``; NaN where there is no response.

    response  ``[row, time, *grid, component]``
    distance  ``[*grid]`` from the point that was disturbed
    reach     ``[time]`` radius of the cone, in the units of ``distance``
    """
    energy = response.double().square().sum(-1)
    outside = distance > reach.reshape(-1, *[1] * distance.dim())
    return (energy * outside).flatten(1).sum(1) / energy.flatten(1).sum(1)
