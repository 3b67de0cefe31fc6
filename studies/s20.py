"""Time told to the attention (TMSA, DiffiT) and not to the norms (adaLN-Zero, DiT): as good, and smaller.

The backbone `transformer` with either conditioning draws digits as studies/drawn_digits.py says.
"""

from studies.drawn_digits import drawn, floor

SEEDS = (0, 1)
CLAIM = "W2 of tmsa < 2.9 and <= that of adaln_zero + 0.15, with >= 15 % fewer parameters"


def run(seed=0):
    (plain, all_parameters), (tmsa, parameters) = drawn("softmax", seed), drawn("tmsa", seed)
    return {
        "floor": floor(),
        "W2 adaln_zero": plain,
        "W2 tmsa": tmsa,
        "parameters adaln_zero": all_parameters,
        "parameters tmsa": parameters,
    }


def check(figures):
    assert figures["W2 tmsa"] < 2.9
    assert figures["W2 tmsa"] <= figures["W2 adaln_zero"] + 0.15
    assert figures["parameters tmsa"] <= 0.85 * figures["parameters adaln_zero"]
