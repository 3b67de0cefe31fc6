"""Pictures of scores: every seed a dot, growth over time, pairs of histories, transport couplings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from worldsim.report.answers import begun, number, phrase
from worldsim.report.plots import (
    INK,
    Panel,
    Plot,
    Style,
    axis,
    band,
    layout,
    line,
    log_range,
    named,
    packed,
    plain,
    thinned,
)
from worldsim.report.standings import Board, Standing
from worldsim.results import Row

YEAR = 365.25
ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better"}
RANKS = {"learned": 1000, "model": 1000, "reference": 2000, "truth": 3000, "baseline": 4000}
"""Of the kinds in a legend."""
MODELS = ("learned", "model", "reference")
FAR_BELOW = 1e3
"""A truth this many times below everybody is told in words: an axis that holds it shows nothing else."""
Looks = Mapping[str, Style]
Array: TypeAlias = "np.ndarray[Any, Any]"


def dots(groups: Sequence[Sequence[Board]], looks: Looks) -> Panel | None:
    """One plot for each headline score: every seed a dot, the interval a bar, the floor a line."""
    plots = [
        _dots(board, looks) for group in groups for board in group if any(s.values for s in board.standings)
    ]
    caption = (
        "Each dot is a seed; the bar is the range over seeds (a 95 % interval of the mean from five on). "
        "Baselines are grey. The dotted line is the floor: what the truth scores against itself."
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
    shapes = [_rule(float(np.mean(floors)))] if floors and (not powers or np.mean(floors) > 0) else []
    return Plot(tuple(data), layout(axis("", tickangle=-38, type="category"), y, title, shapes=shapes))


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


def _rule(level: float) -> dict[str, Any]:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "layer": "below",
            "line": {"color": INK, "width": 1.3, "dash": "dot"}}  # fmt: skip


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
    below = _below(curves, looks)
    caption += f" Off this picture, far below: {', '.join(below)}." if below else ""
    plot = Plot(data, layout(x, y, shapes=marks))
    return Panel(f"{begun(phrase(stem))} over time", caption, (plot,), 1)


def _by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    return models


def _curves(rows: Iterable[Row], label: int | None = None) -> Curves:
    """The curves of every model, those of one ``label`` where the scores are over (label, time)."""
    found = {}
    for model, group in _by_model(rows).items():
        values = np.stack([np.asarray(row.score.value, dtype=float) for row in group])
        values = values if label is None else values[:, label]
        times = np.asarray(group[0].score.coords.get("time", np.arange(values.shape[1])), dtype=float)
        keep = thinned(len(times))
        found[model] = times[keep], values[:, keep]
    return found


def clock(times: Any, unit: str) -> tuple[Array, str]:
    """Times as a reader counts them: many days are years."""
    times = np.asarray(times, dtype=np.float64)
    if unit == "d" and len(times) and times.max() > 2 * YEAR:
        return times / YEAR, "years"
    return times, "" if unit == "1" else unit


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
            data += band(model, style, times, _positive(values.min(0), values.max(0)), values.max(0))
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


def _positive(low: Any, high: Any) -> Any:
    """A band's lower edge; one that reaches zero has none on a logarithmic axis, and is drawn far down."""
    high = high[high > 0]
    return np.maximum(low, high.min() * 1e-9) if len(high) and not (low < 0).any() else low


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
            drawn = layout(x, y, label, showlegend=False, shapes=[_rule(v) for v in level])
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


def pairs(rows: Sequence[Row], looks: Looks, unit: str) -> list[Panel]:
    """Distances between the futures of pairs that are equivalent, against pairs that are not."""
    arrays = [row for row in rows if row.score.dims == ("pair", "time") and looks[row.model].kind in MODELS]
    panels = []
    for stem in dict.fromkeys(
        r.name.removesuffix("_equivalent") for r in arrays if r.name.endswith("_equivalent")
    ):
        same, other = (
            _by_model(r for r in arrays if r.name == f"{stem}_{w}") for w in ("equivalent", "distinct")
        )
        found = {
            model: {"distinct": _spread(other.get(model, [])), "equivalent": _spread(same[model])}
            for model in same
        }
        lines = [v for parts in found.values() for _, v in parts.values()]
        powers = log_range(v[v > v.max() * 1e-6] for v in lines if v.size)
        level = [_rule(v) for v in _threshold(rows)]
        plots = tuple(_pair_plot(model, found[model], looks[model], unit, powers, level) for model in found)
        caption = (
            "Two histories that the world cannot tell apart should be continued alike: their distance "
            "(colour) stays below the threshold (dotted), that of unlike histories (grey) above. Lines are "
            "medians over pairs and seeds, bands go from the 10 % to the 90 % quantile."
        )
        panels.append(Panel("Equivalent histories, and distinct ones", caption, plots, min(len(plots), 3)))
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
        data += band(name, style, times, _positive(low, high), high)
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
    return [Panel("Transport to the truth", caption, plots, min(len(plots), 3))] if plots else []


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
