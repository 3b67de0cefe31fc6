"""A learned forward process makes few steps of diffusion enough: two moons, by their evidence lower bound.

Two half circles of radius 1 that interlock, with noise of deviation 0.1, standardised. Networks of 2 x 96
learn from 128 new points in each of 2,000 updates for a process of T = 8 steps, 6,000 for T = 32; ln SNR
falls from 10 to -10. Reported is minus the bound (NELBO) over 20,000 new points in nats, the mean of five
seeds, and the least gain of them; ``true`` is the entropy of the law. Beside the fixed process F(x, t) = x
and the learned one there are, at T = 8,

    wide        the fixed process with as many parameters as the learned one
    best fixed  the fixed process with the exact E[x | z_t]: no network of any size has a better one
    scaled      F(x, t) = (1 + t a(t)) x, which learns no more than how fast the noise grows

which last one gains as much at T = 8 as the whole network does, and more: on this law, what few steps need is
another schedule of the noise, not another shape of the data.
"""

import math

import torch
from torch import nn

from worldsim.seeds import forked
from worldsim_plugins.generators.networks import TIME_FEATURES, perceptron
from worldsim_plugins.generators.neural_diffusion import NeuralDiffusionModel, amplitudes, even_steps

SEEDS = (0,)
CLAIM = "NELBO below fixed, wide, best fixed by >= 2 nats at T = 8, each of 5 seeds; fixed, mean, >= 0 at 32"
NOISE, WIDTH, WIDE, DEPTH = 0.1, 96, 142, 2
UPDATES = {8: 2000, 32: 6000}
CENTRE = torch.tensor([0.5, 0.25])
VARIANCE = torch.tensor([0.75, 0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2]) + NOISE**2
SPREAD = VARIANCE.sqrt()


def moons(angle, upper):
    """``[n, 2]``, without noise, standardised."""
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return (torch.stack([x, y], 1) - CENTRE) / SPREAD


def points(n, generator):
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    return moons(angle, upper) + NOISE / SPREAD * torch.randn(n, 2, generator=generator)


def centres(nodes=200):
    """The law is that of these points ``[node, 2]`` with noise, by the midpoint rule over the angle."""
    angle = math.pi * (torch.arange(nodes) + 0.5) / nodes
    return torch.cat([moons(angle, torch.full((nodes,), upper)) for upper in (True, False)])


def log_density(x):
    """``[n]``."""
    distance = (x[:, None] - centres()) * SPREAD / NOISE
    each = -distance.square().sum(-1) / 2 - math.log(2 * math.pi * NOISE**2) + SPREAD.log().sum()
    return each.logsumexp(1) - math.log(each.shape[1])


def exactly_denoised(z, t, context):
    """E[x | z_t] ``[n, 2]`` of the fixed process, at one t for all."""
    alpha, sigma = (each[0] for each in amplitudes(t))
    noise = (NOISE / SPREAD).square()
    variance, away = alpha**2 * noise + sigma**2, z[:, None] - alpha * centres()
    weight = (-(away.square() / variance).sum(-1) / 2).softmax(1)
    return (weight[..., None] * (centres() + alpha * noise / variance * away)).sum(1)


class Scaling(nn.Module):
    """a(t) x of the inputs of ``NeuralDiffusionModel.change``."""

    def __init__(self):
        super().__init__()
        self.rate = perceptron(TIME_FEATURES, WIDTH, DEPTH, 1)
        nn.init.zeros_(self.rate[-1].weight)
        nn.init.zeros_(self.rate[-1].bias)

    def forward(self, inputs):
        return self.rate(inputs[:, -TIME_FEATURES:]) * inputs[:, :2]


def nothing(x):
    """The context of a density without one."""
    return x.new_zeros(len(x), 0)


def built(kind, steps):
    forward = "learned" if kind in ("learned", "scaled") else "fixed"
    width = WIDE if kind == "wide" else WIDTH
    model = NeuralDiffusionModel(2, 0, steps=steps, width=width, depth=DEPTH, forward=forward)
    if kind == "scaled":
        model.change = Scaling()
    return model


def trained(kind, steps, seed, updates):
    generator = torch.Generator().manual_seed(seed)
    with forked(seed):
        model = built(kind, steps)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        x, noise = points(128, generator), torch.randn(128, 2, generator=generator)
        step = even_steps(128, steps, torch.rand(1, generator=generator))
        optimiser.zero_grad()
        (-model.bound_by_one_step(x, nothing(x), step, noise).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model


@torch.no_grad()
def cost(model, seed, n=20_000):
    """NELBO over new points, the same ones and the same noise for every model of as many steps."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = points(n, generator)
    noise = torch.randn(model.steps, n, 2, generator=generator)
    return float(-model.bound(x, nothing(x), noise).mean())


def costs(seed, updates):
    """NELBO of every model, and what it is to be compared with."""
    generator = torch.Generator().manual_seed(1000 + seed)
    found = {"true": float(-log_density(points(20_000, generator)).mean())}
    exact = built("fixed", 8)
    exact.denoised = exactly_denoised
    found["best fixed at 8"] = cost(exact, seed, n=5000)
    for steps, kinds in ((8, ("fixed", "wide", "scaled", "learned")), (32, ("fixed", "learned"))):
        for kind in kinds:
            found[f"{kind} at {steps}"] = cost(trained(kind, steps, seed, updates[steps]), seed)
    return found


def run(seed=0, seeds=5, updates=UPDATES):
    each = [costs(number, updates) for number in range(seeds * seed, seeds * (seed + 1))]
    found = {name: torch.tensor([one[name] for one in each], dtype=torch.float64) for name in each[0]}
    figures = {name: float(values.mean()) for name, values in found.items()}
    for other in ("fixed", "wide", "best fixed", "scaled"):
        gain = found[f"{other} at 8"] - found["learned at 8"]
        figures[f"least gain over {other} at 8"] = float(gain.min())
    gain = found["fixed at 32"] - found["learned at 32"]
    figures["mean gain at 32"], figures["least gain at 32"] = float(gain.mean()), float(gain.min())
    figures["standard error at 32"] = float(gain.std() / len(gain) ** 0.5)
    for kind in ("wide", "learned"):
        figures[f"parameters {kind}"] = float(sum(p.numel() for p in built(kind, 8).parameters()))
    return figures


def check(figures):
    for other in ("fixed", "wide", "best fixed"):
        assert figures[f"least gain over {other} at 8"] >= 2
    assert figures["mean gain at 32"] >= 0
    assert figures["learned at 8"] >= figures["true"]
    assert abs(figures["parameters wide"] / figures["parameters learned"] - 1) < 0.01
