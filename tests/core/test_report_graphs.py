"""Graphs of states in the report: chosen by their dims, placed by distance, coloured by what is wrong."""

import math
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from worldsim.protocols import Score
from worldsim.report.graphs import MOST_STATES, graphs
from worldsim.report.placing import hops, placed
from worldsim.report.plots import styles
from worldsim.results import Row
from worldsim.score import from_document, to_document

LOOKS = styles({"model": "learned", "other": "learned", "uniform": "baseline"})
LINE = [(0, 1), (1, 2), (2, 3), (3, 2)]


def edges(found, tokens=None):
    value = np.array(found, dtype=float).reshape(-1, 2)
    coords = {"edge": tokens or ["a"] * len(value), "end": ["from", "to"]}
    return Score(value, dims=("edge", "end"), better="", coords=coords)


def stands(value, names):
    value = np.array(value, dtype=float)
    coords = {"state": [f"word {i}" for i in range(len(value))], "true_state": names}
    return Score(value, dims=("state", "true_state"), better="", coords=coords)


def rows(model="model", seed=0, metric="anything", **scores):
    kept = from_document(to_document(scores))
    return [Row("s", model, seed, False, "test", metric, name, score) for name, score in kept.items()]


def drawn(**scores):
    """The plot of the model, by trace name and mode; the truth's stands before it."""
    (panel,) = graphs(rows(**scores), LOOKS)
    for plot in panel.plots:
        go.Figure(data=[dict(trace) for trace in plot.data], layout=dict(plot.layout))
    return panel, {(trace["name"], trace["mode"]): trace for trace in panel.plots[1].data}


def test_a_line_is_drawn_as_a_line_and_a_ring_as_a_ring():
    line = placed(np.array(LINE), 4)
    steps = np.diff(line, axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1, atol=0.05)
    assert (steps[:, 0] > 0.9).all()  # from node 0 at the left
    ring = placed(np.array([(i, (i + 1) % 6) for i in range(6)]), 6)
    radii = np.linalg.norm(ring - ring.mean(0), axis=1)
    np.testing.assert_allclose(radii, radii[0], rtol=0.05)
    assert placed(np.array([(0, 0)]), 1).tolist() == [[0, 0]]


def test_distance_on_paper_is_distance_in_a_grid():
    grid = np.arange(16).reshape(4, 4)
    across = [pair for line in (*grid, *grid.T) for pair in pairwise(line)]
    places = placed(np.array(across), 16)
    paper = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert np.corrcoef(paper.ravel(), hops(np.array(across), 16).ravel())[0, 1] > 0.9
    assert paper[np.triu_indices(16, 1)].min() > 0.6


def test_twins_and_pieces_have_places_of_their_own():
    twins = placed(np.array([(0, 1), (0, 2), (1, 3), (2, 3)]), 4)
    assert np.linalg.norm(twins[1] - twins[2]) > 0.5
    pieces = placed(np.array([(0, 1), (2, 3)]), 4)
    assert np.isfinite(pieces).all()
    np.testing.assert_array_equal(pieces, placed(np.array([(0, 1), (2, 3)]), 4))


def test_a_picture_beside_another_is_turned_like_it():
    line = placed(np.array(LINE), 4)
    turned = line @ np.array([[0, 1], [-1, 0]])
    np.testing.assert_allclose(placed(np.array(LINE), 4, turned), turned, atol=0.05)


def test_a_graph_is_chosen_by_its_dims_and_drawn_beside_the_truth():
    panel, traces = drawn(web_true=edges(LINE), web_right=edges(LINE[:2]), web_wrong=edges([(2, 0)], ["b"]))
    assert panel.title == "Web, as it is and as each model has it"
    assert [plot.layout["title"]["text"] for plot in panel.plots] == ["truth: 4 states", "model: 4 states"]
    assert traces["wrong", "markers"]["text"] == ["b: not in the truth"]
    assert len(traces["right", "markers"]["text"]) == 2
    assert ("missing", "markers") not in traces
    assert not panel.plots[0].tall
    assert graphs(rows(web_true=Score(np.zeros((2, 2)), dims=("a", "b"))), LOOKS) == []


