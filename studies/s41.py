"""State-space backbones that look both ways, in the place of attention: digits nearly as good.

`diffussm` (gated S4D and hourglasses) and `ssm` (Mamba both ways) beside softmax attention draw digits as
studies/drawn_digits.py says.
"""

from studies.drawn_digits import drawn, floor

SEEDS = (0,)
CLAIM = "W2 < 2.9, and <= that of softmax + 0.3"


def run(seed=0):
    names = ("softmax", "diffussm", "ssm")
    return {"floor": floor(), **{f"W2 {name}": drawn(name, seed)[0] for name in names}}


def check(figures):
    for name in ("diffussm", "ssm"):
        assert figures[f"W2 {name}"] < 2.9
        assert figures[f"W2 {name}"] <= figures["W2 softmax"] + 0.3
