"""Pictures of rollouts: orbits, phase portraits and strips of tokens, the truth beside each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from worldsim.errors import ResultError
from worldsim.report.pictures import pictures
from worldsim.report.plots import (
    TRUTH,
    Looks,
    Panel,
    Plot,
    Style,
    axis,
    clock,
    columns,
    layout,
    line,
    named,
    packed,
    plain,
    thinned,
)
from worldsim.results import Results

if TYPE_CHECKING:
    import xarray as xr

MOST_TRAJECTORIES = 8
MOST_STRIPS = 20


def portraits(results: Results, scenario: str, split: str, looks: Looks) -> list[Panel]:
    """One panel of the first seed's rollouts, by what the states are; none where they have no picture."""
    kept = _kept(results, scenario, split, looks)
    if not kept:
        return []
    first = next(iter(kept.values()))
    axes = tuple(str(dim) for dim in first["state"].dims[3:])
    if first["truth"].dtype.kind in "iu":
        return [_strips(kept)] if not axes else []
    if axes == ("body", "component"):
        return [_orbits(kept, looks)]
    if axes == ("component",):
        return [_phases(kept, looks)]
    return pictures(kept, axes, units(first).get("time", "1"))


def _kept(results: Results, scenario: str, split: str, looks: Looks) -> dict[str, xr.Dataset]:
    """Rollouts of each model's first seed that can be read; baselines are no picture."""
    found: dict[str, xr.Dataset] = {}
    for entry in results.entries:
        model_ = (
            entry.scenario == scenario
            and entry.model in looks
            and looks[entry.model].kind not in ("baseline", "truth")
        )
        if not model_ or entry.model in found or not results.store.has_run(entry.key):
            continue
        try:
            tree = results.store.open_run(entry.key)
        except ResultError:
            continue
        if split in tree.children:
            found[entry.model] = tree[split].to_dataset()
    return found


def _labels(data: xr.Dataset, dim: str) -> list[str]:
    if dim in data.coords:
        return [str(v) for v in data[dim].values]
    return [f"{dim} {i + 1}" for i in range(data.sizes[dim])]


def units(data: xr.Dataset) -> dict[str, str]:
    """Label -> unit, as kept with the split."""
    return dict(pair.split("=", 1) for pair in np.atleast_1d(data.attrs.get("units", [])).tolist())


def _plane(components: Sequence[str]) -> tuple[int, int]:
    """What is drawn: x and y, else the first position and its momentum, else the first two."""
    half = len(components) // 2
    if {"x", "y"} <= set(components):
        return components.index("x"), components.index("y")
    if half and components[0].startswith("q") and components[half].startswith("p"):
        return 0, half
    return 0, min(1, len(components) - 1)


def _range(truth: Any) -> list[float]:
    """The truth's extent and a fifth more: a rollout that explodes must not make a dot of it."""
    low, high = np.nanmin(truth), np.nanmax(truth)
    room = 0.2 * (high - low or abs(high) or 1.0)
    return [float(low - room), float(high + room)]


def _phases(kept: Mapping[str, xr.Dataset], looks: Looks) -> Panel:
    first = next(iter(kept.values()))
    components = _labels(first, "component")
    i, j = _plane(components)
    if len(components) == 1:
        return _one_component(kept, looks)
    truth = first["truth"].values[:MOST_TRAJECTORIES]
    unit = units(first)
    x = axis(named(components[i], unit.get(components[i], "")), range=_range(truth[..., i]))
    y = axis(named(components[j], unit.get(components[j], "")), range=_range(truth[..., j]))
    if {components[i], components[j]} == {"x", "y"}:
        y |= {"scaleanchor": "x"}
    plots = [_phase("truth", Style(TRUTH, "solid", "circle", "truth"), truth, (i, j), x, y)]
    for model, data in kept.items():
        plots.append(_phase(model, looks[model], data["state"].values[:MOST_TRAJECTORIES, 0], (i, j), x, y))
    caption = (
        f"The first {len(truth)} trajectories of the split, first seed and draw. "
        "All plots have the truth's axes: what leaves them is cut off."
    )
    return Panel(
        f"Phase portrait: {components[i]} and {components[j]}", caption, tuple(plots), columns(len(plots))
    )


def _phase(name: str, style: Style, states: Any, plane: tuple[int, int], x: Any, y: Any) -> Plot:
    keep = thinned(states.shape[1])
    paths = np.full((len(states), len(keep) + 1, 2), np.nan)
    paths[:, :-1] = states[:, keep][..., list(plane)]
    flat = paths.reshape(-1, 2)
    trace = line(name, style, flat[:, 0], flat[:, 1], line={"width": 1.2}, showlegend=False)
    return Plot((trace,), layout(x, y, name), square=True)


