"""Every seed of every headline score, as a dot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldsim.report.answers import number, phrase
from worldsim.report.plots import (
    FAR_BELOW,
    Looks,
    Panel,
    Plot,
    Style,
    axis,
    layout,
    log_range,
    named,
    packed,
    plain,
    rule,
)
from worldsim.report.standings import Board, Standing

ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better"}


def dots(groups: Sequence[Sequence[Board]], looks: Looks) -> Panel | None:
    """One plot for each headline score: every seed a dot, the interval a bar, the floor a line."""
    plots = [
        _dots(board, looks) for group in groups for board in group if any(s.values for s in board.standings)
    ]
    caption = (
        "Each dot is a seed; the bar is the range over seeds (a 95 % interval of the mean from five on, "
        "of the score itself where it has one seed). "
        "Baselines are grey. The dotted line is the floor: what the truth scores against another sample of "
        "itself, or, where the metric has no such sample, the score of the true system."
    )
    return Panel("Every seed", caption, tuple(plots), 3) if plots else None


def _dots(board: Board, looks: Looks) -> Plot:
    shown = [s for s in board.standings if s.values]
    open_ended = board.better == "lower" or board.units not in ("", "1")
    near = [[*s.values.values(), *s.spread] for s in _near(shown)]
    powers = log_range(near, 30) if open_ended else None
    data = [trace for s in shown for trace in _dot(s, looks[s.model], powers)]
    title = f"{phrase(board.name)}{f', {board.label}' if board.label else ''}"
    from_zero = {} if powers else {"rangemode": "tozero"}
    y = axis(named(ARROWS[board.better], board.units), powers, **from_zero)
    floors = [s.floor for s in shown if s.floor is not None]
    shapes = [rule(float(np.mean(floors)))] if floors and (not powers or np.mean(floors) > 0) else []
    return Plot(
        tuple(data),
        layout(axis("", tickangle=-38, type="category", tickfont={"size": 12}), y, title, shapes=shapes),
    )


def _near(shown: Sequence[Standing]) -> list[Standing]:
    """Everybody but a truth that is far below all others."""
    others = [v for s in shown if s.kind != "truth" for v in s.values.values() if v > 0]
    least = min(others, default=0.0) / FAR_BELOW
    return [s for s in shown if s.kind != "truth" or max(s.values.values()) >= least]


def _dot(s: Standing, style: Style, powers: Sequence[float] | None) -> list[dict[str, Any]]:
    """A bar and the seeds over it; who is below a logarithmic axis (a zero, for one) is told in words."""
    low, high = s.spread
    values = list(s.values.values())
    below = powers is not None and max(values) < 10 ** powers[0]
    at = plain(f"{s.model} = {number(s.mean)}" if below else s.model)
    if powers and low <= 0:
        low = min((v for v in values if v > 0), default=high)
    bar = {
        "type": "scatter", "mode": "lines", "x": [at] * 2, "y": packed([low, high]), "opacity": 0.3,
        "line": {"color": style.colour, "width": 7}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    seeds = {
        "type": "scatter", "mode": "markers", "x": [at] * len(values), "y": packed(values),
        "text": [f"seed {seed}" for seed in s.values], "name": plain(s.model), "showlegend": False,
        "marker": {"color": style.colour, "size": 8, "line": {"color": "#fff", "width": 1}},
        "hovertemplate": "%{y:.3g} (%{text})",
    }  # fmt: skip
    return [bar, seeds]
