"""Generators under constraints: how far each is from obeying, against how far its law is from the truth's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.composed import NORMAL, Cell, Grid, Measured
from worldsim.report.answers import number
from worldsim.report.plots import COLOURS, Panel, Plot, axis, layout, packed, plain, rule

SIGNS = {
    "": ("circle", "●"),
    "trained": ("square", "■"),
    "guided": ("diamond", "◆"),
    "projected": ("triangle-up", "▲"),
    "guided-projected": ("x", "✖"),
    "structural": ("star", "★"),
}
"""A way of being held -> its symbol in a plot and in a text; any other is a hexagon."""
OTHER = ("hexagon", "⬢")
LEAST = 1e-16
"""Where a violation that is exactly 0 is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Shown:
    """A cell in words; ``good`` is None where there is nothing to judge."""

    violation: str
    law: str
    rest: str
    measure: str
    note: str
    worse: bool


@dataclass(frozen=True)
class GridTable:
    """One grid, ready to be laid out."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Shown, ...]], ...]


def grid_tables(found: Sequence[Grid]) -> tuple[GridTable, ...]:
    return tuple(
        GridTable(
            f"{grid.constraint} on {grid.split}",
            tuple(word or "no constraint" for word in grid.columns),
            tuple(
                (base, tuple(in_words(cell, cells[0].found, grid.law) for cell in cells))
                for base, cells in grid.cells.items()
            ),
        )
        for grid in found
    )


def in_words(cell: Cell, free: Measured | None, law: str) -> Shown:
    """Violation, distance of law and floor, one-step defect and cost."""
    if cell.found is None:
        return Shown("", "", "", "", cell.note, False)
    m = cell.found
    flagged = f", {100 * m.flagged:.3g} % flagged" if m.flagged else ""
    violation = "" if math.isnan(m.violation) else f"{number(m.violation)} (max {number(m.worst)}{flagged})"
    error = "" if math.isnan(m.law_error) else f" ± {number(NORMAL * m.law_error)}"
    distance = "" if math.isnan(m.law) else f"{law} {number(m.law)}{error} (floor {number(m.law_floor)})"
    rest = [
        *([f"defect {number(m.defect)}"] if not math.isnan(m.defect) else []),
        *([f"cost {number(m.cost)}×"] if cell.word and not math.isnan(m.cost) else []),
    ]
    return Shown(violation, distance, ", ".join(rest), cell.measure, "", cell.law_is_worse(free))


def constrained(found: Sequence[Grid]) -> list[Panel]:
    """A plot for each grid; none where nothing was measured."""
    plots = [plot for grid in found if (plot := _plot(grid))]
    caption = (
        "Each point is a generator, held to a constraint or not. To the left it obeys, down its law is the "
        "truth's. Bars are 95 % intervals, the dotted line is the floor of the distance; a violation of "
        f"exactly 0 stands at the left edge. {_symbols(found)}."
    )
    return (
        [Panel("What a constraint does to a law", caption, tuple(plots), min(len(plots), 2))] if plots else []
    )


def _symbols(found: Sequence[Grid]) -> str:
    """Which way of being held has which symbol."""
    words = dict.fromkeys(word for grid in found for word in grid.columns)
    return ", ".join(f"{SIGNS.get(word, OTHER)[1]} {word or 'no constraint'}" for word in words)


def _plot(grid: Grid) -> Plot | None:
    data = []
    for b, (base, cells) in enumerate(grid.cells.items()):
        for cell in cells:
            if cell.found and math.isfinite(cell.found.violation + cell.found.law):
                data.append(_point(base, cell, cell.found, COLOURS[b % len(COLOURS)]))
    if not data:
        return None
    floors = [c.found.law_floor for cells in grid.cells.values() for c in cells if c.found]
    shapes = [rule(floors[0])] if floors and math.isfinite(floors[0]) else []
    x = axis(
        f"largest violation of {grid.constraint}, its own scale", None, type="log", exponentformat="power"
    )
    y = axis(f"{grid.law} ↓ lower is better", None, rangemode="tozero")
    return Plot(tuple(data), layout(x, y, f"{grid.constraint} ({grid.split})", shapes=shapes))


def _point(base: str, cell: Cell, found: Measured, colour: str) -> dict[str, Any]:
    error = 0.0 if math.isnan(found.law_error) else NORMAL * found.law_error
    word, symbol = cell.word or "no constraint", SIGNS.get(cell.word, OTHER)[0]
    return {
        "type": "scatter", "mode": "markers", "name": plain(f"{base}, {word}"), "showlegend": False,
        "x": packed([max(found.violation, LEAST)]), "y": packed([found.law]),
        "error_y": {"type": "data", "array": packed([error]), "color": colour, "thickness": 1},
        "marker": {"color": colour, "symbol": symbol, "size": 10, "line": {"color": "#fff", "width": 1}},
        "hovertemplate": plain(f"{base}, {word}: ") + "violation %{x:.2g}, distance %{y:.3g}",
    }  # fmt: skip
