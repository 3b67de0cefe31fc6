"""Time told to the attention (TMSA, Hatamizadeh et al. 2023) and not to the norms (adaLN-Zero, Peebles and
Xie 2022): as good, and smaller.

Of a block at width d, conditioned by a vector as wide, beside the same block that takes nothing: scale, shift
and gate of two parts are 6 d^2 + 6 d numbers; queries, keys and values of the time token 3 d^2, and a
relative bias (2 n - 1)(2 m - 1) for each head on a grid of n by m. Then the backbone `transformer` with
either conditioning draws digits as studies/drawn_digits.py says.
"""

from studies.drawn_digits import drawn, floor
from worldsim_plugins.backbones.transformer import Transformer

SEEDS = (0,)
CLAIM = (
    "adaLN-Zero 6 d^2 + 6 d a block, TMSA 3 d^2 and its bias; W2 of tmsa < 2.9 and <= that of "
    "adaln_zero + 0.15, with >= 15 % fewer parameters"
)
WIDTHS = (32, 48, 64, 128)
HEADS, GRID = 4, (4, 4)
OFFSETS = (2 * GRID[0] - 1) * (2 * GRID[1] - 1)


def parameters(modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def built(width, depth, conditioning="adaln_zero", given=0):
    backbone = Transformer(depth=depth, heads=HEADS, conditioning=conditioning)
    return backbone.layers(width, causal=False, given=given, grid=GRID)


def accounted():
    """What conditioning adds to one block, by kind and width."""
    figures = {}
    for d in WIDTHS:
        plain = parameters(built(d, 1).layers)
        for kind in ("adaln_zero", "tmsa"):
            figures[f"{kind} {d}"] = parameters(built(d, 1, kind, given=d).layers) - plain
    return figures


def run(seed=0):
    (plain, all_parameters), (tmsa, fewer) = drawn("softmax", seed), drawn("tmsa", seed)
    return accounted() | {
        "floor": floor(),
        "W2 adaln_zero": plain,
        "W2 tmsa": tmsa,
        "parameters adaln_zero": all_parameters,
        "parameters tmsa": fewer,
    }


def check_account(figures):
    for d in WIDTHS:
        assert figures[f"adaln_zero {d}"] == 6 * d**2 + 6 * d
        assert figures[f"tmsa {d}"] == 3 * d**2 + HEADS * OFFSETS
    assert figures["adaln_zero 64"] == 24_960


def check(figures):
    check_account(figures)
    assert figures["W2 tmsa"] < 2.9
    assert figures["W2 tmsa"] <= figures["W2 adaln_zero"] + 0.15
    assert figures["parameters tmsa"] <= 0.85 * figures["parameters adaln_zero"]
