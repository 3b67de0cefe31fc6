"""The linear diffusion transformer beside softmax attention: digits of the same quality.

The backbones `linear_dit` (ReLU attention and a Mix-FFN, SANA) and `transformer` (DiT) draw digits as
studies/drawn_digits.py says. What linear attention saves in time is measured in benchmarks/generators.py.
"""

from studies.drawn_digits import drawn, floor

SEEDS = (0,)
CLAIM = "W2 < 2.9, and that of linear_dit <= that of softmax + 0.15"


def run(seed=0):
    return {
        "floor": floor(),
        "W2 softmax": drawn("softmax", seed)[0],
        "W2 linear": drawn("linear", seed)[0],
    }


def check(figures):
    assert max(figures["W2 softmax"], figures["W2 linear"]) < 2.9
    assert figures["W2 linear"] <= figures["W2 softmax"] + 0.15
