"""One graph of states as plotly traces: circles, bows with heads, and what is written on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.report.plots import COLOURS, INK, Array, Plot, layout, packed, plain

LONGEST_NAME = 9
"""Letters in a circle."""
MOST_LABELS = 40
"""Edges whose tokens are written beside them; all are shown where one points."""
PIXELS = (500, 270, 450)
"""Of a drawing's width, of its height, and of that of a tall one, about."""
MERGED, NOWHERE = "#f6c177", "#f3d3d3"
KINDS: Mapping[str, tuple[str, str, str]] = {
    "right": ("#8a8a8a", "solid", "as in the truth"),
    "wrong": ("#c1121f", "solid", "not in the truth"),
    "missing": ("#0072b2", "dot", "in the truth alone"),
}
"""Colour, dash and meaning of an edge."""


@dataclass(frozen=True)
class Edges:
    """``ends [edge, 2]``, NaN for no state, the token of each and its kind."""

    ends: Array
    tokens: tuple[str, ...]
    kinds: tuple[str, ...]

    def of(self, states: Sequence[int]) -> Edges:
        """The same between ``states``, numbered anew; an edge from another one is left out."""
        number = {state: i for i, state in enumerate(states)}
        ends = [[number.get(int(v), np.nan) if np.isfinite(v) else np.nan for v in end] for end in self.ends]
        keep = [i for i, end in enumerate(ends) if np.isfinite(end[0])]
        kept = np.array([ends[i] for i in keep]).reshape(-1, 2)
        return Edges(kept, tuple(self.tokens[i] for i in keep), tuple(self.kinds[i] for i in keep))

    @property
    def known(self) -> Array:
        """Those between two states, as whole numbers."""
        whole: Array = self.ends[np.isfinite(self.ends).all(1)].astype(int)
        return whole


@dataclass(frozen=True)
class Graph:
    """What is drawn: ``stands [state, true state]`` bool, what each state is called, and the edges."""

    stands: Array
    names: tuple[str, ...]
    words: tuple[str, ...]
    edges: Edges


def graph_plot(title: str, graph: Graph, places: Array, tall: bool) -> Plot:
    room = np.maximum(np.ptp(places, axis=0), 0.4) + 1.2
    scale = float(min(PIXELS[0] / room[0], PIXELS[1 + tall] / room[1]))
    size = float(np.clip(0.42 * scale, 13, 34))
    unit = (size / 2 + 3) / scale
    free = [_free(places, graph.edges.known, i) for i in range(len(places))]
    paths = [_path(places, free, unit, *bundle) for bundle in _bundles(graph.edges)]
    data = [trace for kind in KINDS for trace in _arrows([p for p in paths if p.kind == kind], kind)]
    if len(paths) <= MOST_LABELS:
        data.append(_labels(paths))
    data.append(_circles(graph, places, size))
    middle = (places.max(0) + places.min(0)) / 2
    x, y = ({"visible": False, "range": [float(m - r / 2), float(m + r / 2)]} for m, r in zip(middle, room))
    count = f"{len(graph.names)} state{'' if len(graph.names) == 1 else 's'}"
    drawn = layout(x, y | {"scaleanchor": "x"}, f"{title}: {count}", showlegend=False)
    return Plot(tuple(data), drawn | {"margin": {"l": 8, "r": 8, "t": 44, "b": 8}}, tall=tall)


