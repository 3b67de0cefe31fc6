"""Entropies of the tokens that a model rolls out beside the truth's, and what a coder makes of them."""

from __future__ import annotations

import lzma
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim_kernels.block_entropy import BlockEntropies, block_entropies, causal_states
from worldsim_plugins.metrics.state_information import floored_error

LARGEST_CORRECTION = 0.1
"""Bits: with fewer windows than this allows, most words have not been seen often enough to count."""


class Entropies(NamedTuple):
    """Of one set of token sequences, in bits."""

    blocks: BlockEntropies
    complexity: float


def entropies(tokens: Tensor, size: int, length: int) -> Entropies:
    """Of ``tokens`` ``[sequence, time]``. Raises NotMeasurable with too few for words of ``length``."""
    if tokens.shape[1] < length + 1:
        raise NotMeasurable(
            f"{tokens.shape[1]} tokens after the given context hold no two words of {length}: lower length, "
            "or ask for a longer horizon"
        )
    blocks = block_entropies(tokens, size, length)
    if float(blocks.correction[-1]) > LARGEST_CORRECTION:
        raise NotMeasurable(
            f"{tokens.numel()} tokens hold too many different words of {length} to count them (bias "
            f"{float(blocks.correction[-1]):.2g} bit): lower length, or score more or longer trajectories"
        )
    future = length // 2
    return Entropies(blocks, causal_states(tokens, size, length - future, future).complexity)


def token_scores(
    right: Entropies,
    found: Entropies,
    floors: list[tuple[Entropies, Entropies]],
    tokens: Tensor,
    size: int,
) -> dict[str, Score]:
    """block_entropy, entropy_rate, excess_entropy, statistical_complexity, each ``*_truth`` and ``*_error``,
    and the compression of ``tokens`` ``[sequence, time]``, the predicted ones."""
    n, length = len(tokens), len(found.blocks.value)
    dims, coords = ("block",), {"block": list(range(1, length + 1))}
    scores = {
        f"block_entropy{end}": Score(
            each.blocks.value.numpy(), dims=dims, coords=coords, better="", units="bit", n=n
        )
        for end, each in (("", found), ("_truth", right))
    }
    for name, value, rows in (
        ("entropy_rate", BlockEntropies.rate, BlockEntropies.rate_rows),
        ("excess_entropy", BlockEntropies.excess, BlockEntropies.excess_rows),
    ):
        numbers = [value(each.blocks) for each in (found, right)]
        parts = [rows(each.blocks) for each in (found, right)]
        apart = [abs(value(one.blocks) - value(other.blocks)) for one, other in floors]
        for end, number, row in zip(("", "_truth"), numbers, parts):
            half = _margin(row)
            scores[name + end] = Score(
                number, better="", units="bit", interval=(number - half, number + half), n=n
            )
        error, half = abs(numbers[0] - numbers[1]), _margin(parts[0] - parts[1])
        interval = (max(error - half, 0.0), error + half)
        scores |= floored_error(name, error, apart, interval, n, "bit")
    apart = [abs(one.complexity - other.complexity) for one, other in floors]
    for end, each in (("", found), ("_truth", right)):
        scores[f"statistical_complexity{end}"] = Score(each.complexity, better="", units="bit", n=n)
    error = abs(found.complexity - right.complexity)
    scores |= floored_error("statistical_complexity", error, apart, None, n, "bit")
    return scores | compression(tokens, size, scores["entropy_rate"].value)


def _margin(rows: Tensor) -> float:
    """Half the 95 % t interval of the mean of independent ``rows`` ``[n]``."""
    n = len(rows)
    return float(stats.t.ppf(0.975, n - 1)) * float(rows.std()) / n**0.5 if n > 1 else float("inf")


def coded_bits(tokens: Tensor, size: int) -> float:
    """Bits per token that LZMA needs for ``tokens`` ``[sequence, time]``, one sequence after the other.

    As many tokens as fit share a byte, since LZMA finds repetitions of whole bytes.
    """
    flat, bits = tokens.flatten().numpy(), max(1, (size - 1).bit_length())
    if bits > 8:
        raw = flat.astype(np.uint32).tobytes()
    else:
        each = 8 // bits
        padded = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
        raw = (padded << (bits * np.arange(each))).sum(1).astype(np.uint8).tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]
    return 8 * len(lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)) / len(flat)


def compression(tokens: Tensor, size: int, rate: float) -> dict[str, Score]:
    """Bits per token by LZMA, and how many times the entropy rate that is: at least 1 for long sequences."""
    bits, n = coded_bits(tokens, size), len(tokens)
    scores = {"coded_bits": Score(bits, better="", units="bit", n=n)}
    if rate <= 0:
        reason = "the tokens have no entropy to compare the code with"
        return scores | {"coding_overhead": Score(float("nan"), better="", n=n, reason=reason)}
    return scores | {"coding_overhead": Score(bits / rate, better="", n=n)}
