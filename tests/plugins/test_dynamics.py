"""Learned vector fields and the two-body baseline."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from worldsim.protocols import Estimates, Separable, Trajectory
from worldsim_kernels.solve import Constant, Save, solve
from worldsim_kernels.solve.terms import Separable as Split
from worldsim_plugins.dynamics import vector_field
from worldsim_plugins.dynamics.hamiltonian import Hamiltonian
from worldsim_plugins.dynamics.neural_ode import NeuralODE
from worldsim_plugins.dynamics.two_body import TwoBody, propagate
from worldsim_plugins.solvers import symplectic
from worldsim_plugins.solvers.torchdiffeq import TorchDiffEq

torch.set_num_threads(1)
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


def truth(shape=(2,), n=5, frames=6, action=None, derivative=True, draws=1):
    """Random frames: shapes, not physics."""
    states = noise(n, draws, frames, *shape).float()
    return Trajectory(
        states=states,
        times=10 + 0.1 * torch.arange(frames, dtype=F64),
        actions=None if action is None else noise(n, frames, *action, seed=2).float(),
        observables={"derivative": 3 * noise(n, draws, frames, *shape, seed=1).float()} if derivative else {},
    )


def pendulum(n, horizon, seed, deviation=0.0):
    """H = p^2 / 2 + 1 - cos q, starts of energy below 1.5; derivatives with measurement noise."""
    start = 2 * torch.rand(40 * n, 2, dtype=F64, generator=rng(seed)) - 1
    start = start * torch.tensor([2.2, 1.8], dtype=F64)
    start = start[(pendulum_energy(start) < 1.5) & (pendulum_energy(start) > 0.2)][:n]
    times = 0.1 * torch.arange(round(horizon / 0.1) + 1, dtype=F64)
    pendulum = Split(lambda p: p, lambda q: -q.sin())
    steps = Constant(0.1)
    solution = solve(
        pendulum, start, times[0], times[-1], stepper="yoshida6", controller=steps, save=Save(times)
    )
    states = solution.saved.unsqueeze(1)
    rates = torch.stack([states[..., 1], -states[..., 0].sin()], -1)
    rates = rates + deviation * noise(*rates.shape, seed=seed + 1)
    return Trajectory(states=states, times=times, observables={"derivative": rates})


def pendulum_energy(x):
    return x[..., 1] ** 2 / 2 + 1 - x[..., 0].cos()


# The network


@pytest.mark.parametrize("activation", vector_field.ACTIVATIONS)
def test_the_written_out_gradient_is_that_of_autograd(activation):
    network = vector_field.Perceptron(3, 1, 8, 3, activation).double()
    x = noise(7, 3).requires_grad_()
    expected = torch.autograd.grad(network(x).sum(), x)[0]
    torch.testing.assert_close(network.gradient(x), expected, rtol=1e-12, atol=1e-14)


def test_typical_rates_come_from_derivatives_or_from_frames():
    line = torch.arange(5, dtype=F64)[:, None] * torch.tensor([0.2, -0.6], dtype=F64)
    moving = Trajectory(states=line[None, None], times=0.1 * torch.arange(5, dtype=F64))
    torch.testing.assert_close(vector_field.typical_rates(moving), torch.tensor([2.0, 6.0]))
    given = moving.replace(observables={"derivative": torch.full_like(moving.states, 4.0)})
    torch.testing.assert_close(vector_field.typical_rates(given), torch.tensor([4.0, 4.0]))
    ragged = moving.replace(states=moving.states.clone(), length=torch.tensor([[3]]))
    ragged.states[:, :, 3:] = float("nan")
    torch.testing.assert_close(vector_field.typical_rates(ragged), torch.tensor([2.0, 6.0]))
    with pytest.raises(ValueError, match=r"set fit\.window"):
        vector_field.typical_rates(moving.span(0, 1))


# What both learned fields do

MODELS = {
    "neural_ode": lambda t, **k: NeuralODE(t, **k),
    "general": lambda t, **k: Hamiltonian(t, **k),
    "separable": lambda t, **k: Hamiltonian(t, separable=True, **k),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("shape", "each_body"), [((2,), False), ((3, 4), False), ((3, 4), True)])
@pytest.mark.parametrize("loss", ["derivative", "rollout"])
def test_a_model_learns_estimates_and_rolls_out(name, shape, each_body, loss):
    data = truth(shape)
    model = MODELS[name](data, width=8, each_body=each_body, loss=loss)
    assert isinstance(model, Estimates)
    value = model.loss(data)
    value.backward()
    assert value.shape == ()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert any((p.grad != 0).any() for p in model.parameters() if p.grad is not None)

    again, estimate = model.loss_and_estimate(data)
    torch.testing.assert_close(again, value)
    assert estimate.states.shape == data.states.shape
    assert torch.equal(estimate.states[:, :, 0], data.states[:, :, 0])
    assert estimate.states.requires_grad

    with torch.no_grad():
        out = model.rollout(data.span(0, 2), data.times[1:], None, 3, rng())
    assert out.states.shape == (5, 3, 5, *shape)
    assert torch.equal(out.states[:, 0, 0], data.states[:, 0, 1])
    assert torch.equal(out.states[:, 0], out.states[:, 2])
    assert torch.equal(out.times, data.times[1:])
    assert not out.observables


@pytest.mark.parametrize("name", MODELS)
def test_the_two_losses_are_what_they_say(name):
    data = truth((4,), draws=2)
    model = MODELS[name](data, width=8, loss="derivative")
    error = model.drift(ZERO, data.states, None) - data.observables["derivative"]
    torch.testing.assert_close(model.loss(data), error.square().mean())
    model = MODELS[name](data, width=8, loss="rollout")
    loss, estimate = model.loss_and_estimate(data)
    torch.testing.assert_close(loss, (estimate.states - data.states)[:, :, 1:].square().mean())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["derivative", "rollout"])
def test_frames_past_the_end_count_for_nothing(name, loss):
    whole = truth((2,))
    states, derivative = whole.states.clone(), whole.observables["derivative"].clone()
    states[0, :, 4:] = derivative[0, :, 4:] = float("nan")
    length = torch.full((5, 1), 6)
    length[0] = 4
    ragged = whole.replace(states=states, observables={"derivative": derivative}, length=length)
    model = MODELS[name](ragged, width=8, loss=loss)
    model.loss(ragged).backward()
    assert model.rate.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    short = model.loss(ragged.span(0, 4).replace(length=None))
    torch.testing.assert_close(model.loss(ragged.span(0, 4)), short)


@pytest.mark.parametrize("name", MODELS)
def test_one_field_for_each_body_is_blind_to_their_order_and_company(name):
    data = truth((3, 4))
    model = MODELS[name](data, width=8, each_body=True)
    x = data.states[:, 0, 0]
    drift = model.drift(ZERO, x, None)
    torch.testing.assert_close(model.drift(ZERO, x[:, [2, 0, 1]], None), drift[:, [2, 0, 1]])
    torch.testing.assert_close(model.drift(ZERO, x[:, :1], None), drift[:, :1])


@pytest.mark.parametrize("name", MODELS)
def test_missing_ingredients_are_named(name):
    with pytest.raises(ValueError, match="needs the observable 'derivative'"):
        MODELS[name](truth(derivative=False), loss="derivative").loss(truth(derivative=False))
    with pytest.raises(ValueError, match=r"windows of at least two frames: set fit\.window"):
        MODELS[name](truth()).loss(truth(frames=1))
    with pytest.raises(ValueError, match="leave each_body out"):
        MODELS[name](truth(), each_body=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_a_model_of_its_own(name):
    data = truth()
    model = MODELS[name](data, width=8)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    before = twin.rollout(data.span(0, 1), data.times, None, 1, rng()).states
    assert (before[:, 0, -1] - data.states[:, 0, 0]).abs().max() > 1e-3
    still = model.rollout(data.span(0, 1), data.times, None, 1, rng()).states
    assert torch.equal(still[:, 0, -1], data.states[:, 0, 0]) or name == "neural_ode"


# Neural ordinary differential equation


@pytest.mark.parametrize(("shape", "each_body"), [((2,), False), ((3, 4), True)])
def test_a_driven_neural_ode_feels_its_actions_from_their_time_on(shape, each_body):
    data = truth(shape, action=(2,))
    model = NeuralODE(data, width=8, each_body=each_body)
    actions = data.actions.clone().double()  # as the core gives them
    out = model.rollout(data.span(0, 1), data.times, actions, 1, rng()).states
    actions[:, 2] += 1
    changed = model.rollout(data.span(0, 1), data.times, actions, 1, rng()).states
    assert torch.equal(out[:, :, :3], changed[:, :, :3])
    assert ((out - changed)[:, :, 3:].abs() > 0).all()
    assert out.dtype is torch.float32
    for loss in ("derivative", "rollout"):
        NeuralODE(data, width=8, each_body=each_body, loss=loss).loss(data).backward()
    with pytest.raises(ValueError, match="built with actions"):
        model.drift(ZERO, data.states[:, 0, 0], None)
    with pytest.raises(ValueError, match="built without actions"):
        NeuralODE(truth(shape)).drift(ZERO, data.states[:, 0, 0], data.actions[:, 0])


def test_a_neural_ode_uses_torchdiffeq_unless_told_otherwise():
    assert isinstance(NeuralODE(truth()).solver, TorchDiffEq)
    assert NeuralODE(truth()).solver.method == "rk4"
    data = truth()
    model = NeuralODE(data, width=8, solver=TorchDiffEq(rtol=1e-7, atol=1e-7))
    exact = model.rollout(data.span(0, 1), data.times, None, 1, rng()).states
    model.solver = symplectic.rk4(step=0.02)
    stepped = model.rollout(data.span(0, 1), data.times, None, 1, rng()).states
    torch.testing.assert_close(exact, stepped, rtol=1e-4, atol=1e-5)


def test_training_by_rollout_finds_the_field():
    """A spring, dx/dt = (x2, -x1), from windows of frames alone."""
    times = 0.2 * torch.arange(6, dtype=F64)
    start = noise(30, 2)
    rotation = torch.stack([torch.stack([t.cos(), t.sin()]) for t in times])
    q = start[:, :1] * rotation[:, 0] + start[:, 1:] * rotation[:, 1]
    p = start[:, 1:] * rotation[:, 0] - start[:, :1] * rotation[:, 1]
    data = Trajectory(states=torch.stack([q, p], -1).unsqueeze(1), times=times)
    model = NeuralODE(data, width=32, depth=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model.loss(data).item()
    for _ in range(120):
        optimiser.zero_grad()
        model.loss(data).backward()
        optimiser.step()
    x = start[:10].float()
    field = torch.stack([x[:, 1], -x[:, 0]], -1)
    assert model.loss(data).item() < first / 200
    assert (model.drift(ZERO, x, None) - field).square().mean() < 0.02


# Hamiltonian networks


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("shape", "each_body"), [((2,), False), ((3, 4), False), ((3, 4), True)])
def test_the_drift_is_the_symplectic_gradient_of_the_energy(separable, shape, each_body):
    data = truth(shape)
    model = Hamiltonian(data, width=8, separable=separable, each_body=each_body).double()
    x = noise(5, *shape)
    with torch.no_grad():
        drift = model.drift(ZERO, x, None)
    leaf = x.requires_grad_()
    energy = model.energy(leaf)
    assert energy.shape == (5,)
    by_q, by_p = torch.autograd.grad(energy.sum(), leaf)[0].chunk(2, -1)
    torch.testing.assert_close(drift, torch.cat([by_p, -by_q], -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("separable", [False, True])
def test_the_default_solver_holds_the_learned_energy(separable):
    data = truth((3, 4))
    model = Hamiltonian(data, width=8, separable=separable).double()
    times = 0.05 * torch.arange(1001, dtype=F64)
    with torch.no_grad():
        out = model.rollout(data.span(0, 1), times, None, 1, rng())
        energy = model.energy(out.states)[:, 0]
    spread = (energy - energy[:, :1]).abs()
    assert out.states.std(2).max() > 0.1
    assert spread.max() < 2e-3 * energy.std()
    assert spread[:, -200:].max() <= 1.5 * spread[:, :200].max()


def test_only_a_separable_model_can_be_split():
    data = truth()
    assert isinstance(Hamiltonian(data, separable=True), Separable)
    assert not isinstance(Hamiltonian(data), Separable)
    assert Hamiltonian(data, separable=True).solver.name == "leapfrog"
    assert Hamiltonian(data).solver.name == "implicit_midpoint"
    model = Hamiltonian(data, solver=symplectic.leapfrog())
    with pytest.raises(ValueError, match="Hamiltonian does not offer"):
        model.rollout(data.span(0, 1), data.times, None, 1, rng())


def test_what_no_hamiltonian_describes_is_refused():
    with pytest.raises(ValueError, match=r"last state axis \(q, p\).*use neural_ode"):
        Hamiltonian(truth((3,)))
    with pytest.raises(ValueError, match=r"not driven.*use neural_ode"):
        Hamiltonian(truth(action=(1,)))
    with pytest.raises(ValueError, match="not driven"):
        Hamiltonian(truth()).drift(ZERO, noise(1, 2).float(), noise(1, 1).float())


def test_models_say_how_their_states_are_to_be_scaled():
    assert NeuralODE.scaling == "component"
    assert Hamiltonian.scaling == "canonical"
    assert TwoBody.scaling == "none"
    assert TwoBody.trainable is False


def worst_energy_error(build, train, test, steps):
    """Median over starts of the largest |H / H0 - 1| of the rollout, and the last loss."""
    model = build(train)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model.loss(train)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        out = model.rollout(test.span(0, 1), test.times, None, 1, rng())
    energy = pendulum_energy(out.states[:, 0].double())
    return float((energy / energy[:, :1] - 1).abs().amax(1).median()), loss.item()


@pytest.mark.parametrize(
    ("frames", "steps", "horizon"),
    [(4, 900, 50.0), pytest.param(31, 3000, 100.0, marks=pytest.mark.slow)],
)
def test_a_hamiltonian_network_keeps_the_energy_that_a_neural_ode_loses(frames, steps, horizon):
    """Pendulum, derivative noise 0.1 (Greydanus et al. 2019): alike in one-step loss, not over a rollout."""
    train = pendulum(50, 3.0, seed=1, deviation=0.1)
    train = train.replace(states=train.states[:, :, :: 30 // (frames - 1)])
    rates = train.observables["derivative"][:, :, :: 30 // (frames - 1)]
    train = train.replace(observables={"derivative": rates}, times=train.times[:: 30 // (frames - 1)])
    test = pendulum(20, horizon, seed=2)
    plain, plain_loss = worst_energy_error(lambda t: NeuralODE(t, loss="derivative"), train, test, steps)
    kept, kept_loss = worst_energy_error(lambda t: Hamiltonian(t, loss="derivative"), train, test, steps)
    assert kept <= 0.06
    assert kept <= plain / 4
    assert kept_loss == pytest.approx(plain_loss, rel=0.25)


# Two bodies


def conic(eccentricity, dimensions=3):
    """A state off the pericentre of an orbit about mu = 1, by a reference integration of the equations."""
    tilt = [0.8, 0.6] if dimensions == 3 else [1.0]
    speed = math.sqrt((1 + eccentricity) / 0.3)
    start = [0.3, *[0.0] * (dimensions - 1), 0.0, *[speed * c for c in tilt]]
    return reference(np.array(start), [0.7])[-1]


def reference(start, times):
    def field(t, y):
        r, v = np.split(y, 2)
        return np.concatenate([v, -r / np.linalg.norm(r) ** 3])

    span = (0.0, times[-1])
    return solve_ivp(field, span, start, "DOP853", times, rtol=1e-13, atol=1e-15).y.T


ECCENTRICITIES = [0.0, 0.2, 0.6, 0.9, 0.97, 1.0, 1.3, 4.0]


@pytest.mark.parametrize("eccentricity", ECCENTRICITIES)
@pytest.mark.parametrize("sign", [1, -1])
def test_conics_agree_with_a_numerical_integration(eccentricity, sign):
    start = conic(eccentricity) * np.array([1, 1, 1, sign, sign, sign])
    times = [0.0, 0.01, 0.3, 1.0, 2.0]
    expected = torch.from_numpy(reference(start, times))
    at = torch.from_numpy(start)
    out = propagate(at[:3], at[3:], torch.tensor(times, dtype=F64), torch.ones((), dtype=F64))
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-11)


@pytest.mark.parametrize("eccentricity", ECCENTRICITIES)
def test_conics_close_and_return(eccentricity):
    at = torch.from_numpy(conic(eccentricity, dimensions=2))
    one = torch.ones((), dtype=F64)
    there = propagate(at[:2], at[2:], 40 * one, one)
    back = propagate(there[:2], there[2:], -40 * one, one)
    torch.testing.assert_close(back, at, rtol=0, atol=1e-11)
    if eccentricity < 0.95:
        axis = 0.3 / (1 - eccentricity)
        turns = propagate(at[:2], at[2:], 100 * 2 * math.pi * axis**1.5 * one, one)
        torch.testing.assert_close(turns, at, rtol=0, atol=1e-8)


def test_far_flung_states_settle_or_say_so():
    r, v = noise(4000, 3), noise(4000, 3, seed=1) * 2 ** noise(4000, 1, seed=2)
    t = noise(4000, seed=3) * 10 ** (3 * torch.rand(4000, dtype=F64, generator=rng(4)))
    out = propagate(r, v, t, torch.ones(4000, dtype=F64))
    r2, v2 = out.chunk(2, -1)
    kinetic = [v.square().sum(-1) / 2, v2.square().sum(-1) / 2]
    potential = [1 / r.norm(dim=-1), 1 / r2.norm(dim=-1)]
    change = kinetic[0] - potential[0] - kinetic[1] + potential[1]
    assert (change.abs() / (sum(kinetic) + sum(potential))).max() < 1e-12


def planets(n=2):
    """Two bodies on circular orbits in the plane of the ecliptic, au and days, mu the Sun's."""
    radius = torch.tensor([1.0, 5.2], dtype=F64)
    speed = (0.00029591220828559115 / radius).sqrt()
    zero = torch.zeros_like(radius)
    states = torch.stack([radius, zero, zero, zero, speed, zero], -1).expand(n, 1, 1, 2, 6)
    return Trajectory(states=states, times=torch.zeros(1, dtype=F64), axes=("body", "component"))