def test_states_that_merge_and_states_that_are_split_are_told():
    _, traces = drawn(
        web_true=edges(LINE),
        web_right=edges([(0, 1), (1, 2), (2, 0)]),
        web_wrong=edges([(2, 3)]),
        web_missing=edges([(0, math.nan), (1, 1)]),
        web_states=stands(
            [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], list("wxyz")
        ),
    )
    circles = traces["states", "markers+text"]
    assert circles["text"] == ["w + x", "y", "y", ""]  # the fifth lies behind an edge that is none
    assert circles["customdata"][3] == "no true state after word 3"
    white, merged, nowhere = "#ffffff", circles["marker"]["color"][0], circles["marker"]["color"][3]
    assert circles["marker"]["color"] == [merged, white, white, nowhere]
    assert len({white, merged, nowhere}) == 3
    plain, *rings, last = circles["marker"]["line"]["color"]
    assert rings[0] == rings[1] != plain == last
    assert len(traces["missing", "markers"]["text"]) == 2
    assert traces["missing", "lines"]["line"]["dash"] == "dot"


def test_long_names_are_counted_and_tokens_of_one_way_share_an_arrow():
    names = [f"crossing {i}" for i in range(4)]
    _, traces = drawn(
        web_true=edges(LINE),
        web_right=edges([(0, 1), (0, 1)], ["a", "b"]),
        web_states=stands([[1, 1, 1, 0], [0, 0, 0, 1]], names),
    )
    assert traces["states", "markers+text"]["text"] == ["×3", "×1"]
    assert "crossing 0 + crossing 1" in traces["states", "markers+text"]["customdata"][0]
    assert traces["right", "markers"]["text"] == ["a, b: as in the truth"]


def test_large_graphs_are_left_out_with_a_sentence():
    many = MOST_STATES + 1
    line = [(i, i + 1) for i in range(many - 1)]
    stand = np.zeros((many, 4))
    stand[:, 0] = 1
    small = rows(web_true=edges(LINE), web_right=edges(LINE))
    large = rows("other", web_true=edges(LINE), web_right=edges(line), web_states=stands(stand, list("wxyz")))
    (panel,) = graphs(small + large, LOOKS)
    assert len(panel.plots) == 2
    assert panel.caption.endswith(
        f"Not drawn, since over 40 states cannot be told apart: other ({many} states)."
    )
    (panel,) = graphs(rows(web_true=edges(line), web_right=edges(line)), LOOKS)
    assert (panel.plots, panel.caption) == (
        (), f"Not drawn: the truth has {many} states, and over 40 cannot be told apart."
    )  # fmt: skip


def test_first_seeds_of_models_alone_are_drawn():
    found = rows(web_true=edges(LINE), web_right=edges(LINE)) + rows(
        seed=1, web_true=edges(LINE), web_right=edges(LINE[:1])
    )
    (panel,) = graphs(found + rows("uniform", web_true=edges(LINE)), LOOKS)
    assert [plot.layout["title"]["text"] for plot in panel.plots] == ["truth: 4 states", "model: 4 states"]
    arrows = next(t for t in panel.plots[1].data if (t["name"], t["mode"]) == ("right", "markers"))
    assert len(arrows["text"]) == len(LINE)


def test_what_a_stranger_wrote_is_text():
    attack = "<a href='https://x'>R</a>"
    _, traces = drawn(web_true=edges([(0, 1)]), web_right=edges([(0, 1)], [attack]))
    assert "<a" not in traces["right", "markers"]["text"][0]
    assert "<a" not in traces["tokens", "text"]["text"][0]


@pytest.mark.parametrize("kind", ["right", "wrong", "missing"])
def test_edges_end_before_the_circle_that_they_point_to(kind):
    import base64

    _, traces = drawn(web_true=edges([(0, 1)]), **{f"web_{kind}": edges([(0, 1), (1, 0), (1, 1)])})

    def numbers(packed):
        return np.frombuffer(base64.b64decode(packed["bdata"]), dtype="<f4")

    tips = np.stack([numbers(traces[kind, "markers"][axis]) for axis in "xy"], 1)
    nodes = np.stack([numbers(traces["states", "markers+text"][axis]) for axis in "xy"], 1)
    gaps = np.linalg.norm(tips - nodes[[1, 0, 1]], axis=1)
    assert (gaps > 0.05).all()
    assert (gaps < 0.7).all()