def _free(places: Array, known: Array, node: int) -> Array:
    """The direction in which a node has no neighbour: the middle of the widest gap between its edges."""
    beside = {int(v) for end in known if node in end for v in end} - {node}
    ways = places[sorted(beside)] - places[node]
    if not len(ways):
        return np.array([0.0, 1.0])
    angles = np.sort(np.arctan2(ways[:, 1], ways[:, 0]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    middle = angles[gaps.argmax()] + gaps.max() / 2
    return np.array([np.cos(middle), np.sin(middle)])


@dataclass(frozen=True)
class Path:
    """A bow ``points [point, 2]`` that ends at an arrow's tip, and what is written on it."""

    points: Array
    label: str
    hover: str
    kind: str


Bundle = tuple[int, float, str, str, int]
"""From, to, tokens, kind, and how many bundles there are already from the one to the other."""


def _bundles(edges: Edges) -> list[Bundle]:
    """Edges of one kind between the same two states, together."""
    tokens: dict[tuple[int, float, str], list[str]] = {}
    for (here, there), token, kind in zip(edges.ends.tolist(), edges.tokens, edges.kinds):
        to = there if np.isfinite(there) else -1.0
        tokens.setdefault((int(here), to, kind), []).append(token)
    counts: dict[tuple[int, float], int] = {}
    found = []
    for (here, to, kind), names in tokens.items():
        counts[here, to] = counts.get((here, to), -1) + 1
        found.append((here, to, ", ".join(dict.fromkeys(names)), kind, counts[here, to]))
    return found


def _path(
    places: Array, free: Sequence[Array], unit: float, here: int, to: float, label: str, kind: str, rank: int
) -> Path:
    """``unit`` is the radius of a circle; ``rank`` keeps edges between the same two states apart."""
    hover, start, away = f"{label}: {KINDS[kind][2]}", places[here], free[here]
    if to < 0:
        side = np.array([away[1], -away[0]])
        way = away + (0.7 + 0.5 * rank) * side
        reach = np.linspace(unit, 2.6 * unit, 3)[:, None]
        return Path(start + way / np.linalg.norm(way) * reach, label, hover, kind)
    if int(to) == here:
        radius = unit * (0.75 + 0.35 * rank)
        turn = np.arctan2(-away[1], -away[0]) + np.linspace(0.9, 2 * np.pi - 0.9, 24)
        ring = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
        return Path(start + away * (0.7 * unit + radius) + ring, label, hover, kind)
    end = places[int(to)]
    along = end - start
    left = np.array([-along[1], along[0]])
    bend = start + along / 2 + left * 0.2 * (1 + rank)
    s = np.linspace(0, 1, 65)[:, None]
    bow = (1 - s) ** 2 * start + 2 * s * (1 - s) * bend + s**2 * end
    clear = (np.linalg.norm(bow - start, axis=1) >= unit) & (np.linalg.norm(bow - end, axis=1) >= unit)
    return Path(bow[clear] if clear.sum() > 1 else bow[31:34], label, hover, kind)


def _arrows(paths: Sequence[Path], kind: str) -> list[dict[str, Any]]:
    """All bows of one kind as one line with gaps, and their heads."""
    if not paths:
        return []
    colour, dash, _ = KINDS[kind]
    gap = np.full((1, 2), np.nan)
    points = np.concatenate([part for path in paths for part in (path.points, gap)])
    tips = np.array([path.points[-1] for path in paths])
    ways = tips - np.array([path.points[-2] for path in paths])
    shared = {"type": "scatter", "name": kind, "showlegend": False}
    return [
        {**shared, "mode": "lines", "x": packed(points[:, 0]), "y": packed(points[:, 1]), "hoverinfo": "skip",
         "line": {"color": colour, "dash": dash, "width": 1.6 if kind == "right" else 2.2}},
        {**shared, "mode": "markers", "x": packed(tips[:, 0]), "y": packed(tips[:, 1]),
         "text": [plain(path.hover) for path in paths], "hovertemplate": "%{text}<extra></extra>",
         "marker": {"symbol": "arrow", "size": 9, "color": colour,
                    "angle": np.degrees(np.arctan2(ways[:, 0], ways[:, 1])).round(1).tolist()}},
    ]  # fmt: skip


def _labels(paths: Sequence[Path]) -> dict[str, Any]:
    middles = np.array([path.points[len(path.points) // 2] for path in paths]).reshape(-1, 2)
    return {
        "type": "scatter", "mode": "text", "name": "tokens", "showlegend": False, "hoverinfo": "skip",
        "x": packed(middles[:, 0]), "y": packed(middles[:, 1]), "text": [plain(path.label) for path in paths],
        "textfont": {"size": 11, "color": [KINDS[path.kind][0] if path.kind != "right" else "#555555"
                                           for path in paths]},
    }  # fmt: skip


def _circles(graph: Graph, places: Array, size: float) -> dict[str, Any]:
    count = graph.stands.sum(1)
    shared = [j for j in range(graph.stands.shape[1]) if graph.stands[:, j].sum() > 1]
    ring = [
        next(
            (COLOURS[shared.index(j) % len(COLOURS)] for j in np.nonzero(row)[0].tolist() if j in shared), INK
        )
        for row in graph.stands
    ]
    fill = [MERGED if many > 1 else "#ffffff" if many else NOWHERE for many in count]
    texts = [
        plain(name) if len(name) <= LONGEST_NAME else f"×{max(many, 1)}"
        for name, many in zip(graph.names, count)
    ]
    hover = [f"{name or 'no true state'}{f' after {word}' if word else ''}"
             for name, word in zip(graph.names, graph.words)]  # fmt: skip
    return {
        "type": "scatter", "mode": "markers+text", "name": "states", "showlegend": False,
        "x": packed(places[:, 0]), "y": packed(places[:, 1]), "text": texts,
        "textfont": {"size": 11}, "customdata": [plain(text) for text in hover],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"size": size, "color": fill,
                   "line": {"color": ring, "width": [3 if colour != INK else 1.3 for colour in ring]}},
    }  # fmt: skip
