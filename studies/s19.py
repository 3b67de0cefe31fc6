"""A conditioned block begins as the identity: adaLN-Zero (Peebles and Xie 2022), with gates and without.

Of one block of each kind, before any training and at random x and c: the largest |block(x, c) - x|; the same
of the block without the gate, x + part(norm(x) (1 + scale) + shift), which has the zero initialisation but is
no identity; and of the gradient of a random projection, the largest entry at the map of c and at all else.
What does nothing yet can still learn: the gates have a gradient, and what they close off has none until they
open.
"""

import torch

from worldsim.seeds import forked
from worldsim_plugins.backbones.hybrid import MIXERS, Hybrid

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "|block(x, c) - x| = 0 at initialisation for every mixer; > 0.01 without the gate; gates can learn"
WIDTH, GIVEN, LENGTH = 32, 8, 12


def ungated(layers, x, c):
    for layer in layers:
        x = x + layer.part(layer.read(x, c)[0])
    return x


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, along = (torch.randn(2, LENGTH, WIDTH, generator=rng, dtype=torch.float64) for _ in range(2))
    c = torch.randn(2, GIVEN, generator=rng, dtype=torch.float64)
    figures = {}
    for name in MIXERS:
        with forked(seed):
            network = Hybrid(layers=name).layers(WIDTH, causal=False, given=GIVEN).double()
        y = x
        for layer in network.layers:
            y = layer(y, c)
        figures[f"change {name}"] = float((y - x).detach().abs().max())
        figures[f"ungated {name}"] = float((ungated(network.layers, x, c) - x).detach().abs().max())
        (y * along).sum().backward()
        slopes = {"gates": 0.0, "else": 0.0}
        for key, weight in network.layers.named_parameters():
            where = "gates" if "modulation" in key else "else"
            slopes[where] = max(slopes[where], float(weight.grad.abs().max()))
        figures |= {f"gradient of {where} {name}": value for where, value in slopes.items()}
    return figures


def check(figures):
    for name in MIXERS:
        assert figures[f"change {name}"] == 0
        assert figures[f"ungated {name}"] > 0.01
        assert figures[f"gradient of gates {name}"] > 0.01
        assert figures[f"gradient of else {name}"] == 0
