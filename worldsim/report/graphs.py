"""Graphs of states: what each model takes a world to be, beside what it is.

Recognised by their dims: edges ``[edge, end]``, from and to a numbered state, kept under names that end in
what they are (``*_true``, ``*_right``, ``*_wrong``, ``*_missing``), and ``[state, true_state]``, which state
of a model stands for which true ones. Without the latter both have the same states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from worldsim.report.answers import begun, phrase
from worldsim.report.graph_traces import KINDS, Edges, Graph, graph_plot
from worldsim.report.placing import placed
from worldsim.report.plots import MODELS, Array, Looks, Panel, columns
from worldsim.report.standings import by_model
from worldsim.results import Row

MOST_STATES = 40
"""More cannot be told apart on a page."""
FLAT = 0.45
"""Height by width below which a graph needs no tall plot."""
CAPTION = (
    "Each circle is a state, each arrow a token: grey as in the truth, red where it is not in the truth, "
    "dotted blue where it is in the truth alone (to nowhere, if no state stands for where it leads). A "
    "filled circle stands for several true states, named or counted (×), a pink one for none; circles with "
    "rings of one colour share one true state. First seed; point at a circle or an arrow for more."
)


def graphs(rows: Sequence[Row], looks: Looks) -> list[Panel]:
    """One panel for each graph that is kept: the truth, and every model's at its first seed."""
    kept = [row for row in rows if looks[row.model].kind in MODELS]
    true = [row for row in kept if row.score.dims == ("edge", "end") and row.name.endswith("_true")]
    return [
        _panel([row for row in kept if row.metric == metric], name.removesuffix("_true"))
        for metric, name in dict.fromkeys((row.metric, row.name) for row in true)
    ]


def _panel(rows: Sequence[Row], stem: str) -> Panel:
    found = {model: _read(mine, stem) for model, mine in by_model(rows).items()}
    truth = next(pair[0] for pair in found.values() if pair)
    title = f"{begun(phrase(stem))}, as it is and as each model has it"
    if len(truth.names) > MOST_STATES:
        why = f"the truth has {len(truth.names)} states, and over {MOST_STATES} cannot be told apart"
        return Panel(title, f"Not drawn: {why}.", (), 1)
    places = placed(truth.edges.known, len(truth.names))
    mine = {model: pair[1] for model, pair in found.items() if pair}
    large = [f"{model} ({len(it.names)} states)" for model, it in mine.items() if len(it.names) > MOST_STATES]
    small = {model: it for model, it in mine.items() if len(it.names) <= MOST_STATES}
    drawn = [("truth", truth, places), *((m, it, _beside(it, places)) for m, it in small.items())]
    sides = [np.ptp(at, axis=0) for *_, at in drawn]
    tall = any(height > FLAT * max(width, 1.0) for width, height in sides)
    plots = tuple(graph_plot(*each, tall) for each in drawn)
    left_out = f" Not drawn, since over {MOST_STATES} states cannot be told apart: {', '.join(large)}."
    return Panel(title, CAPTION + left_out * bool(large), plots, min(columns(len(plots)), 2))


def _read(rows: Sequence[Row], stem: str) -> tuple[Graph, Graph] | None:
    """The true graph and the model's, of the first seed that has them."""
    seeds = [row.seed for row in rows if row.name == f"{stem}_true"]
    found = {row.name: row for row in rows if seeds and row.seed == seeds[0]}
    true = found.get(f"{stem}_true")
    if true is None:
        return None
    edges = _edges([(true, "right")])
    parts = [(found[f"{stem}_{kind}"], kind) for kind in KINDS if f"{stem}_{kind}" in found]
    mine = _edges(parts)
    which = found.get(f"{stem}_states")
    if which is not None and which.score.dims == ("state", "true_state"):
        names = tuple(map(str, which.score.coords["true_state"]))
        stands = np.asarray(which.score.value, dtype=float).reshape(-1, len(names)) > 0
        words = tuple(map(str, which.score.coords["state"]))
    else:
        count = 1 + max((int(end.max()) for end in (edges.known, mine.known) if len(end)), default=0)
        stands, names, words = np.eye(count) > 0, tuple(map(str, range(count))), ("",) * count
    truth = Graph(np.eye(len(names)) > 0, names, ("",) * len(names), edges)
    return truth, _drawable(Graph(stands, names, words, mine))


def _edges(parts: Iterable[tuple[Row, str]]) -> Edges:
    ends, tokens, kinds = [], [], []
    for row, kind in parts:
        value = np.asarray(row.score.value, dtype=float).reshape(-1, 2)
        ends.append(value)
        tokens += [str(token) for token in row.score.coords.get("edge", [""] * len(value))]
        kinds += [kind] * len(value)
    return Edges(np.concatenate([np.zeros((0, 2)), *ends]), tuple(tokens), tuple(kinds))


def _drawable(graph: Graph) -> Graph:
    """Without states that lie behind an edge that is not in the truth, and each by its true names."""
    met = {int(v) for v in graph.edges.ends[np.isfinite(graph.edges.ends)]}
    keep = [i for i in range(len(graph.stands)) if i in met or graph.stands[i].any()]
    names = tuple(" + ".join(graph.names[j] for j in np.nonzero(graph.stands[i])[0]) for i in keep)
    return Graph(graph.stands[keep], names, tuple(graph.words[i] for i in keep), graph.edges.of(keep))


def _beside(graph: Graph, places: Array) -> Array:
    """Near the true states that each stands for, and there where they are one and the same; of none, near
    where it is come to from."""
    if graph.stands.shape == (len(places), len(places)) and np.array_equal(graph.stands, np.eye(len(places))):
        return places
    share = graph.stands / np.maximum(graph.stands.sum(1, keepdims=True), 1)
    start: Array = share @ places
    known = graph.edges.known
    for here, there in known[~graph.stands[known[:, 1]].any(1)]:
        start[there] = start[here]
    return placed(known, len(graph.names), start)
