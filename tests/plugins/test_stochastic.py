"""Stochastic solvers, worlds and models: laws that are known, seeds, gradients, and what is refused."""

import math

import pytest
import torch
from torch import nn

from worldsim import Trajectory
from worldsim.seeds import forked
from worldsim_kernels.native import why_not
from worldsim_plugins.dynamics.latent_sde import LatentSDE
from worldsim_plugins.dynamics.neural_sde import NeuralSDE
from worldsim_plugins.solvers import stochastic
from worldsim_plugins.systems.double_well import DoubleWell
from worldsim_plugins.systems.geometric_brownian import GeometricBrownian
from worldsim_plugins.systems.lorenz import Lorenz
from worldsim_plugins.systems.stochastic_lorenz import StochasticLorenz

torch.set_num_threads(1)
F64 = torch.float64
SOLVERS = stochastic.worldsim_solvers()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Growth(nn.Module):
    """dX = (a + u) X dt + b X dW, or with b alone for the noise."""

    def __init__(self, calculus="ito", noise="diagonal"):
        super().__init__()
        self.calculus, self.noise = calculus, noise
        self.a, self.b = (nn.Parameter(torch.tensor(each, dtype=F64)) for each in (0.5, 0.3))

    def drift(self, t, x, u):
        return self.a * x if u is None else (self.a + u) * x

    def diffusion(self, t, x, u):
        return self.b * (torch.ones_like(x) if self.noise == "additive" else x)


def of(name):
    return Growth(
        "ito" if "ito" in stochastic.SCHEMES[name].calculus else "stratonovich",
        "additive" if name == "sra1" else "diagonal",
    )


TIMES = torch.tensor([0.0, 0.1, 0.35, 0.5], dtype=F64)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_follows_its_generator_and_keeps_rows_apart(name):
    solver, model, start = SOLVERS[name](step=0.05), of(name), torch.rand(6, 2, dtype=F64) + 0.5
    first, second = (solver.solve(model, start, TIMES, None, seeded(0)) for _ in range(2))
    assert list(first.shape) == [6, 4, 2]
    assert torch.equal(first, second)
    assert torch.equal(first[:, 0], start)
    assert not torch.equal(first, solver.solve(model, start, TIMES, None, seeded(1)))
    some = solver.solve(model, start[:4], TIMES, None, seeded(0))
    assert torch.equal(some, first[:4])
    same = solver.solve(model, start[:1].expand(6, 2), TIMES, None, seeded(0))
    assert len({float(each) for each in same[:, -1, 0].detach()}) == 6


@pytest.mark.skipif(why_not("brownian") is not None, reason=f"{why_not('brownian')}")
@pytest.mark.parametrize("name", SOLVERS)
def test_the_native_backend_gives_the_same_bits_and_leaves_gradients_to_torch(name):
    model, start = of(name), torch.rand(6, 2, dtype=F64) + 0.5
    torch_, native = (SOLVERS[name](step=0.05, backend=each) for each in ("torch", "native"))
    with torch.no_grad():
        assert torch.equal(*(each.solve(model, start, TIMES, None, seeded(0)) for each in (torch_, native)))
    out = native.solve(model, start, TIMES, None, seeded(0))
    assert torch.autograd.grad(out.sum(), model.a)[0].isfinite()


@pytest.mark.parametrize("name", SOLVERS)
def test_an_action_holds_over_its_interval_and_noise_is_new_in_each(name):
    solver, start = SOLVERS[name](step=0.05), torch.ones(2000, 1, dtype=F64)
    model = of(name)
    actions = torch.zeros(2000, 4, 1, dtype=F64)
    actions[:, 1] = 2.0
    with torch.no_grad():
        driven = solver.solve(model, start, TIMES, actions, seeded(0))
        free = solver.solve(model, start, TIMES, torch.zeros_like(actions), seeded(0))
    assert torch.equal(driven[:, 1], free[:, 1])
    grown = driven[:, 2].mean() / free[:, 2].mean()
    assert float(grown) == pytest.approx(math.exp(2 * 0.25), rel=0.06)
    # Growth alone correlates moves by a tenth; the same noise twice would make them equal.
    moves = free.diff(dim=1)[:, :, 0] / TIMES.diff().sqrt()
    assert float(torch.corrcoef(moves.T).fill_diagonal_(0).abs().max()) < 0.25


def test_without_diffusion_the_deterministic_method_is_left():
    class Decay:
        def drift(self, t, x, u):
            return -x

    times = torch.linspace(0, 1, 41, dtype=F64)
    for name, build in SOLVERS.items():
        end = build().solve(Decay(), torch.ones(1, 1, dtype=F64), times, None, None)[0, -1]
        assert float(end) == pytest.approx(math.exp(-1), rel=2e-2), name


