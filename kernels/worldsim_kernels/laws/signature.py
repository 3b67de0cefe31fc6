"""The signature kernel of two paths: the inner product of all their iterated integrals.

    k(x, y) = u(1, 1),    d2u/ds dt = <x'(s), y'(t)> u,    u(0, .) = u(., 0) = 1

a Goursat problem (Salvi, Cass, Foster, Lyons and Yang 2021). Between two samples of each path the product c
of the slopes is constant, and there u = sum_ij a_ij s^i t^j with (i + 1) (j + 1) a_{i+1,j+1} = c a_ij: two
edges of a rectangle give the other two as power series, which fall like c^k / k!^2 and are cut at rounding.
So no mesh has to be refined. Of two straight lines of displacements a and b it is I_0(2 sqrt<a, b>).

The kernel does not see how fast a path is run through, nor where it starts: a time channel and a first point
at the origin make it see both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldsim_kernels.arguments import expect, finite

CHUNK = 2**13
"""Pairs of paths that are solved at a time."""


def signature_kernel(x: Tensor, y: Tensor, *, tolerance: float = 1e-12) -> Tensor:
    """``[n, m]`` float64 of the piecewise linear paths ``x`` ``[n, T, d]`` and ``y`` ``[m, S, d]``.

    tolerance  the series are cut where the largest term of a rectangle falls below it

    Lengths may differ; to end a path early, repeat its last point. It grows as exp(2 sqrt(length of x times
    length of y)): scale paths to a length of a few. Differentiable. Raises ValueError for shapes, for fewer
    than two points in a path and for points that are not finite.
    """
    expect("signature_kernel", "x", x, [("n", None), ("T", None), ("d", None)])
    expect("signature_kernel", "y", y, [("m", None), ("S", None), ("d", x.shape[2])], like=x)
    for name, paths in (("x", x), ("y", y)):
        if paths.shape[1] < 2:
            raise ValueError(f"signature_kernel: {name} has paths of {paths.shape[1]} points; 2 are needed")
        finite("signature_kernel", name, paths)
    steps_x, steps_y = x.double().diff(dim=1), y.double().diff(dim=1)
    if not len(x) or not len(y):
        return steps_x.new_empty(len(x), len(y))
    largest = float(steps_x.detach().norm(dim=2).max() * steps_y.detach().norm(dim=2).max())
    terms = _terms(largest, tolerance)
    return torch.cat(
        [_goursat(part, steps_y, terms) for part in torch.split(steps_x, max(1, CHUNK // len(y)))]
    )


def signature_gram(paths: Tensor, *, tolerance: float = 1e-12) -> Tensor:
    """k(x, y) / sqrt(k(x, x) k(y, y)) ``[n, n]`` of ``paths`` ``[n, T, d]``: 1 on the diagonal.

    Bounded, so that no long path outweighs the others, and as characteristic as k (Steinwart and Christmann
    2008, lemma 4.55).
    """
    n, rows = len(paths), 64
    gram = paths.new_zeros(n, n, dtype=torch.float64)
    for first in range(0, n, rows):
        # The part on and above the diagonal; the rest mirrors it.
        found = signature_kernel(paths[first : first + rows], paths[first:], tolerance=tolerance)
        gram = gram + torch.nn.functional.pad(found, (first, 0, first, max(0, n - first - rows)))
    gram = gram.triu() + gram.triu(1).T
    own = gram.diagonal().rsqrt()
    return gram * own[:, None] * own


def _terms(largest: float, tolerance: float) -> int:
    """The highest power to keep for products of slopes up to ``largest``."""
    power, term = 0, 1.0
    while term > tolerance or power < math.sqrt(largest):
        power += 1
        term *= largest / power**2
    return power


def _goursat(steps_x: Tensor, steps_y: Tensor, terms: int) -> Tensor:
    """u(1, 1) ``[n, m]`` from increments ``[n, T, d]`` and ``[m, S, d]``, rectangle by rectangle.

    With b_ij = i! j! a_ij the recursion is b_{i+1,j+1} = c b_ij, so that b_ij = c^min(i,j) times what the
    edge at i = 0 or at j = 0 gives. An edge is its coefficients ``[terms + 1, n, m]``, times their
    factorials.
    """
    one = steps_x.new_ones(len(steps_x), len(steps_y))
    flat = torch.stack([one, *[torch.zeros_like(one)] * terms])
    factorials = torch.arange(terms + 1).to(one).add(1).lgamma().exp()
    tail = (factorials[:, None] / factorials.new_tensor(
        [[math.factorial(i + j) for j in range(terms + 1)] for i in range(terms + 1)]
    ))  # fmt: skip
    tail[:, 0] = 0
    below = [flat] * steps_y.shape[1]
    for dx in steps_x.unbind(1):
        left = flat
        for j, dy in enumerate(steps_y.unbind(1)):
            c = dx @ dy.T
            powers = [one]
            for k in range(1, terms + 1):
                powers.append(powers[-1] * c / k)
            power = torch.stack(powers)
            below[j], left = _edge(power, below[j], left, tail), _edge(power, left, below[j], tail)
    found: Tensor = torch.tensordot(1 / factorials, left, 1)
    return found


def _edge(power: Tensor, facing: Tensor, beside: Tensor, tail: Tensor) -> Tensor:
    """The edge opposite ``facing``: sum_j c^j / j! facing_{i-j} + c^i sum_{l > 0} beside_l / (i + l)!."""
    found: Tensor = power * torch.tensordot(tail, beside, 1) + facing
    for k in range(1, len(power)):
        found[k:].addcmul_(power[k], facing[:-k])
    return found
