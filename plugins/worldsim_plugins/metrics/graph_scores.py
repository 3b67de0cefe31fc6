"""Graphs as scores: kept with the results, and drawn by the report, which knows them by their dims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldsim import Score

Edge = tuple[int, int, int]
"""(from, token, to); to below 0 for no state."""


def edges(found: Sequence[Edge], alphabet: Sequence[str]) -> Score:
    """``[edge, end]``, from and to, with the token of each edge as its label; NaN for no state."""
    ends = np.array([(here, there if there >= 0 else np.nan) for here, _, there in found], dtype=float)
    coords = {"edge": [alphabet[token] for _, token, _ in found], "end": ["from", "to"]}
    return Score(ends.reshape(-1, 2), dims=("edge", "end"), better="", n=len(found), coords=coords)


def states(stands: np.ndarray, words: Sequence[str], names: Sequence[str]) -> Score:
    """``[state, true_state]``, 1 where a state, which is known by a word, stands for a true one."""
    coords = {"state": list(words), "true_state": list(names)}
    return Score(stands, dims=("state", "true_state"), better="", n=len(stands), coords=coords)