def test_the_other_calculus_is_converted_when_asked_for_and_refused_otherwise():
    start = torch.ones(4000, 1, dtype=F64)
    with pytest.raises(ValueError, match="convert"):
        SOLVERS["euler_maruyama"]().solve(Growth("stratonovich"), start, TIMES, None, seeded(0))
    with pytest.raises(ValueError, match="additive"):
        SOLVERS["sra1"]().solve(Growth(), start, TIMES, None, seeded(0))
    with pytest.raises(ValueError, match="rise"):
        SOLVERS["milstein"]().solve(Growth(), start, TIMES.flip(0), None, seeded(0))
    with torch.no_grad():
        solver = SOLVERS["euler_maruyama"](step=0.02, convert=True)
        mean = solver.solve(Growth("stratonovich"), start, TIMES, None, seeded(0))[:, -1].mean()
    assert float(mean) == pytest.approx(math.exp((0.5 + 0.045) * 0.5), abs=4.5 * 0.28 / math.sqrt(4000))


def test_the_adjoint_of_reversible_heun_gives_the_gradients_of_autograd():
    grads = []
    for adjoint in (True, False):
        model, start = Growth("stratonovich"), torch.ones(5, 2, dtype=F64, requires_grad=True)
        solver = SOLVERS["reversible_heun"](step=0.01, adjoint=adjoint)
        states = solver.solve(model, start, TIMES, None, seeded(3))
        grads.append(torch.autograd.grad(states.square().sum(), [start, *model.parameters()]))
    for one, other in zip(*grads):
        assert torch.allclose(one, other, rtol=1e-10, atol=0)


def test_geometric_brownian_motion_has_its_law():
    system = GeometricBrownian(dim=2)
    start = system.sample(1, seeded(0)).expand(10_000, 2)
    states = system.simulate(start, torch.tensor([0.0, 0.4, 1.0], dtype=F64), None, seeded(1)).states
    mean, variance = system.law(start[:1], 1.0)
    found = states[:, 0, -1].log()
    spread = variance.sqrt() / 100
    assert bool(((found.mean(0) - mean[0]).abs() < 4.5 * spread[0]).all())
    assert torch.allclose(found.var(0), variance[0], rtol=4.5 * math.sqrt(2 / 10_000))
    with pytest.raises(ValueError, match="positive"):
        system.restart(torch.zeros(1, 2))


def test_the_double_well_stays_in_its_stationary_law():
    system = DoubleWell(temperature=0.5, barrier=1.5, width=0.8)
    grid = system.nodes
    step = float(grid[1] - grid[0])
    assert float(system.density(grid).sum()) * step == pytest.approx(1, abs=1e-6)
    p = torch.linspace(0.001, 0.999, 101, dtype=F64)
    below = (system.density(grid) * step).cumsum(0)
    at = system.quantile(p)
    assert torch.allclose(below[((at + system.edge) / step).long()], p, atol=2e-3)
    leaf = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(system.potential(leaf).sum(), leaf)
    assert torch.allclose(system.force(at), -slope)
    start = system.sample(1500, seeded(0))
    states = system.simulate(start, torch.tensor([0.0, 0.2, 0.6], dtype=F64), None, seeded(1)).states[:, 0]
    for power in (2, 4):
        expected = float((system.density(grid) * grid**power).sum()) * step
        values = states**power
        assert torch.allclose(
            values.mean((0, 2)), torch.tensor(expected, dtype=F64), atol=4.5 * float(values.std()) / 38
        )
    hopped = ((states[:, 0] * states[:, -1]) < 0).double().mean()
    assert 0.02 < float(hopped) < 0.4


@pytest.mark.parametrize(
    "system", [DoubleWell(), StochasticLorenz(), StochasticLorenz(noise="additive", size=(1.0, 1.0, 1.0))]
)
def test_a_true_path_has_the_same_bits_beside_any_other(system):
    times = torch.linspace(0, 0.2, 5, dtype=F64)
    start = system.sample(6, seeded(0))
    whole = system.simulate(start, times, None, seeded(1)).states
    assert torch.equal(system.simulate(start[:3], times, None, seeded(1)).states, whole[:3])
    finer = torch.linspace(0, 0.2, 9, dtype=F64)
    assert list(system.simulate(start, finer, None, seeded(1)).states.shape[:3]) == [6, 1, 9]


@pytest.mark.parametrize("noise", ["additive", "multiplicative"])
def test_noise_of_zero_leaves_the_lorenz_system(noise):
    system = StochasticLorenz(noise=noise, size=(0.0, 0.0, 0.0), warm_up=1.0)
    start, times = system.sample(3, seeded(0)), torch.linspace(0, 0.4, 3, dtype=F64)
    one, other = (system.simulate(start, times, None, seeded(seed)).states for seed in (1, 2))
    assert torch.equal(one, other)
    plain = Lorenz().simulate(start, times, None, seeded(0)).states
    assert (one - plain).abs().max() < 0.02


