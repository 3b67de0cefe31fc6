"""Scores over a probability as curves."""

import base64

import numpy as np
import plotly.graph_objects as go

from worldsim.protocols import Score
from worldsim.report.disturbed import over_probability
from worldsim.report.plots import styles
from worldsim.results import Row

LOOKS = styles({"model": "learned", "uniform": "baseline"})
CHANCE = [0.0, 0.1, 0.5]


def row(name, value, model="model", seed=0, **more):
    score = Score(np.array(value), dims=("probability",), coords={"probability": CHANCE}, **more)
    return Row("s", model, seed, model == "uniform", "test", "detours", name, score)


def numbers(packed):
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype="<f4").tolist()


def test_one_seed_has_its_interval_and_several_their_range():
    one = [row("valid_random", [1, 0.5, 0.25])]
    ends = [row("valid_random_low", [0.5, 0.25, 0]), row("valid_random_high", [1, 0.75, 0.5])]
    (panel,) = over_probability([*one, *ends, row("valid_random", [0, 0, 0], "uniform")], LOOKS)
    (plot,) = panel.plots
    go.Figure(data=[dict(trace) for trace in plot.data], layout=dict(plot.layout))
    uniform, high, low, middle = plot.data  # models over baselines
    assert (numbers(low["y"]), numbers(high["y"])) == ([0.5, 0.25, 0], [1, 0.75, 0.5])
    assert numbers(middle["y"]) == [1, 0.5, 0.25]
    assert numbers(middle["x"]) == [0.0, np.float32(0.1), 0.5]
    assert uniform["name"] == "uniform"
    assert plot.layout["title"]["text"] == "Share of valid walks, random detours"
    (panel,) = over_probability([*one, row("valid_random", [1, 0, 0], seed=1), *ends], LOOKS)
    high, low, middle = panel.plots[0].data
    assert (numbers(low["y"]), numbers(high["y"])) == ([1, 0, 0], [1, 0.5, 0.25])
    assert numbers(middle["y"]) == [1, 0.25, 0.125]


def test_what_was_not_measured_and_what_is_no_curve_is_not_drawn():
    lost = row("valid_random", [np.nan] * 3, reason="out of order")
    other = Row("s", "model", 0, False, "test", "m", "x", Score(np.ones(3), dims=("time",)))
    assert over_probability([lost, other], LOOKS) == []
