"""A distance between two samples with its standard error, and what all of them ask of the samples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from worldsim_kernels.arguments import expect, finite


class Estimate(NamedTuple):
    """Float64, without axes.

    value           differentiable by both samples
    standard_error  of ``value`` around its expectation at these sample sizes; NaN where it is not known
    """

    value: Tensor
    standard_error: Tensor


def expect_samples(kernel: str, x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """``x`` ``[n, d]`` and ``y`` ``[m, d]`` in float64.

    Raises TypeError for what is no tensor of floats and ValueError for shapes, for fewer than ``least``
    points and for points that are not finite.
    """
    expect(kernel, "x", x, [("n", None), ("d", None)])
    expect(kernel, "y", y, [("m", None), ("d", x.shape[1])], like=x)
    for name, points in (("x", x), ("y", y)):
        if len(points) < least:
            raise ValueError(f"{kernel}: {name} has {len(points)} points; at least {least} are needed")
        finite(kernel, name, points)
    return x.double(), y.double()


def sampling_variance(f: Tensor, g: Tensor) -> Tensor:
    """Var f / n + Var g / m of influences ``f`` ``[n]`` and ``g`` ``[m]``: the delta method."""
    return f.var(correction=0) / len(f) + g.var(correction=0) / len(g)
