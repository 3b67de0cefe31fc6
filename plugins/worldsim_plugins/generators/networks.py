"""What the networks of generators are made of."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

FREQUENCIES = 8
TIME_FEATURES = 2 * FREQUENCIES + 1
OCTAVES = 4


def perceptron(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """``[sample, inputs]`` to ``[sample, outputs]`` through ``depth`` layers of ``width`` SiLU units."""
    sizes = [inputs, *[width] * depth]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def fourier(s: Tensor) -> Tensor:
    """``[sample, feature]``: s ``[sample]``, and the sines and cosines of pi k s."""
    angle = math.pi * s[:, None] * torch.arange(1, FREQUENCIES + 1, dtype=s.dtype, device=s.device)
    return torch.cat([s[:, None], angle.sin(), angle.cos()], 1)


def octaves(x: Tensor) -> Tensor:
    """``[sample, (1 + 2 OCTAVES) dim]``: x ``[sample, dim]``, and the sines and cosines of 2^k x.

    A perceptron of x alone is slow to learn what changes over a small part of the range of x (Kingma,
    Salimans, Poole and Ho 2021, who also give such features to the denoiser of a diffusion).
    """
    angle = (x[:, None] * 2.0 ** torch.arange(OCTAVES, dtype=x.dtype, device=x.device)[:, None]).flatten(1)
    return torch.cat([x, angle.sin(), angle.cos()], 1)
