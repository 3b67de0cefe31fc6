"""What a consistency model must not be trained with: a negative test.

With independent noise at the two levels, gradients through both sides and no boundary condition, a common
mistake, the loss is least for a constant. On eight Gaussians on a ring of radius 2 (deviation sqrt 2 along
each axis), the output of a network of 3 x 128 trained so for 3,000 steps no longer depends on its input;
beside it one trained as long with the same noise, a stopped gradient and f(x, 0) = x.
"""

import torch

from studies.s36 import fitted, made, ring, windows
from worldsim.seeds import forked
from worldsim_plugins.generators.networks import TIME_FEATURES, fourier, perceptron

SEEDS = (5, 6, 7)
CLAIM = "deviation of the output < 0.01 with the mistake; > 1 without"
LEVELS, RHO, STEPS = 40, 7.0, 3000


def collapsed(data, seed, steps):
    """Standard deviation of what the mistaken loss makes of noise."""
    grid = torch.linspace(0.002 ** (1 / RHO), 20.0 ** (1 / RHO), LEVELS) ** RHO
    with forked(seed):
        network = perceptron(2 + TIME_FEATURES, 128, 3, 2)

        def jump(x, t):
            return network(torch.cat([x / (1 + t[:, None] ** 2) ** 0.5, fourier(t.log() / 4)], 1))

        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(steps):
            x = data[torch.randint(len(data), (256,))]
            step = torch.randint(LEVELS - 1, (256,))
            ends = [jump(x + grid[i][:, None] * torch.randn_like(x), grid[i]) for i in (step, step + 1)]
            optimiser.zero_grad()
            (ends[0] - ends[1]).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            noise = grid[-1] * torch.randn(1500, 2)
            return float(jump(noise, grid[-1:].expand(1500)).std(0).max())


def run(seed=0, steps=STEPS):
    generator = torch.Generator().manual_seed(seed)
    data = ring(20_000, generator)
    model = fitted(windows(data), seed, steps // 2, steps // 2)
    model.levels = ()
    return {
        "deviation, mistaken": collapsed(data, seed, steps),
        "deviation, published": float(made(model, generator).std(0).min()),
        "deviation of the data": float(data.std(0).min()),
    }


def check(figures):
    assert figures["deviation, mistaken"] < 0.01
    assert figures["deviation, published"] > 1
