"""Gymnasium environments as true worlds."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from worldsim.protocols import HasActions, HasDrift, HasEnergy, HasEquivalentHistories, Restartable
from worldsim_plugins.systems.gym import Gym


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def played(system: Gym, n: int, count: int, seed: int = 0):
    times = system.step * torch.arange(count, dtype=torch.float64)
    start, actions = system.sample(n, seeded(seed)), system.sample_actions(n, times, seeded(seed + 1))
    return start, system.simulate(start, times, actions, seeded(0))


def test_the_pendulum_of_gymnasium():
    system = Gym(id="Pendulum-v1")
    assert system.step == 0.05
    _, found = played(system, 3, 20)
    assert found.states.shape == (3, 1, 20, 3)
    assert found.states.dtype == torch.float64
    assert found.actions.shape == (3, 20, 1)
    assert found.actions.abs().max() <= 2
    assert (found.length == 20).all()
    assert found.states.isfinite().all()
    assert (found.observables["reward"][:, :, 1:] < 0).all()
    assert len(found.labels["component"]) == 3
    circle = found.states[..., :2].norm(dim=-1)
    torch.testing.assert_close(circle, torch.ones_like(circle), rtol=0, atol=1e-6)


def test_it_is_what_gymnasium_plays():
    start, found = played(Gym(id="Pendulum-v1"), 1, 10)
    environment = gymnasium.make("Pendulum-v1")
    frames = [environment.reset(seed=start.item())[0]]
    for action in found.actions[0, :-1].numpy():
        frames.append(environment.step(action.astype(np.float32))[0])
    np.testing.assert_array_equal(found.states[0, 0].numpy(), np.array(frames, dtype=np.float64))


@pytest.mark.parametrize("id", ["Pendulum-v1", "CartPole-v1"])
def test_the_same_seeds_and_actions_replay_bit_for_bit(id):
    before = torch.get_rng_state()
    system = Gym(id=id)
    start, found = played(system, 3, 30)
    again = Gym(id=id).simulate(start[1:], found.times, found.actions[1:], seeded(7))
    assert again.states.numpy().tobytes() == found.states[1:].numpy().tobytes()
    _, other = played(system, 3, 30, seed=5)
    assert not torch.equal(other.actions, found.actions)
    assert torch.equal(before, torch.get_rng_state())


def test_an_early_end_leaves_a_ragged_edge_and_never_zeros():
    system = Gym(id="CartPole-v1")
    _, found = played(system, 4, 80)
    assert found.length.shape == (4, 1)
    assert (found.length < 80).all()
    assert set(found.actions.unique().tolist()) == {0.0, 1.0}
    for row, length in enumerate(found.length[:, 0].tolist()):
        assert found.states[row, 0, :length].isfinite().all()
        assert found.states[row, 0, length:].isnan().all()
        assert found.observables["reward"][row, 0, length:].isnan().all()
        terminated = found.observables["terminated"][row, 0]
        assert terminated[length - 1 :].all()
        assert not terminated[: length - 1].any()


def test_a_time_limit_is_an_end_without_termination():
    _, found = played(Gym(id="Pendulum-v1", options={"max_episode_steps": 5}), 2, 9)
    assert (found.length == 6).all()
    assert not found.observables["terminated"].any()


def test_an_environment_that_names_no_time_step_moves_by_one():
    system = Gym(id="MountainCar-v0")
    assert system.step == 1.0
    assert played(system, 1, 5)[1].units["time"] == "1"


def test_a_grid_that_is_not_the_environments_own_is_refused():
    system = Gym(id="Pendulum-v1")
    start, times = system.sample(1, seeded(0)), torch.linspace(0, 1, 11, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"steps of 0\.05"):
        system.simulate(start, times, system.sample_actions(1, times, seeded(0)), seeded(0))


def test_actions_are_needed():
    system = Gym(id="Pendulum-v1")
    with pytest.raises(ValueError, match="sample_actions"):
        system.simulate(system.sample(1, seeded(0)), torch.tensor([0.0, 0.05]), None, seeded(0))


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"id": "Nonsense-v0"}, "Nonsense"),
        ({"id": "no_such_package:World-v0"}, "no_such_package"),
        ({"options": {"nonsense": 1}}, "nonsense"),
        ({"id": "Blackjack-v1"}, "Box and Discrete"),
    ],
)
def test_what_cannot_be_made_is_refused(parameters, word):
    with pytest.raises(ValueError, match=word):
        Gym(**parameters)


def test_capabilities():
    system = Gym()
    assert isinstance(system, HasActions)
    for capability in (Restartable, HasEnergy, HasDrift, HasEquivalentHistories):
        assert not isinstance(system, capability)


def test_a_mujoco_environment():
    pytest.importorskip("mujoco", reason="NOT RUN: needs the extra [mujoco]")
    pytest.importorskip("imageio", reason="NOT RUN: needs the extra [mujoco]")
    system = Gym(id="InvertedPendulum-v5")
    assert system.step == pytest.approx(0.04)
    start, found = played(system, 2, 30)
    again = Gym(id="InvertedPendulum-v5").simulate(start, found.times, found.actions, seeded(1))
    assert again.states.numpy().tobytes() == found.states.numpy().tobytes()
    assert found.states.shape[2:] == (30, 4)
    assert (found.length < 30).all()
