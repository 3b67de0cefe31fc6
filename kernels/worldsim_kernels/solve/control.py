"""How long the next step of each row is.

Powers are taken on a grid of 64 levels to the octave, by comparing with a table: ``pow`` and ``log`` round
differently in a vector and at its tail, and a step that depended on them would make a row depend on its
companions. Comparisons and the four operations round alike everywhere, so a row keeps its bits in any batch
and with any backend.

Sources: Hairer, Norsett, Wanner 1993, *Solving Ordinary Differential Equations I*, II.4; Soederlind 2003,
*Digital filters in adaptive time-stepping*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim_kernels.solve.sums import added, root

LEVELS = 64
# 2^(j / 64) / 2 for j = 0..64: the mantissas at which a level begins. What matters is not their last bit but
# that every backend has these very numbers.
_MANTISSAS = torch.tensor([2.0 ** (j / LEVELS) / 2 for j in range(LEVELS + 1)], dtype=torch.float64)
TINY = 2.0**-200
_FRACTION, _HALF = (1 << 52) - 1, 1022 << 52


def level(ratio: Tensor) -> Tensor:
    """The largest integer L, as float64, with 2^(L / 64) <= ratio, for ``ratio`` > 0 in float64."""
    mantissas = _MANTISSAS.to(ratio.device)
    bits = ratio.clamp(TINY, 1 / TINY).view(torch.int64)
    mantissa = ((bits & _FRACTION) | _HALF).view(torch.float64)
    # A guess that rounding may put one level off, and the comparisons that put it right.
    within = (LEVELS * (torch.log2(mantissa) + 1)).clamp(0, LEVELS - 1).long()
    within = within - (mantissas[within] > mantissa).long()
    within = within + (mantissas[within + 1] <= mantissa).long()
    return ((bits >> 52) - 1023).double() * LEVELS + within


def power(exponent: Tensor) -> Tensor:
    """2^(L / 64) for the floor L of ``exponent``, float64; inverse to ``level``."""
    whole = exponent.floor()
    octave = (whole / LEVELS).floor()
    within = (whole - octave * LEVELS).long()
    bits = _MANTISSAS.to(exponent.device)[within].view(torch.int64)
    return (bits + ((octave.long() + 1) << 52)).view(torch.float64)


def norm(value: Tensor) -> Tensor:
    """Root mean square over all axes but the first, ``[row]`` float64, added in halves."""
    terms = value.flatten(1).double().square()
    return root(added(terms, 1) / max(terms.shape[1], 1))


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
    Raises ValueError for a tolerance that is negative or not a number, if both are 0, and for other numbers
    with which no step could be taken.
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
        if not 0 <= self.smallest <= self.largest or not self.largest > 0:
            raise ValueError("expected 0 <= smallest <= largest and 0 < largest")
        if not all(math.isfinite(x) for x in (self.integral, self.proportional, self.derivative)):
            raise ValueError("integral, proportional and derivative must be finite")
        first = None if self.first is None else torch.as_tensor(self.first, dtype=torch.float64)
        if first is not None and not bool(((first > 0) & first.isfinite()).all()):
            raise ValueError(f"first must be positive and finite, it is {first.min().item()}")


@dataclass(frozen=True)
class Constant:
    """Steps of one length, a number or ``[row]``; each saved time is the end of a step, and the steps before
    it are all alike and no longer than ``step``."""

    step: float | Tensor


@dataclass(frozen=True)
class Control:
    """What a controller says of an attempt, ``[row]`` each; ``levels`` ``[2, row]`` are the last two error
    ratios that passed, ``slowed`` whether this attempt did not."""

    accept: Tensor
    size: Tensor
    levels: Tensor
    slowed: Tensor


def controlled(
    controller: PID,
    order: int,
    found: Tensor,
    good: Tensor,
    size: Tensor,
    gap: Tensor,
    levels: Tensor,
    slowed: Tensor,
) -> Control:
    """One attempt with the error ratio ``found`` ``[row]``, for steps of ``size`` at most ``gap`` long.

    order  k of ``PID``
    good   rows whose attempt is finite and settled; others are tried again with a quarter of the step
    """
    good = good & found.isfinite()
    accept = good & (found <= 1)
    now = level(torch.where(good, found, 1.0))
    p, i, d = controller.proportional, controller.integral, controller.derivative
    exponent = (p + 2 * d) * levels[0] - (i + p + d) * now - d * levels[1]
    factor = controller.safety * power(exponent / order)
    factor = factor.clamp(controller.shrink, controller.grow)
    factor = torch.where(accept & ~slowed, factor, factor.clamp(max=1.0))
    factor = torch.where(good, factor, 0.25)
    # A step cut short by its target says nothing against the size that was proposed before.
    tried = torch.minimum(size, gap)
    after = tried * factor
    after = torch.where(accept & (tried < size), torch.maximum(size, after), after)
    after = after.clamp(max=controller.largest)
    # At the lower bound a step is tried once more as it is before the row is given up.
    last = torch.where(tried > controller.smallest, controller.smallest, after)
    after = torch.where(after < controller.smallest, last, after)
    return Control(accept, after, torch.where(accept, torch.stack([now, levels[0]]), levels), ~accept)
