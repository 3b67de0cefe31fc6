"""The answer to a scenario's question in one sentence, made from its numbers and from nothing else.

Three sorts of competitor are told apart: models (learned ones and references that learn nothing), baselines,
and the truth itself, which is a ceiling and never competes. A baseline that scores as well as the truth does
shows that a score can be met without understanding; it is named, and does not win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from worldsim.report.standings import Board, Standing, among_faithful, fidelity_beside
from worldsim.tables import ROUNDING, shown

CLOSE = 1.1
"""A ratio below this is told by the two numbers."""
NOUNS = {
    "drift_": "drift",
    "squared_error_": "squared error",
    "violation_": "violation",
    "projection_failures_": "failed projections",
}
"""Beginnings of names that go with a quantity."""
PHRASES = {
    "nrmse": "forecast error (nRMSE)",
    "valid_time": "valid time",
    "valid_to_horizon": "share of forecasts valid to the end",
    "position_error": "position error",
    "crps": "error of the forecast law (CRPS)",
    "W2": "distance from the true law (W2)",
    "coherence_auc": "coherence (AUC)",
    "fidelity": "distance from the true futures (fidelity)",
    "token_validity": "share of legal tokens",
    "sampson": "distance from epipolar lines (Sampson)",
    "reprojection": "reprojection error",
    "next_token_validity": "share of legal tokens among the most probable",
    "edges_right": "share of right edges",
    "edges_wrong": "share of wrong edges",
    "walks_failed": "share of walks given up",
    "valid_undisturbed": "share of valid walks",
    "valid_random": "share of valid walks, random detours",
    "valid_adversarial": "share of valid walks, adversarial detours",
    "r_ib": "one label within a state (R-IB)",
    "d_ib": "free labels between states (D-IB)",
    "compression": "compression of equivalent histories",
    "compression_both": "compression of equivalent histories",
}


def number(value: float | None) -> str:
    """Three digits; thousands are written out, since few read exponents."""
    text = shown(value)
    return f"{float(text):,.0f}" if "e+" in text and value is not None and abs(value) < 1e6 else text


def phrase(name: str) -> str:
    """A score's name in words."""
    for prefix, noun in NOUNS.items():
        if name.startswith(prefix):
            return f"{noun} of {name.removeprefix(prefix).replace('_', ' ')}"
    return PHRASES.get(name, name.replace("_", " "))


