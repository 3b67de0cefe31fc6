"""Augmented, physics-informed, Lagrangian, port-Hamiltonian and metriplectic models, and their systems."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from worldsim.fit import fit
from worldsim.protocols import Estimates, HasDrift, HasEnergy, Restartable, Trajectory
from worldsim.scenario import FitSettings
from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.augmented_neural_ode import AugmentedNeuralODE
from worldsim_plugins.dynamics.lagrangian import Lagrangian
from worldsim_plugins.dynamics.metriplectic import Metriplectic
from worldsim_plugins.dynamics.pinode import PINODE
from worldsim_plugins.dynamics.port_hamiltonian import PortHamiltonian
from worldsim_plugins.solvers import symplectic
from worldsim_plugins.systems.double_pendulum import DoublePendulum, DoublePendulumVelocities
from worldsim_plugins.systems.duffing import DrivenDuffing, Duffing
from worldsim_plugins.systems.gas_containers import GasContainers, exchanged
from worldsim_plugins.systems.pendulum import DrivenPendulum, Pendulum

F64 = torch.float64
ZERO = torch.zeros((), dtype=F64)


@pytest.fixture(autouse=True)
def _seeded():
    """Models take their weights from torch's default generator, as they do inside a fit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=rng(seed))


def simulated(system, n=6, frames=8, step=0.1, seed=0):
    times = step * torch.arange(frames, dtype=F64)
    generator = rng(seed)
    start = system.sample(n, generator)
    acts = system.sample_actions(n, times, generator) if hasattr(system, "sample_actions") else None
    return system.simulate(start, times, acts, generator)


# Systems


