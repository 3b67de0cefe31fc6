"""The cost profiler: counted operations and state of softmax and linear attention against length.

Softmax attention's operations grow as length^2 and its state, the cache of keys and values, as length; linear
attention's operations as length, and its state not at all. Counted, not timed, so that a busy machine
changes nothing; seconds are in the table of ``worldsim profile``.
"""

from worldsim.costs import profile

SEEDS = (0,)
CLAIM = "operations: exponents 2.00 and 1.00 within 0.01; state: 1 for softmax, constant for linear layers"
LENGTHS = (1024, 2048, 4096)
LAYERS = ("softmax_attention", "linear_attention", "retention", "selective_scan")


def run(seed=0):
    figures = {}
    for cost in profile(LAYERS, LENGTHS, rounds=1):
        figures[f"{cost.layer} operations"] = cost.growth("operations").exponent
        figures[f"{cost.layer} state"] = cost.growth("state_bytes").exponent
    return figures


def check(figures):
    for layer in LAYERS:
        softmax = layer == "softmax_attention"
        assert abs(figures[f"{layer} operations"] - (2 if softmax else 1)) < 0.01
        assert abs(figures[f"{layer} state"] - (1 if softmax else 0)) < 1e-9
