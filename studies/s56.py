"""The shapes of a circle, a torus and a sphere from noisy or random points, by persistent homology.

Betti numbers count the classes that are there at a given radius, b <= r < d, the same for all three; the gap
of a dimension is the shortest bar that belongs to the shape over the longest that does not (infinite without
one). Points are chosen by farthest points, which leave fewer holes than random ones. Rips complexes up to one
dimension more than the homology: without it a sphere has no void.
"""

import math

import torch

from worldsim_plugins.metrics.persistence import farthest_points, lengths, rips_diagrams

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "Betti: circle (1,1), torus (1,2,1), sphere (1,0,1); gaps >= 2.5"
R, SMALL, RADIUS = 2.0, 0.8, 1.0
BETTI = {"circle": (1, 1), "torus": (1, 2, 1), "sphere": (1, 0, 1)}
F64 = torch.float64


def circle(generator, n=200, noise=0.05):
    angle = 2 * math.pi * torch.rand(n, dtype=F64, generator=generator)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return points + noise * torch.randn(n, 2, dtype=F64, generator=generator)


def sphere(generator, n=3000):
    z = torch.randn(n, 3, dtype=F64, generator=generator)
    return z / z.norm(dim=1, keepdim=True)


def torus(generator, n=6000):
    """Uniform over the surface, by rejection."""
    u, v, w = torch.rand(3, 3 * n, dtype=F64, generator=generator)
    u, v = 2 * math.pi * u, 2 * math.pi * v
    u, v = (angle[w < (R + SMALL * v.cos()) / (R + SMALL)][:n] for angle in (u, v))
    ring = R + SMALL * v.cos()
    return torch.stack([ring * u.cos(), ring * u.sin(), SMALL * v.sin()], 1)


def gap(diagram, count):
    """The shortest of the ``count`` longest finite bars over the next."""
    bars = [length for length in lengths(diagram) if math.isfinite(length)]
    return bars[count - 1] / bars[count] if len(bars) > count else math.inf


def betti_at(diagram, radius):
    return int(((diagram[:, 0] <= radius) & (radius < diagram[:, 1])).sum())


def run(seed=0, torus_points=300, sphere_points=100):
    generator, figures = torch.Generator().manual_seed(seed), {}
    shapes = {
        "circle": circle(generator),
        "torus": farthest_points(torus(generator), torus_points),
        "sphere": farthest_points(sphere(generator), sphere_points),
    }
    for name, points in shapes.items():
        for k, diagram in enumerate(rips_diagrams(points, len(BETTI[name]) - 1)):
            figures[f"{name} {k}"] = betti_at(diagram, RADIUS)
            if k and BETTI[name][k]:
                figures[f"{name} {k} gap"] = float(gap(diagram, BETTI[name][k]))
    return figures


def check(figures):
    for name, expected in BETTI.items():
        assert tuple(figures[f"{name} {k}"] for k in range(len(expected))) == expected
    assert min(value for name, value in figures.items() if name.endswith("gap")) >= 2.5
