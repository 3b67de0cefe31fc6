"""Pictures of what is seen on a grid: frames in a mosaic, and a field on a line over time; the truth beside
each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from worldsim.report.plots import Array, Panel, Plot, axis, clock, columns, layout, named

if TYPE_CHECKING:
    import xarray as xr

FRAMES = (("row", "component"), ("row", "column", "component"), ("y", "x", "component"))
LINES = (("x", "component"),)
"""Axes of states that are pictures, and of those that are fields on a line."""
MOST_ROWS, MOST_COLUMNS = 4, 8
MOST_INSTANTS = 60


def pictures(kept: Mapping[str, xr.Dataset], axes: tuple[str, ...], unit: str) -> list[Panel]:
    """One panel of the rollouts of each model; none where the states are neither. ``unit`` is of time."""
    if axes not in (*FRAMES, *LINES):
        return []
    first = next(iter(kept.values()))
    truth = _seen(first["truth"].values, axes)
    shown = {"truth": truth, **{m: _seen(data["state"].values[:, 0], axes) for m, data in kept.items()}}
    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    colours = {"zmin": low, "zmax": high, "colorscale": "Greys" if low >= 0 else "RdBu"}
    draw = _mosaic if axes in FRAMES else _space_time
    times = clock(first["time"].values, unit)
    plots = tuple(draw(name, values, times, colours) for name, values in shown.items())
    caption = "First seed and draw; all plots have the truth's scale of colours. " + (
        _told(truth) if axes in FRAMES else "The first trajectory of the split: place across, time upwards."
    )
    return [Panel("Frames" if axes in FRAMES else "Field over time", caption, plots, columns(len(plots)))]


def _seen(states: Array, axes: tuple[str, ...]) -> Array:
    """``[trajectory, time, row, column]`` or ``[trajectory, time, x]``: the first component of a field."""
    return states if axes == ("row", "component") else states[..., 0]


def _told(truth: Array) -> str:
    if truth.shape[1] == 2:
        return "The frame after the given one, of the first trajectories of the split."
    return "One row a trajectory of the split, its frames from left to right, the given one first."


def _mosaic(name: str, states: Array, times: Any, colours: Mapping[str, Any]) -> Plot:
    """Frames ``[trajectory, time, row, column]`` side by side, a gap between them."""
    if states.shape[1] == 2:
        rows = min(MOST_ROWS, len(states))
        across = min(MOST_COLUMNS, len(states) // rows)
        tiles = states[: rows * across, 1].reshape(rows, across, *states.shape[2:])
    else:
        at = np.unique(np.linspace(0, states.shape[1] - 1, MOST_COLUMNS).round().astype(int))
        tiles = states[:MOST_ROWS, at]
    gap = ((0, 0), (0, 0), (0, 1), (0, 1))
    wide = np.pad(tiles, gap, constant_values=np.nan).transpose(0, 2, 1, 3)
    z = wide.reshape(wide.shape[0] * wide.shape[1], -1)[:-1, :-1]
    bare: dict[str, Any] = {"showgrid": False, "showticklabels": False, "ticks": "", "showline": False}
    y = axis("", autorange="reversed", scaleanchor="x", **bare)
    return Plot((_heatmap(z, colours),), layout(axis("", constrain="domain", **bare), y, name))


def _space_time(name: str, states: Array, times: tuple[Any, str], colours: Mapping[str, Any]) -> Plot:
    """The first of ``[trajectory, time, x]``."""
    at = np.unique(np.linspace(0, states.shape[1] - 1, MOST_INSTANTS).round().astype(int))
    trace = _heatmap(states[0, at], colours) | {"y": np.asarray(times[0])[at].tolist()}
    y = axis(named("time", times[1]), showgrid=False)
    return Plot((trace,), layout(axis("x", showgrid=False), y, name))


def _heatmap(z: Array, colours: Mapping[str, Any]) -> dict[str, Any]:
    rounded = np.round(z.astype(float), 3).astype(object)
    rounded[~np.isfinite(z)] = None
    return {"type": "heatmap", "z": rounded.tolist(), "showscale": False, **colours}
