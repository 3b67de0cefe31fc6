"""Who sees whom: Mamba along the tokens, and from both ends (Vision Mamba, Zhu et al. 2024).

The share of pairs of tokens (t, s) of which the features of t depend on token s, at L tokens, in float64: a
scan one way fills the lower triangle, (L + 1) / 2 L, and one from each end everything. One way is wrong for a
picture, whose tokens have no order in time, and both ways for a model that is to be causal: layers that look
both ways refuse to be advanced token by token.
"""

import torch

from worldsim.seeds import forked
from worldsim_plugins.backbones.ssm import SSM

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "Jacobian fill (L + 1) / 2L one way, 1 both ways, exactly; what looks both ways does not stream"
LENGTHS = (1, 2, 12, 31)
WIDTH = 16


def fill(network, length, seed):
    """Share of the entries [t, s] of the Jacobian by tokens that are not zero."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(1, length, WIDTH, dtype=torch.float64, generator=rng)
    along = torch.randn(WIDTH, dtype=torch.float64, generator=rng)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0] @ along, x)
    return float((jacobian[:, 0].abs().amax(-1) > 0).double().mean())


def streams(network):
    try:
        network.advance(torch.zeros(1, 1, WIDTH, dtype=torch.float64))
    except ValueError:
        return 0.0
    return 1.0


def run(seed=0, lengths=LENGTHS):
    figures = {}
    for name, version in (("Mamba", "mamba1"), ("Mamba-2", "mamba2")):
        for way, causal in (("one way", True), ("both ways", False)):
            with forked(seed):
                network = SSM(depth=1, version=version).layers(WIDTH, causal=causal).double()
            for length in lengths:
                figures[f"{name} {way} {length}"] = fill(network, length, seed)
            figures[f"{name} {way} streams"] = streams(network)
    return figures


def check(figures):
    for name in ("Mamba", "Mamba-2"):
        for length in LENGTHS:
            assert figures[f"{name} one way {length}"] == (length + 1) / (2 * length)
            assert figures[f"{name} both ways {length}"] == 1
        assert (figures[f"{name} one way streams"], figures[f"{name} both ways streams"]) == (1, 0)
