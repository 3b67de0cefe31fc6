"""Biases and masks for attention between events in space and time.

A bias is added to the scores and a mask hides them, both before the softmax, so that every row of weights
sums to one and what is hidden has weight zero exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect
from worldsim_kernels.attention import Attention, attend


def distance_bias(positions_q: Tensor, positions_k: Tensor, length: Tensor | float) -> Tensor:
    """-|x_i - y_j| / length: weights fall as e^(-distance / length), as ALiBi's (Press et al. 2022).

    positions [..., T, D] and [..., S, D]; length a positive scalar or [H], in the positions' unit. Returns
    [..., H or 1, T, S]. Differentiable; the distance of a point to itself has gradient zero. Raises TypeError
    and ValueError for arguments that do not fit.
    """
    _expect_positions("distance_bias", positions_q, positions_k, length)
    return -_distance(positions_q, positions_k) / _per_head(length)


def gaussian_bias(positions_q: Tensor, positions_k: Tensor, length: Tensor | float) -> Tensor:
    """-|x_i - y_j|^2 / (2 length^2): weights fall as a Gaussian. All else as ``distance_bias``."""
    _expect_positions("gaussian_bias", positions_q, positions_k, length)
    apart = (positions_q.unsqueeze(-2) - positions_k.unsqueeze(-3)).square().sum(-1).unsqueeze(-3)
    return -apart / (2 * _per_head(length) ** 2)


def light_cone(x: Tensor, t: Tensor, speed: float) -> Tensor:
    """True where event i may be influenced by event j: |x_i - x_j| <= speed (t_i - t_j).

    x [..., T, D] and t [..., T]; speed in the unit of x over that of t. Returns bool [..., 1, T, T]. An event
    sees itself. The comparison is exact: an event on the cone itself falls on either side by rounding.
    Raises TypeError and ValueError for arguments that do not fit.
    """
    expect("light_cone", "x", x, [*_leading(x, 2), ("T", None), ("D", None)])
    expect("light_cone", "t", t, [*_leading(x, 2), ("T", x.shape[-2])], like=x)
    elapsed = t.unsqueeze(-1) - t.unsqueeze(-2)
    return _distance(x, x) <= speed * elapsed.unsqueeze(-3)


def physical_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions_q: Tensor,
    positions_k: Tensor,
    *,
    length: Tensor | float,
    temperature: Tensor | None = None,
    **options: Any,
) -> Attention:
    """Attention whose weights are a Gibbs distribution e^(-E_ij / temperature) with energies
    E_ij = |x_i - y_j| / length - q_i . k_j / sqrt(K): content and distance, one temperature.

    ``attend`` with ``distance_bias``; length and temperature are positive scalars or [H] and may be learned
    (as exponentials, so that they stay positive). ``options`` are those of ``attend``, as a ``mask`` by
    ``light_cone``.
    """
    bias = distance_bias(positions_q, positions_k, length)
    return attend(q, k, v, bias, temperature=temperature, **options)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """[..., 1, T, S]. Differences rather than the expanded square, which cancels for close points."""
    apart: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), dim=-1)
    return apart.unsqueeze(-3)


def _expect_positions(kernel: str, x: Tensor, y: Tensor, length: Tensor | float) -> None:
    expect(kernel, "positions_q", x, [*_leading(x, 2), ("T", None), ("D", None)])
    expect(kernel, "positions_k", y, [*_leading(x, 2), ("S", None), ("D", x.shape[-1])], like=x)
    if isinstance(length, Tensor):
        expect(kernel, "length", length, [("H", None)][: length.dim()], like=x)
    elif not length > 0:
        raise ValueError(f"{kernel}: length is {length}; it must be positive")


def _leading(x: Tensor, last: int) -> list[tuple[str, int | None]]:
    """The axes before the last ones."""
    shape = x.shape[:-last] if isinstance(x, Tensor) else ()
    return [(f"axis {i}", size) for i, size in enumerate(shape)]


def _per_head(length: Tensor | float) -> Tensor | float:
    return length.reshape(-1, 1, 1) if isinstance(length, Tensor) else length
