"""What the Triton loop of an explicit Runge-Kutta method has whatever its field; the rest is printed around
it (``solve.printed_triton``).

Times, steps and errors are float64 and every operation is that of the loop in torch, in its order.
``tables`` is what ``tables`` gives, ``numbers`` are those of ``NUMBERS``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = (
    *("error_order", "before", "now", "last", "safety", "shrink", "grow", "smallest", "largest"),
    *("tiny", "huge"),
)
"""The numbers of the step control, in this order: Triton takes a Python float for a float32."""


def tables(mantissas: Tensor) -> Tensor:
    """The mantissas at which a level begins, infinity after the last; for each 128th of an octave the level
    at which it begins; and the mantissa at which the next one does, for at most one begins inside."""
    device, infinity = mantissas.device, torch.tensor([float("inf")], dtype=torch.float64)
    bounds = torch.cat([mantissas[:64], infinity.to(device)])
    low = 0.5 + torch.arange(128, dtype=torch.float64, device=device) / 256
    begins = torch.searchsorted(bounds, low, right=True) - 1
    return torch.cat([bounds, begins.double(), bounds[begins + 1]])


@triton.jit
def level(tables, ratio):
    """The largest integer L, as float64, with 2^(L / 64) <= ratio, for a normal ratio > 0."""
    bits = ratio.to(tl.int64, bitcast=True)
    octave = (bits >> 52) - 1023
    part = (bits >> 45) & 127
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
    within = tl.load(tables + 65 + part)
    within += tl.where(mantissa >= tl.load(tables + 193 + part), 1, 0).to(tl.float64)
    return octave.to(tl.float64) * 64 + within


@triton.jit
def power(tables, exponent):
    """2^(L / 64) for the floor L of exponent."""
    whole = tl.floor(exponent)
    octave = tl.floor(whole / 64)
    mantissa = tl.load(tables + ((whole - octave * 64).to(tl.int64) & 63)).to(tl.int64, bitcast=True)
    return (mantissa + ((octave.to(tl.int64) + 1) << 52)).to(tl.float64, bitcast=True)


@triton.jit
def bounded(numbers, ratio):
    """``ratio`` between the least and the largest that have a level."""
    tiny, huge = tl.load(numbers + 9), tl.load(numbers + 10)
    return tl.where(ratio < tiny, tiny, tl.where(ratio > huge, huge, ratio))


@triton.jit
def part_of(error, scale):
    """error / scale in float64, 0 over anything is 0."""
    found = tl.where(error == 0, error, quotient(error, scale))
    return found.to(tl.float64)


@triton.jit
def quotient(x, y):
    """x / y, correctly rounded."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def root(x):
    """The square root, correctly rounded."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def least(x, y):
    """NaN if one of the two is."""
    return tl.where(x != x, x, tl.where(y != y, y, tl.where(y < x, y, x)))


@triton.jit
def greatest(x, y):
    """NaN if one of the two is."""
    return tl.where(x != x, x, tl.where(y != y, y, tl.where(y > x, y, x)))


@triton.jit
def expm1(x):
    """e^x - 1 without cancellation (Kahan)."""
    u = tl.exp(x)
    near = quotient((u - 1) * x, tl.where(u == 1, 1, tl.log(u)).to(x.dtype))
    return tl.where(u == 1, x, tl.where((u - 1 == -1) | (tl.abs(x) > 1), u - 1, near))


@triton.jit
def log1p(x):
    """log(1 + x) without cancellation (Kahan)."""
    u = 1 + x
    near = quotient(tl.log(u) * x, tl.where(u == 1, 1, u - 1).to(x.dtype))
    return tl.where(u == 1, x, tl.where(u == float("inf"), x, near))


@triton.jit
def tanh(x):
    """By e^(-2 |x|) - 1."""
    e = expm1(-2 * tl.abs(x))
    size = quotient(-e, e + 2)
    return tl.where(x < 0, -size, size)


@triton.jit
def controlled(numbers, tables, found, good, size, gap, before, last, slowed):
    """Which rows accept their step, the next size, and the level of the error."""
    good = good & (tl.abs(found) < float("inf"))
    accept = good & (found <= 1)
    now = level(tables, bounded(numbers, tl.where(good, found, 1)))
    exponent = tl.load(numbers + 1) * before - tl.load(numbers + 2) * now - tl.load(numbers + 3) * last
    factor = tl.load(numbers + 4) * power(tables, exponent / tl.load(numbers))
    shrink, grow = tl.load(numbers + 5), tl.load(numbers + 6)
    factor = tl.where(factor < shrink, shrink, tl.where(factor > grow, grow, factor))
    factor = tl.where((accept & (slowed == 0)) | (factor < 1), factor, 1)
    factor = tl.where(good, factor, 0.25)
    # A step cut short by its target says nothing against the size that was proposed before.
    tried = tl.where(gap < size, gap, size)
    after = tried * factor
    after = tl.where(accept & (tried < size) & (size > after), size, after)
    smallest, largest = tl.load(numbers + 7), tl.load(numbers + 8)
    after = tl.where(after > largest, largest, after)
    after = tl.where(after < smallest, tl.where(tried > smallest, smallest, after), after)
    return accept, after, now
