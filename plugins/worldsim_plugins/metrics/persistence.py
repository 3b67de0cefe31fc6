"""Persistent homology: the pieces, loops and voids of points or of a field, and how long they last.

A diagram is ``[bar, 2]``, birth and death of one class each, float64; one death of dimension 0 is infinite.
Bars of no length, which ties in the filtration leave behind, are no classes and are taken out.

    Rips     balls of diameter r about the points touch: exact in any number of dimensions, time grows fast
    alpha    the same union of balls, of radius r, through the Delaunay triangulation: up to three dimensions
    cubical  what lies below a level r in a field on a grid

(Edelsbrunner and Harer 2010). Computed by gudhi, which is optional and imported where it is first used: Rips
by its ripser core (Bauer 2021), distances of diagrams by its hera (Kerber, Morozov and Nigmetov 2017). Its
alpha complex rests on CGAL, whose terms are those of the GPL; the others are under MIT and BSD terms.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim import NotMeasurable

Diagram = np.ndarray
FIELD = 11
"""Homology has coefficients modulo this prime."""
LENGTHLESS = 1e-9
"""Bars shorter than this part of the largest value are ties."""


def require_gudhi() -> None:
    """Raises NotMeasurable without it."""
    if find_spec("gudhi") is None:
        raise NotMeasurable("persistent homology needs gudhi: pip install 'worldsim[topology]'")


def rips_diagrams(points: Tensor, dimension: int) -> list[Diagram]:
    """Of dimensions 0 .. ``dimension``, of ``points`` ``[point, d]``; r is the distance of two points."""
    require_gudhi()
    x = points.double()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    # Beyond this r all points are joined to one of them, and nothing but one piece is left.
    enclosing = float(distance.amax(1).min())
    found = _ripser(distance.numpy(), dimension, enclosing)
    return [lasting(diagram) for diagram in found]


def _ripser(distance: Any, dimension: int, longest: float) -> list[Diagram]:
    try:
        from gudhi._ripser_ext import _full
    except ImportError:
        # Its public door, gudhi.sklearn, needs scikit-learn: the simplex tree gives the same, slowly.
        return simplex_tree_diagrams(distance, dimension, longest)
    # It gives no more dimensions than the points can have.
    top = min(dimension, max(0, len(distance) - 3))
    found = _full(distance, max_dimension=top, max_edge_length=longest, homology_coeff_field=FIELD)
    return [np.asarray(found[k]) if k < len(found) else np.empty((0, 2)) for k in range(dimension + 1)]


def simplex_tree_diagrams(distance: Any, dimension: int, longest: float) -> list[Diagram]:
    """What ``rips_diagrams`` gives, from ``distance`` ``[point, point]`` by every simplex."""
    from gudhi import RipsComplex

    rips = RipsComplex(distance_matrix=distance, max_edge_length=longest)
    return _of_tree(rips.create_simplex_tree(max_dimension=dimension + 1), dimension)


def alpha_diagrams(points: Tensor, dimension: int) -> list[Diagram]:
    """Of dimensions 0 .. ``dimension``, of ``points`` ``[point, d]``; r is the radius of the balls."""
    require_gudhi()
    from gudhi import AlphaComplex

    tree = AlphaComplex(points=points.double().numpy()).create_simplex_tree()
    # Filtration values are squares of the radius.
    return [lasting(np.sqrt(diagram)) for diagram in _of_tree(tree, dimension)]


def _of_tree(tree: Any, dimension: int) -> list[Diagram]:
    tree.compute_persistence(homology_coeff_field=FIELD, min_persistence=-1, persistence_dim_max=True)
    found = [tree.persistence_intervals_in_dimension(k) for k in range(dimension + 1)]
    return [np.asarray(each, dtype=np.float64).reshape(-1, 2) for each in found]


def cubical_diagrams(field: Tensor, *, periodic: bool = False) -> list[Diagram]:
    """Of every dimension below the grid's, of the parts of ``field`` (a value at each point of a grid) that
    lie below a level; of a torus, if ``periodic``."""
    require_gudhi()
    from gudhi import CubicalComplex, PeriodicCubicalComplex

    values = np.ascontiguousarray(field.double().numpy())
    if periodic:
        made = PeriodicCubicalComplex(vertices=values, periodic_dimensions=[True] * values.ndim)
    else:
        made = CubicalComplex(vertices=values)
    made.compute_persistence(homology_coeff_field=FIELD, min_persistence=-1)
    found = [made.persistence_intervals_in_dimension(k) for k in range(max(values.ndim, 1))]
    return [lasting(np.asarray(each, dtype=np.float64).reshape(-1, 2)) for each in found]


def lasting(diagram: Diagram) -> Diagram:
    """Without bars of no length, longest first."""
    if not len(diagram):
        return np.empty((0, 2))
    finite = diagram[np.isfinite(diagram)]
    size = float(np.abs(finite).max()) if len(finite) else 0.0
    length = diagram[:, 1] - diagram[:, 0]
    order = np.argsort(-length, kind="stable")
    return diagram[order][length[order] > LENGTHLESS * size]


def lengths(diagram: Diagram) -> np.ndarray:
    """Of the bars, longest first, ``[bar]``."""
    return diagram[:, 1] - diagram[:, 0]


def betti(diagram: Diagram, persistence: float) -> int:
    """How many classes last longer than ``persistence``."""
    return int((lengths(diagram) > persistence).sum())


def bottleneck(one: Diagram, other: Diagram) -> float:
    """The largest move of a bar's end, in the best matching of two diagrams, where a bar may also shrink to
    nothing. Infinite bars match infinite ones; +inf where their numbers differ."""
    require_gudhi()
    from gudhi.hera import bottleneck_distance

    # Hera does not end on two empty diagrams of some shapes, and there is nothing to match.
    if not len(one) or not len(other):
        longest = max((lengths(each).max() / 2 for each in (one, other) if len(each)), default=0.0)
        return float(longest)
    return float(bottleneck_distance(one, other, delta=0.0))


def farthest_points(points: Tensor, count: int) -> Tensor:
    """``count`` of ``points`` ``[point, d]`` that cover them, each the farthest from those before (Gonzalez
    1985); the first is the one nearest to the mean."""
    x = points.double()
    if len(x) <= count:
        return x
    chosen = [int((x - x.mean(0)).square().sum(1).argmin())]
    distance = torch.full((len(x),), math.inf, dtype=torch.float64)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
    return x[chosen]
