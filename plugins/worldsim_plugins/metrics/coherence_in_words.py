"""What scores of coherence say of one model, in words."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, float]
"""Means over seeds of what could be measured."""
SLIGHT = 0.01
"""A share below this is not told as a fault: a hundred pairs cannot show it."""
APART = 0.1
"""How much more often prefixes of two lengths must be told apart than of one, to be called elapsed time."""
FAR = 0.3
"""Spreads from the true futures, beyond the truth's own draws: a coherent model then has its own world."""


def share(x: float) -> str:
    """``x`` in per cent, and never rounded to all or nothing."""
    text = f"{100 * x:.0f} %"
    if text == "0 %" and x > 0:
        return "less than 1 %"
    return "more than 99 %" if text == "100 %" and x < 1 else text


def of_tokens(scores: Scores, truth: Scores) -> list[str]:
    """Sentences on a model over tokens; ``truth`` is what the true law scores, a policy included."""
    return [
        text
        for text in (_validity(scores), _lengths(scores), _recall(scores, truth), _precision(scores, truth))
        if text
    ] or ["No fault was found by these words."]


def _validity(scores: Scores) -> str:
    valid, fidelity = scores.get("next_token_validity"), scores.get("fidelity")
    if valid is None:
        return ""
    law = "" if fidelity is None else f"; its law of what follows is {fidelity:.2g} from the true one"
    return f"Its most probable next token is legal after {share(valid)} of prefixes{law}."


def _lengths(scores: Scores) -> str:
    one = 1 - scores.get("compression_both", 1.0)
    two = 1 - scores.get("compression_both_mixed", 1.0 - one)
    if max(one, two) < SLIGHT:
        return ""
    told = f"Two prefixes of one state are two states to it in {share(one)} of pairs of one length"
    if two - one > APART:
        return f"{told} and in {share(two)} of two lengths: the number of tokens so far counts for it."
    return f"{told} and in {share(two)} of two lengths."


def _recall(scores: Scores, truth: Scores) -> str:
    name = "distinction_recall_found" if "distinction_recall_found" in scores else "distinction_recall"
    found, most = scores.get(name), truth.get(name, 1.0)
    if found is None or found > most - SLIGHT:
        return ""
    ceiling = (
        "" if most > 1 - SLIGHT else f" (who knows the map and goes this way shows {share(most)} of them)"
    )
    return f"Of the words that tell two states apart it knows {share(found)}{ceiling}."


def _precision(scores: Scores, truth: Scores) -> str:
    found = scores.get("distinction_precision_found")
    if found is None:
        return "It tells no two states apart." if scores.get("n_empty", 0.0) == 1 else ""
    most = truth.get("distinction_precision_found", 1.0)
    if found > most - SLIGHT:
        return ""
    ceiling = "" if most > 1 - SLIGHT else f" (of those of the true policy, {share(most)})"
    return f"Of the words by which it tells states apart, {share(found)} truly do{ceiling}."


def of_states(scores: Scores, truth: Scores) -> list[str]:
    """Sentences on a model of continuous states; equivalences are named as the system names them."""
    found = [
        text for text in (_split(scores, truth), _kept_apart(scores, truth), _world(scores, truth)) if text
    ]
    return found or ["No fault was found by these pairs."]


def _split(scores: Scores, truth: Scores) -> str:
    kinds = [name for name in scores if name.startswith("compression_")] or ["compression"]
    parted = {
        name.removeprefix("compression_").replace("_", " "): 1 - scores[name]
        for name in kinds
        if name in scores and truth.get(name, 1.0) - scores[name] >= SLIGHT
    }
    if not parted:
        return ""
    if len(parted) == len(kinds) > 1 and min(parted.values()) > 1 - APART:
        return (
            "It hardly gives one state one future: pairs of every kind come further apart than the threshold."
        )
    named = ", ".join(
        f"{kind} {share(part)}" for kind, part in sorted(parted.items(), key=lambda one: -one[1])
    )
    if list(parted) == ["window shift"]:
        return f"Of two pasts of one state it makes two, by how long they are ({named} of pairs)."
    return f"It makes two of what is one state: {named} of pairs."


def _kept_apart(scores: Scores, truth: Scores) -> str:
    recall, most = scores.get("distinction_recall"), truth.get("distinction_recall", 1.0)
    if scores.get("n_empty") == 1:
        return "It tells no two states apart."
    if recall is None or recall > most - SLIGHT:
        return ""
    return f"Where two states part, it has them part in the right way in {share(recall)} of tests."


def _world(scores: Scores, truth: Scores) -> str:
    fidelity, own = scores.get("fidelity"), truth.get("fidelity", 0.0)
    if fidelity is None or fidelity < own + SLIGHT:
        return ""
    far = f"{fidelity:.2g} spreads from the true ones"
    if own > SLIGHT:
        far += f" (independent draws of the truth: {own:.2g})"
    if truth.get("compression", 1.0) - scores.get("compression", 0.0) < SLIGHT and fidelity > own + FAR:
        return f"It is coherent, in a world of its own: its futures are {far}."
    return f"Its futures are {far}."
