"""SympNets and discrete gradient networks: their structure to rounding, whatever they have learned."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.discrete_gradient_net import DiscreteGradientNet, discrete_gradient, tanhc
from worldsim_plugins.dynamics.symplectic_net import SymplecticNet, multiples

torch.set_num_threads(1)
F64 = torch.float64
MODULES = ("gradient", "linear_activation")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=rng(seed))


def springs(n: int = 40, frames: int = 6, step: float = 0.5) -> Trajectory:
    """H = (p^2 + q^2) / 2, turned exactly."""
    times = step * torch.arange(frames, dtype=F64)
    q, p = noise(n, 2).split(1, 1)
    cos, sin = times.cos(), times.sin()
    return Trajectory(torch.stack([q * cos + p * sin, p * cos - q * sin], -1)[:, None], times)


def states_of(shape: tuple[int, ...], frames: int = 4) -> Trajectory:
    return Trajectory(noise(8, 1, frames, *shape), 0.25 * torch.arange(frames, dtype=F64))


def built(builder, truth: Trajectory, **settings):
    """In float64, with weights far from their small first values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = builder(truth, **settings).double()
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape, dtype=F64)
            p.requires_grad_(False)
    return model


def trained(model, truth: Trajectory, steps: int, rate: float) -> float:
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        loss = model.loss(truth)
        loss.backward()
        optimiser.step()
    return float(loss)


def jacobian(step, x: torch.Tensor) -> torch.Tensor:
    """Of one state, flattened with all q before all p."""
    half = x.shape[-1] // 2

    def ordered(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[..., :half].flatten(), y[..., half:].flatten()])

    def moved(flat: torch.Tensor) -> torch.Tensor:
        q, p = flat.view(2, *x.shape[:-1], half)
        return ordered(step(torch.cat([q, p], -1)))

    return torch.func.jacrev(moved)(ordered(x))


def symplectic_defect(jac: torch.Tensor) -> float:
    d = len(jac) // 2
    omega = torch.zeros(2 * d, 2 * d, dtype=F64)
    omega[:d, d:], omega[d:, :d] = torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)
    return float((jac.T @ omega @ jac - omega).abs().max())


