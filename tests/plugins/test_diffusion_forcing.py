"""Diffusion forcing: causality, levels of frames, exact laws, sliding, guidance, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim.fit import fit
from worldsim.protocols import Estimates, Guidable
from worldsim.scenario import FitSettings
from worldsim_plugins.backbones.ssm import SSM
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.diffusion_forcing import DiffusionForcing, worldsim_generators

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


def small(truth: Trajectory, **settings) -> DiffusionForcing:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = settings.pop("backbone", Transformer(depth=1, heads=2))
        model = DiffusionForcing(truth, **{"width": 16, "backbone": backbone, "steps": 3, **settings})
        for name, weight in model.named_parameters():  # so that it says something before it is trained
            if name.endswith("out.weight") or "modulation" in name or "deviation.4" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def test_it_is_a_generator_that_can_be_penalised_and_guided() -> None:
    model = DiffusionForcing(windows())
    assert isinstance(model, Estimates)
    assert isinstance(model, Guidable)
    assert worldsim_generators() == {"diffusion_forcing": DiffusionForcing}


@pytest.mark.parametrize("backbone", [Transformer(depth=1, heads=2), SSM(depth=1)])
def test_no_frame_depends_on_a_later_one_or_its_level(backbone) -> None:
    truth = windows(action=1)
    model = small(truth, backbone=backbone).double()
    x = torch.randn(3, 4, 2, dtype=F64, generator=rng(1)).requires_grad_()
    levels = torch.rand(3, 4, 1, dtype=F64, generator=rng(2)).add(0.1).requires_grad_()
    clean = model.denoiser(x, levels, torch.randn(3, 6, dtype=F64, generator=rng(3)))
    for gradient in torch.autograd.grad(clean[:, 1].sum(), (x, levels)):
        assert bool((gradient[:, :2] != 0).any())
        assert bool((gradient[:, 2:] == 0).all())


@pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 3, 1)])
def test_each_frame_has_its_own_level(shape) -> None:
    """A frame's estimate changes with its level, and equal levels are one level."""
    truth = windows().replace(states=torch.randn(8, 1, 5, *shape, generator=rng()), labels={})
    model = small(truth).double()
    first, rest, context = model.windows.split(truth.to(dtype=F64))
    x = model.denoiser.scaled(first, rest)
    levels = torch.full((8, 4, *[1] * len(shape)), 0.7, dtype=F64)
    before = model.denoiser(x, levels, context)
    other = levels.clone()
    other[:, 2] = 5.0
    after = model.denoiser(x, other, context)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])
    assert before.shape == x.shape


def autoregressive(n: int, frames: int, seed: int) -> Trajectory:
    """x' = 0.8 x + 0.6 n, of deviation 1."""
    noise = torch.randn(frames, n, 1, generator=rng(seed))
    x = [noise[0]]
    for step in noise[1:]:
        x.append(0.8 * x[-1] + 0.6 * step)
    return Trajectory(torch.stack(x, 1)[:, None], grid(frames))


