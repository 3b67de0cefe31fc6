"""Scores over time: how a forecast goes wrong, and what it fails to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from worldsim.report.answers import begun, phrase
from worldsim.report.plots import (
    FAR_BELOW,
    MODELS,
    Array,
    Looks,
    Panel,
    Plot,
    axis,
    band,
    clock,
    layout,
    line,
    log_range,
    named,
    positive,
    rule,
    thinned,
)
from worldsim.report.standings import Board, by_model
from worldsim.results import Row

RANKS = {"learned": 1000, "model": 1000, "reference": 2000, "truth": 3000, "baseline": 4000}
"""Of the kinds in a legend."""
Curves = Mapping[str, tuple[Array, Array]]
"""Model -> ``[time]`` and ``[seed, time]``."""


def growth(rows: Sequence[Row], found: Sequence[Board], looks: Looks, unit: str) -> list[Panel]:
    """Every score that is kept over time: its mean over seeds, and from the smallest to the largest seed."""
    arrays = [row for row in rows if row.score.dims == ("time",)]
    return [
        _growth_panel([row for row in arrays if row.name == name], found, looks, unit)
        for name in dict.fromkeys(row.name for row in arrays)
    ]


def _growth_panel(rows: Sequence[Row], found: Sequence[Board], looks: Looks, unit: str) -> Panel:
    stem, score = rows[0].name.removesuffix("_time"), rows[0].score
    times = score.coords.get("time", ())
    marks = _marks(found, looks, times, unit) if stem == "nrmse" and len(times) > 1 else []
    caption = "Mean over seeds; the band goes from the smallest to the largest seed. "
    caption += "A line that stops belongs to rollouts that are no longer finite. "
    caption += "Dotted verticals: valid time of the models." if marks else ""
    curves = _curves(rows)
    data, x, y = _growth(curves, looks, unit, named(phrase(stem), score.units))
    below = _below(curves, looks) if y.get("type") == "log" else []
    caption += f" Off this picture, far below: {', '.join(below)}." if below else ""
    plot = Plot(data, layout(x, y, shapes=marks))
    return Panel(f"{begun(phrase(stem))} over time", caption, (plot,), 1)


def _curves(rows: Iterable[Row], label: int | None = None) -> Curves:
    """The curves of every model, those of one ``label`` where the scores are over (label, time)."""
    found = {}
    for model, group in by_model(rows).items():
        values = np.stack([np.asarray(row.score.value, dtype=float) for row in group])
        values = values if label is None else values[:, label]
        times = np.asarray(group[0].score.coords.get("time", np.arange(values.shape[1])), dtype=float)
        keep = thinned(len(times))
        found[model] = times[keep], values[:, keep]
    return found


def _growth(
    curves: Curves, looks: Looks, unit: str, label: str, levels: Sequence[float] = ()
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Traces and axes; models are drawn over baselines. ``levels`` have to fit in as well."""
    data: list[dict[str, Any]] = []
    shown_unit = unit
    for model in sorted(curves, key=lambda m: looks[m].kind != "baseline"):
        style = looks[model]
        times, shown_unit = clock(curves[model][0], unit)
        values = curves[model][1]
        if len(values) > 1 and style.kind not in ("baseline", "truth"):
            data += band(model, style, times, positive(values.min(0), values.max(0)), values.max(0))
        data.append(line(model, style, times, values.mean(0), legendrank=RANKS[style.kind] + len(data)))
    hidden = _below(curves, looks)
    powers = log_range([*(values for model, (_, values) in curves.items() if model not in hidden), levels])
    return tuple(data), axis(named("time", shown_unit)), axis(label, powers)


def _below(curves: Curves, looks: Looks) -> list[str]:
    """The truth, where it is so far below everybody that a picture with it in shows nothing else."""
    truths = [model for model in curves if looks[model].kind == "truth"]
    others = [values[values > 0] for model, (_, values) in curves.items() if model not in truths]
    least = min((float(np.quantile(v, 0.01)) for v in others if len(v)), default=0.0) / FAR_BELOW
    return [model for model in truths if np.nanmax(curves[model][1], initial=0.0) < least]


def _marks(found: Sequence[Board], looks: Looks, times: Any, unit: str) -> list[dict[str, Any]]:
    """Valid times as verticals; they are counted from the last given frame, one step before ``times``."""
    times = np.asarray(times, dtype=np.float64)
    start, scale = 2 * times[0] - times[1], clock(times, unit)[0][-1] / times[-1]
    marks = []
    for board in found:
        for s in board.standings if board.name == "valid_time" else ():
            if s.values and looks[s.model].kind in MODELS:
                at = float((start + s.mean) * scale)
                dots = {"color": looks[s.model].colour, "width": 1.5, "dash": "dot"}
                ends = {"yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at}
                marks.append({"type": "line", "layer": "below", "line": dots, **ends})
    return marks


def growth_by_label(rows: Sequence[Row], looks: Looks, unit: str) -> list[Panel]:
    """Every score over (named things, time): one plot a thing, with its floor where one is stated."""
    arrays = [row for row in rows if row.score.dims[1:] == ("time",) and row.score.dims[0] != "pair"]
    panels = []
    for name in dict.fromkeys(row.name for row in arrays):
        mine = [row for row in arrays if row.name == name]
        first, what = mine[0].score, phrase(name.removesuffix("_time"))
        labels = [str(v) for v in first.coords.get(first.dims[0], range(np.asarray(first.value).shape[0]))]
        floors = _floors(rows, mine[0])
        plots = []
        for i, label in enumerate(labels):
            level = [v for v in floors[i : i + 1] if v > 0]
            data, x, y = _growth(_curves(mine, i), looks, unit, named(what, first.units), level)
            drawn = layout(x, y, label, showlegend=False, shapes=[rule(v) for v in level])
            plots.append(Plot(data, drawn))
        caption = "Mean over seeds, with a band from the smallest to the largest seed."
        caption += " Dotted line: what the truth itself is known to." if floors else ""
        panels.append(Panel(f"{begun(what)} of each {first.dims[0]} over time", caption, tuple(plots), 2))
    return panels


def _floors(rows: Sequence[Row], of: Row) -> list[float]:
    """The stated floor of an array over (label, time): the array ``<stem>_floor`` over the same labels."""
    stem = of.name.removesuffix("_time").rsplit("_", 1)[0]
    found = [r for r in rows if r.name == f"{stem}_floor" and r.score.dims == of.score.dims[:1]]
    return [float(v) for v in np.asarray(found[0].score.value)] if found else []
