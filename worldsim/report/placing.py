"""Where the nodes of a graph are drawn: distances on paper like distances along its edges.

Stress majorisation (Gansner, Koren and North 2004), started from classical scaling (Torgerson 1952) or from
given places. Nothing is drawn by chance: one graph has one picture.
"""

from __future__ import annotations

import numpy as np

from worldsim.report.plots import Array

ROUNDS = 200


def placed(edges: Array, count: int, start: Array | None = None) -> Array:
    """Places ``[node, 2]`` of the nodes 0 .. count - 1 of ``edges [edge, 2]``, neighbours about 1 apart.

    Without ``start`` the longest way lies across, and node 0 to the left; with it the picture is turned and
    moved as that is.
    """
    if count == 1:
        return np.zeros((1, 2)) if start is None else start
    far = hops(edges, count)
    places = majorised(apart(scaled(far) if start is None else start), far)
    places = places - places.mean(0)
    if start is None:
        places = places @ np.linalg.svd(places)[2].T
        found: Array = places * np.where(places[0] * (1, -1) > 0, -1, 1)
        return found
    left, _, right = np.linalg.svd(places.T @ (start - start.mean(0)))
    found = places @ left @ right + start.mean(0)
    return found


def hops(edges: Array, count: int) -> Array:
    """Edges between each two nodes whichever way they point ``[node, node]``; one more than the most where
    there is no way."""
    from scipy.sparse.csgraph import shortest_path

    joined = np.zeros((count, count))
    joined[edges[:, 0], edges[:, 1]] = 1
    far: Array = shortest_path(joined, directed=False, unweighted=True)
    reached = np.isfinite(far)
    return np.where(reached, far, far[reached].max() + 1)


def scaled(far: Array) -> Array:
    """Classical scaling of distances ``[node, node]`` into the plane."""
    square = far**2
    inner = -(square - square.mean(0) - square.mean(1)[:, None] + square.mean()) / 2
    values, vectors = np.linalg.eigh(inner)
    places: Array = vectors[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0))
    return places


def apart(places: Array) -> Array:
    """Moved a little along a spiral, so that no two are in one place."""
    turn = 2.4 * np.arange(len(places))
    return places + 0.05 * np.stack([np.cos(turn), np.sin(turn)], 1)


def majorised(places: Array, far: Array) -> Array:
    """Lower the sum over pairs of (distance - far)^2 / far^2, by as many rounds as change a picture."""
    weight = np.where(far > 0, 1 / np.maximum(far, 1) ** 2, 0)
    inverse = np.linalg.pinv(np.diag(weight.sum(1)) - weight)
    for _ in range(ROUNDS):
        distance = np.linalg.norm(places[:, None] - places[None], axis=2)
        ratio = -weight * far / np.maximum(distance, 1e-9)
        np.fill_diagonal(ratio, 0)
        np.fill_diagonal(ratio, -ratio.sum(1))
        places = inverse @ ratio @ places
    return places
