"""Numbers that are known exactly, computed by the metrics on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from worldsim.plugins import Registry
from worldsim.protocols import GroundTruth, HasGroundTruths


def ground_truths(plugins: Registry) -> Iterator[tuple[str, GroundTruth]]:
    """Metric and number, for every metric that offers them (``HasGroundTruths``), by name."""
    for name in sorted(plugins.tables["metric"]):
        builder = plugins.builder("metric", name)
        if isinstance(builder, HasGroundTruths):
            for one in builder.ground_truths():
                yield name, one