def test_the_multiplicative_noise_of_the_lorenz_system_is_meant_in_itos_sense():
    """With x = y = 0 they stay so, and z is a geometric Brownian motion of rate -beta, whose law is known."""
    system = StochasticLorenz(size=(0.1, 0.1, 1.0), warm_up=0.0)
    start = torch.tensor([[0.0, 0.0, 20.0]], dtype=F64).expand(4000, 3)
    end = system.simulate(start, torch.tensor([0.0, 0.5], dtype=F64), None, seeded(0)).states[:, 0, 1]
    assert (end[:, :2] == 0).all()
    risen = (end[:, 2] / 20).log()
    assert abs(float(risen.mean()) + (8 / 3 + 1 / 2) * 0.5) < 4 * math.sqrt(0.5 / 4000)
    assert abs(float(risen.var()) - 0.5) < 4 * 0.5 * math.sqrt(2 / 4000)


def steps_of_ornstein_uhlenbeck(rate=2.0, h=0.1, n=20_000):
    x = torch.randn(n, 1, 1, 1, dtype=F64, generator=seeded(0)) / math.sqrt(2 * rate)
    noise = torch.randn(n, 1, 1, 1, dtype=F64, generator=seeded(1))
    y = math.exp(-rate * h) * x + math.sqrt(-math.expm1(-2 * rate * h) / (2 * rate)) * noise
    return Trajectory(torch.cat([x, y], 2), torch.tensor([0.0, h], dtype=F64))


def test_the_loss_of_a_neural_sde_is_least_at_the_best_steps():
    """The best linear drift is -(1 - exp(-k h)) / h, the best diffusion that of the transition."""
    truth = steps_of_ornstein_uhlenbeck()
    with forked(0):
        model = NeuralSDE(truth.to(dtype=torch.float32), width=16)
    model = model.double()
    best, spread = -math.expm1(-0.2) / 0.1, math.sqrt(-math.expm1(-0.4) / 4 / 0.1)

    def loss(slope, size):
        model.drift = lambda t, x, u: -slope * x
        model.diffusion = lambda t, x, u: torch.full_like(x, size)
        return float(model.loss(truth))

    here = loss(best, spread)
    assert here == pytest.approx(0.5 + math.log(spread * math.sqrt(0.1)), abs=0.02)
    for slope, size in ((2.0, spread), (1.6, spread), (best, 1.1 * spread), (best, 0.9 * spread)):
        assert loss(slope, size) > here


def test_the_diffusion_of_a_neural_sde_is_positive_and_bounded():
    truth = steps_of_ornstein_uhlenbeck(n=100).to(dtype=torch.float32)
    with forked(0):
        model = NeuralSDE(truth, width=16, lowest=0.1, largest=3.0)
    with torch.no_grad():
        model.diffusion_network.last.weight.mul_(1e6)
        found = model.diffusion(None, torch.linspace(-50, 50, 101)[:, None], None) / model.spread
    assert float(found.min()) >= 0.1 - 1e-6
    assert float(found.max()) <= 3 + 1e-6
    with pytest.raises(ValueError, match="lowest"):
        NeuralSDE(truth, lowest=1.5)


def windows(n=8, frames=6):
    states = torch.randn(n, 1, frames, 2, generator=seeded(0))
    return Trajectory(states, 0.1 * torch.arange(frames, dtype=F64))


def test_a_posterior_that_is_the_prior_costs_nothing_and_one_that_is_not_costs_its_drift():
    truth = windows()
    with forked(0):
        model = LatentSDE(truth, latent=3, width=8).double()
    codes, z = torch.randn(8, 6, 32, dtype=F64, generator=seeded(1)), torch.zeros(8, 3, dtype=F64)
    with torch.no_grad():
        model.posterior.last.weight.zero_()
        model.prior.last.weight.zero_()
        model.posterior.last.bias.copy_(model.prior.last.bias)
        assert float(model.followed(z, codes, truth.times, seeded(2))[1].abs().max()) == 0
        model.posterior.last.bias.add_(1.0)
        model.spread.last.weight.zero_()
        sigma = model.diffusion(None, z, None)[0]
        energy = model.followed(z, codes, truth.times, seeded(2))[1]
    expected = 0.5 * 0.5 * float((1 / model.unit / sigma).square().sum())
    assert torch.allclose(energy, torch.full((8,), expected, dtype=F64))


def test_the_encoder_reads_backwards():
    truth = windows()
    with forked(0):
        model = LatentSDE(truth)
    frames = truth.states[:, 0].clone()
    codes = model.encoded(frames)
    frames[:, 3] += 1
    moved = (model.encoded(frames) - codes).abs().amax((0, 2)) > 0
    assert moved.tolist() == [True, True, True, True, False, False]


def test_a_latent_sde_refuses_what_it_cannot_learn():
    truth = windows()
    with forked(0):
        model = LatentSDE(truth)
    with pytest.raises(ValueError, match="driven"):
        LatentSDE(truth.replace(actions=torch.zeros(8, 6, 1)))
    with pytest.raises(ValueError, match="length"):
        model.loss(truth.replace(length=torch.full((8, 1), 4)))
    with pytest.raises(ValueError, match="times must rise"):
        model.rollout(truth.span(0, 3), truth.times[:3].flip(0), None, 1, seeded(0))