def test_planets_stay_on_their_circles():
    context = planets()
    times = torch.linspace(0, 40000, 50, dtype=F64)
    out = TwoBody().rollout(context, times, None, 3, rng())
    assert out.states.shape == (2, 3, 50, 2, 6)
    assert out.axes == ("body", "component")
    radius = out.states[..., :3].norm(dim=-1)
    torch.testing.assert_close(radius, context.states[:, :1, :, :, 0].expand_as(radius), rtol=1e-12, atol=0)
    angle = torch.atan2(out.states[0, 0, :, 0, 1], out.states[0, 0, :, 0, 0])
    expected = 0.01720209895 * times
    assert ((angle - expected + math.pi) % (2 * math.pi) - math.pi).abs().max() < 1e-9


def test_a_heavier_planet_turns_faster():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    light, heavy = (
        TwoBody(masses=masses).rollout(planets(1), times, None, 1, rng()).states[0, 0, -1]
        for masses in (None, [0.0, 0.1])
    )
    assert torch.equal(light[0], heavy[0])
    fall = [5.2 - float(state[1, :3].norm()) for state in (light, heavy)]
    assert fall[0] == pytest.approx(0, abs=1e-14)
    assert fall[1] == pytest.approx(0.1 * 0.00029591220828559115 / 5.2**2 / 2, rel=1e-3)