# SympNets


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("shape", [(2,), (6,), (3, 4)])
def test_a_sympnet_is_a_symplectic_map_with_an_inverse(modules: str, shape: tuple[int, ...]) -> None:
    model = built(SymplecticNet, states_of(shape), modules=modules, layers=3, width=8, shears=3)
    x = noise(5, *shape)
    assert symplectic_defect(jacobian(model, x[0])) < 1e-12
    assert (model(x) - x).abs().max() > 0.1
    torch.testing.assert_close(model.inverse(model(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(model.inverse(x)), x, rtol=0, atol=1e-12)


def test_the_symplectic_test_can_fail() -> None:
    model = built(SymplecticNet, states_of((4,)), modules="linear_activation", layers=2)
    shear = model.shears[0]
    shear.forward = lambda x: x @ shear.matrix  # not symmetric
    assert symplectic_defect(jacobian(model, noise(4))) > 1e-3


@pytest.mark.parametrize("modules", MODULES)
def test_multiples_of_the_step_are_compositions(modules: str) -> None:
    truth = springs()
    model = built(SymplecticNet, truth, modules=modules, layers=2, width=4)
    x = noise(3, 2)
    times = torch.tensor([0.0, 1.0, 2.5, 2.0], dtype=F64)
    frames = model.follow(x, times)
    twice = model(model(x))
    torch.testing.assert_close(frames[:, 1], twice)
    torch.testing.assert_close(frames[:, 2], model(model(model(twice))))
    torch.testing.assert_close(frames[:, 3], model(model(twice)))
    assert multiples(torch.tensor([0.0, 0.5, 0.5 + 1.5 * (1 + 1e-9)]), 0.5) == [1, 3]


def test_other_steps_and_other_states_are_refused() -> None:
    truth = springs()
    model = built(SymplecticNet, truth)
    context = truth.span(0, 1)
    for times in ([0.0, 0.3], [0.0, 0.75], [0.0, 0.0], [0.0, math.nan]):
        with pytest.raises(ValueError, match=r"whole multiples of its time step 0\.5"):
            model.rollout(context, torch.tensor(times, dtype=F64), None, 1, rng())
    with pytest.raises(ValueError, match="uniform time grid"):
        SymplecticNet(truth.replace(times=truth.times**2 + truth.times))
    with pytest.raises(ValueError, match=r"set fit\.window"):
        SymplecticNet(truth.span(0, 1))
    with pytest.raises(ValueError, match="half and half"):
        SymplecticNet(states_of((3,)))
    with pytest.raises(ValueError, match="not driven"):
        SymplecticNet(truth.replace(actions=noise(40, 6, 1)))
    with pytest.raises(ValueError, match="not driven"):
        model.rollout(context, truth.times, noise(40, 6, 1), 1, rng())


def test_a_sympnet_rolls_out_and_estimates() -> None:
    truth = springs()
    model = SymplecticNet(truth, layers=2, width=4)
    out = model.rollout(truth.span(0, 2), truth.times[1:], None, 3, rng())
    assert out.states.shape == (40, 3, 5, 2)
    assert torch.equal(out.states[:, 0, 0], truth.states[:, 0, 1].float())
    loss, estimate = model.loss_and_estimate(truth)
    error = (estimate.states - truth.states.float())[:, :, 1:].square().mean()
    torch.testing.assert_close(loss, error / model.rate**2)
    still = truth.replace(states=truth.states[:, :, :1].expand_as(truth.states))
    with torch.no_grad():
        for shear in model.shears:
            for p in shear.parameters():
                p.zero_()
    pairs = truth.span(0, 2)
    model.rate.copy_(pairs.states.diff(dim=2).square().mean().sqrt())
    torch.testing.assert_close(model.loss(pairs), torch.tensor(1.0))  # nothing changes
    assert float(model.loss(still)) == 0


def test_frames_past_the_end_count_for_nothing() -> None:
    whole = springs()
    states = whole.states.clone()
    states[0, :, 4:] = 7.0
    length = torch.full((40, 1), 6)
    length[0] = 4
    ragged = whole.replace(states=states, length=length)
    for builder in (SymplecticNet, DiscreteGradientNet):
        model = built(builder, whole)
        other = ragged.replace(states=whole.states)
        assert float(model.loss(ragged)) == float(model.loss(other)) != float(model.loss(whole))


@pytest.mark.parametrize("modules", MODULES)
def test_a_sympnet_learns_a_rotation(modules: str) -> None:
    """Half a unit of time of a spring, a linear map; rolled out for 200 steps it still turns."""
    truth = springs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SymplecticNet(truth, modules=modules, layers=4, width=8)
    loss = trained(model, truth.span(0, 2), 400, 1e-2)
    assert loss < 2e-3
    with torch.no_grad():
        out = model.follow(truth.states[:, 0, 0].float(), 0.5 * torch.arange(201))
    energy = out.square().sum(-1)
    assert ((energy - energy[:, :1]) / energy[:, :1]).abs().amax(1).median() < 0.2


# Discrete gradients


def test_tanhc_and_its_slope_keep_their_digits() -> None:
    z = torch.tensor([0.0, 1e-12, 1e-4, 0.0999, 0.1001, 1.0, -3.0, 40.0], dtype=F64, requires_grad=True)
    expected = torch.tensor([1.0] + [math.tanh(v) / v for v in z.tolist()[1:]], dtype=F64)
    torch.testing.assert_close(tanhc(z), expected, rtol=5e-16, atol=0)
    (slope,) = torch.autograd.grad(tanhc(z).sum(), z)
    near, far = slope[3:5].tolist()
    assert near == pytest.approx(far, rel=5e-3)
    assert slope[:3].abs().max() < 1e-4
    assert torch.autograd.gradcheck(tanhc, torch.linspace(-0.3, 0.3, 21, dtype=F64).requires_grad_())


@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-9, 0.0])
def test_the_discrete_gradient_gives_the_difference_and_tends_to_the_gradient(apart: float) -> None:
    network = built(lambda truth: vector_field.Perceptron(4, 1, 16, 3, "tanh"), states_of((4,)))
    a = noise(50, 4)
    b = a + apart * noise(50, 4, seed=1)
    between = discrete_gradient(network, a, b)
    gain = (network(b) - network(a))[:, 0]
    assert ((between * (b - a)).sum(1) - gain).abs().max() < 2e-14
    middle = network.gradient((a + b) / 2)
    assert (between - middle).abs().max() <= 2 * apart**2 + 1e-12  # symmetric, hence of order 2
    torch.testing.assert_close(discrete_gradient(network, b, a), between, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(2,), (3, 4)])
