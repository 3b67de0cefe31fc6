"""Physics-informed loss: how much an equation of motion adds to eight noisy points, and with what weight.

A damped oscillator, x'' + 2 damping frequency x' + frequency^2 x = 0, frequency 4, damping 0.15, is seen at 8
times in [0, 1] with noise of deviation 0.02. A network x(t), 2 x 32 tanh, minimises

    mean (x - seen)^2 + weight mean R^2

where R is the left side at 128 times in [0, 3] (Raissi, Perdikaris and Karniadakis 2019, "Physics-informed
neural networks"), its derivatives exact. Reported is the root mean square error on [1, 3] for each weight,
with R as it stands. Its terms are of size frequency^2 = 16, so weight 1 makes an error of the equation count
256 times as much as one of the data, and the network flattens out; R / 16 at weight 1 is near the best
weight, and nobody had to look for it. On seeds 0 to 4 the three ratios are at most
0.026, 0.028 and at least 26.
"""

import torch

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "extrapolation error: best weight and scaled weight 1 <= 0.2 of none; raw weight 1 >= 5 times the best"
)
FREQUENCY, DAMPING, NOISE = 4.0, 0.15, 0.02
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
SCALED = FREQUENCY**-4
"""The weight of R^2 that is weight 1 of (R / frequency^2)^2."""
WIDTH, UPDATES, RATE = 32, 2000, 1e-2


def truth(t):
    """The solution with x(0) = 1, x'(0) = 0."""
    decay, turning = DAMPING * FREQUENCY, FREQUENCY * (1 - DAMPING**2) ** 0.5
    return torch.exp(-decay * t) * ((turning * t).cos() + decay / turning * (turning * t).sin())


def networks(count, generator):
    """Layers [(weight ``[network, in, out]``, bias ``[network, 1, out]``), ...], all alike at first."""
    layers = []
    for inputs, outputs in ((1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)):
        bound = inputs**-0.5
        weight, bias = (
            bound * (2 * torch.rand(1, size, outputs, dtype=torch.float64, generator=generator) - 1)
            for size in (inputs, 1)
        )
        layers.append([part.repeat(count, 1, 1).requires_grad_() for part in (weight, bias)])
    return layers


def path(layers, t):
    """x, x' and x'' ``[network, time]`` at ``t`` ``[time]``, carried through the layers by the chain rule."""
    x = (t[:, None] - 1.5).expand(len(layers[0][0]), -1, 1)
    first, second = torch.ones_like(x), torch.zeros_like(x)
    for i, (weight, bias) in enumerate(layers):
        x, first, second = x @ weight + bias, first @ weight, second @ weight
        if i < len(layers) - 1:
            x = x.tanh()
            slope = 1 - x.square()
            first, second = slope * first, slope * (second - 2 * x * first.square())
    return x[..., 0], first[..., 0], second[..., 0]


def run(seed, updates=UPDATES):
    generator = torch.Generator().manual_seed(seed)
    seen_at = torch.linspace(0, 1, 8, dtype=torch.float64)
    seen = truth(seen_at) + NOISE * torch.randn(8, dtype=torch.float64, generator=generator)
    weights = torch.tensor([*WEIGHTS, SCALED], dtype=torch.float64)
    layers = networks(len(weights), generator)
    parameters = [part for layer in layers for part in layer]
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    at = torch.linspace(0, 3, 128, dtype=torch.float64)
    for _ in range(updates):
        error = path(layers, seen_at)[0] - seen
        x, first, second = path(layers, at)
        residual = second + 2 * DAMPING * FREQUENCY * first + FREQUENCY**2 * x
        loss = error.square().mean(1) + weights * residual.square().mean(1)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        schedule.step()
    later = torch.linspace(1, 3, 101, dtype=torch.float64)
    with torch.no_grad():
        apart = (path(layers, later)[0] - truth(later)).square().mean(1).sqrt().tolist()
    figures = {f"weight {weight:g}": value for weight, value in zip(WEIGHTS, apart)}
    best = min(apart[1:-1])
    return figures | {
        "scaled": apart[-1],
        "best / none": best / apart[0],
        "scaled / none": apart[-1] / apart[0],
        "raw weight 1 / best": apart[-2] / best,
    }


def check(figures):
    assert figures["best / none"] <= 0.2
    assert figures["scaled / none"] <= 0.2
    assert figures["raw weight 1 / best"] >= 5
