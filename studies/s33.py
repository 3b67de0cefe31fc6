"""A sparse mixture of experts without dropped tokens, what a capacity would drop, and what balancing does.

Dropless: ``mixture`` against every expert on every token, in float64. Capacity: of 1,024 tokens to 2 of 8
experts, each expert takes at most its even share (capacity factor 1), the first come; the dropped assignments
and the error of the output. Weights: a second softmax, over the chosen probabilities instead of their logits,
is a common mistake that flattens them: the first of two cannot exceed e / (1 + e). Balancing: 8 experts learn
8 linear regimes of unequal frequency, with and without the balance loss.
"""

import math

import torch
import torch.nn.functional as F

from worldsim_kernels import route
from worldsim_kernels.experts import Routing, SwiGLUExperts, balance_loss, load, mixture

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "dropless - loop < 1e-12; capacity 1 drops > 1 %; balancing evens the load, error < 1.05 x"
TOKENS, EXPERTS, WIDTH, HIDDEN = 1024, 8, 32, 48
F64 = torch.float64


def experts_of(rng, dtype, width=WIDTH):
    shapes = ((EXPERTS, width, HIDDEN), (EXPERTS, width, HIDDEN), (EXPERTS, HIDDEN, width))
    return [torch.randn(shape, generator=rng, dtype=dtype) / shape[1] ** 0.5 for shape in shapes]


def by_loop(x, routing, experts):
    total = torch.zeros_like(x)
    for e, (gate, value, out) in enumerate(zip(*experts)):
        weight = ((routing.experts == e) * routing.weights).sum(-1, keepdim=True)
        total = total + weight * ((F.silu(x @ gate) * (x @ value)) @ out)
    return total


def limited(routing, capacity):
    """The routing with no weight for assignments beyond each expert's capacity, and their share."""
    sent = F.one_hot(routing.experts, EXPERTS).flatten(0, 1)
    place = (sent.cumsum(0) * sent).sum(-1).view(routing.experts.shape)
    kept = place <= capacity
    return routing._replace(weights=routing.weights * kept), 1 - float(kept.double().mean())


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


def dropping(rng):
    x = torch.randn(TOKENS, WIDTH, generator=rng, dtype=F64)
    logits = x @ torch.randn(WIDTH, EXPERTS, generator=rng, dtype=F64) / WIDTH**0.5
    routing, experts = route(logits, 2), SwiGLUExperts(*experts_of(rng, F64))
    whole, figures = mixture(x, routing, experts), {}
    figures["dropless - loop"] = distance(whole, by_loop(x, routing, experts))
    for factor in (1.0, float(EXPERTS)):
        cut, dropped = limited(routing, math.ceil(factor * 2 * TOKENS / EXPERTS))
        figures[f"dropped, capacity {factor:g}"] = dropped
        figures[f"error, capacity {factor:g}"] = distance(mixture(x, cut, experts), whole)
    return figures


def flattening(rng):
    """Mean weight of the first of two experts, right and with a second softmax."""
    logits = 1.5 * torch.randn(20_000, EXPERTS, generator=rng)
    twice = logits.softmax(-1).topk(2).values.softmax(-1)[:, 0]
    return {
        "first weight": float(route(logits, 2).weights[:, 0].mean()),
        "first weight, second softmax": float(twice.mean()),
        "largest, second softmax": float(twice.max()),
    }


def learned(seed, balance, steps):
    """Spread of the load (standard deviation over mean) and mean squared error on new data."""
    rng = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(8, 8, generator=rng)
    maps = torch.randn(8, 8, 8, generator=rng) / 8**0.5
    often = torch.linspace(1, 3, 8)
    router = (torch.randn(8, EXPERTS, generator=rng) / 8**0.5).requires_grad_()
    weights = [each.requires_grad_() for each in experts_of(rng, torch.float32, 8)]
    optimizer = torch.optim.Adam([router, *weights], lr=3e-3)

    def answer(count):
        regime = torch.multinomial(often, count, replacement=True, generator=rng)
        x = centres[regime] + torch.randn(count, 8, generator=rng)
        routing: Routing = route(x @ router, 2)
        y = torch.einsum("nd,nde->ne", x, maps[regime])
        return F.mse_loss(mixture(x, routing, SwiGLUExperts(*weights)), y), routing

    for _ in range(steps):
        optimizer.zero_grad()
        error, routing = answer(256)
        (error + balance * balance_loss(routing)).backward()
        optimizer.step()
    with torch.no_grad():
        error, routing = answer(8192)
    share = load(routing)
    return float(share.std(correction=0) / share.mean()), float(error)


def run(seed=0, steps=600):
    rng = torch.Generator().manual_seed(seed)
    figures = dropping(rng) | flattening(rng)
    for name, balance in (("alone", 0.0), ("balanced", 0.1)):
        figures[f"spread {name}"], figures[f"error {name}"] = learned(seed, balance, steps)
    return figures


def check(figures):
    assert figures["dropless - loop"] < 1e-12
    assert figures["dropped, capacity 1"] > 0.01
    assert figures["error, capacity 1"] > 0.05
    assert figures["dropped, capacity 8"] == figures["error, capacity 8"] == 0
    assert figures["largest, second softmax"] < math.e / (1 + math.e)
    assert figures["first weight"] > figures["first weight, second softmax"] + 0.05
    assert figures["spread balanced"] < figures["spread alone"]
    assert figures["error balanced"] < 1.05 * figures["error alone"]