def test_a_short_training_learns_a_chain_beyond_its_window() -> None:
    truth = autoregressive(2000, 4, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionForcing(truth, width=32, backbone=Transformer(depth=1, heads=2), steps=20)
    fit(model, truth, None, FitSettings(steps=1200, batch=128, learning_rate=3e-3, schedule="cosine"), 0)
    start = autoregressive(1000, 1, 1)
    x = model.rollout(start, grid(9), None, 1, rng()).states[:, 0, :, 0]
    shocks = x[:, 1:] - 0.8 * x[:, :-1]
    assert float((shocks.std(0) - 0.6).abs().max()) < 0.12
    assert float(shocks.mean().abs()) < 0.06
    assert float(torch.corrcoef(torch.stack([shocks[:, :-1].flatten(), shocks[:, 1:].flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize(("chunk", "lag"), [(1, None), (2, 1), (3, 0), (3, None)])
def test_every_schedule_samples_an_exact_law(monkeypatch, chunk: int, lag: int | None) -> None:
    """Frames that are independent N(1, 1/4) changes: any order of noise levels ends in that law."""
    model = small(windows(), chunk=chunk, lag=lag, steps=60).double()
    model.denoiser.spread.fill_(1)

    def exact(x, sigma, context):
        return 1 + 0.25 / (0.25 + sigma**2) * (x - 1)

    monkeypatch.setattr(model.denoiser, "forward", exact)
    start = Trajectory(torch.zeros(1, 1, 1, 2, dtype=F64), grid(1))
    end = model.rollout(start, grid(4), None, 4000, rng()).states[0, :, 1:]
    assert float((end.mean(0) - 1).abs().max()) < 0.06
    assert float((end.std(0) - 0.5).abs().max()) < 0.05
    assert float(torch.corrcoef(end.flatten(1).T).fill_diagonal_(0).abs().max()) < 0.08


def test_the_levels_of_a_chunk_form_a_staircase_after_clean_frames(monkeypatch) -> None:
    model, seen = small(windows(), chunk=2, lag=1, steps=3), []

    def watch(x, sigma, context):
        seen.append(sigma[0, :, 0].tolist())
        return x

    monkeypatch.setattr(model.denoiser, "forward", watch)
    model.rollout(windows().span(0, 2), grid(3), None, 1, rng())
    a, b, c = (pytest.approx(value, rel=1e-5) for value in (80.0, seen[1][1], 0.002))
    assert seen == [[0, a, a, a], [0, b, a, a], [0, c, b, a], [0, 0, c, a]]


def test_more_of_the_context_is_used_and_slides() -> None:
    truth = windows()
    model = small(truth)
    times = grid(12) + 1.0
    long = model.rollout(truth.span(0, 3), times, None, 2, rng()).states
    short = model.rollout(truth.span(2, 3), times, None, 2, rng()).states
    assert long.shape == (8, 2, 12, 2)
    assert torch.equal(long[:, :, 0], truth.states[:, :, 2].expand(-1, 2, -1))
    assert not torch.equal(long[:, :, 1], short[:, :, 1])
    assert long.isfinite().all()
    few = model.rollout(truth.span(0, 3), times[:4], None, 2, rng()).states
    assert torch.equal(few, long[:, :, :4])


def test_the_seed_is_the_generator_and_nothing_else() -> None:
    truth = windows(action=1)
    model = small(truth, chunk=2, lag=1)
    actions = torch.randn(8, 7, 1, generator=rng(9))
    before = torch.get_rng_state()
    one, two, other = (
        model.rollout(truth.span(0, 2), grid(7), actions, 2, rng(seed)).states for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert (one - other)[:, :, 1:].abs().min() > 0
    assert not torch.equal(one, model.rollout(truth.span(0, 2), grid(7), actions + 1, 2, rng(5)).states)
    with pytest.raises(ValueError, match="numbers of context"):
        model.rollout(truth.span(0, 2), grid(7), None, 2, rng(5))


@pytest.mark.parametrize(("chunk", "lag"), [(1, None), (2, 1)])
def test_guidance_lands_every_frame_and_changes_nothing_when_it_corrects_nothing(chunk, lag) -> None:
    truth = windows()
    model = small(truth, chunk=chunk, lag=lag)
    plain = model.rollout(truth.span(0, 2), grid(7), None, 2, rng()).states
    same = model.guided_rollout(truth.span(0, 2), grid(7), None, 2, rng(), lambda e: e).states
    assert torch.equal(plain, same)

    def to_unit_circle(estimate: Trajectory) -> Trajectory:
        return estimate.replace(states=estimate.states / estimate.states.norm(dim=-1, keepdim=True))

    guess = model.guided_rollout(truth.span(0, 2), grid(7), None, 2, rng(), to_unit_circle)
    radius = guess.states[:, :, 1:].norm(dim=-1)
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=0, atol=1e-5)
    to_unit_circle.wants_covariance = True
    with pytest.raises(ValueError, match="covariance"):
        model.guided_rollout(truth.span(0, 2), grid(7), None, 2, rng(), to_unit_circle)


def test_the_estimate_trains_and_keeps_what_is_early() -> None:
    truth = windows(32)
    model = small(truth)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss, estimate = model.loss_and_estimate(truth)
        torch.manual_seed(0)
        assert torch.equal(loss, model.loss(truth))
    true = torch.isclose(estimate.states, truth.states, atol=1e-5).all(-1)[:, 0, 1:]
    assert 0.2 < float(true.float().mean()) < 0.8
    (loss + estimate.states.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert math.isfinite(loss.item())


def test_velocity_is_that_of_one_level() -> None:
    model = small(windows()).double()
    x, context = torch.randn(3, 4, 2, dtype=F64, generator=rng()), torch.zeros(3, 2, dtype=F64)
    end = x + 0.5 * model.velocity(x, 0.5, context)
    clean = model.denoiser(2 * x, torch.ones(3, 4, 1, dtype=F64), context)
    torch.testing.assert_close(end, clean)


def test_a_single_frame_has_a_level_of_its_own_too() -> None:
    truth = windows(frames=2)
    model = small(truth)
    assert bool(model.loss(truth).isfinite())
    assert model.rollout(truth.span(0, 1), grid(4), None, 2, rng()).states.shape == (8, 2, 4, 2)


def test_bad_input_is_refused_in_words() -> None:
    truth = windows()
    model = small(truth)
    with pytest.raises(ValueError, match="at least 2 frames"):
        DiffusionForcing(truth.span(0, 1))
    with pytest.raises(ValueError, match="real numbers"):
        DiffusionForcing(truth.replace(states=truth.states.long()))
    with pytest.raises(ValueError, match="a chunk needs one before it"):
        DiffusionForcing(truth, chunk=5)
    with pytest.raises(ValueError, match="heads"):
        DiffusionForcing(truth, width=30, backbone=Transformer(heads=4))
    with pytest.raises(ValueError, match=r"one time step, 0\.5"):
        model.rollout(truth.span(0, 1), grid(5, 0.25), None, 1, rng())
    uneven = truth.span(0, 3).replace(times=torch.tensor([0.0, 0.1, 0.2], dtype=F64))
    with pytest.raises(ValueError, match=r"one time step, 0\.5"):
        model.rollout(uneven, grid(5), None, 1, rng())
    with pytest.raises(ValueError, match="ragged"):
        model.loss(truth.replace(length=torch.full((8, 1), 3)))
