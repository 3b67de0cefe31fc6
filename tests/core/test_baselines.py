"""Each baseline is what its one sentence says."""

import pytest
import torch

from worldsim.baselines import BASELINES, unavailable
from worldsim.errors import NotMeasurable
from worldsim.plugins import registry


@pytest.fixture(scope="module")
def world():
    system = registry().builder("system", "pendulum")()
    rng = torch.Generator().manual_seed(0)
    times = torch.arange(9, dtype=torch.float64) * 0.25
    return system, system.simulate(system.sample(6, rng), times, None, rng)


def forecast(name, world, draws=2):
    system, truth = world
    model = BASELINES[name](system, truth)
    return model.rollout(
        truth.span(0, 3), truth.times[2:], None, draws, torch.Generator().manual_seed(1)
    ).states


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"uniform"}))
def test_every_rollout_starts_at_the_given_frame(name, world):
    _, truth = world
    states = forecast(name, world)
    assert states.shape == (6, 2, 7, 2)
    assert torch.equal(states[:, :, 0], truth.states[:, :, 2].expand(-1, 2, -1))


def test_what_they_say(world):
    _, truth = world
    future = truth.states[:, :, 2:].expand(-1, 2, -1, -1)
    assert torch.allclose(forecast("truth", world), future, atol=1e-9)
    assert torch.equal(forecast("persistence", world), future[:, :, :1].expand_as(future))
    mean = truth.states.mean((0, 1, 2))
    assert torch.allclose(forecast("constant", world)[:, :, 1:], mean.expand(6, 2, 6, 2))
    shuffled = forecast("shuffled", world)[:, :, 1:]
    assert torch.allclose(shuffled, future.roll(-1, 0)[:, :, 1:], atol=1e-9)
    climatology = forecast("climatology", world)[:, :, 1:].reshape(-1, 2)
    seen = (climatology[:, None] == truth.states.reshape(-1, 2)).all(-1)
    assert bool(seen.any(1).all())
    assert len(torch.unique(climatology, dim=0)) > 6


def test_a_memoriser_repeats_what_it_has_seen(world):
    _, truth = world
    short = forecast("memoriser", world, draws=1)
    assert torch.allclose(short, truth.states[:, :, 2:], atol=1e-12)


def test_a_system_that_cannot_restart_is_replayed():
    system = registry().builder("system", "ephemeris")()
    times = torch.arange(5, dtype=torch.float64)
    truth = system.simulate(system.sample(2, torch.Generator()), times, None, torch.Generator())
    model = BASELINES["truth"](system, truth)
    with pytest.raises(NotMeasurable, match="cannot be restarted"):
        model.rollout(truth.span(0, 1), times, None, 1, torch.Generator())
    model.known = truth
    assert torch.equal(
        model.rollout(truth.span(0, 1), times, None, 1, torch.Generator()).states, truth.states
    )


def test_laws_over_tokens():
    system = registry().builder("system", "automaton")(preset="lattice", states=3)
    times = torch.arange(6, dtype=torch.float64)
    truth = system.simulate(system.sample(40, torch.Generator()), times, None, torch.Generator())
    laws = {name: BASELINES[name](system, truth) for name in BASELINES if not unavailable(name, system, 2)}
    assert set(laws) == {"truth", "persistence", "climatology", "constant", "shuffled", "uniform"}
    left, stay, right = (system.alphabet.index(token) for token in ("L", "0", "R"))
    at_right_end = torch.tensor([[right, right]])
    law = {name: model.next_token(at_right_end)[0] for name, model in laws.items()}
    assert law["truth"][right] == 0
    assert law["truth"][left] == law["truth"][stay] == 0.5
    assert law["persistence"][right] == 1
    assert law["uniform"].tolist() == [1 / 3] * 3
    assert law["shuffled"][left] == 0
    frequencies = torch.bincount(truth.states.flatten(), minlength=3) / truth.states.numel()
    assert torch.allclose(law["climatology"], frequencies.double())
    illegal = torch.tensor([[right, right, right]])
    assert laws["truth"].next_token(illegal).sum() == 0
    for model in laws.values():
        rolled = model.rollout(truth.span(0, 1), times, None, 2, torch.Generator().manual_seed(0))
        assert rolled.states.shape == (40, 2, 6)


def test_why_one_cannot_be_had(world):
    system, _ = world
    assert "tokens" in unavailable("uniform", system, 5)
    assert "two trajectories" in unavailable("shuffled", system, 1)
    assert unavailable("truth", system, 1) == ""
