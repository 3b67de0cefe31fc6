"""Diffusion: its denoiser, exact laws, bits, guidance, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim import Trajectory
from worldsim.protocols import Estimates, Guidable
from worldsim_kernels.sampling import GaussianDenoiser
from worldsim_plugins.backbones.transformer import Transformer
from worldsim_plugins.generators.denoiser import denoiser_of
from worldsim_plugins.generators.diffusion import Diffusion, worldsim_generators

torch.set_num_threads(1)
SAMPLERS = ["dpm_solver_pp_2m", "heun", "ddim", "ancestral", "stochastic_heun"]
F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(frames: int, step: float = 0.5) -> torch.Tensor:
    return step * torch.arange(frames, dtype=F64)


def windows(n: int = 8, frames: int = 5, action: int = 0, seed: int = 0) -> Trajectory:
    actions = torch.randn(n, frames, action, generator=rng(seed + 1)) if action else None
    states = torch.randn(n, 1, frames, 2, generator=rng(seed))
    return Trajectory(states, grid(frames), actions, labels={"component": ("q", "p")})


def small(truth: Trajectory, **settings) -> Diffusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Diffusion(truth, **{"width": 16, "depth": 2, "steps": 4, **settings})


def exact(monkeypatch, model: Diffusion, mean, covariance) -> GaussianDenoiser:
    """Give the model the denoiser of changes from N(mean, covariance), in float64, with spread 1."""
    law = GaussianDenoiser(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64))
    model.double()
    model.denoiser.spread.fill_(1)
    monkeypatch.setattr(model.denoiser, "given", lambda context: law)
    return law


def test_it_is_a_generator_that_can_be_penalised_and_guided() -> None:
    model = small(windows())
    assert isinstance(model, Estimates)
    assert isinstance(model, Guidable)
    assert worldsim_generators() == {"diffusion": Diffusion}
    assert (model.window, model.time_step, model.scaling, model.whole_window) == (5, 0.5, "component", True)


def test_every_parametrisation_is_the_same_denoiser() -> None:
    """An exact network in each of them, for one point x_0 and noise z."""
    x0, z = torch.randn(2, 50, 2, dtype=F64, generator=rng())
    for sigma in torch.tensor([0.01, 1.0, 30.0], dtype=F64):
        alpha, beta = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        outputs = {"x0": x0, "epsilon": z, "v": alpha * z - beta * x0, "edm": beta * x0 - alpha * z}
        for name, output in outputs.items():
            seen = []

            def field(x, level, output=output, seen=seen):
                seen.append(x)
                return output

            clean = denoiser_of(field, name)(x0 + sigma * z, sigma)
            torch.testing.assert_close(clean, x0, rtol=0, atol=1e-12)
            torch.testing.assert_close(seen[0], alpha * x0 + beta * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["edm", "v"])
def test_a_network_that_says_nothing_has_loss_one(monkeypatch, prediction) -> None:
    """Its target is a rotation of data and noise, of mean square 1 at every level."""
    truth = windows(4000)
    model = small(truth, prediction=prediction)
    monkeypatch.setattr(model.denoiser.network, "forward", lambda x, *rest: torch.zeros_like(x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert float(model.loss(truth)) == pytest.approx(1.0, abs=0.03)


def test_what_is_noised_has_mean_square_one_and_comes_back() -> None:
    truth = windows(200)
    truth = truth.replace(states=truth.states * torch.tensor([3.0, 0.1]))
    model = small(truth)
    first, rest, _ = model.windows.split(truth)
    x = model.denoiser.scaled(first, rest)
    torch.testing.assert_close(x.square().mean((0, 1)), torch.ones(2))
    torch.testing.assert_close(model.denoiser.frames(first, x), rest)
    still = small(truth.replace(states=truth.states[:, :, :1].expand(-1, -1, 5, -1)))
    assert still.denoiser.spread.tolist() == [1, 1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sixty_four_steps_of_the_exact_denoiser_sample_its_law(monkeypatch, sampler: str) -> None:
    model = small(windows(frames=2), sampler=sampler, steps=64)
    exact(monkeypatch, model, [0.4, -1.0], [[0.5, 0.2], [0.2, 0.3]])
    start = torch.zeros(1, 1, 1, 2, dtype=F64)
    end = model.rollout(Trajectory(start, grid(1)), grid(2), None, 20_000, rng()).states[0, :, 1]
    # of order 1 in the law: too narrow by a few per cent in 64 steps
    bias = {"ddim": 0.03, "ancestral": 0.06, "stochastic_heun": 0.01}.get(sampler, 0.0)
    torch.testing.assert_close(end.mean(0), torch.tensor([0.4, -1.0], dtype=F64), rtol=0, atol=0.02 + bias)
    expected = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    torch.testing.assert_close(end.T.cov(), expected, rtol=0, atol=0.015 + bias)


@pytest.mark.parametrize("prediction", ["normal", "edm"])
def test_a_short_training_learns_a_conditional_gaussian(prediction) -> None:
    """x_1 = 0.8 c + 0.6 n with c, n normal: mean 0.8 c and deviation 0.6 for every c."""

    def batch(n: int, seed: int) -> Trajectory:
        c, noise = torch.randn(2, n, 1, generator=rng(seed))
        return Trajectory(torch.stack([c, 0.8 * c + 0.6 * noise], 1)[:, None], grid(2))

    model = small(batch(1000, 0), width=32, steps=20, prediction=prediction)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(600):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 - step / 600)
            optimiser.zero_grad()
            model.loss(batch(256, step)).backward()
            optimiser.step()
    c = torch.tensor([-1.5, 0.0, 1.5])
    context = Trajectory(c[:, None, None, None], grid(1))
    futures = model.rollout(context, grid(2), None, 4000, rng(1)).states[:, :, 1, 0]
    torch.testing.assert_close(futures.mean(1), 0.8 * c, rtol=0, atol=0.08)
    torch.testing.assert_close(futures.std(1), torch.full((3,), 0.6), rtol=0, atol=0.06)


def test_velocity_follows_the_straight_path_to_the_law(monkeypatch) -> None:
    """dx/ds of N(m, d^2) from N(0, 1) in closed form, as for a flow."""
    model = small(windows(frames=2))
    exact(monkeypatch, model, [0.4, 0.4], [[0.25, 0.0], [0.0, 0.25]])
    x, s = torch.randn(20, 1, 2, dtype=F64, generator=rng()), torch.linspace(0.1, 0.9, 20, dtype=F64)
    along = s[:, None, None]
    variance = (1 - along) ** 2 + (along * 0.5) ** 2
    expected = 0.4 + (along * 0.25 - (1 - along)) / variance * (x - along * 0.4)
    torch.testing.assert_close(model.velocity(x, s, None), expected, rtol=0, atol=1e-10)
    assert model.velocity(x, 0.0, None).isfinite().all()
    assert model.velocity(x, 1.0, None).isfinite().all()


@pytest.mark.parametrize("frames", [1, 3, 5, 9, 12])
@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
def test_any_horizon_is_chained_from_windows_and_cropped(frames: int, sampler: str) -> None:
    truth = windows()
    model = small(truth, sampler=sampler)
    context = truth.span(None, 2)
    guess = model.rollout(context, grid(frames) + 0.5, None, 3, rng())
    assert guess.states.shape == (8, 3, frames, 2)
    assert guess.states.dtype == torch.float32
    assert guess.labels == truth.labels
    assert torch.equal(guess.states[:, :, 0], truth.states[:, :, 1].expand(-1, 3, -1))
    longest = model.rollout(context, grid(13) + 0.5, None, 3, rng())
    assert torch.equal(longest.states[:, :, :frames], guess.states)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_is_the_generator_and_nothing_else(sampler: str) -> None:
    truth = windows()
    model = small(truth, sampler=sampler)
    before = torch.get_rng_state()
    one, two, other = (
        model.rollout(truth.span(0, 1), grid(7), None, 2, rng(seed)).states for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert (one - other)[:, :, 1:].abs().min() > 0
    assert (one[:, 0] - one[:, 1])[:, 1:].abs().min() > 0
    assert not one.requires_grad


def test_the_estimate_is_of_the_late_rows_and_trains() -> None:
    truth = windows(32)
    for settings in ({}, {"unroll": 4}):
        model = small(truth, noise_mean=0.0, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss, estimate = model.loss_and_estimate(truth)
            torch.manual_seed(0)
            assert torch.equal(loss, model.loss(truth))
        assert 0 < len(estimate) < 32
        given = (estimate.states[:, :, :1, None] == truth.states[:, 0, 0][None, None, None]).all(-1)
        assert given.any(-1).all()
        (loss + estimate.states.square().mean()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    # a lone row still gives an estimate
    assert len(small(truth, noise_mean=3.0, noise_deviation=0.1).loss_and_estimate(windows(1))[1]) == 1


def test_an_unrolled_estimate_has_the_spread_of_the_law(monkeypatch) -> None:
    """The mean square of what a penalty sees: of posterior means too small, of samples that of the law."""
    truth = windows(4000, frames=2)
    found = []
    for unroll in (1, 80):
        model = small(truth, unroll=unroll, noise_mean=0.0, noise_deviation=1e-3)
        law = exact(monkeypatch, model, [0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
        monkeypatch.setattr(
            model.denoiser, "forward", lambda x, sigma, context, law=law, **rest: law(x, sigma)
        )
        data = truth.replace(states=torch.stack([0 * truth.states[:, :, 0], truth.states[:, :, 1]], 2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            estimate = model.loss_and_estimate(data.to(dtype=F64))[1]
        found.append(float(estimate.states[:, :, 1].square().mean()))
    assert found[0] == pytest.approx(0.5, abs=0.05)  # the posterior mean of N(0, 1) at sigma = 1
    assert found[1] == pytest.approx(1.0, abs=0.08)


def test_guidance_that_corrects_nothing_changes_no_bit() -> None:
    truth = windows(action=1)
    actions = torch.randn(8, 12, 1, generator=rng(9))
    for sampler in SAMPLERS:
        model = small(truth, sampler=sampler, guide_from=0.0)
        plain = model.rollout(truth.span(0, 1), grid(12), actions, 2, rng())
        guided = model.guided_rollout(truth.span(0, 1), grid(12), actions, 2, rng(), lambda e: e)
        assert torch.equal(plain.states, guided.states)


def test_guidance_sees_the_rollout_so_far_and_only_late() -> None:
    truth = windows()
    model = small(truth, steps=4, guide_from=0.5, sampler="ddim")
    seen = []

    def watch(estimate: Trajectory) -> Trajectory:
        seen.append(len(estimate.times))
        return estimate

    model.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), watch)
    assert seen == [5] * 2 + [7] * 2  # of levels 80, 9.7, 0.41 and 0.002, those up to 1, of two windows


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_lands_on_the_corrected_estimate(sampler: str) -> None:
    truth = windows()
    model = small(truth, sampler=sampler)

    def to_unit_circle(estimate: Trajectory) -> Trajectory:
        return estimate.replace(states=estimate.states / estimate.states.norm(dim=-1, keepdim=True))

    guess = model.guided_rollout(truth.span(0, 1), grid(7), None, 2, rng(), to_unit_circle)
    radius = guess.states[:, :, 1:].norm(dim=-1)
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=0, atol=1e-5)


def test_guidance_by_the_covariance_samples_the_conditional_law(monkeypatch) -> None:
    """N(0, diag(1, 4)) given q + p = 1: mean (1/5, 4/5) and variance 4/5 along q, where orthogonal
    correction has others."""
    model = small(windows(frames=2), steps=60, guide_from=0.0, sampler="heun")
    exact(monkeypatch, model, [0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]])

    def condition(estimate: Trajectory, covariance) -> Trajectory:
        normal = torch.zeros_like(estimate.states)
        normal[:, :, 1] = 1
        moved = covariance(normal)
        h = estimate.states[:, :, 1].sum(-1) - 1
        scale = h / (normal * moved).sum((2, 3))
        return estimate.replace(states=estimate.states - scale[..., None, None] * moved)

    condition.wants_covariance = True
    start = Trajectory(torch.zeros(1, 1, 1, 2, dtype=F64), grid(1))
    end = model.guided_rollout(start, grid(2), None, 20_000, rng(), condition).states[0, :, 1]
    assert (end.sum(-1) - 1).abs().max() < 1e-10
    assert float(end[:, 0].mean()) == pytest.approx(0.2, abs=0.03)
    assert float(end[:, 0].var()) == pytest.approx(0.8, abs=0.03)


def test_the_covariance_is_in_the_units_of_the_states(monkeypatch) -> None:
    """Of changes spread k times wider it is k^2 times as large."""
    truth, found = windows(frames=2), []

    def ask(estimate: Trajectory, covariance) -> Trajectory:
        found.append(covariance(torch.ones_like(estimate.states))[0, 0, 1])
        return estimate

    ask.wants_covariance = True
    for spread in (1.0, 3.0):
        model = small(truth, steps=1, sigma_max=1.0, sampler="ddim")
        exact(monkeypatch, model, [0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]])
        model.denoiser.spread.fill_(spread)
        model.guided_rollout(truth.span(0, 1), grid(2), None, 1, rng(), ask)
    # sigma = 1 and variances 1 and 4: the posterior's are 1/2 and 4/5
    expected = torch.tensor([0.5, 0.8], dtype=F64)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], 9 * expected, rtol=0, atol=1e-10)


def test_guidance_by_the_context_goes_beyond_it(monkeypatch) -> None:
    truth = windows()
    model = small(truth, context_dropout=0.3, context_guidance=2.0).double()
    x, context = torch.randn(3, 4, 2, dtype=F64, generator=rng()), torch.randn(3, 2, dtype=F64)
    sigma = torch.tensor(1.0, dtype=F64)
    with torch.no_grad():
        known, unknown = (model.denoiser(x, sigma, context, dropped=torch.full((3,), v)) for v in (0.0, 1.0))
        torch.testing.assert_close(model.denoiser.given(context)(x, sigma), 2 * known - unknown)
        other = model.denoiser(x, sigma, context + 1, dropped=torch.ones(3))
    assert torch.equal(unknown, other)  # it knows nothing of the context
    assert not torch.equal(known, unknown)
    with pytest.raises(ValueError, match="context_dropout"):
        small(truth, context_guidance=2.0)


def test_what_a_normal_prediction_keeps_of_its_input_is_learned() -> None:
    """Data that the context tells leave nothing to the noisy input, data that it does not leave the most."""

    def batch(n: int, seed: int) -> Trajectory:
        first, free = torch.randn(2, n, generator=rng(seed))
        # the first component follows from frame 0, the second is drawn anew
        frames = torch.stack([first, 0 * first, 2 * first, free], 1).view(n, 1, 2, 2)
        return Trajectory(frames, grid(2))

    model = small(batch(1000, 0), width=32)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(200):
            optimiser.zero_grad()
            model.loss(batch(256, step)).backward()
            optimiser.step()
    x, context = torch.zeros(1, 1, 2), torch.zeros(1, 2)
    kept = model.denoiser.kept(torch.full((1,), 0.4), context, torch.zeros(1, 0), x)[0, 0].detach()
    assert float(kept[0]) < 0.1 * float(kept[1])


def test_a_backbone_and_dropout_of_its_context_train() -> None:
    truth = windows(action=1)
    model = small(truth, backbone=Transformer(depth=1), causal=True, context_dropout=0.5)
    model.loss(truth).backward()
    assert model.denoiser.network.body.noise[0].weight.grad is not None
    actions = torch.randn(8, 7, 1, generator=rng(2))
    guess = model.rollout(truth.span(0, 1), grid(7), actions, 1, rng())
    assert guess.states.isfinite().all()
    with pytest.raises(ValueError, match="numbers of context"):
        model.rollout(truth.span(0, 1), grid(7), None, 1, rng())


def test_bad_input_is_refused_in_words() -> None:
    truth = windows()
    model = small(truth)
    with pytest.raises(ValueError, match="at least 2 frames"):
        Diffusion(truth.span(0, 1))
    with pytest.raises(ValueError, match="real numbers"):
        Diffusion(truth.replace(states=truth.states.long()))
    with pytest.raises(ValueError, match="causal needs a backbone"):
        Diffusion(truth, causal=True)
    with pytest.raises(ValueError, match="octaves are for the perceptron"):
        Diffusion(truth, octaves=True, backbone=Transformer())
    with pytest.raises(ValueError, match="must be the smaller"):
        Diffusion(truth, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="sampler is 'leapfrog'"):
        Diffusion(truth, sampler="leapfrog")
    with pytest.raises(ValueError, match=r"one time step, 0\.5"):
        model.rollout(truth.span(0, 1), grid(5, 0.25), None, 1, rng())
    with pytest.raises(ValueError, match="windows of 5 frames"):
        model.loss(truth.span(0, 4))
    with pytest.raises(ValueError, match="ragged"):
        model.loss(truth.replace(length=torch.full((8, 1), 3)))


def test_octaves_are_seen_beside_the_numbers() -> None:
    plain, fine = small(windows()), small(windows(), octaves=True)
    extra = fine.denoiser.network.body[0].in_features - plain.denoiser.network.body[0].in_features
    assert extra == 8 * 8  # sines and cosines of 8 numbers at 4 octaves
    fine.loss(windows()).backward()
    assert math.isfinite(float(fine.denoiser.network.body[0].weight.grad.sum()))
