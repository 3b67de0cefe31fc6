"""Scores of coherence that a model without understanding meets, who does, and why (``Score.met_by``)."""

NOTHING_WRONGLY = "constant, climatology and uniform: who separates nothing separates nothing wrongly"
OVER_TOKENS = {
    "coherence_auc*": "shuffled, which takes every state for the next one and is wrong consistently",
    "compression_*": "constant, climatology, uniform and shuffled, which say the same after every prefix of "
    "a state",
    "distinction_precision": NOTHING_WRONGLY,
    "distinction_precision_mixed": NOTHING_WRONGLY,
    "horizon_error": "shuffled, which takes every state for the next one and is wrong consistently",
    "next_token_validity": "climatology, where one token is possible nearly everywhere",
}
"""Score -> who meets it over tokens without understanding (``Score.met_by``)."""
OVER_STATES = {
    "coherence_auc*": "persistence, shuffled and memoriser: any function of the state treats equal states "
    "alike",
    "compression*": "persistence, constant, climatology, shuffled and memoriser: any function of the state "
    "treats equal states alike, and none or all of it may lie below the threshold",
    "distinction_precision*": "every baseline, since two states that are drawn are nearly always apart",
    "distinction_recall*": "persistence and memoriser, which stay near the state they were given",
    "horizon_error*": "every baseline but a constant: two states that are drawn are apart at once",
}
"""The same over states."""
