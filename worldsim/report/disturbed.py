"""Scores over a probability: how fast something is lost as it is disturbed more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldsim.report.answers import begun, phrase
from worldsim.report.plots import Looks, Panel, Plot, axis, band, columns, layout, line
from worldsim.report.standings import by_model
from worldsim.results import Row

ENDS = ("_low", "_high")
"""Of the names of the arrays in which a score keeps the ends of its interval."""


def over_probability(rows: Sequence[Row], looks: Looks) -> list[Panel]:
    """One panel for each metric, a plot for each of its scores ``[probability]``."""
    kept = [row for row in rows if row.score.dims == ("probability",) and not row.score.reason]
    panels = []
    for metric in dict.fromkeys(row.metric for row in kept):
        mine = [row for row in kept if row.metric == metric]
        names = dict.fromkeys(row.name for row in mine if not row.name.endswith(ENDS))
        plots = tuple(_plot(name, mine, looks) for name in names)
        caption = "Mean over seeds; the band goes from the smallest to the largest seed"
        if any(row.name.endswith(ENDS) for row in mine):
            caption += ", and is the 95 % interval of a single one"
        title = f"{begun(phrase(metric))}, by how often"
        panels.append(Panel(title, f"{caption}. Baselines are grey and dashed.", plots, columns(len(plots))))
    return panels


def _plot(name: str, rows: Sequence[Row], looks: Looks) -> Plot:
    data: list[dict[str, Any]] = []
    found = by_model(row for row in rows if row.name == name)
    for model in sorted(found, key=lambda model: looks[model].kind != "baseline"):
        chance = np.asarray(found[model][0].score.coords["probability"], dtype=float)
        values = np.stack([np.asarray(row.score.value, dtype=float) for row in found[model]])
        low, high = values.min(0), values.max(0)
        ends = [[row for row in rows if row.model == model and row.name == name + end] for end in ENDS]
        if len(values) == 1 and all(ends):
            low, high = (np.asarray(each[0].score.value, dtype=float) for each in ends)
        if looks[model].kind not in ("baseline", "truth"):
            data += band(model, looks[model], chance, low, high)
        data.append(line(model, looks[model], chance, values.mean(0), mode="lines+markers"))
    x = axis("probability", rangemode="tozero")
    return Plot(tuple(data), layout(x, axis("", rangemode="tozero"), begun(phrase(name)), showlegend=False))
