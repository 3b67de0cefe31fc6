"""Action and reaction: what forces between pairs must be for momentum and angular momentum to stay.

Ten bodies in three dimensions. Messages of softmax attention, sum_j softmax(q_i . k_j) (x_j - x_i), push the
whole system and turn it; the forces of ``spring_graph``, with any weights, do neither, to rounding.
Weights that are symmetric and have rows of sum 1, so that they are an attention too, come from
d <- sqrt(d / (W d)), A = diag(d) W diag(d); their forces balance as well.
"""

import torch

from worldsim import Trajectory
from worldsim_plugins.dynamics.spring_graph import SpringGraph

CLAIM = "net force and torque of the pair law < 1e-10, of softmax messages > 0.1; rows of sum 1 to 1e-10"
SEEDS = (0, 1, 2, 3, 4)
BODIES, ROUNDS = 10, 300


def balance(x, force):
    """Norms of the net force and of the net torque, over the mean norm of a force."""
    size = force.norm(dim=-1).mean()
    return ((force.sum(0).norm() / size).item(), (torch.linalg.cross(x, force).sum(0).norm() / size).item())


def symmetric_attention(scores):
    """Symmetric weights with rows of sum 1, from symmetric ``scores``."""
    weights, d = scores.exp(), torch.ones(len(scores), dtype=scores.dtype)
    for _ in range(ROUNDS):
        d = (d / (weights @ d)).sqrt()
    return d[:, None] * weights * d


def world(draws):
    states = torch.randn(8, 1, 3, BODIES, 6, dtype=torch.float64, generator=draws)
    return Trajectory(states, torch.arange(3, dtype=torch.float64))


def run(seed):
    draws = torch.Generator().manual_seed(seed)
    x, q, k = torch.randn(3, BODIES, 3, dtype=torch.float64, generator=draws)
    apart = x[None, :] - x[:, None]
    messages = (torch.softmax(q @ k.T, 1)[..., None] * apart).sum(1)
    attention = symmetric_attention((q @ q.T) / 2)
    even = (attention[..., None] * apart).sum(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpringGraph(world(draws), width=16, alike=False).double()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, dtype=torch.float64, generator=draws))
    force = model.force_of(x).detach()
    names = ("softmax force", "softmax torque", "force", "torque", "symmetric force", "symmetric torque")
    found = (*balance(x, messages), *balance(x, force), *balance(x, even))
    return dict(zip(names, found)) | {"row sum": (attention.sum(1) - 1).abs().max().item()}


def check(figures):
    assert figures["softmax force"] > 0.1
    assert figures["softmax torque"] > 0.1
    for name in ("force", "torque", "symmetric force", "symmetric torque", "row sum"):
        assert figures[name] < 1e-10, name
