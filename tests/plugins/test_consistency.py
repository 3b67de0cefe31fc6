"""Consistency models: their boundary, stages, jumps, bits, guidance, and what is refused."""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.protocols import Estimates, Guidable
from worldsim.scenario import FitSettings
from worldsim_kernels.sampling import GaussianDenoiser
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.consistency import Consistency, pseudo_huber, worldsim_generators

torch.set_num_threads(1)
F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(frames: int, step: float = 0.5) -> torch.Tensor:
    return step * torch.arange(frames, dtype=F64)


def windows(n: int = 8, frames: int = 5, action: int = 0, seed: int = 0) -> Trajectory:
    actions = torch.randn(n, frames, action, generator=rng(seed + 1)) if action else None
    states = torch.randn(n, 1, frames, 2, generator=rng(seed))
    return Trajectory(states, grid(frames), actions, labels={"component": ("q", "p")})


def small(truth: Trajectory, **settings) -> Consistency:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Consistency(truth, **{"width": 16, "depth": 2, **settings})


def loss_of(model: Consistency, truth: Trajectory, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.loss(truth)


def test_it_is_a_generator_that_can_be_penalised_and_guided() -> None:
    model = small(windows())
    assert isinstance(model, Estimates)
    assert isinstance(model, Guidable)
    assert worldsim_generators() == {"consistency": Consistency}


@pytest.mark.parametrize("prediction", ["normal", "edm"])
@pytest.mark.parametrize("target", ["end", "any"])
def test_at_the_data_it_is_the_identity(prediction, target) -> None:
    model = small(windows(), prediction=prediction, target=target).double()
    x, context = torch.randn(3, 4, 2, dtype=F64, generator=rng()), torch.randn(3, 2, dtype=F64)
    low = torch.tensor(1e-6, dtype=F64)
    torch.testing.assert_close(model.jump(x, low, 0.0, context), x, rtol=0, atol=1e-4)
    if target == "any":
        here = torch.tensor(2.0, dtype=F64)
        assert torch.equal(model.jump(x, here, here, context), x)


def test_the_stages_follow_the_share_of_the_fit_and_are_kept() -> None:
    truth = windows()
    model = small(truth, diffuse=0.25, stages=3)
    stages = []
    for step in range(8):
        model.pace(step / 8)
        stages.append(model._stage())
    assert stages == [-1, -1, 0, 0, 1, 1, 2, 2]
    assert float(model.state_dict()["done"]) == 7 / 8
    always = small(truth, diffuse=1.0)
    always.pace(0.99)
    assert always._stage() == -1


def test_a_fit_that_resumes_ends_with_the_same_bits() -> None:
    truth = windows(32)
    settings = FitSettings(steps=12, batch=8, checkpoint_every=5)
    found, kept = [], []
    for saved in (None, 0):
        model = small(truth, diffuse=0.25, stages=4, target="any")
        fit(model, truth, None, settings, 0, saved=None if saved is None else kept[saved], save=kept.append)
        found.append(model.state_dict())
    assert float(found[0]["done"]) == 11 / 12
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_tuning_has_no_loss_where_every_level_jumps_to_the_data(monkeypatch) -> None:
    truth = windows(16)
    model = small(truth, diffuse=0.0)
    first, rest, _ = model.windows.split(truth)
    data = model.denoiser.scaled(first, rest)
    monkeypatch.setattr(model.denoiser, "forward", lambda x, *rest, **more: data)
    assert float(loss_of(model, truth)) == 0
    # and one that jumps elsewhere at high levels has some
    monkeypatch.setattr(model.denoiser, "forward", lambda x, t, *rest, **more: data + (t > 1).float())
    assert float(loss_of(model, truth)) > 0.1


def test_both_sides_see_the_same_noise(monkeypatch) -> None:
    truth = windows(64)
    model = small(truth, diffuse=0.0)
    first, rest, _ = model.windows.split(truth)
    data, seen = model.denoiser.scaled(first, rest), []

    def watch(x, t, *rest, **more):
        seen.append((x - data) / t)
        return x

    monkeypatch.setattr(model.denoiser, "forward", watch)
    model.pace(0.55)  # gaps small enough that few pairs end in the data
    loss_of(model, truth)
    near = (seen[0] - seen[1]).abs().amax((1, 2)) < 1e-2
    assert float(near.float().mean()) > 0.8


def test_jumps_learned_from_a_teacher_arrive_where_its_flow_does() -> None:
    """A normal law of deviation 1/2: the flow maps x at level t to x sqrt((1/4 + r^2) / (1/4 + t^2))."""
    states = torch.zeros(512, 1, 2, 1)
    states[:, 0, 1] = torch.randn(512, 1, generator=rng()) / 2
    truth = Trajectory(states, grid(2))
    model = small(truth, width=32, target="any", diffuse=0, sigma_max=5.0, noise_deviation=1.0)
    law = GaussianDenoiser(torch.zeros(1), torch.ones(1, 1))  # of changes of mean square 1
    model.teacher = lambda x, sigma, context: law(x.flatten(1), sigma.flatten(1)[:, :1]).view_as(x)
    fit(model, truth, None, FitSettings(steps=600, batch=256, learning_rate=3e-3, schedule="cosine"), 0)
    x = torch.linspace(-2, 2, 41)[:, None, None]
    for t, r in ((2.0, 0.0), (2.0, 0.7), (0.5, 0.2)):
        level = torch.tensor(t)
        spot = x * (1 + t**2) ** 0.5
        with torch.no_grad():
            there = model.jump(spot, level, r, torch.zeros(41, 1))
        expected = law.endpoint(spot.flatten(1), t, r)
        assert float((there.flatten(1) - expected).abs().mean()) < 0.1


@pytest.mark.parametrize(("target", "gamma"), [("end", 1.0), ("any", 1.0), ("any", 0.5), ("any", 0.0)])
def test_any_horizon_and_the_seed_alone(target, gamma) -> None:
    truth = windows(action=1)
    model = small(truth, target=target, gamma=gamma, levels=(5.0, 1.0))
    actions = torch.randn(8, 12, 1, generator=rng(9))
    before = torch.get_rng_state()
    one, two, other = (
        model.rollout(truth.span(0, 1), grid(12), actions, 2, rng(seed)).states for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == (8, 2, 12, 2)
    assert torch.equal(one, two)
    assert (one - other)[:, :, 1:].abs().min() > 0
    short = model.rollout(truth.span(0, 1), grid(7), actions[:, :7], 2, rng(5)).states
    assert torch.equal(short[:, :, :5], one[:, :, :5])


@pytest.mark.parametrize(("target", "gamma"), [("end", 1.0), ("any", 0.5)])
def test_guidance_corrects_where_every_jump_ends(target, gamma) -> None:
    truth = windows()
    model = small(truth, target=target, gamma=gamma, levels=(3.0, 1.0))
    plain = model.rollout(truth.span(0, 1), grid(7), None, 2, rng()).states
    same = model.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), lambda e: e).states
    torch.testing.assert_close(plain, same, rtol=0, atol=1e-6)
    seen = []

    def to_unit_circle(estimate: Trajectory) -> Trajectory:
        seen.append(len(estimate.times))
        return estimate.replace(states=estimate.states / estimate.states.norm(dim=-1, keepdim=True))

    guess = model.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), to_unit_circle)
    radius = guess.states[:, :, 1:].norm(dim=-1)
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=0, atol=1e-5)
    assert seen == [5] * 3 + [7] * 3
    to_unit_circle.wants_covariance = True
    with pytest.raises(ValueError, match="covariance"):
        model.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), to_unit_circle)


