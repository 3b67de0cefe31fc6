"""How much chance and how much memory token sequences have, by the states of an automaton that they walk on.

    h = sum over states of their share times H(next token | state),   C = H(state),   E = lim H(L) - L h

in bits: of an epsilon-machine the entropy rate, the statistical complexity (Crutchfield and Young 1989) and
the excess entropy, H(L) being the entropy of words of L that the counted machine makes for ever. An automaton
tells states apart by what is possible and not by how likely it is; where equal possibilities mean equal laws,
as for a walk that takes each legal token as often, its states are the causal ones. Other than entropies of
counted blocks, these need no words as long as the memory. Counts are corrected after Miller (1955).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim import NotMeasurable, Score
from worldsim_kernels.block_entropy import entropy
from worldsim_kernels.hidden_markov import entropy_rate, exact_block_entropies
from worldsim_plugins.metrics.comparison import mean_interval
from worldsim_plugins.metrics.state_information import floored_error

MOST_WORDS = 4096
"""Of the longest words that the excess entropy is taken from."""


class Estimate(NamedTuple):
    """``value`` in bits, and ``rows [sequence]`` of which it is the mean before the correction."""

    value: float
    rows: Tensor


class MachineStatistics(NamedTuple):
    """Of one set of sequences; ``excess_entropy`` is NaN where the machine has no one stationary law, and
    ``refused`` is the share of tokens at or behind one that the automaton refuses."""

    entropy_rate: Estimate
    complexity: Estimate
    excess_entropy: float
    refused: float


def machine_statistics(table: Tensor, tokens: Tensor) -> MachineStatistics:
    """Of ``tokens`` ``[sequence, time]``, but for the first of each, which was given, on ``table``
    ``[state, token]`` from state 0. Raises NotMeasurable where no sequence has a token left to count."""
    state, states = torch.zeros(len(tokens), dtype=torch.int64), []
    for token in tokens.T:
        states.append(state)
        state = torch.where(state < 0, -1, table[state.clamp(min=0), token])
    here, after = torch.stack(states, 1)[:, 1:], torch.stack([*states[1:], state], 1)[:, 1:]
    seen = after >= 0
    if not seen.any():
        raise NotMeasurable("the automaton refuses every sequence at its first token")
    pair = here.clamp(min=0) * table.shape[1] + tokens[:, 1:]
    counts = torch.bincount(pair[seen], minlength=table.numel()).reshape(table.shape).double()
    share, total = counts.sum(1) / counts.sum(), float(counts.sum())
    next_law = counts / counts.sum(1, keepdim=True).clamp(min=1)
    per_state, per_bit = (counts > 0).sum(1), 2 * total * math.log(2)
    rate = float(share @ entropy(next_law)) + float((per_state - 1).clamp(min=0).sum()) / per_bit
    complexity = float(entropy(share)) + (int((share > 0).sum()) - 1) / per_bit
    surprise = [-bits.log2() for bits in (next_law.flatten()[pair], share[here.clamp(min=0)])]
    rows = [torch.where(seen, bits, 0.0).sum(1)[seen.any(1)] / seen.sum(1)[seen.any(1)] for bits in surprise]
    refused = 1 - float(seen.double().mean())
    excess = excess_entropy(table, counts)
    return MachineStatistics(Estimate(rate, rows[0]), Estimate(complexity, rows[1]), excess, refused)


def excess_entropy(table: Tensor, counts: Tensor) -> float:
    """E of the process that walks on ``table`` as often as ``counts`` says, both ``[state, token]``, from
    words as long as are counted quickly; NaN where it has no one stationary law."""
    size, going = table.shape[1], counts.sum(1) > 0
    inside = (counts > 0) & going[table.clamp(min=0)]
    matrices = torch.zeros(size, len(table), len(table), dtype=torch.float64)
    state, token = inside.nonzero(as_tuple=True)
    matrices[token, state, table[state, token]] = counts[state, token]
    matrices = matrices[:, going][:, :, going]
    matrices = matrices / matrices.sum((0, 2))[:, None]
    length = max(2, int(math.log(MOST_WORDS) / math.log(size))) if size > 1 else 2
    try:
        rate = entropy_rate(matrices)
        excess = float(exact_block_entropies(matrices, length)[-1]) - length * rate
        return round(excess, 12)  # the last bits of a product of matrices depend on where they lie in memory
    except ValueError:
        return math.nan


def machine_scores(
    found: MachineStatistics, right: MachineStatistics, floors: list[tuple[MachineStatistics, ...]]
) -> dict[str, Score]:
    """machine_entropy_rate, machine_complexity and machine_excess_entropy, each ``*_truth`` and ``*_error``;
    machine_refused."""
    scores: dict[str, Score] = {}
    for name in ("entropy_rate", "complexity"):
        mine, true = getattr(found, name), getattr(right, name)
        for end, one in (("", mine), ("_truth", true)):
            interval = _moved(mean_interval(one.rows), one.value - float(one.rows.mean()))
            scores[f"machine_{name}{end}"] = Score(
                one.value, better="", units="bit", interval=interval, n=len(one.rows)
            )
        error, n = abs(mine.value - true.value), len(mine.rows)
        apart = [abs(getattr(a, name).value - getattr(b, name).value) for a, b in floors]
        scores |= floored_error(f"machine_{name}", error, apart, None, n, "bit")
    scores |= _excess_scores(found, right, floors)
    return scores | {"machine_refused": Score(found.refused, better="", n=len(found.complexity.rows))}


def _excess_scores(
    found: MachineStatistics, right: MachineStatistics, floors: list[tuple[MachineStatistics, ...]]
) -> dict[str, Score]:
    name, n = "machine_excess_entropy", len(found.complexity.rows)
    values = found.excess_entropy, right.excess_entropy
    if not all(map(math.isfinite, values)):
        reason = "the states that were walked on have no one stationary law"
        return {f"{name}_error": Score(math.nan, units="bit", n=n, reason=reason)}
    apart = [abs(a.excess_entropy - b.excess_entropy) for a, b in floors]
    apart = [one for one in apart if math.isfinite(one)]
    described = {
        name + end: Score(value, better="", units="bit", n=n) for end, value in zip(("", "_truth"), values)
    }
    return described | floored_error(name, abs(values[0] - values[1]), apart, None, n, "bit")


def _moved(interval: tuple[float, float] | None, by: float) -> tuple[float, float] | None:
    return None if interval is None else (interval[0] + by, interval[1] + by)
