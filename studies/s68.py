"""One network, sampled with and without fresh noise: how much four draws from one seed differ.

The trajectory model of S66 in four steps: mean distance of pairs of draws from one starting noise, over that
of draws from different ones, for 400 starting noises. Without fresh noise (gamma = 0) the draws are one; with
gamma = 1 they are independent. Noise of 0.1 added to the start and not accounted for, a common mistake, gives
near copies, from a start whose variance is 1.01 in place of 1.
"""

import torch

from studies.s66 import STEPS, distilled, stops

SEEDS = (5, 6, 7)
CLAIM = "ratio of distances: 0 at gamma = 0, 0.4..0.7 at 0.5, >= 0.9 at 1; <= 0.2 for the mistake"
STARTS, DRAWS = 400, 4


def spread(ends):
    """Mean distance of pairs of ``ends`` ``[start, draw, 2]`` of one start."""
    distance = torch.cdist(ends, ends)
    return float(distance.sum() / (len(ends) * DRAWS * (DRAWS - 1)))


@torch.no_grad()
def run(seed=0, steps=STEPS):
    with torch.enable_grad():
        model = distilled(seed, steps)
    generator = torch.Generator().manual_seed(1000 + seed)
    model.levels = stops(model, 4)
    nothing = torch.zeros(STARTS * DRAWS, 2)

    def ends(noise, gamma):
        model.gamma = gamma
        return model.drawn(noise, nothing, nothing, generator, None).view(STARTS, DRAWS, 2)

    fresh = torch.randn(STARTS * DRAWS, 1, 2, generator=generator)
    same = fresh[::DRAWS].repeat_interleave(DRAWS, 0)
    apart = spread(ends(fresh, 0.0))
    figures = {f"ratio, gamma {gamma}": spread(ends(same, gamma)) / apart for gamma in (0.0, 0.5, 1.0)}
    shaken = same + 0.1 * torch.randn(same.shape, generator=generator)
    figures["ratio, mistaken"] = spread(ends(shaken, 0.0)) / apart
    figures["variance, mistaken"] = float(shaken.var() / same.var())
    return figures


def check(figures):
    assert figures["ratio, gamma 0.0"] < 1e-6
    assert 0.4 <= figures["ratio, gamma 0.5"] <= 0.7
    assert figures["ratio, gamma 1.0"] >= 0.9
    assert figures["ratio, mistaken"] <= 0.2
    assert 1 < figures["variance, mistaken"] < 1.03
