"""Fields in Fourier space: their power per band of wavenumbers, and errors of fields as benchmarks give them.

The wavenumber of a mode is |k| in cycles over the grid, floored. Powers are |u^_k|^2 / N^2, so that they sum
to the mean square of the field (Parseval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def shells(grid: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """The floored wavenumber ``[*grid]`` of each mode of ``torch.fft.fftn``."""
    square = torch.zeros(tuple(grid), dtype=torch.float64, device=device)
    for axis, size in enumerate(grid):
        k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device)
        square = square + k.square().reshape(-1, *[1] * (len(grid) - axis - 1))
    # A whole wavenumber must not fall below itself by rounding.
    return (square.sqrt() + 1e-9).long()


def band_power(fields: Tensor, edges: Sequence[int], *, dims: int = 1) -> Tensor:
    """Power ``[..., band]`` of ``fields`` ``[..., *grid]`` with ``dims`` grid axes; the bands sum to the mean
    square.

    edges  rising wavenumbers: the first band ends below edges[0], the last begins at edges[-1]

    Raises ValueError for edges that do not rise and for too few axes.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
        raise ValueError(f"band_power: edges {list(edges)} must rise, from 1 at least")
    grid = _grid("band_power", fields, dims)
    power = torch.fft.fftn(fields.double(), dim=tuple(range(-dims, 0))).abs().square() / math.prod(grid) ** 2
    bounds = torch.tensor(edges, device=fields.device)
    home = torch.bucketize(shells(grid, device=fields.device), bounds, right=True)
    found = torch.zeros(*fields.shape[:-dims], len(edges) + 1, dtype=torch.float64, device=fields.device)
    return found.index_add_(-1, home.flatten(), power.flatten(-dims))


def fourier_rmse(errors: Tensor, edges: Sequence[int]) -> Tensor:
    """fRMSE ``[band]`` of ``errors`` ``[n, x]`` on a line: the mean over the wavenumbers of a band, up to
    half the grid, of sqrt(mean over n of |e^_k|^2) / N, as PDEBench gives it (Takamoto et al. 2022)."""
    size = errors.shape[-1]
    spectrum = torch.fft.rfft(errors.double(), dim=-1)[..., : size // 2].abs()
    rms = spectrum.square().reshape(-1, size // 2).mean(0).sqrt() / size
    bounds = [0, *(min(edge, size // 2) for edge in edges), size // 2]
    return torch.stack([rms[low:high].mean() for low, high in pairwise(bounds)])


def vrmse(prediction: Tensor, truth: Tensor, *, dims: int = 1, epsilon: float = 1e-7) -> Tensor:
    """sqrt(<|u - u^|^2> / (<|u - <u>|^2> + epsilon)) ``[...]`` over the last ``dims`` axes, ``<.>`` the mean
    over them (Ohana et al. 2024): 1 for whoever gives the mean, sqrt(2) for an independent truth."""
    axes = tuple(range(-dims, 0))
    variance = truth.double().var(axes, correction=0)
    return ((prediction - truth).double().square().mean(axes) / (variance + epsilon)).sqrt()


def crmse(prediction: Tensor, truth: Tensor, *, dims: int = 1) -> Tensor:
    """Error of the conserved total, sqrt(mean over n of (<u^> - <u>)^2) of ``[n, *grid]`` (PDEBench): c for a
    prediction that is c too large everywhere."""
    axes = tuple(range(-dims, 0))
    return (prediction - truth).double().mean(axes).square().mean().sqrt()


def _grid(kernel: str, fields: Tensor, dims: int) -> tuple[int, ...]:
    if dims < 1 or fields.dim() < dims:
        raise ValueError(f"{kernel}: fields {list(fields.shape)} have no {dims} grid axes")
    return tuple(fields.shape[-dims:])