def test_the_drift_of_two_body_is_the_rate_of_its_rollout():
    model = TwoBody(mu=1.0, masses=[0.2])
    x = torch.from_numpy(conic(0.6))[None, None]
    step = torch.tensor([0.0, 1e-5], dtype=F64)
    context = Trajectory(states=x[:, None, None], times=step[:1])
    out = model.rollout(context, step, None, 1, rng()).states[:, 0]
    torch.testing.assert_close(
        (out[:, 1] - out[:, 0]) / 1e-5, model.drift(ZERO, x, None), rtol=1e-3, atol=1e-4
    )
    loss = model.loss(context)
    assert loss == 0
    assert not loss.requires_grad


def test_two_body_refuses_what_has_no_orbit():
    with pytest.raises(ValueError, match="in 2 or 3 dimensions"):
        TwoBody().drift(ZERO, noise(2, 3, 5), None)
    with pytest.raises(ValueError, match="one mass per body"):
        TwoBody(masses=[0.0, 0.0]).drift(ZERO, noise(2, 3, 6), None)
    with pytest.raises(ValueError, match="masses must be"):
        TwoBody(masses=[-1.0])
    one = torch.ones((), dtype=F64)
    falling = torch.tensor([1.0, 0.0], dtype=F64)
    for velocity in (falling, 0 * falling, float("nan") * falling):
        with pytest.raises(ValueError, match="falls straight into it"):
            propagate(falling, velocity, one, one)