def test_a_duffing_oscillator_agrees_with_another_integrator():
    system = DrivenDuffing(damping=0.2, force=0.4, frequency=1.3)
    times = torch.tensor([2.0, 3.0, 7.0], dtype=F64)
    start = torch.tensor([[0.4, -0.2]], dtype=F64)
    out = system.simulate(start, times, None, rng())

    def field(t, y):
        return [y[1], y[0] - y[0] ** 3 - 0.2 * y[1] + 0.4 * math.cos(1.3 * t)]

    exact = solve_ivp(field, (2.0, 7.0), [0.4, -0.2], "DOP853", [2.0, 3.0, 7.0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(out.states[0, 0], torch.from_numpy(exact.y.T.copy()), rtol=0, atol=1e-9)
    torch.testing.assert_close(out.observables["phase"][0, 0], 1.3 * times)
    rate = torch.tensor([field(t, x) for t, x in zip(times.tolist(), out.states[0, 0].tolist())], dtype=F64)
    torch.testing.assert_close(out.observables["derivative"][0, 0], rate, rtol=0, atol=1e-12)


def test_a_law_that_changes_with_time_has_no_restart():
    assert isinstance(Duffing(), Restartable)
    assert not isinstance(DrivenDuffing(), Restartable)
    with pytest.raises(ValueError, match="leave the actions out"):
        DrivenDuffing().simulate(noise(1, 2), torch.arange(3.0, dtype=F64), noise(1, 3, 1), rng())
    with pytest.raises(ValueError, match="nothing else holds the mass"):
        Duffing(stiffness=-1.0, hardening=0.0)


def test_a_duffing_oscillator_loses_energy_to_friction_alone():
    free = simulated(Duffing(), frames=40).observables["energy"][:, 0]
    torch.testing.assert_close(free, free[:, :1].expand_as(free), rtol=0, atol=1e-12)
    damped = simulated(Duffing(damping=0.3), frames=40).observables["energy"][:, 0]
    assert (damped.diff(dim=1) < 0).all()
    assert Duffing().conserved == ("energy",)
    assert Duffing(damping=0.3).conserved == ()


def test_two_gases_obey_both_laws_and_come_to_equilibrium():
    system = GasContainers(conductance=0.2)
    truth = simulated(system, n=8, frames=60, step=0.5)
    energy, entropy = truth.observables["energy"][:, 0], truth.observables["entropy"][:, 0]
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=1e-12, atol=0)
    assert (entropy.diff(dim=1) > 0).all()
    first, second = system.energies(truth.states[:, 0])
    gap = (first - second).abs()
    assert gap[:, -10:].mean() < gap[:, :5].mean() / 4
    # dS/dt = conductance (1/T1 - 1/T2)^2, and the force is -dE/dq
    x = truth.states[:, 0, 0].requires_grad_()
    slope = torch.autograd.grad(system.energy(x).sum(), x)[0]
    drift = system.drift(ZERO, x, None)
    torch.testing.assert_close(drift[:, 1], -slope[:, 0], rtol=1e-12, atol=1e-14)
    made = 0.2 * (1 / slope[:, 2] - 1 / slope[:, 3]).square()  # dE/dS_i = T_i
    torch.testing.assert_close(drift[:, 2] + drift[:, 3], made, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(exchanged(exchanged(x)), x)


def test_gases_without_room_are_refused():
    with pytest.raises(ValueError, match="0 < q < 2"):
        GasContainers().restart(torch.tensor([[2.5, 0.0, 0.0, 0.0]]))
    for bounds in ((0.0, 1.0), (0.5, 2.0)):
        with pytest.raises(ValueError, match="position"):
            GasContainers(position=bounds)


def test_velocities_and_momenta_are_two_views_of_one_double_pendulum():
    settings = {"masses": (1.0, 0.7), "lengths": (1.0, 1.3), "gravity": 2.0}
    canonical, system = DoublePendulum(**settings), DoublePendulumVelocities(**settings)
    x = noise(5, 4)
    torch.testing.assert_close(system.to_velocities(system.to_momenta(x)), x, rtol=1e-12, atol=1e-13)
    times = 0.1 * torch.arange(20, dtype=F64)
    here = system.simulate(x, times, None, rng())
    there = canonical.simulate(system.to_momenta(x), times, None, rng())
    torch.testing.assert_close(here.states, system.to_velocities(there.states), rtol=1e-10, atol=1e-10)
    energy = here.observables["energy"]
    torch.testing.assert_close(energy, energy[:, :, :1].expand_as(energy), rtol=1e-10, atol=0)
    # its own rate: velocities are rates of angles, and the flow's difference quotient is the rest
    drift = here.observables["derivative"]
    torch.testing.assert_close(drift[..., :2], here.states[..., 2:])
    near = system.simulate(x, torch.tensor([0.0, 1e-5], dtype=F64), None, rng()).states[:, 0]
    torch.testing.assert_close((near[:, 1] - near[:, 0]) / 1e-5, drift[:, 0, 0], rtol=1e-3, atol=1e-3)


# What all models do

MODELS = {
    "augmented": lambda t, s, **k: AugmentedNeuralODE(t, augment=2, **k),
    "pinode": lambda t, s, **k: PINODE(s, t, **k),
    "encoded": lambda t, s, **k: PINODE(s, t, latent=3, **k),
    "lagrangian": lambda t, s, **k: Lagrangian(t, **k),
    "paper's lagrangian": lambda t, s, **k: Lagrangian(t, kinetic=False, init="paper", **k),
    "port": lambda t, s, **k: PortHamiltonian(t, **k),
    "mechanical": lambda t, s, **k: PortHamiltonian(t, form="mechanical", angles=[0], **k),
    "learned structure": lambda t, s, **k: PortHamiltonian(t, structure="learned", **k),
    "metriplectic": lambda t, s, **k: Metriplectic(s, t, **k),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_structured_model_learns_estimates_and_rolls_out(name):
    system = Pendulum()
    data = simulated(system).to(dtype=torch.float32)
    model = MODELS[name](data, system, width=8)
    assert isinstance(model, Estimates)
    loss = model.loss(data)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert sum(bool(g.any()) for g in gradients) >= 4
    estimate = model.loss_and_estimate(data)[1]
    assert torch.equal(estimate.states[:, :, 0], data.states[:, :, 0])
    assert estimate.states.requires_grad
    with torch.no_grad():
        out = model.rollout(data.span(0, 2), data.times[1:], None, 3, rng())
        drift = model.drift(ZERO, data.states[:, 0], None)
    assert out.states.shape == (6, 3, 7, 2)
    assert torch.equal(out.states[:, 0, 0], data.states[:, 0, 1])
    assert torch.equal(out.states[:, 0], out.states[:, 2])
    assert drift.shape == data.states[:, 0].shape


@pytest.mark.parametrize("name", MODELS)
def test_a_row_that_is_lost_leaves_the_others_alone(name):
    system = Pendulum()
    data = simulated(system).to(dtype=torch.float32)
    model = MODELS[name](data, system, width=8)
    broken = data.replace(states=data.states.clone())
    broken.states[2] = float("nan")
    with torch.no_grad():
        whole = model.rollout(data.span(0, 1), data.times, None, 1, rng()).states
        out = model.rollout(broken.span(0, 1), data.times, None, 1, rng()).states
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(out[kept], whole[kept])
    assert out[2].isnan().all()


# Augmented neural ODE


def test_a_plain_flow_keeps_the_order_of_a_line_and_an_augmented_one_need_not():
    x = torch.linspace(-1, 1, 32, dtype=F64)
    states = torch.stack([x, -x], 1)[:, None, :, None]
    truth = Trajectory(states=states, times=torch.tensor([0.0, 1.0], dtype=F64))
    ends = {}
    for augment in (0, 1):
        torch.manual_seed(0)
        model = Wrapped(
            lambda t, a=augment: AugmentedNeuralODE(t, augment=a, width=32, solver=symplectic.rk4(step=0.2)),
            "component",
            truth,
        )
        settings = FitSettings(steps=150, batch=32, learning_rate=2e-2, schedule="cosine")
        fit(model, truth, None, settings, 0)
        ends[augment] = model.rollout(truth.span(0, 1), truth.times, None, 1, rng()).states[:, 0, 1, 0]
    assert (ends[0].diff() >= 0).all()
    assert (ends[0] + x).square().mean() > 0.3
    assert (ends[1] + x).square().mean() < 1e-2


def test_what_is_appended_starts_at_zero_and_is_not_shown():
    data = simulated(DrivenPendulum()).to(dtype=torch.float32)
    model = AugmentedNeuralODE(data, augment=3, width=8)
    x, u = data.states[:, 0, 0], data.actions[:, 0]
    assert torch.equal(model.lift(x), torch.cat([x, torch.zeros(6, 3)], -1))
    out = model.path(x, data.times, data.actions)
    assert out.shape == (6, 8, 2)
    lifted = model.lifted.drift(ZERO, model.lift(x), u)
    torch.testing.assert_close(model.drift(ZERO, x, u), lifted[:, :2])
    with pytest.raises(ValueError, match="built with actions"):
        model.drift(ZERO, x, None)


# Physics-informed neural ODE


class Linear:
    """dx/dt = x K^T, for states of very different size."""

    K = torch.tensor([[0.0, 100.0], [-0.01, -0.1]], dtype=F64)

    def drift(self, t, x, u):
        return x @ self.K.T

    def restart(self, states):
        return states


def test_collocation_takes_the_known_rate_through_the_encoder():
    """With a code that is the standardised state, the loss is the mean square of (F / scale / rate - f)."""
    states = noise(20, 1, 5, 2) * torch.tensor([100.0, 1.0], dtype=F64) + 7
    data = Trajectory(states=states, times=0.1 * torch.arange(5, dtype=F64))
    model = PINODE(Linear(), data, width=8).double()
    y = states[:, 0, 0]
    f = model.field((y - model.shift) / model.scale)
    residual = Linear().drift(None, y, None) / model.scale / model.rate - f
    torch.testing.assert_close(model.collocation(y), residual.square().mean(), rtol=1e-10, atol=0)
    assert isinstance(Duffing(), HasDrift)
    # In a code, the chain rule by central differences.
    model = PINODE(Linear(), data, width=8, latent=3).double()
    rates = Linear().drift(None, y, None)
    pushed = (model.encode(y + 1e-6 * rates) - model.encode(y - 1e-6 * rates)) / 2e-6
    latent = pushed / model.rate - model.field(model.encode(y))
    expected = latent.square().mean() + model.reconstruction(y)
    torch.testing.assert_close(model.collocation(y), expected, rtol=1e-6, atol=1e-8)


def test_the_rate_of_a_coded_model_is_the_rate_of_its_forecast():
    data = simulated(Duffing())
    model = PINODE(Duffing(), data, width=8, latent=3).double()
    x = model.decode(model.encode(data.states[:, 0, 0])).detach()
    codes = model.encode(x)
    step = 1e-6 * model.rate * model.field(codes)
    slope = (model.decode(codes + step) - model.decode(codes - step)) / 2e-6
    torch.testing.assert_close(model.drift(ZERO, x, None), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("law", ["box", "normal", "starts"])
def test_collocation_states_are_drawn_where_they_are_asked_for(law):
    system = Duffing(position=(-1.0, 3.0), momentum=(-0.1, 0.1))
    data = simulated(system, n=40)
    model = PINODE(system, data, law=law, points=4000, extent=1.0, width=8)
    torch.manual_seed(1)
    drawn = model.drawn()
    torch.manual_seed(1)
    assert torch.equal(drawn, model.drawn())
    seen = data.states.flatten(0, 2).float()
    low, high = drawn.amin(0), drawn.amax(0)
    if law == "box":
        torch.testing.assert_close(low, seen.amin(0), rtol=0, atol=0.02)
        torch.testing.assert_close(high, seen.amax(0), rtol=0, atol=0.02)
    elif law == "normal":
        torch.testing.assert_close(drawn.mean(0), seen.mean(0), rtol=0, atol=0.1)
        torch.testing.assert_close(drawn.std(0), seen.std(0, correction=0), rtol=0.05, atol=0)
    else:
        torch.testing.assert_close(high, torch.tensor([3.0, 0.1]), rtol=0, atol=0.02)
        torch.testing.assert_close(low, torch.tensor([-1.0, -0.1]), rtol=0, atol=0.02)


def test_equations_replace_data():
    """The field at 64 new states, learned from two trajectories of 4 frames, without and with equations."""
    system = Duffing()
    train, new = simulated(system, n=2, frames=4, step=0.3), simulated(system, n=64, frames=1, seed=1)
    errors = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = Wrapped(
            lambda t, w=weight: PINODE(system, t, collocation=w, law="starts", width=32), "none", train
        )
        fit(model, train, None, FitSettings(steps=250, batch=2, learning_rate=1e-2, schedule="cosine"), 0)
        gap = (
            model.inner.drift(ZERO, new.states[:, 0, 0].float(), None)
            - new.observables["derivative"][:, 0, 0]
        )
        errors.append(float(gap.detach().square().mean().sqrt()))
    assert errors[1] < 0.2
    assert errors[1] < errors[0] / 3


def test_a_pinode_says_what_it_lacks():
    data = simulated(Duffing())
    with pytest.raises(ValueError, match="is not driven"):
        PINODE(DrivenPendulum(), simulated(DrivenPendulum()))
    with pytest.raises(ValueError, match="not driven: leave the actions out"):
        PINODE(Duffing(), data).drift(ZERO, noise(1, 2).float(), noise(1, 1))
    gases = simulated(GasContainers())
    with pytest.raises(ValueError, match="make extent smaller"):
        PINODE(GasContainers(), gases, extent=10.0).loss(gases)


# Lagrangian networks


def test_the_acceleration_solves_the_euler_lagrange_equations():
    data = simulated(DoublePendulumVelocities())
    model = Lagrangian(data, width=8, mass=1.0, ridge=1e-9).double()
    x = data.states[:, 0, 3]

    def learned(q, v):
        s = model.scaled(torch.cat([q, v], -1))
        return model.network(s).squeeze(-1) + s[..., 2:].square().sum(-1) / 2

    for row in x:
        q, v = row[:2], row[2:]
        by_v = torch.func.jacrev(learned, 1)
        masses = torch.func.jacrev(by_v, 1)(q, v)
        mixed = torch.func.jacrev(by_v, 0)(q, v)
        force = torch.func.jacrev(learned, 0)(q, v) - mixed @ v
        expected = torch.cat([v, torch.linalg.solve(masses, force)])
        torch.testing.assert_close(model.drift(ZERO, row[None], None)[0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mass", [1.0, 2.5])
def test_a_lagrangian_conserves_its_energy_in_any_unit_of_mass(mass):
    system = Pendulum(mass=mass)
    data = simulated(system)
    model = Lagrangian(data, width=16, mass=mass).double()
    times = torch.linspace(0, 5, 81, dtype=F64)
    with torch.no_grad():
        out = model.rollout(data.span(0, 1), times, None, 1, rng()).states[:, 0]
        energy = model.energy(out)
    assert out.std(1).min() > 0.01
    assert ((energy - energy[:, :1]).abs().amax(1) / energy.std()).max() < 1e-6
    with pytest.raises(ValueError, match="set mass"):
        Lagrangian(data, mass=2 * mass)


def test_masses_that_vanish_give_no_infinite_acceleration():
    data = simulated(Pendulum())
    model = Lagrangian(data, width=8, kinetic=False)
    with torch.no_grad():
        model.network.last.weight.zero_()
    model.loss(data).backward()
    assert (model.drift(ZERO, data.states[:, 0, 0].float(), None)[:, 1] == 0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_lagrangian_network_wants_velocities():
    with pytest.raises(ValueError, match="positions and velocities, or use hamiltonian"):
        Lagrangian(simulated(DoublePendulum(), n=50))
    with pytest.raises(ValueError, match="not driven"):
        Lagrangian(simulated(DrivenPendulum()))
    with pytest.raises(ValueError, match="half and half"):
        Lagrangian(Trajectory(states=noise(3, 1, 4, 3), times=torch.arange(4.0, dtype=F64)))


def test_the_papers_weights_have_its_deviations():
    model = Lagrangian(simulated(Pendulum()), width=256, depth=3, init="paper")
    layers = [*model.network.hidden, model.network.last]
    expected = [2.2 / 16, 0.58 / 16, 1.16 / 16, 16.0]
    for layer, deviation in zip(layers, expected):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.15)
        assert not layer.bias.any()


# Port-Hamiltonian networks


def perturbed(model):
    """Weights that are not small, so that every part is felt."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    return model.double()


PORTS = {
    "general": {},
    "mechanical": {"form": "mechanical"},
    "angles": {"angles": [0]},
    "mechanical angles": {"form": "mechanical", "angles": [0]},
    "learned": {"structure": "learned"},
}


@pytest.mark.parametrize("name", PORTS)
def test_a_port_hamiltonian_model_stores_no_more_than_it_is_given(name):
    data = simulated(DrivenPendulum(damping=0.2), n=30)
    model = perturbed(PortHamiltonian(data, width=16, **PORTS[name]))
    x, u = noise(200, 2, seed=1), noise(200, 1, seed=2)
    drift = model.drift(ZERO, x, u).detach()
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(model.energy(leaf).sum(), leaf)[0]
    supplied = (u * model.output(x)).sum(-1).detach()
    stored = (slope * drift).sum(-1)
    size = stored.abs().max()
    assert (stored - supplied).max() <= 1e-12 * size
    assert (stored - supplied).min() < -1e-3 * size  # friction is there
    frictionless = perturbed(PortHamiltonian(data, width=16, dissipation=False, **PORTS[name]))
    drift = frictionless.drift(ZERO, x, u).detach()
    slope = torch.autograd.grad(frictionless.energy(leaf).sum(), leaf)[0]
    balance = (slope * drift).sum(-1) - (u * frictionless.output(x)).sum(-1)
    assert balance.abs().max() < 1e-12 * size


def test_a_whole_turn_changes_nothing_for_a_model_that_knows_its_angles():
    data = simulated(DrivenPendulum(), n=30)
    turn = torch.tensor([2 * math.pi, 0.0], dtype=F64)
    x, u = noise(20, 2), noise(20, 1)
    for angles in ([0], None):
        model = PortHamiltonian(data, width=16, angles=angles).double()
        gap = (model.drift(ZERO, x + turn, u) - model.drift(ZERO, x, u)).abs().max()
        assert (gap < 1e-13) == (angles is not None)


def test_a_port_hamiltonian_model_finds_friction_and_gain():
    """The true values of a damped pendulum: -0.3 p, and a torque that enters as it is."""
    data = simulated(DrivenPendulum(damping=0.3, torque=1.0), n=60, frames=6, step=0.2)
    model = Wrapped(lambda t: PortHamiltonian(t, width=24, angles=[0], loss="derivative"), "none", data)
    fit(model, data, None, FitSettings(steps=400, batch=60, learning_rate=1e-2, schedule="cosine"), 0)
    x = data.states[:, 0, 2].float()
    u = torch.ones(60, 1)
    with torch.no_grad():
        gain = model.inner.drift(ZERO, x, u) - model.inner.drift(ZERO, x, 0 * u)
        power = (model.inner.scaled_gradient(x) * model.inner.drift(ZERO, x, 0 * u) / model.inner.scale).sum(
            -1
        )
        lost = power * model.inner.quantum
    torch.testing.assert_close(gain, torch.tensor([0.0, 1.0]).expand(60, 2), rtol=0, atol=0.05)
    true = -0.3 * x[:, 1].square()
    assert (lost - true).square().mean().sqrt() < 0.25 * true.square().mean().sqrt()


def test_ports_that_do_not_fit_are_refused():
    data = simulated(DrivenPendulum())
    with pytest.raises(ValueError, match="half and half"):
        PortHamiltonian(Trajectory(states=noise(3, 1, 4, 3), times=torch.arange(4.0, dtype=F64)))
    with pytest.raises(ValueError, match="different components from 0 to 0"):
        PortHamiltonian(data, angles=[1])
    with pytest.raises(ValueError, match="speaks of q and p"):
        PortHamiltonian(data, structure="learned", form="mechanical")
    with pytest.raises(ValueError, match="built with actions"):
        PortHamiltonian(data).drift(ZERO, noise(1, 2).float(), None)
    with pytest.raises(ValueError, match="built without actions"):
        PortHamiltonian(simulated(Pendulum())).drift(ZERO, noise(1, 2).float(), noise(1, 1))


# Metriplectic networks


@pytest.mark.parametrize("rank", [None, 1, 6])
def test_both_laws_hold_for_any_weights(rank):
    data = simulated(GasContainers(), n=20)
    model = perturbed(Metriplectic(GasContainers(), data, width=16, rank=rank))
    x = noise(500, 4)
    drift = model.drift(ZERO, x, None).detach()
    leaf = x.clone().requires_grad_()
    by_energy = torch.autograd.grad(model.energy(leaf).sum(), leaf)[0]
    by_entropy = torch.autograd.grad(model.entropy(leaf).sum(), leaf)[0]
    scale = (by_energy.abs() * drift.abs()).sum(-1) + (by_entropy.abs() * drift.abs()).sum(-1)
    assert ((by_energy * drift).sum(-1).abs() / scale).max() < 1e-13
    made = (by_entropy * drift).sum(-1) / scale
    assert made.min() > -1e-13
    assert made.max() > 1e-2
    inner = model.internal.gradient(model.scaled(x)) / model.scale
    torch.testing.assert_close(by_energy, inner, rtol=1e-6, atol=1e-8)


def test_a_known_energy_and_entropy_obey_both_laws_for_any_weights():
    system = GasContainers()
    data = simulated(system, n=20)
    x = data.states[:, 0, 5]
    for known in (["energy"], ["entropy"], ["energy", "entropy"]):
        model = perturbed(Metriplectic(system, data, known=known, width=16))
        drift = model.drift(ZERO, x, None).detach()
        leaf = x.clone().requires_grad_()
        by_energy = torch.autograd.grad(system.energy(leaf).sum(), leaf)[0]
        made = drift[:, 2] + drift[:, 3]
        size = drift.abs().max()
        if "energy" in known:
            assert (by_energy * drift).sum(-1).abs().max() < 1e-12 * size
        if "entropy" in known:
            assert made.min() > -1e-12 * size
            assert made.max() > 1e-3 * size
        model.loss(data).backward()


def test_a_metriplectic_rollout_keeps_its_energy_to_the_solvers_order():
    data = simulated(GasContainers())
    model = Metriplectic(GasContainers(), data, width=16).double()
    drifts = []
    for count in (21, 41):
        times = torch.linspace(0, 4, count, dtype=F64)
        with torch.no_grad():
            out = model.rollout(data.span(0, 1), times, None, 1, rng()).states[:, 0]
            energy, entropy = model.energy(out), model.entropy(out)
        assert (entropy.diff(dim=1) >= -1e-12).all()
        assert (entropy[:, -1] > entropy[:, 0]).all()
        drifts.append(float((energy[:, -1] - energy[:, 0]).abs().max()))
    assert drifts[1] < drifts[0] / 8
    assert drifts[1] < 1e-6


def test_what_is_not_closed_is_refused():
    with pytest.raises(ValueError, match="use port_hamiltonian"):
        Metriplectic(DrivenPendulum(), simulated(DrivenPendulum()))
    with pytest.raises(ValueError, match="one axis and two components"):
        Metriplectic(GasContainers(), Trajectory(noise(3, 1, 4, 1), torch.arange(4.0, dtype=F64)))
    with pytest.raises(ValueError, match="observes no 'entropy', but energy"):
        Metriplectic(Pendulum(), simulated(Pendulum()), known=["entropy"])
    assert isinstance(GasContainers(), HasEnergy)