def test_the_estimate_trains_in_every_stage() -> None:
    truth = windows(32)
    for settings in ({"diffuse": 0.5}, {"diffuse": 0}, {"diffuse": 0, "target": "any"}):
        model = small(truth, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss, estimate = model.loss_and_estimate(truth)
        assert (len(estimate) == 32) is (settings["diffuse"] == 0)
        (loss + estimate.states.square().mean()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_norm_is_the_published_one() -> None:
    d = torch.tensor([[3.0, 4.0]], dtype=F64)
    c = 0.00054 * 2**0.5
    assert float(pseudo_huber(d)) == pytest.approx(((25 + c**2) ** 0.5 - c) / 2**0.5, rel=1e-12)


def test_velocity_leads_to_where_it_jumps() -> None:
    model = small(windows()).double()
    x, context = torch.randn(3, 4, 2, dtype=F64, generator=rng()), torch.randn(3, 2, dtype=F64)
    s = torch.full((3,), 0.5, dtype=F64)
    end = x + 0.5 * model.velocity(x, s, context)
    torch.testing.assert_close(end, model.jump(2 * x, torch.tensor(1.0, dtype=F64), 0.0, context))


def test_bad_input_is_refused_in_words() -> None:
    truth = windows()
    model = small(truth, backbone=Transformer(depth=1))
    with pytest.raises(ValueError, match="at least 2 frames"):
        Consistency(truth.span(0, 1))
    with pytest.raises(ValueError, match="real numbers"):
        Consistency(truth.replace(states=truth.states.long()))
    with pytest.raises(ValueError, match="target: any"):
        Consistency(truth, gamma=0.5)
    with pytest.raises(ValueError, match="must descend"):
        Consistency(truth, levels=(1.0, 2.0))
    with pytest.raises(ValueError, match="causal needs a backbone"):
        Consistency(truth, causal=True)
    with pytest.raises(ValueError, match="level 0 alone"):
        model.jump(torch.zeros(1, 4, 2), torch.tensor(2.0), 1.0, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"one time step, 0\.5"):
        model.rollout(truth.span(0, 1), grid(5, 0.25), None, 1, rng())
    with pytest.raises(ValueError, match="ragged"):
        model.loss(truth.replace(length=torch.full((8, 1), 3)))
