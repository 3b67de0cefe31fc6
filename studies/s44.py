"""Locality and causality as biases and masks before the softmax.

64 events on a line at times 0 to 63, with a distance bias of learned length for each of 4 heads and the light
cone of speed 2 as the mask. Row sums of the weights, the weight of what lies outside the cone, and the
Jacobian of the outputs by the values, keys and queries of events outside it. Beside them, the same decay
multiplied onto the weights after the softmax, and a causal mask multiplied so: row sums, and the Jacobian by
later keys.
"""

import math

import torch

from worldsim_kernels.masks import distance_bias, light_cone, physical_attention

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "row sums 1 within 1e-14; no weight, no influence outside the cone; multiplied after: neither"
EVENTS, HEADS, WIDTH = 64, 4, 8
F64 = torch.float64


def events(rng):
    x = torch.randn(EVENTS, 1, generator=rng, dtype=F64).cumsum(0) * 3
    t = torch.arange(EVENTS, dtype=F64)
    return x, t, light_cone(x, t, 2.0)[0]


def weights(q, k, x, length, cone):
    """[T, H, S]: the attention whose values are the unit vectors."""
    unit = torch.eye(EVENTS, dtype=F64)[None, :, None].expand(1, EVENTS, HEADS, EVENTS)
    tau = torch.ones(HEADS, dtype=F64)
    return physical_attention(q, k, unit, x, x, length=length, temperature=tau, mask=cone).output[0]


def leak(outputs, given, cone):
    """Largest derivative of an event's output by a number of an event that it may not see.

    outputs [T], given [1, S, H, K].
    """
    worst = 0.0
    for i in range(0, EVENTS - 1, 9):
        (slope,) = torch.autograd.grad(outputs[i], given, retain_graph=True)
        worst = max(worst, float(slope[0, ~cone[i]].abs().max()))
    return worst


def multiplied(q, k, x, length, v):
    """Row sums of softmax weights times e^(-distance / length), and how far a causal mask that is multiplied
    onto the weights still passes later keys."""
    plain = (torch.einsum("bthk,bshk->bhts", q, k) * WIDTH**-0.5).softmax(-1)[0]
    rows = (plain * distance_bias(x, x, length).exp()).sum(-1)
    earlier = torch.ones(EVENTS, EVENTS, dtype=torch.bool).tril()
    mixed = torch.einsum("hts,shk->thk", plain * earlier, v[0]).sum((-1, -2))
    return rows, leak(mixed, k, earlier)


def run(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, _, cone = events(rng)
    q, k, v = (
        torch.randn(1, EVENTS, HEADS, WIDTH, generator=rng, dtype=F64).requires_grad_() for _ in range(3)
    )
    length = torch.tensor([1.0, 3.0, 10.0, 30.0], dtype=F64, requires_grad=True)
    p = weights(q, k, x, length, cone).detach()
    mixed = physical_attention(q, k, v, x, x, length=length, mask=cone).output[0].sum((-1, -2))
    slope = torch.autograd.grad(mixed.square().sum(), length, retain_graph=True)[0]
    rows, late = multiplied(q, k, x, length, v)
    return {
        "row sum error": float((p.sum(-1) - 1).abs().max()),
        "weight outside": float(p.movedim(1, 0)[:, ~cone].abs().max()),
        "leak": max(leak(mixed, given, cone) for given in (q, k, v)),
        "share of pairs seen": float(cone.double().mean()),
        "length gradient": float(slope.abs().min()),
        "row sum multiplied min": float(rows.detach().min()),
        "row sum multiplied max": float(rows.detach().max()),
        "leak multiplied": late,
    }


def check(figures):
    assert figures["row sum error"] < 1e-14
    assert figures["weight outside"] == 0
    assert figures["leak"] == 0
    assert 0 < figures["length gradient"] < math.inf
    assert figures["row sum multiplied min"] < 0.1
    assert figures["leak multiplied"] > 1e-3
