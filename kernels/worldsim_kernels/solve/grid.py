"""Equal steps that end on every one of some times."""

from __future__ import annotations

import math

from torch import Tensor


def substeps(times: Tensor, longest: float | None = None) -> list[tuple[float, int]]:
    """For each interval of ``times`` ``[time]``: the step, and how many of them end on the next time.

    longest  no step is longer than this; None for one step per interval
    Raises ValueError unless ``times`` are finite and strictly monotone.
    """
    gaps = times.double().diff()
    if times.dim() != 1 or len(times) == 0 or not times.isfinite().all() or not _one_sign(gaps):
        raise ValueError("times must be a vector of at least one finite number, strictly rising or falling")
    # The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1.
    counts = [1 if longest is None else math.ceil(abs(gap) / longest * (1 - 1e-9)) for gap in gaps.tolist()]
    return [(gap / max(count, 1), max(count, 1)) for gap, count in zip(gaps.tolist(), counts)]


def _one_sign(gaps: Tensor) -> bool:
    return bool((gaps > 0).all() or (gaps < 0).all())
