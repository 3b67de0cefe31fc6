"""How long the next step of each row is.

Powers are taken on a grid of 64 levels to the octave, by comparing with a table: ``pow`` and ``log`` round
differently in a vector and at its tail, and a step that depended on them would make a row depend on its
companions. Comparisons and the four operations round alike everywhere, so a row keeps its bits in any batch
and with any backend.

Sources: Hairer, Norsett, Wanner 1993, *Solving Ordinary Differential Equations I*, II.4; Soederlind 2003,
*Digital filters in adaptive time-stepping*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 64
# 2^(j / 64) / 2 for j = 0..63: the mantissas at which a level begins. Repeated squaring of exact halves would
# be as good; what matters is that every backend has these very numbers.
_MANTISSAS = torch.tensor([2.0 ** (j / LEVELS) / 2 for j in range(LEVELS)], dtype=torch.float64)
TINY = 2.0**-200


def level(ratio: Tensor) -> Tensor:
    """The largest integer L, as float64, with 2^(L / 64) <= ratio, for ``ratio`` > 0 in float64."""
    mantissa, exponent = torch.frexp(ratio.clamp(TINY, 1 / TINY))
    within = torch.searchsorted(_MANTISSAS.to(ratio.device), mantissa.contiguous(), right=True) - 1
    return (exponent - 1).double() * LEVELS + within


def power(exponent: Tensor) -> Tensor:
    """2^(L / 64) for the floor L of ``exponent``, float64; inverse to ``level``."""
    whole = exponent.floor()
    octave = (whole / LEVELS).floor()
    within = (whole - octave * LEVELS).long()
    return torch.ldexp(_MANTISSAS.to(exponent.device)[within], (octave + 1).int())


def norm(value: Tensor) -> Tensor:
    """Root mean square over all axes but the first, ``[row]`` float64, added in halves."""
    terms = value.flatten(1).double().square()
    count = terms.shape[1]
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        head = terms[:, :half] + terms[:, half : 2 * half]
        terms = head if terms.shape[1] == 2 * half else torch.cat([head, terms[:, 2 * half :]], 1)
    return (terms[:, 0] / count).sqrt() if count else torch.zeros(len(value), dtype=torch.float64)


@dataclass(frozen=True)
class PID:
    """h' = h * safety * e_n^(-(I + P + D) / k) e_(n-1)^((P + 2 D) / k) e_(n-2)^(-D / k).

    e is the error over the tolerance in the last steps that were accepted, k the order of the error estimate
    plus one.

    The tolerance of a component is atol + rtol max(|y|, |y'|), the error of a row the root mean square over
    its components.

    rtol, atol            numbers, or tensors ``[row]``
    integral, proportional, derivative   I, P and D
    safety, shrink, grow  factor on the step that would just pass, and its least and largest change; a step
                          does not grow right after one that was rejected
    smallest, largest     absolute bounds of the step; a row whose step must be smaller fails
    first                 the first step, None for an estimate (Hairer, Norsett, Wanner 1993, II.4)
    Raises ValueError for a tolerance that is negative or not a number, or if both are 0.
    """

    rtol: float | Tensor = 1e-6
    atol: float | Tensor = 1e-6
    integral: float = 1.0
    proportional: float = 0.0
    derivative: float = 0.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    smallest: float = 0.0
    largest: float = float("inf")
    first: float | Tensor | None = None

    def __post_init__(self) -> None:
        rtol, atol = (torch.as_tensor(x, dtype=torch.float64) for x in (self.rtol, self.atol))
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not bool(((value >= 0) & value.isfinite()).all()):
                raise ValueError(f"{name} must be finite and not negative, it is {value.min().item()}")
        if bool(((rtol + atol) == 0).any()):
            raise ValueError("rtol and atol are both 0: no step could ever be accepted; make one positive")
        if not 0 < self.shrink < 1 < self.grow or not 0 < self.safety <= 1:
            raise ValueError("expected 0 < shrink < 1 < grow and 0 < safety <= 1")
        if not 0 <= self.smallest <= self.largest:
            raise ValueError("expected 0 <= smallest <= largest")


@dataclass(frozen=True)
class Constant:
    """Steps of one length, a number or ``[row]``; each saved time is the end of a step, and the steps before
    it are all alike and no longer than ``step``."""

    step: float | Tensor
