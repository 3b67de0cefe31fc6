"""SparseMixer-v2 (Liu et al. 2024): the rule as published, and how near its gradient comes to the exact one.

20 problems: one of 4 experts is drawn from the softmax p of 4 logits, its output (5 classes, of scale 1, 3 or
10) is weighted by p_D, and the cross-entropy to a class is the loss. The exact gradient of its mean over the
draw is enumerated. Estimators, over 40,000 draws: REINFORCE with the mean loss as baseline, added to the
gradient through the weight; this last alone (the conventional gradient of a mixture); and SparseMixer-v2.

At this size SparseMixer-v2 brings nothing: it is no nearer than the conventional gradient, and half as long.
Only the rule itself and REINFORCE, which has no bias, are asserted.
"""

import torch
import torch.nn.functional as F

from worldsim_kernels import route

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "weights = p_D or p_D / 3 bit for bit, gradient = w' p_D (e_D - p) within 1e-12; REINFORCE cosine > 0.98"
)
PROBLEMS, EXPERTS, CLASSES, DRAWS = 20, 4, 5, 40_000
F64 = torch.float64


def losses(weights, outputs, labels):
    """weights, outputs [problem, draw, (class)] -> cross-entropy [problem, draw]."""
    logits = weights[..., None] * outputs
    return logits.logsumexp(-1) - logits.gather(-1, labels[:, None, None].expand(*weights.shape, 1))[..., 0]


def exact(logits, outputs, labels):
    p = logits.softmax(-1)
    (gradient,) = torch.autograd.grad((p * losses(p, outputs, labels)).sum(), logits)
    return gradient


def drawn(outputs, experts):
    return outputs.gather(1, experts[..., None].expand(*experts.shape, CLASSES))


def estimates(logits, outputs, labels, draws, rng):
    """Name -> estimated gradients [problem, expert]."""
    many = logits[:, None].expand(-1, draws, -1)
    routing = route(many, 1, gradient="sparsemixer", jitter=1e9, training=True, generator=rng)
    experts = routing.experts[..., 0]
    chosen, weight = drawn(outputs, experts), routing.probabilities.gather(-1, routing.experts)[..., 0]
    plain = losses(weight, chosen, labels)
    advantage = (plain - plain.mean(1, keepdim=True)).detach()
    objectives = {
        "REINFORCE": plain + advantage * weight.log(),
        "conventional": plain,
        "SparseMixer": losses(routing.weights[..., 0], chosen, labels),
    }
    return {
        name: torch.autograd.grad(each.mean(1).sum(), logits, retain_graph=True)[0]
        for name, each in objectives.items()
    }


def rule(logits, rng):
    """Whether each weight is p_D or p_D / 3 to the bit (the first where D is the best), and the largest
    relative distance of the gradient from the published one."""
    z = logits[:, None].expand(-1, 500, -1).detach().requires_grad_()
    routing = route(z, 1, gradient="sparsemixer", jitter=1e9, training=True, generator=rng)
    p = z.detach().softmax(-1)
    full, weight = p.gather(-1, routing.experts), routing.weights.detach()
    best = routing.experts == z.argmax(-1, keepdim=True)
    right = (weight == full) | (weight == full * (1 / 3)) & ~best
    up = torch.randn(weight.shape, generator=rng, dtype=F64)
    (gradient,) = torch.autograd.grad(routing.weights, z, up)
    published = up * full * (F.one_hot(routing.experts[..., 0], EXPERTS) - p)
    gap = (gradient - published).norm() / published.norm()
    return float(right.double().mean()), float(gap), float((weight == full)[~best].double().mean())


def run(seed=0, draws=DRAWS):
    rng, figures = torch.Generator().manual_seed(seed), {}
    logits = torch.randn(PROBLEMS, EXPERTS, generator=rng, dtype=F64).requires_grad_()
    outputs = torch.randn(PROBLEMS, EXPERTS, CLASSES, generator=rng, dtype=F64)
    labels = torch.randint(CLASSES, (PROBLEMS,), generator=rng)
    figures["weights by the rule"], figures["gradient - rule"], figures["factor 1 for others"] = rule(
        logits, rng
    )
    for scale in (1, 3, 10):
        truth = exact(logits, scale * outputs, labels)
        for name, found in estimates(logits, scale * outputs, labels, draws, rng).items():
            figures[f"cosine {name} x{scale}"] = float(F.cosine_similarity(found, truth).mean())
            figures[f"length {name} x{scale}"] = float((found.norm(dim=1) / truth.norm(dim=1)).median())
    return figures


def check(figures):
    assert figures["weights by the rule"] == 1
    assert figures["gradient - rule"] < 1e-12
    assert abs(figures["factor 1 for others"] - 0.25) < 0.03
    for scale in (1, 3, 10):
        assert figures[f"cosine REINFORCE x{scale}"] > 0.98
