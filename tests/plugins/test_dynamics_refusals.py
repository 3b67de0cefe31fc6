"""What every model of dynamics refuses, and that a row which is lost costs no other."""

from __future__ import annotations

import pytest
import torch

from worldsim.protocols import Trajectory
from worldsim.seeds import forked
from worldsim.wrapped import Wrapped
from worldsim_plugins.dynamics.augmented_neural_ode import AugmentedNeuralODE
from worldsim_plugins.dynamics.discrete_gradient_net import DiscreteGradientNet
from worldsim_plugins.dynamics.hamiltonian import Hamiltonian
from worldsim_plugins.dynamics.lagrangian import Lagrangian
from worldsim_plugins.dynamics.latent_sde import LatentSDE
from worldsim_plugins.dynamics.metriplectic import Metriplectic
from worldsim_plugins.dynamics.neural_ode import NeuralODE
from worldsim_plugins.dynamics.neural_sde import NeuralSDE
from worldsim_plugins.dynamics.pinode import PINODE
from worldsim_plugins.dynamics.port_hamiltonian import PortHamiltonian
from worldsim_plugins.dynamics.spring_graph import SpringGraph
from worldsim_plugins.dynamics.symplectic_net import SymplecticNet
from worldsim_plugins.systems.duffing import Duffing
from worldsim_plugins.systems.n_body import NBody

F64 = torch.float64
DUFFING = Duffing()
MODELS = {
    "neural_ode": NeuralODE,
    "augmented": AugmentedNeuralODE,
    "pinode": lambda truth, **k: PINODE(DUFFING, truth, points=4, **k),
    "neural_sde": NeuralSDE,
    "latent_sde": LatentSDE,
    "hamiltonian": Hamiltonian,
    "port_hamiltonian": PortHamiltonian,
    "lagrangian": Lagrangian,
    "metriplectic": lambda truth, **k: Metriplectic(DUFFING, truth, **k),
    "symplectic_net": SymplecticNet,
    "discrete_gradient_net": DiscreteGradientNet,
    "spring_graph": SpringGraph,
}


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moving(name: str) -> Trajectory:
    system = NBody() if name == "spring_graph" else DUFFING
    times = 0.1 * torch.arange(6, dtype=F64)
    truth = system.simulate(system.sample(5, rng()), times, None, rng())
    return truth.to(dtype=torch.float32)


def built(name: str, truth: Trajectory):
    with forked(0):
        return MODELS[name](truth, width=8)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_no_states(name):
    shape = (5, 1, 6, 3, 4) if name == "spring_graph" else (5, 1, 6, 4)
    tokens = Trajectory(torch.ones(shape, dtype=torch.int64), 0.1 * torch.arange(6, dtype=F64))
    with pytest.raises(ValueError, match=r"the states are tokens \(torch.int64\): use a token model"):
        built(name, tokens)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "latent_sde"])
def test_states_that_never_change_are_refused(name):
    truth = moving(name)
    still = truth.replace(
        states=truth.states[:, :, :1].expand_as(truth.states),
        observables={"derivative": torch.zeros_like(truth.states)},
    )
    with pytest.raises(ValueError, match="never change, so there is no motion to learn"):
        built(name, still)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_not_driven_refuses_actions(name):
    truth = moving(name)
    model = built(name, truth)
    with pytest.raises(ValueError, match=r"actions"), torch.no_grad():
        model.rollout(truth.span(0, 2), truth.times[1:], torch.zeros(5, 5, 1), 1, rng())


@pytest.mark.parametrize("name", MODELS)
def test_a_lost_row_leaves_the_others_alone(name):
    truth = moving(name)
    model = built(name, truth)
    broken = truth.replace(states=truth.states.clone())
    broken.states[2] = torch.nan
    with torch.no_grad():
        whole, left = (
            model.rollout(data.span(0, 2), data.times[1:], None, 2, rng()).states for data in (truth, broken)
        )
    kept = [0, 1, 3, 4]
    assert torch.equal(left[kept], whole[kept])
    assert left[2].isnan().any()


def test_a_component_that_rests_is_left_at_rest():
    truth = moving("neural_ode")
    states = truth.states.clone()
    states[..., 0] = 1.5
    resting = truth.replace(states=states, observables={})
    model = built("neural_ode", resting)
    out = model.rollout(resting.span(0, 1), resting.times, None, 1, rng()).states
    assert (out[..., 0] == 1.5).all()
    assert model.loss(resting).isfinite()


def test_states_of_another_shape_are_named_and_more_bodies_are_not_refused():
    truth = moving("neural_ode")
    with forked(0):
        model = Wrapped(lambda example: NeuralODE(example, width=8), "component", truth)
    wider = truth.replace(states=torch.cat([truth.states, truth.states], -1))
    with pytest.raises(ValueError, match=r"NeuralODE was built for states \[2\] and cannot take \[4\]"):
        model.rollout(wider.span(0, 1), truth.times, None, 1, rng())
    bodies = moving("spring_graph")
    with forked(0):
        model = Wrapped(lambda example: SpringGraph(example, width=8), SpringGraph.scaling, bodies)
    fewer = bodies.replace(states=bodies.states[..., :2, :], observables={})
    assert model.rollout(fewer.span(0, 1), bodies.times, None, 1, rng()).states.shape == (5, 1, 6, 2, 4)