def _one_component(kept: Mapping[str, xr.Dataset], looks: Looks) -> Panel:
    first = next(iter(kept.values()))
    name = _labels(first, "component")[0]
    unit = units(first)
    times, shown_unit = clock(first["time"].values, unit.get("time", "1"))
    keep = thinned(len(times))
    truth = first["truth"].values[:MOST_TRAJECTORIES]
    both = (axis(named("time", shown_unit)), axis(named(name, unit.get(name, "")), range=_range(truth)))
    plots = [
        _threads("truth", Style(TRUTH, "solid", "circle", "truth"), times[keep], truth[:, keep, 0], *both)
    ]
    for model, data in kept.items():
        states = data["state"].values[:MOST_TRAJECTORIES, 0][:, keep, 0]
        plots.append(_threads(model, looks[model], times[keep], states, *both))
    return Panel(
        "Trajectories",
        f"The first {len(truth)} trajectories of the split, first seed and draw.",
        tuple(plots),
        3,
    )


def _threads(name: str, style: Style, times: Any, states: Any, x: Any, y: Any) -> Plot:
    count = len(states)
    gap = np.full((count, 1), np.nan)
    across = np.concatenate([np.tile(times, (count, 1)), gap], 1).ravel()
    trace = line(
        name, style, across, np.concatenate([states, gap], 1).ravel(), line={"width": 1}, showlegend=False
    )
    return Plot((trace,), layout(x, y, name))


def _orbits(kept: Mapping[str, xr.Dataset], looks: Looks) -> Panel:
    """x against y of every body, in dots: frames may be too far apart to join."""
    first = next(iter(kept.values()))
    components = _labels(first, "component")
    i, j = _plane(components)
    truth = first["truth"].values[0]
    span = _range(np.concatenate([truth[..., i].ravel(), truth[..., j].ravel()]))
    unit = units(first)
    x = axis(named(components[i], unit.get(components[i], "")), range=span)
    y = axis(named(components[j], unit.get(components[j], "")), range=span, scaleanchor="x")
    bodies = _labels(first, "body")
    plots = [
        _orbit(model, looks[model], truth, data["state"].values[0, 0], (i, j), bodies, x, y)
        for model, data in kept.items()
    ]
    caption = (
        "Where each body is predicted (colour) and where it truly was (black); first trajectory, first seed."
    )
    return Panel("Orbits", caption, tuple(plots), columns(len(plots)))


def _orbit(
    name: str,
    style: Style,
    truth: Any,
    guess: Any,
    plane: tuple[int, int],
    bodies: Sequence[str],
    x: Any,
    y: Any,
) -> Plot:
    keep = thinned(len(truth))
    i, j = plane
    data = []
    for sort, states, colour, size in (("truth", truth, TRUTH, 2.5), (name, guess, style.colour, 3.5)):
        at = states[keep]
        text = [plain(body) for _ in keep for body in bodies]
        data.append({
            "type": "scatter", "mode": "markers", "name": plain(sort), "x": packed(at[..., i].ravel()),
            "y": packed(at[..., j].ravel()), "marker": {"color": colour, "size": size}, "text": text,
            "hovertemplate": "%{text}", "showlegend": False,
        })  # fmt: skip
    return Plot(tuple(data), layout(x, y, name), square=True)


def _strips(kept: Mapping[str, xr.Dataset]) -> Panel:
    first = next(iter(kept.values()))
    truth = first["truth"].values[:MOST_STRIPS]
    top = int(max(truth.max(), *(data["state"].values.max() for data in kept.values())))
    plots = [_strip("truth", truth, top)]
    plots += [_strip(model, data["state"].values[:MOST_STRIPS, 0], top) for model, data in kept.items()]
    caption = (
        f"One row a walk, one cell a token: {len(truth)} walks of the split, and each model's, first seed."
    )
    return Panel("Tokens", caption, tuple(plots), columns(len(plots)))


def _strip(name: str, tokens: Any, top: int) -> Plot:
    colours = ("#f2e8cf", "#386fa4", "#bc4749", "#6a994e", "#f4a259", "#7d5ba6", "#59a5d8", "#8c564b")
    levels = max(top, 1)
    scale = []
    for token in range(levels + 1):
        colour = colours[token % len(colours)]
        scale += [[token / (levels + 1), colour], [(token + 1) / (levels + 1), colour]]
    bar = {"tickvals": list(range(0, levels + 1, 1 + levels // 12)), "thickness": 12}
    trace = {
        "type": "heatmap", "z": tokens[:, : 2 * MOST_STRIPS].tolist(), "colorscale": scale,
        "zmin": -0.5, "zmax": levels + 0.5, "xgap": 1, "ygap": 1,
        "colorbar": bar, "hovertemplate": "token %{z}",
    }  # fmt: skip
    return Plot(
        (trace,),
        layout(axis("time", showgrid=False), axis("walk", showgrid=False, autorange="reversed"), name),
    )
