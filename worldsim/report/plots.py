"""Plotly traces and layouts as plain dictionaries, drawn alike in every figure."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from worldsim.report.standings import Kind

MOST_POINTS = 400
"""Points of a curve: more cannot be seen, and they are what makes a file large."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#e69f00", "#56b4e9", "#7a5c00", "#5e4fa2")
"""After Okabe and Ito (2008): told apart by colour-blind readers too."""
GREYS = ("#8a8a8a", "#a9a9a9", "#6e6e6e", "#bcbcbc", "#7c7c7c", "#9a9a9a")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot", "2px 5px")
TRUTH = "#111111"
MODELS: tuple[Kind, ...] = ("learned", "model", "reference")
FAR_BELOW = 1e3
"""A truth this many times below everybody is told in words: an axis that holds it shows nothing else."""
MOST_TICKS = 5
"""Powers of ten beside an axis; under two decades 2 and 5 stand between them, written out."""
YEAR = 365.25
INK, RULE = "#222222", "#e4e4e4"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


@dataclass(frozen=True)
class Style:
    """How one model looks, everywhere."""

    colour: str
    dash: str
    symbol: str
    kind: Kind

    @property
    def css(self) -> str:
        """The line style of its key."""
        dash = {"solid": "solid", "dash": "dashed", "longdash": "dashed"}.get(self.dash, "dotted")
        return f"border-top: {2 if self.kind == 'baseline' else 3}px {dash} {self.colour}"

    @property
    def faint(self) -> str:
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},0.16)"


Looks = Mapping[str, Style]
Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Plot:
    """One plotly figure. ``square``: as high as wide; ``tall``: as high as half the page is wide."""

    data: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    square: bool = False
    tall: bool = False


@dataclass(frozen=True)
class Panel:
    """Plots that belong together, under one title. ``columns`` side by side."""

    title: str
    caption: str
    plots: tuple[Plot, ...]
    columns: int


def styles(kinds: Mapping[str, Kind]) -> dict[str, Style]:
    """Models coloured, baselines grey and dashed, the truth black: the same model the same way everywhere."""
    found: dict[str, Style] = {}
    counts = {"model": 0, "baseline": 0}
    for model, kind in kinds.items():
        if kind == "truth":
            found[model] = Style(TRUTH, "2px 3px", "line-ew-open", kind)
            continue
        sort = "baseline" if kind == "baseline" else "model"
        i = counts[sort]
        counts[sort] += 1
        if sort == "model":
            found[model] = Style(COLOURS[i % len(COLOURS)], "solid", SYMBOLS[i % len(SYMBOLS)], kind)
        else:
            found[model] = Style(GREYS[i % len(GREYS)], DASHES[i % len(DASHES)], "line-ew-open", kind)
    return found


def columns(count: int) -> int:
    """How many plots side by side leave no single one over."""
    return 2 if count in (2, 4) else min(count, 3)


def plain(text: str) -> str:
    """Text that plotly shows as it is: it would read tags in a label."""
    return html.escape(text, quote=False)


def packed(values: Any) -> dict[str, str] | list[Any]:
    """Numbers as float32, the form plotly.js reads itself; NaN is a gap."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        return [plain(str(v)) for v in array.tolist()]
    with np.errstate(over="ignore"):
        small = array.astype("<f4")
    small[~np.isfinite(small)] = np.nan
    return {"dtype": "f4", "bdata": base64.b64encode(small.tobytes()).decode()}


def thinned(count: int) -> Array:
    """Indices of at most ``MOST_POINTS`` of ``count``, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))


def line(name: str, style: Style, x: Any, y: Any, **more: Any) -> dict[str, Any]:
    drawn = {"color": style.colour, "dash": style.dash, "width": 1.2 if style.kind == "baseline" else 2.2}
    drawn |= more.pop("line", {})
    trace = {"type": "scatter", "mode": "lines", "name": plain(name), "x": packed(x), "y": packed(y)}
    return {**trace, "line": drawn, "legendgroup": plain(name), **more}


def band(name: str, style: Style, x: Any, low: Any, high: Any) -> list[dict[str, Any]]:
    """Between two curves; left out where either is not finite."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    good = np.isfinite(low) & np.isfinite(high)
    x, low, high = np.asarray(x)[good], low[good], high[good]
    shared = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
              "legendgroup": plain(name), "x": packed(x), "line": {"width": 0}}  # fmt: skip
    return [
        {**shared, "y": packed(high)},
        {**shared, "y": packed(low), "fill": "tonexty", "fillcolor": style.faint},
    ]


def log_range(values: Iterable[Any], from_ratio: float = 50.0) -> list[float] | None:
    """The powers of ten between which positive values lie, where only a logarithmic axis shows them all."""
    flat = np.concatenate([np.zeros(0), *(np.ravel(np.asarray(v, dtype=float)) for v in values)])
    flat = flat[np.isfinite(flat)]
    good = flat[flat > 0]
    if (flat < 0).any() or not len(good) or good.max() / good.min() <= from_ratio:
        return None
    low, high = float(np.log10(good.min())), float(np.log10(good.max()))
    room = 0.05 * (high - low)
    return [low - room, high + room]


def axis(title: str, powers: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    """Linear, or logarithmic between two ``powers`` of ten."""
    shown: dict[str, Any] = {
        "title": {"text": plain(title), "standoff": 8}, "gridcolor": RULE, "zeroline": False,
        "showline": True, "linecolor": INK, "ticks": "outside", "ticklen": 4, "automargin": True,
    }  # fmt: skip
    if powers:
        shown |= {"type": "log", "exponentformat": "power", "range": list(powers), **_ticks(*powers)}
    return {**shown, **more}


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Powers of ten; where there are fewer than two of them, 1, 2 and 5 written out."""
    if high - low > 2:
        return {"dtick": math.ceil((high - low) / MOST_TICKS)}
    values = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high)) for digit in (1, 2, 5)]
    return {"tickvals": values, "ticktext": [f"{value:g}" for value in values]}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], title: str = "", **more: Any) -> dict[str, Any]:
    font = {
        "family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
        "size": 14,
        "color": INK,
    }
    made: dict[str, Any] = {
        "xaxis": dict(x), "yaxis": dict(y), "font": font,
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff",
        "margin": {"l": 70, "r": 16, "t": 44 if title else 16, "b": 56}, "hovermode": "closest",
        "legend": {"orientation": "v", "font": {"size": 13}},
    }  # fmt: skip
    if title:
        made["title"] = {
            "text": plain(title),
            "font": {"size": 15},
            "x": 0.02,
            "xanchor": "left",
            "y": 0.98,
            "yanchor": "top",
        }
    return {**made, **more}


def named(text: str, units: str) -> str:
    return f"{text} ({units})" if units not in ("", "1") else text


def rule(level: float) -> dict[str, Any]:
    """A dotted line across a plot."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "layer": "below",
            "line": {"color": INK, "width": 1.3, "dash": "dot"}}  # fmt: skip


def clock(times: Any, unit: str) -> tuple[Array, str]:
    """Times as a reader counts them: many days are years."""
    times = np.asarray(times, dtype=np.float64)
    if unit == "d" and len(times) and times.max() > 2 * YEAR:
        return times / YEAR, "years"
    return times, "" if unit == "1" else unit


def positive(low: Any, high: Any) -> Any:
    """A band's lower edge; one that reaches zero has none on a logarithmic axis, and is drawn far down."""
    high = high[high > 0]
    return np.maximum(low, high.min() * 1e-9) if len(high) and not (low < 0).any() else low