@pytest.mark.parametrize("h", [0.01, 0.3, 2.0])
def test_a_step_of_any_length_keeps_the_learned_energy(shape: tuple[int, ...], h: float) -> None:
    model = built(DiscreteGradientNet, states_of(shape), width=8)
    x = noise(6, *shape)
    energy = model.energy(x)
    for _ in range(20):
        x = model.advance(x, h)
    assert (x - noise(6, *shape)).abs().max() > 0.01
    assert (model.energy(x) - energy).abs().max() < 1e-12 * (1 + energy.abs().max())


def test_a_step_is_reversible_of_order_two_and_blind_to_its_companions() -> None:
    model = built(DiscreteGradientNet, states_of((2,)), width=8)
    x = noise(6, 2)

    def end(n: int) -> torch.Tensor:
        y = x
        for _ in range(n):
            y = model.advance(y, 1 / n)
        return y

    fine = end(160)
    error = [(end(n) - fine).abs().max() for n in (10, 20)]
    assert error[0] / error[1] == pytest.approx(4, abs=0.15)
    torch.testing.assert_close(model.advance(model.advance(x, 0.4), -0.4), x, rtol=0, atol=1e-13)
    alone = torch.cat([model.advance(row[None], 0.4) for row in x])
    torch.testing.assert_close(alone, model.advance(x, 0.4), rtol=0, atol=1e-14)


def test_the_drift_is_the_symplectic_gradient_of_the_energy() -> None:
    model = built(DiscreteGradientNet, states_of((3, 4)), width=8)
    x = noise(5, 3, 4).requires_grad_()
    by_q, by_p = torch.autograd.grad(model.energy(x).sum(), x)[0].chunk(2, -1)
    drift = model.drift(torch.zeros(()), x, None)
    torch.testing.assert_close(drift, torch.cat([by_p, -by_q], -1), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="not driven"):
        model.drift(torch.zeros(()), x, x)


def test_a_step_that_cannot_be_solved_costs_its_row_alone() -> None:
    truth = springs()
    model = built(DiscreteGradientNet, truth, max_iterations=1)
    given_up = model.rollout(truth.span(0, 1), truth.times, None, 1, rng()).states
    assert given_up[:, :, 1:].isnan().all()
    model.max_iterations = 20
    whole = model.rollout(truth.span(0, 1), truth.times, None, 1, rng()).states
    states = truth.states.clone()
    states[3] = torch.nan
    left = model.rollout(truth.replace(states=states).span(0, 1), truth.times, None, 1, rng()).states
    others = torch.arange(len(truth)) != 3
    assert torch.equal(left[others], whole[others])
    assert left[3].isnan().all()
    with pytest.raises(ValueError, match=r"set fit\.window"):
        model.loss(truth.span(0, 1))


def test_its_own_trajectories_have_no_loss_and_springs_are_learned() -> None:
    truth = springs()
    model = built(DiscreteGradientNet, truth, width=8)
    with torch.no_grad():
        own = model.rollout(truth.span(0, 1), truth.times, None, 1, rng())
    assert model.loss(own) < 1e-20
    assert model.loss(truth) > 1e-2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiscreteGradientNet(truth, width=16)
    assert trained(model, truth, 300, 1e-2) < 5e-3
    fine = torch.arange(0, 20, 0.25, dtype=F64)
    out = model.rollout(truth.span(0, 1), fine, None, 2, rng())
    assert out.states.shape == (40, 2, 80, 2)
    energy = out.states.square().sum(-1)
    drift = ((energy - energy[:, :, :1]).abs() / energy[:, :, :1]).amax(2)
    assert drift.median() < 0.05
