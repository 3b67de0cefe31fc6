"""What metrics say of each model in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worldsim.errors import WorldsimError
from worldsim.plugins import registry
from worldsim.protocols import HasExplanation
from worldsim.report.standings import Board


@dataclass(frozen=True)
class Verdict:
    """One model, as one metric sees it."""

    model: str
    metric: str
    sentences: tuple[str, ...]


def verdicts(found: Sequence[Board], split: str, components: Mapping[str, str]) -> list[Verdict]:
    """Of every metric on ``split`` that explains its scores, about every model that is no baseline.

    ``components`` gives the plugin's name of each metric of the scenario; one that is not installed here says
    nothing.
    """
    said = []
    for metric in dict.fromkeys(board.metric for board in found if board.split == split):
        explain = _explanation(components.get(metric, metric))
        mine = [b for b in found if (b.split, b.metric, b.label) == (split, metric, "")]
        models = {s.model: s.kind for board in mine for s in board.standings}
        truth = next((_means(mine, model) for model, kind in models.items() if kind == "truth"), {})
        for model, kind in models.items():
            means = _means(mine, model)
            if explain is not None and means and kind not in ("baseline", "truth"):
                said.append(Verdict(model, metric, tuple(explain.explain(means, truth))))
    return said


def _explanation(name: str) -> HasExplanation | None:
    try:
        builder = registry().builder("metric", name)
    except WorldsimError:
        return None
    return builder if isinstance(builder, HasExplanation) else None


def _means(found: Sequence[Board], model: str) -> dict[str, float]:
    """Of the scores that were measured on every seed."""
    standings = {board.name: board.of(model) for board in found}
    return {name: one.mean for name, one in standings.items() if one is not None and one.ranks}
