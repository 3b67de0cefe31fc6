"""Where attention stands among the layers that read a picture: MambaVision (Hatamizadeh and Kautz 2024).

Structure, of the published encoder at width 24: two stages of residual convolutions, then two of N = 4
layers, N / 2 mixers with a scan and then N / 2 of attention, each stage on half as many rows and columns as
the one before. On the third stage, as it begins, a token's features depend on every token; after the mixers
alone on those up to as many places ahead as there were convolutions.

Placement: pictures of 16 by 16, noise through one of eight 5 by 5 filters with noise of the pixels, to be
told apart by convolutions down to 4 by 4 places and four layers, with attention in the later half, in the
earlier half, in every second layer or in none; 200 steps, the same pictures in the same order for all.
Which is best is not known from this: on seeds 0 to 4 the later half was ahead of the earlier one by 0.04 to
0.13, and on seed 6 behind it by 0.12; no attention at all was ahead of it on five seeds of seven. No order of
the placements is asserted.
"""

import torch
import torch.nn.functional as F
from torch import nn

from worldsim.seeds import forked
from worldsim_plugins.backbones.hybrid import Hybrid

SEEDS = (5, 6)
CLAIM = (
    "halves and sides as published; a stage fills its Jacobian; attention later >= earlier, none: no bound"
)
WIDTH, SIDE, CLASSES, NOISE = 24, 16, 8, 1.0
PLACEMENTS = {
    "later": "mambavision mambavision attention attention",
    "earlier": "attention attention mambavision mambavision",
    "alternating": "mambavision attention mambavision attention",
    "nowhere": "mambavision mambavision mambavision mambavision",
}


class ResidualConvolution(nn.Module):
    """x + W_2 * gelu(norm W_1 * x), pictures ``[n, channel, row, column]``."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GroupNorm(4, WIDTH),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )

    def forward(self, x):
        return x + self.inner(x)


class Layers(nn.Module):
    """A stage of a hybrid over the places of a picture."""

    def __init__(self, placement, side):
        super().__init__()
        self.body = Hybrid(layers=placement, heads=2, states=8).layers(WIDTH, causal=False, grid=(side, side))

    def forward(self, x):
        return self.body(x.flatten(2).mT).mT.reshape(x.shape)


def halved():
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)


def encoder(placement, side=SIDE):
    """The four stages, each halving rows and columns first: ``[n, 1, side, side]`` to the last features."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, WIDTH, 3, stride=2, padding=1), ResidualConvolution()),
        nn.Sequential(halved(), ResidualConvolution()),
        nn.Sequential(halved(), Layers(placement, side // 8)),
        nn.Sequential(halved(), Layers(placement, side // 16)),
    )


class Classifier(nn.Module):
    """One stage of convolutions, one of layers, and the mean over its places."""

    def __init__(self, placement):
        super().__init__()
        first = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.stages = nn.Sequential(first, ResidualConvolution(), halved(), Layers(placement, SIDE // 4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pictures):
        return self.head(self.stages(pictures).mean((2, 3)))


def textures(n, rng):
    """Pictures ``[n, 1, row, column]`` and their classes."""
    filters = torch.randn(CLASSES, 5, 5, generator=torch.Generator().manual_seed(0))
    filters = filters / filters.flatten(1).norm(dim=1)[:, None, None]
    classes = torch.randint(CLASSES, (n,), generator=rng)
    noise = torch.randn(1, n, SIDE + 4, SIDE + 4, generator=rng)
    shown = F.conv2d(noise, filters[classes][:, None], groups=n)[0, :, None]
    return shown + NOISE * torch.randn(shown.shape, generator=rng), classes


def accuracy(placement, seed, steps):
    """On 1,000 new pictures, after training."""
    with forked(seed):
        model = Classifier(placement)
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        pictures, classes = textures(32, rng)
        optimiser.zero_grad()
        F.cross_entropy(model(pictures), classes).backward()
        optimiser.step()
        schedule.step()
    pictures, classes = textures(1000, torch.Generator().manual_seed(1000 + seed))
    with torch.no_grad():
        return float((model(pictures).argmax(-1) == classes).double().mean())


def seen(placement, side=8):
    """``[token, token]``: whether the features of a token depend on a token, through layers as they begin."""
    with forked(0):
        network = Layers(placement, side).double().body
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, side * side, WIDTH, dtype=torch.float64, generator=rng)
    along = torch.randn(WIDTH, dtype=torch.float64, generator=rng)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0] @ along, x)
    return jacobian[:, 0].abs().amax(-1) > 0


def structure():
    """Sides of the stages' pictures of 64 by 64, and who sees whom."""
    stages, x, figures = encoder(PLACEMENTS["later"], 64), torch.zeros(1, 1, 64, 64), {}
    for number, stage in enumerate(stages, 1):
        x = stage(x)
        figures[f"side of stage {number}"] = float(x.shape[-1])
    mixers = [type(layer.part).__name__ for layer in stages[2][1].body.layers[::2]]
    figures["later half attends"] = float(mixers == ["MambaVision"] * 2 + ["SelfAttention"] * 2)
    figures["fill of a stage"] = float(seen(PLACEMENTS["later"]).double().mean())
    ahead = seen("mambavision mambavision")
    band = torch.ones(64, 64, dtype=torch.bool).tril(2)
    figures["mixers see two ahead"] = float(torch.equal(ahead, band))
    return figures


def run(seed=0, steps=200):
    figures = structure()
    for name, placement in PLACEMENTS.items():
        figures[f"accuracy {name}"] = accuracy(placement, seed, steps)
    return figures


def check(figures):
    assert [figures[f"side of stage {number}"] for number in (1, 2, 3, 4)] == [32, 16, 8, 4]
    assert figures["later half attends"] == figures["fill of a stage"] == figures["mixers see two ahead"] == 1
    assert min(figures[f"accuracy {name}"] for name in PLACEMENTS) >= 3 / CLASSES
