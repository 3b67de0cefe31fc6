"""Action and reaction: what forces between pairs must be for momentum and angular momentum to stay.

Ten bodies in three dimensions. Messages of softmax attention, sum_j softmax(q_i . k_j) (x_j - x_i), push the
whole system and turn it; the forces of ``spring_graph``, with any weights, do neither, to rounding.
Weights that are symmetric and have rows of sum 1, so that they are an attention too, come from
d <- sqrt(d / (W d)), A = diag(d) W diag(d); their forces balance as well. The constraint ``action_reaction``
tells the two from trajectories alone: twenty symplectic Euler steps under each force, whose impulses are h f
and whose torques are h q x f exactly.
"""

import torch

from worldsim import Trajectory
from worldsim_plugins.constraints.action_reaction import ActionReaction
from worldsim_plugins.dynamics.spring_graph import SpringGraph
from worldsim_plugins.systems.n_body import NBody

CLAIM = "force, torque, residual of the pair law < 1e-10, of softmax > 0.1, 0.1, 0.01; row sums 1 to 1e-10"
SEEDS = (0, 1, 2, 3, 4)
BODIES, ROUNDS = 10, 300
STEPS, H = 20, 0.05


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


def residual(force_of, x, constraint):
    """Largest residual of the constraint along a trajectory from rest at ``x``, unit masses."""
    q, p, frames = x, torch.zeros_like(x), []
    for _ in range(STEPS):
        frames.append(torch.cat([q, p], -1))
        p = p + H * force_of(q)
        q = q + H * p
    times = H * torch.arange(STEPS, dtype=torch.float64)
    return constraint.residual(Trajectory(torch.stack(frames)[None, None], times)).abs().max().item()


def world(draws):
    states = torch.randn(8, 1, 3, BODIES, 6, dtype=torch.float64, generator=draws)
    return Trajectory(states, torch.arange(3, dtype=torch.float64))


def run(seed):
    draws = torch.Generator().manual_seed(seed)
    x, q, k = torch.randn(3, BODIES, 3, dtype=torch.float64, generator=draws)
    attended = torch.softmax(q @ k.T, 1)[..., None]

    def messages_at(x):
        return (attended * (x[None, :] - x[:, None])).sum(1)

    apart, messages = x[None, :] - x[:, None], messages_at(x)
    attention = symmetric_attention((q @ q.T) / 2)
    even = (attention[..., None] * apart).sum(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpringGraph(world(draws), width=16, alike=False).double()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, dtype=torch.float64, generator=draws))
    force = model.force_of(x).detach()
    balanced = ActionReaction(NBody(dim=3, masses=(1.0,) * BODIES), torque=True)
    told = {
        "softmax residual": residual(messages_at, x, balanced),
        "residual": residual(lambda q: model.force_of(q).detach(), x, balanced),
    }
    names = ("softmax force", "softmax torque", "force", "torque", "symmetric force", "symmetric torque")
    found = (*balance(x, messages), *balance(x, force), *balance(x, even))
    return dict(zip(names, found)) | told | {"row sum": (attention.sum(1) - 1).abs().max().item()}


def check(figures):
    assert figures["softmax force"] > 0.1
    assert figures["softmax torque"] > 0.1
    assert figures["softmax residual"] > 0.01
    for name in ("force", "torque", "residual", "symmetric force", "symmetric torque", "row sum"):
        assert figures[name] < 1e-10, name
