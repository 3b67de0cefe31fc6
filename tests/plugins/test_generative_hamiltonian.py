"""Films of a hidden pendulum: what is read back from them, and the network that forecasts them."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import NotMeasurable
from worldsim.protocols import Trajectory
from worldsim_plugins.dynamics.generative_hamiltonian import GenerativeHamiltonian
from worldsim_plugins.metrics.film import Film
from worldsim_plugins.systems.pendulum import Pendulum
from worldsim_plugins.systems.pendulum_frames import PendulumFrames, SpringFrames

torch.set_num_threads(1)
F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def film(system, n: int = 6, frames: int = 12, step: float = 0.25, seed: int = 0) -> Trajectory:
    times = step * torch.arange(frames, dtype=F64)
    return system.simulate(system.sample(n, rng(seed)), times, None, rng(seed))


def built(truth: Trajectory, **settings) -> GenerativeHamiltonian:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GenerativeHamiltonian(truth, **{"width": 16, **settings})


# Frames


@pytest.mark.parametrize("system", [PendulumFrames(), SpringFrames(), PendulumFrames(energy=(2.2, 3.0))])
def test_position_and_energy_are_read_back(system) -> None:
    truth = film(system, 20, 60, 0.1)
    assert truth.states.shape == (20, 1, 60, 16, 16)
    assert truth.states.min() == 0
    assert truth.states.amax((-1, -2)).min() > 0.8
    assert truth.states.max() <= 1
    q, energy = truth.observables["q"], truth.observables["energy"]
    read = system.read(truth.states)
    turns = ((read - q) / (2 * math.pi))[..., :1].round() * 2 * math.pi  # whole turns cannot be seen
    assert (read - q - turns).abs().max() < 3e-5
    shown = system.energy_of_frames(truth.states, truth.times)
    assert shown.shape == (20, 1, 56)
    assert ((shown - energy[..., 2:-2]) / energy[..., 2:-2]).abs().max() < 1e-3
    assert (energy - energy[..., :1]).abs().max() < 1e-10


def test_a_film_hides_momentum_and_is_smooth_in_position() -> None:
    system = PendulumFrames(pixels=24)
    q = torch.tensor([0.7], dtype=F64, requires_grad=True)
    assert system.filmed(q).shape == (1, 24, 24)
    torch.autograd.gradcheck(lambda q: system.filmed(q)[:, ::5, ::5], q)
    frame = system.filmed(torch.tensor(math.pi / 2, dtype=F64))  # to the right, at half height
    row, column = divmod(int(frame.argmax()), 24)
    assert row in (11, 12)
    assert column > 16
    below = system.filmed(torch.tensor(0.0, dtype=F64))
    assert int(below.argmax()) // 24 > 16
    same = Pendulum(energy=(0.2, 1.0))
    truth = film(PendulumFrames(energy=(0.2, 1.0)))
    hidden = same.simulate(same.sample(6, rng()), truth.times, None, rng())
    assert torch.equal(truth.observables["p"], hidden.states[..., 1])


def test_what_cannot_be_read_is_said() -> None:
    system = PendulumFrames()
    black = torch.zeros(1, 6, 16, 16, dtype=F64)
    assert system.read(black).isnan().all()
    times = torch.arange(6, dtype=F64)
    with pytest.raises(ValueError, match="uniform time grid"):
        system.energy_of_frames(black, times**2)
    with pytest.raises(ValueError, match="at least 5 frames"):
        system.energy_of_frames(black[:, :4], times[:4])
    with pytest.raises(ValueError, match="energy must be"):
        SpringFrames(energy=(0.5, 0.1))
    with pytest.raises(ValueError, match="energy must reach above 0"):
        SpringFrames(energy=(0.0, 0.0))


# The score


def test_the_true_film_scores_its_floor_and_a_faster_one_much_more() -> None:
    system = PendulumFrames()
    truth = film(system, 12, 40, 0.1)
    metric = Film(system)
    own = metric.score(truth, truth, None)
    value = own["film_energy_drift"]
    assert value.value == value.floor < 1e-3
    assert own["film_energy_drift_time"].value.shape == (36,)
    fast = truth.replace(states=truth.states[:, :, ::2], times=truth.times[:20])
    slow = truth.span(0, 20)
    wrong = metric.score(slow, fast, None)["film_energy_drift"]
    assert wrong.value > 0.1
    assert own["pixel_mse"].value == 0
    lighter = truth.replace(states=truth.states + 0.1)
    assert metric.score(truth, lighter, None)["pixel_mse"].value == pytest.approx(0.01)
    believed = truth.replace(observables={"latent_energy": 1.01 * truth.observables["energy"]})
    assert metric.score(truth, believed, None)["latent_energy_drift"].value < 1e-9
    flat = truth.replace(observables={"latent_energy": torch.ones(12, 1, 40, dtype=F64)})
    assert "constant" in metric.score(truth, flat, None)["latent_energy_drift"].reason


def test_a_black_frame_is_not_measurable() -> None:
    system = PendulumFrames()
    truth = film(system)
    states = truth.states.clone()
    states[2, 0, 5] = 0
    lost = Film(system).score(truth, truth.replace(states=states), None)["film_energy_drift"]
    assert math.isnan(lost.value)
    assert (lost.failed, lost.reason) == (1, "the energy of 1 of 6 films cannot be read")
    with pytest.raises(NotMeasurable, match="5 frames"):
        Film(system).score(truth.span(0, 4), truth.span(0, 4), None)
    with pytest.raises(NotMeasurable, match="different times"):
        Film(system).score(truth.replace(length=torch.tensor([[9]] + [[5]] * 5)), truth, None)
    plain = Pendulum()
    with pytest.raises(NotMeasurable, match="no energy can be read from the states of Pendulum"):
        Film(plain).score(film(plain), film(plain), None)


# The network


def test_the_latent_motion_is_leapfrog_under_the_learned_energy() -> None:
    """Reversible to rounding, and H off by a bounded amount that falls as the step squared."""
    truth = film(PendulumFrames())
    model = built(truth, freedoms=2).double()
    start = torch.randn(20, 4, dtype=F64, generator=rng())
    times = truth.times[0] + 0.25 * torch.arange(30, dtype=F64)
    with torch.no_grad():
        errors = []
        for model.substeps in (2, 4):
            energy = model.energy(model.follow(start, times))
            errors.append(float((energy - energy[:, :1]).abs().max()))
        path = model.follow(start, times)
        back = model.follow(path[:, -1], times.flip(0))
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.5)
    torch.testing.assert_close(back[:, -1], start, rtol=0, atol=1e-12)
    shifted = start.clone()
    shifted[:, 2:] += 1
    assert torch.equal(model.decode(start), model.decode(shifted))  # momenta are not seen


def test_the_loss_is_minus_the_bound() -> None:
    truth = film(PendulumFrames())
    model = built(truth, context=3).double()
    frames = truth.states[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss = model.loss(truth)
        torch.manual_seed(1)
        noise = torch.randn(6, 2, dtype=F64)
    mean, log_deviation = model.encoder(frames[:, :3].flatten(1)).chunk(2, 1)
    law = torch.distributions.Normal(mean, log_deviation.exp())
    divergence = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum(1)
    latent, found = model.infer(frames[:, :3], noise)
    torch.testing.assert_close(found, divergence)
    seen = torch.distributions.Normal(
        model.decode(model.follow(latent, truth.times[2:])), model.log_deviation.exp()
    )
    bound = seen.log_prob(frames[:, 2:]).flatten(1).sum(1) - divergence
    torch.testing.assert_close(loss, -bound.mean() / (10 * 256))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    constants = {name for name, gradient in gradients.items() if gradient is None}
    assert constants == {"kinetic.last.bias", "potential.last.bias"}  # of H, which moves nothing
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def test_a_forecast_reads_the_last_frames_and_draws_states() -> None:
    truth = film(PendulumFrames())
    model = built(truth, context=3)
    context, times = truth.span(0, 5), truth.times[4:]
    out = model.rollout(context, times, None, 3, rng())
    assert out.states.shape == (6, 3, 8, 16, 16)
    assert out.observables["latent_energy"].shape == (6, 3, 8)
    assert torch.equal(out.states[:, 1, 0], truth.states[:, 0, 4].float())
    assert not torch.equal(out.states[:, 0, 1], out.states[:, 1, 1])
    assert torch.equal(model.rollout(truth.span(2, 5), times, None, 3, rng()).states, out.states)
    other = truth.states.clone()
    other[:, :, 2] = 0
    changed = model.rollout(truth.replace(states=other).span(0, 5), times, None, 3, rng())
    assert not torch.equal(changed.states[:, :, 1:], out.states[:, :, 1:])


def test_what_does_not_fit_is_refused() -> None:
    truth = film(PendulumFrames())
    model = built(truth)
    with pytest.raises(ValueError, match=r"reads 5 frames, it was given 2: raise data\.context"):
        model.rollout(truth.span(0, 2), truth.times, None, 1, rng())
    with pytest.raises(ValueError, match=r"leaves none to forecast after 5 of context: raise fit\.window"):
        model.loss(truth.span(0, 5))
    with pytest.raises(ValueError, match="ends early"):
        model.loss(truth.replace(length=torch.full((6, 1), 9)))
    with pytest.raises(ValueError, match="not driven"):
        built(truth.replace(actions=torch.zeros(6, 12, 1)))
    with pytest.raises(ValueError, match="real numbers"):
        built(truth.replace(states=truth.states.long()))


def test_a_short_training_forecasts_better_than_a_still_picture() -> None:
    system = SpringFrames()
    truth = film(system, 64, 12, 0.4)
    model = built(truth, context=3, width=32)
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(200):
            optimiser.zero_grad()
            model.loss(truth).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    new = film(system, 32, 12, 0.4, seed=1)
    out = model.rollout(new.span(0, 3), new.times[2:], None, 1, rng()).states
    error = (out - new.states[:, :, 2:]).square().mean()
    still = (new.states[:, :, 2:3] - new.states[:, :, 2:]).square().mean()
    assert error < still / 3