def begun(text: str) -> str:
    """As at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def answer(group: Sequence[Board], found: Sequence[Board] = ()) -> str:
    """What the boards of one score say: a sentence or two. ``found`` holds the other boards of the scenario:
    who is coherent ranks only with futures that are nearer to the truth's than a baseline's."""
    caveat = f" It can be met without understanding, by {group[0].met_by}." if group[0].met_by else ""
    if group[0].label:
        return _over_labels(group) + caveat
    fidelity = fidelity_beside(group[0], found)
    return _single(among_faithful(group[0], fidelity) if fidelity else group[0], fidelity) + caveat


def _single(board: Board, fidelity: Board | None = None) -> str:
    ranked = [s for s in board.ranked() if s.kind != "truth"]
    ours = [s for s in ranked if s.kind in ("learned", "model")] or [
        s for s in ranked if s.kind == "reference"
    ]
    if not ours:
        return _nobody(board)
    trivial = _trivial(board)
    rivals = [s for s in ranked if s not in ours and s.model not in trivial]
    ahead = [s for s in rivals if board.at_least(s.mean, ours[0].mean) and not _level(s, ours[0])]
    parts = [_behind(board, ahead[0], ours[0]) if ahead else _ahead(board, ours, rivals, trivial)]
    parts += [_truth(board, ours[0])] if _truth(board, ours[0]) else []
    parts += [_fidelities(fidelity)] if fidelity and board.name == "coherence_auc" else []
    parts += [_below_floor(board, ours[0])] if _below_floor(board, ours[0]) else []
    text = "; ".join(parts) + "."
    return text + _left_out(board)


def _behind(board: Board, winner: Standing, ours: Standing) -> str:
    noun = "learned model" if ours.kind == "learned" else "model"
    sort = "the baseline " if winner.kind == "baseline" else ""
    return (
        f"No {noun} beats {sort}{winner.model} in {phrase(board.name)}: it has {_value(winner, board)}"
        f"{_every_seed(board, winner, ours)}; the best {noun}, {ours.model}, has {_value(ours, board)}"
    )


def _ahead(board: Board, ours: Sequence[Standing], rivals: Sequence[Standing], trivial: Sequence[str]) -> str:
    best = ours[0]
    level = [s.model for s in (*ours, *rivals) if _level(s, best)]
    rivals = [s for s in rivals if not _level(s, best)]
    if len(level) > 1:
        text = f"{_listed(level)} are level in {phrase(board.name)} at {_value(best, board)}"
    elif len(ours) + len(rivals) == 1:
        text = f"{best.model} has {phrase(board.name)} {_value(best, board)}"
    else:
        text = _compared(board, best, (ours[1:] or rivals)[0]) + _others(board, ours[2:])
    if rivals and len(ours) + len(rivals) > 2:
        text += f"; {'each' if len(level) > 1 else best.model} beats {_beaten(rivals, trivial)}"
    elif trivial:
        text += f"; {_alike(trivial)}"
    return text


def _others(board: Board, rest: Sequence[Standing]) -> str:
    """Models after the second: a question about five is not answered by two."""
    return "".join(f", {'then ' if i == 0 else ''}{s.model} {_value(s, board)}" for i, s in enumerate(rest))


def _level(one: Standing, other: Standing) -> bool:
    return math.isclose(one.mean, other.mean, rel_tol=1e-9)


def _beaten(rivals: Sequence[Standing], trivial: Sequence[str]) -> str:
    references = [s.model for s in rivals if s.kind == "reference"]
    every = "every baseline"
    if trivial:
        every += f" but {_alike(trivial, ', which')}"
    return _listed([*references, *([every] if len(references) < len(rivals) else [])])


def _alike(trivial: Sequence[str], which: str = "") -> str:
    verb = "scores" if len(trivial) == 1 else "score"
    return f"{_listed(trivial)}{which} {verb} like the truth without following it"


def _compared(board: Board, best: Standing, other: Standing) -> str:
    ratios = _ratios(board, best, other)
    if _value(best, board) == _value(other, board):
        both = f"{best.model} and {other.model}"
        return f"{both} are level to three digits in {phrase(board.name)} at {_value(best, board)}"
    if not ratios or ratios[0] < CLOSE:
        end = "lowest" if board.better == "lower" else "highest"
        return (
            f"{best.model} has the {end} {phrase(board.name)}, {_value(best, board)} against "
            f"{_value(other, board)} of {other.model}{_every_seed(board, best, other)}"
        )
    mean, low, high = ratios
    seeds = max(len(best.values), len(other.values))
    range_ = f"{times(low)} to {times(high)} over {seeds} seeds, " if seeds > 1 else ""
    every = (
        _every_seed(board, best, other).strip(" ,") or f"{_value(best, board)} against {_value(other, board)}"
    )
    return f"{best.model} {_verb(board, mean)} {other.model} ({range_}{every})"


def _verb(board: Board, ratio: float) -> str:
    if board.name.startswith("drift_"):
        return f"drifts {times(ratio)} less in {board.name.removeprefix('drift_').replace('_', ' ')} than"
    return f"has {times(ratio)} {board.better} {phrase(board.name)} than"


def times(ratio: float) -> str:
    """A ratio with the digits it deserves."""
    if ratio >= 1e5:
        return "over 100,000×"
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def _ratios(board: Board, best: Standing, other: Standing) -> tuple[float, float, float] | None:
    """(of the means, smallest and largest over paired seeds), where a ratio means something."""
    values = [*best.values.values(), *other.values.values()]
    if min(values) <= 0 or (board.better == "higher" and board.units in ("", "1")):
        return None
    sign = 1 if board.better == "lower" else -1
    paired = [(b / a) ** sign for a, b in _paired(best, other)]
    return (other.mean / best.mean) ** sign, min(paired), max(paired)


def _paired(one: Standing, other: Standing) -> list[tuple[float, float]]:
    """Values at the same seed; who exists once (a baseline) stands beside every seed."""
    if len(one.values) == 1 or len(other.values) == 1:
        return [(a, b) for a in one.values.values() for b in other.values.values()]
    return [(one.values[seed], other.values[seed]) for seed in one.values if seed in other.values]


def _every_seed(board: Board, best: Standing, other: Standing) -> str:
    paired = _paired(best, other)
    if len(paired) < 2:
        return ""
    word = "less" if board.name.startswith("drift_") else board.better
    wins = sum(board.at_least(a, b) and a != b for a, b in paired)
    return f", {word} on every seed" if wins == len(paired) else f", {word} on {wins} of {len(paired)} seeds"


def _value(standing: Standing, board: Board) -> str:
    return f"{number(standing.mean)}{_unit(board)}"


def _unit(board: Board) -> str:
    return "" if board.units in ("", "1") else f" {board.units}"


def _truth(board: Board, best: Standing) -> str:
    truth = next((s for s in board.standings if s.kind == "truth" and s.ranks), None)
    if truth is None:
        return ""
    if board.name.startswith("drift_"):
        return f"the true system drifts {_value(truth, board)}"
    worse = not board.at_least(truth.mean, best.mean) and abs(truth.mean - best.mean) > ROUNDING
    return f"the true system has {_value(truth, board)}{', no better' if worse else ''}"


def _fidelities(fidelity: Board) -> str:
    """Coherence says nothing about being right; this does."""
    ours = ", ".join(
        f"{s.model} {number(s.mean)}" for s in fidelity.ranked() if s.kind not in ("baseline", "truth")
    )
    return f"distance from the true futures (fidelity): {ours}"


def _below_floor(board: Board, best: Standing) -> str:
    if board.better != "lower" or best.floor is None or best.mean >= best.floor:
        return ""
    return (
        f"that is below the floor of {number(best.floor)}, which is between independent samples of the "
        "truth, while a forecast shares its starts with the truth"
    )


def _trivial(board: Board) -> list[str]:
    """Baselines that score as well as the truth, up to its interval: the score cannot tell them from it."""
    truth = next((s for s in board.standings if s.kind == "truth" and s.ranks), None)
    if truth is None:
        return []
    low, high = truth.spread
    worst = max(high, truth.mean) if board.better == "lower" else min(low, truth.mean)
    if board.better == "lower" and abs(worst) <= ROUNDING:
        worst = ROUNDING
    return [s.model for s in board.ranked() if s.kind == "baseline" and board.at_least(s.mean, worst)]


def _nobody(board: Board) -> str:
    ours = [s for s in board.standings if s.kind not in ("baseline", "truth")]
    reasons = list(dict.fromkeys(r for s in ours for r in s.reasons))
    why = f": {'; '.join(reasons)}" if reasons else ""
    if any(s.values for s in ours):
        return f"No model ranks in {phrase(board.name)}{why}."
    return f"{begun(phrase(board.name))} is not measurable for any model{why}."


def _left_out(board: Board) -> str:
    """Who does not rank, and why."""
    fates: dict[str, list[str]] = {}
    for s in board.standings:
        if not s.ranks and s.kind not in ("baseline", "truth"):
            why = "; ".join(s.reasons) or f"{s.failed} rollouts could not be evaluated"
            fates.setdefault(why, []).append(s.model)
    return "".join(
        f" {_listed(models)} {'does' if len(models) == 1 else 'do'} not rank: {why}."
        for why, models in fates.items()
    )


def _over_labels(group: Sequence[Board]) -> str:
    """A score with a number for each named thing: who is best for how many of them."""
    ours = [_best(board, ("learned", "model")) or _best(board, ("reference",)) for board in group]
    ranked = [one for one in ours if one]
    if len(ranked) < len(group):
        return _nobody(group[0])
    rivals = [
        _best(board, tuple({"reference", "baseline"} - {one.kind})) for board, one in zip(group, ranked)
    ]
    behind = [
        two for board, one, two in zip(group, ranked, rivals) if two and board.at_least(two.mean, one.mean)
    ]
    noun = "learned model" if ranked[0].kind == "learned" else "model"
    what = phrase(group[0].name)
    if len(behind) == len(group):
        names = _listed(list(dict.fromkeys(two.model for two in behind)))
        best = f"the best {noun}: {_row(group, ranked)}"
        return f"No {noun} beats {names} in {what}: {_row(group, behind)}; {best}."
    wins = "every one" if not behind else f"{len(group) - len(behind)} of {len(group)}"
    than = [two for two in rivals if two]
    end = (
        f"; that beats every baseline for {wins} (the best: {_row(group, than)})"
        if len(than) == len(group)
        else ""
    )
    return f"The best {noun} in {what}: {_row(group, ranked)}{end}."


def _best(board: Board, kinds: tuple[str, ...]) -> Standing | None:
    return next((s for s in board.ranked() if s.kind in kinds), None)


def _row(group: Sequence[Board], found: Sequence[Standing]) -> str:
    """``two_body, mercury 0.1, venus 0.2 au``, with who it is beside each number where that differs."""
    models = list(dict.fromkeys(s.model for s in found))
    one = len(models) == 1
    cells = [f"{b.label} {number(s.mean)}{'' if one else f' ({s.model})'}" for b, s in zip(group, found)]
    return f"{f'{models[0]} has ' if one else ''}{', '.join(cells)}{_unit(group[0])}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
