"""What a score was measured on: pairs of histories, and the coupling of two samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldsim.report.plots import (
    INK,
    MODELS,
    Array,
    Looks,
    Panel,
    Plot,
    Style,
    axis,
    band,
    clock,
    columns,
    layout,
    line,
    log_range,
    named,
    packed,
    positive,
    rule,
    thinned,
)
from worldsim.report.standings import by_model
from worldsim.results import Row


def pairs(rows: Sequence[Row], looks: Looks, unit: str) -> list[Panel]:
    """Distances between the futures of pairs that are equivalent, against pairs that are not."""
    arrays = [row for row in rows if row.score.dims == ("pair", "time") and looks[row.model].kind in MODELS]
    panels = []
    for stem in dict.fromkeys(
        r.name.removesuffix("_equivalent") for r in arrays if r.name.endswith("_equivalent")
    ):
        same, other = (
            by_model(r for r in arrays if r.name == f"{stem}_{w}") for w in ("equivalent", "distinct")
        )
        found = {
            model: {"distinct": _spread(other.get(model, [])), "equivalent": _spread(same[model])}
            for model in same
        }
        lines = [v for parts in found.values() for _, v in parts.values()]
        powers = log_range(v[v > v.max() * 1e-6] for v in lines if v.size)
        level = [rule(v) for v in _threshold(rows)]
        plots = tuple(_pair_plot(model, found[model], looks[model], unit, powers, level) for model in found)
        caption = (
            "Two histories that the world cannot tell apart should be continued alike: their distance "
            "(colour) stays below the threshold (dotted), that of unlike histories (grey) above. Lines are "
            "medians over pairs and seeds, bands go from the 10 % to the 90 % quantile."
        )
        panels.append(Panel("Equivalent histories, and distinct ones", caption, plots, columns(len(plots))))
    return panels


def _threshold(rows: Sequence[Row]) -> list[float]:
    found = [r.score for r in rows if r.name == "threshold" and not r.score.dims and not r.score.reason]
    return [float(score.value) for score in found[:1]]


def _spread(rows: Sequence[Row]) -> tuple[Array, Array]:
    """Times, and the 10 %, 50 % and 90 % quantiles over pairs and seeds ``[quantile, time]``."""
    if not rows:
        return np.zeros(0), np.zeros((3, 0))
    values = np.concatenate([np.asarray(r.score.value, dtype=float) for r in rows])
    times = np.asarray(rows[0].score.coords.get("time", np.arange(values.shape[1])), dtype=float)
    keep = thinned(len(times))
    return times[keep], _quantiles(values[:, keep])


def _pair_plot(
    model: str, found: Mapping[str, tuple[Array, Array]], look: Style, unit: str,
    powers: Sequence[float] | None, level: Sequence[Mapping[str, Any]],
) -> Plot:  # fmt: skip
    grey = Style("#777777", "dash", "circle", "baseline")
    data: list[dict[str, Any]] = []
    shown_unit = unit
    for name, (at, (low, middle, high)) in found.items():
        if not len(at):
            continue
        style = look if name == "equivalent" else grey
        times, shown_unit = clock(at, unit)
        data += band(name, style, times, positive(low, high), high)
        data.append(line(name, style, times, middle, line={"width": 2.2}))
    x, y = axis(named("time", shown_unit)), axis("distance", powers)
    return Plot(tuple(data), layout(x, y, model, showlegend=False, shapes=list(level)))


def _quantiles(values: Array) -> Array:
    """10 %, 50 % and 90 % over pairs at each time; NaN where none is finite."""
    found = np.full((3, values.shape[1]), np.nan)
    for i, column in enumerate(values.T):
        good = column[np.isfinite(column)]
        if len(good):
            found[:, i] = np.quantile(good, (0.1, 0.5, 0.9))
    return found


def couplings(rows: Sequence[Row], looks: Looks) -> list[Panel]:
    """Which predicted point each true one is carried to, in the truth's two leading principal axes."""
    kept: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.name.startswith("coupling_") and looks[row.model].kind in MODELS:
            kept.setdefault(row.model, {}).setdefault(row.name, row)
    plots = tuple(_coupling(model, found, looks[model]) for model, found in kept.items() if len(found) == 3)
    caption = (
        "Each line joins a sample of the truth (open) to the prediction (filled) that the cheapest transport "
        "carries it to; short lines are a good law. First seed, principal axes of the truth."
    )
    return [Panel("Transport to the truth", caption, plots, columns(len(plots)))] if plots else []


def _coupling(model: str, found: Mapping[str, Row], style: Style) -> Plot:
    truth, guess = (_plane(found[f"coupling_{which}"]) for which in ("truth", "prediction"))
    match = np.asarray(found["coupling_match"].score.value).astype(int)
    ends = np.full((len(truth), 3, 2), np.nan)
    ends[:, 0], ends[:, 1] = truth, guess[match]
    lines = ends.reshape(-1, 2)
    dot = {"type": "scatter", "mode": "markers"}
    data = (
        line("carried to", style, *lines.T, line={"width": 1}, opacity=0.45, hoverinfo="skip"),
        {**dot, "name": "truth", "x": packed(truth[:, 0]), "y": packed(truth[:, 1]),
         "marker": {"color": INK, "size": 6, "symbol": "circle-open"}},
        {**dot, "name": "prediction", "x": packed(guess[:, 0]), "y": packed(guess[:, 1]),
         "marker": {"color": style.colour, "size": 5}},
    )  # fmt: skip
    return Plot(
        data, layout(axis("principal axis 1"), axis("principal axis 2"), model, showlegend=False), square=True
    )


def _plane(row: Row) -> Array:
    """``[point, 2]``; a law over one dimension lies on a line."""
    points = np.asarray(row.score.value, dtype=float)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
