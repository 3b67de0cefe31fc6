"""A learned pair law keeps momentum, angular momentum and energy, whatever it has learned."""

import pytest
import torch

from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.spring_graph import SpringGraph
from worldsim_plugins.systems.n_body import NBody

F64 = torch.float64


def truth(n=16, dim=2):
    system = NBody(dim=dim, softening=0.5)
    draws = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 1, 6, dtype=F64)
    return system.simulate(system.sample(n, draws), times, None, draws)


def model(alike=False, dim=2, **more):
    torch.manual_seed(0)
    made = SpringGraph(truth(dim=dim), width=16, alike=alike, **more).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


def turning(q, p):
    if q.shape[-1] == 3:
        return torch.linalg.cross(q, p).sum(-2)
    return (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(-1)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_momentum_and_angular_momentum_stay(alike, dim):
    made = model(alike, dim)
    with torch.no_grad():
        start = truth(dim=dim)
        found = made.rollout(
            start.span(0, 1), torch.linspace(0, 5, 51, dtype=F64), None, 1, torch.Generator()
        )
    q, p = found.states.chunk(2, -1)
    total = p.sum(-2)
    assert (total - total[:, :, :1]).abs().max() < 1e-12
    moment = turning(q, p)
    assert (moment - moment[:, :, :1]).abs().max() < 1e-11
    assert (q - q[:, :, :1]).abs().max() > 0.1


@pytest.mark.parametrize("alike", [True, False])
def test_a_fitted_law_keeps_angular_momentum_in_float32(alike):
    """Of unlike bodies that drift: what is learned must not find another state of rest than p = 0."""
    data = truth(24)
    states = data.states.clone()
    states[..., 2:] += 0.3 * torch.tensor([1.0, -0.5], dtype=F64)
    data = data.replace(states=states, observables={})
    torch.manual_seed(0)
    made = Wrapped(lambda seen: SpringGraph(seen, width=8, alike=alike), SpringGraph.scaling, data)
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        made.loss(data).backward()
        optimiser.step()
    times = torch.linspace(0, 5, 51, dtype=F64)
    q, p = made.rollout(data.span(0, 1), times, None, 1, torch.Generator()).states.chunk(2, -1)
    moment = turning(q, p)
    assert (moment - moment[:, :, :1]).abs().max() < 1e-4
    assert (q - q[:, :, :1]).abs().max() > 1


def test_the_drift_is_the_symplectic_gradient_of_the_energy():
    made = model()
    x = truth().states[:, 0, 0].requires_grad_()
    (gradient,) = torch.autograd.grad(made.energy(x).sum(), x)
    by_q, by_p = gradient.chunk(2, -1)
    found = made.drift(torch.tensor(0.0), x, None)
    assert torch.allclose(found, torch.cat([by_p, -by_q], -1), rtol=1e-10, atol=1e-12)


def test_bodies_that_are_alike_may_change_places():
    made = model(alike=True)
    x = truth().states[:, 0, 0]
    order = [2, 0, 1]
    still = made.drift(torch.tensor(0.0), x, None)[:, order]
    assert torch.allclose(made.drift(torch.tensor(0.0), x[:, order], None), still, rtol=1e-12, atol=1e-13)


def test_it_learns_the_law_from_derivatives():
    data = truth(64)
    torch.manual_seed(0)
    made = SpringGraph(data, width=32, loss="derivative")
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    first = made.loss(data).item()
    for _ in range(200):
        optimiser.zero_grad()
        loss = made.loss(data)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.03 * first


def test_what_it_cannot_see_is_refused():
    flat = truth().replace(states=truth().states.flatten(3))
    with pytest.raises(ValueError, match=r"states \[body, \(q, p\)\]"):
        SpringGraph(flat)
    with pytest.raises(ValueError, match="not driven"):
        model().drift(torch.tensor(0.0), truth().states[:, 0, 0], torch.zeros(16, 1))
