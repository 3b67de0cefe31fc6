"""Samplers on laws whose denoiser is exact: orders, moments, and changes of variables."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from worldsim_kernels.sampling import (
    GaussianDenoiser,
    MixtureDenoiser,
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    gamma_sampling,
    heun,
    karras_grid,
    log_snr_grid,
    of_noise,
    of_v,
    of_velocity,
    stochastic_heun,
    velocity_of,
)

torch.set_num_threads(1)
F64 = torch.float64
GAUSSIAN = GaussianDenoiser(
    torch.tensor([0.4, -1.0], dtype=F64), torch.tensor([[1.0, 0.3], [0.3, 0.2]], dtype=F64)
)
HIGH, LOW = 20.0, 0.02


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, seed=0):
    return HIGH * torch.randn(n, 2, dtype=F64, generator=rng(seed))


def moments(x):
    return torch.cat([x.mean(0), x.T.cov()[[0, 0, 1], [0, 1, 1]]])


def test_grids_go_down_from_highest_to_lowest_and_to_zero():
    for grid in (karras_grid, log_snr_grid):
        whole, ended = grid(10, LOW, HIGH), grid(10, LOW, HIGH, zero=False)
        assert len(whole) == len(ended) == 11
        assert bool((whole.diff() < 0).all())
        assert float(whole[-1]) == 0
        torch.testing.assert_close(whole[[0, -2]], torch.tensor([HIGH, LOW], dtype=F64), rtol=1e-12, atol=0)
        torch.testing.assert_close(ended[[0, -1]], torch.tensor([HIGH, LOW], dtype=F64), rtol=1e-12, atol=0)
    logs = log_snr_grid(10, LOW, HIGH, zero=False).log().diff()
    torch.testing.assert_close(logs, logs[:1].expand(10), rtol=1e-10, atol=0)
    # Karras et al. 2022, eq. 5, in the middle
    middle = ((HIGH ** (1 / 7) + LOW ** (1 / 7)) / 2) ** 7
    assert float(karras_grid(2, LOW, HIGH, zero=False)[1]) == pytest.approx(middle, rel=1e-12)


@pytest.mark.parametrize(("lowest", "highest", "steps"), [(0.0, 1.0, 4), (2.0, 1.0, 4), (0.1, 1.0, 0)])
def test_a_grid_that_cannot_be_is_refused(lowest, highest, steps):
    for grid in (karras_grid, log_snr_grid):
        with pytest.raises(ValueError, match="at least one step"):
            grid(steps, lowest, highest)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpm_solver_pp_2m, 2)])
@pytest.mark.parametrize("grid", [karras_grid, log_snr_grid])
def test_a_sampler_has_its_order(sampler, order, grid):
    x = noise(50)
    exact = GAUSSIAN.endpoint(x, HIGH, LOW)
    steps = (80, 160, 320)
    errors = [float((sampler(GAUSSIAN, x, grid(n, LOW, HIGH, zero=False)) - exact).norm()) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", [ddim, heun, dpm_solver_pp_2m])
def test_the_endpoint_is_that_of_the_law(sampler):
    """To level 0, in 64 steps: the flow maps N(m, C + highest^2) onto N(m, C)."""
    x = noise(20_000)
    end = sampler(GAUSSIAN, x, karras_grid(64, 1e-3, HIGH))
    exact = GAUSSIAN.endpoint(x, HIGH, 0.0)
    assert float((end - exact).norm() / exact.norm()) < (0.06 if sampler is ddim else 0.003)


@pytest.mark.parametrize(("nfe", "bound"), [(10, 0.7), (20, 0.4)])
def test_the_second_order_is_nearer_at_equal_cost(nfe, bound):
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    ring = MixtureDenoiser(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15)
    x = noise(500, seed=1)
    exact = dpm_solver_pp_2m(ring, x, log_snr_grid(2000, LOW, HIGH))
    first, second = (
        float((sampler(ring, x, log_snr_grid(nfe, LOW, HIGH)) - exact).norm())
        for sampler in (ddim, dpm_solver_pp_2m)
    )
    assert second <= bound * first


def test_a_step_to_zero_lands_on_the_denoised():
    x, sigmas = noise(5), torch.tensor([HIGH, 0.0], dtype=F64)
    clean = GAUSSIAN(x, sigmas[0])
    for sampler in (ddim, heun, dpm_solver_pp_2m):
        torch.testing.assert_close(sampler(GAUSSIAN, x, sigmas), clean, rtol=0, atol=1e-12)
    for sampler in (ancestral, stochastic_heun):
        torch.testing.assert_close(sampler(GAUSSIAN, x, sigmas, rng()), clean, rtol=0, atol=1e-12)


def test_levels_may_differ_between_samples():
    x = noise(6)
    sigmas = karras_grid(8, LOW, HIGH)
    each = sigmas[:, None, None] * torch.linspace(0.5, 1, 6, dtype=F64)[:, None]
    for sampler in (ddim, dpm_solver_pp_2m, heun):
        together = sampler(GAUSSIAN, x, each)
        for i in range(6):
            torch.testing.assert_close(together[i : i + 1], sampler(GAUSSIAN, x[i : i + 1], each[:, i, 0]))


def propagated(steps, eta, variance=0.7):
    """Variance after ancestral sampling of N(0, variance) in one dimension, by its own recursion."""
    found = HIGH**2
    for here, there in pairwise(log_snr_grid(steps, 1e-3, HIGH).tolist()):
        up = eta * there * (1 - (there / here) ** 2) ** 0.5
        ratio = (there**2 - up**2) ** 0.5 / here
        found *= (ratio + (1 - ratio) * variance / (variance + here**2)) ** 2
        found += up**2
    return found


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_has_the_moments_of_its_recursion(eta):
    law = GaussianDenoiser(torch.zeros(1, dtype=F64), torch.full((1, 1), 0.7, dtype=F64))
    end = ancestral(law, noise(20_000)[:, :1], log_snr_grid(50, 1e-3, HIGH), rng(1), eta=eta)
    error = 20_000**-0.5
    assert abs(float(end.mean())) < 4 * error * 0.7**0.5
    assert float(end.var()) == pytest.approx(propagated(50, eta), rel=4 * error * 2**0.5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_sampling_tends_to_the_law_at_order_one(eta):
    steps = (100, 200, 400)
    errors = [abs(propagated(n, eta) - 0.7) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1, abs=0.15)
    assert errors[-1] < 0.02


def test_ancestral_without_noise_is_ddim():
    x, sigmas = noise(10), karras_grid(12, LOW, HIGH)
    kept = ancestral(GAUSSIAN, x, sigmas, rng(), eta=0.0)
    torch.testing.assert_close(kept, ddim(GAUSSIAN, x, sigmas), rtol=1e-12, atol=1e-12)


def test_one_ancestral_step_has_the_reverse_variance_of_the_chain():
    """Given x_0 the posterior of Ho et al. (2020), eq. 7: with x_0 = D known, variance
    sigma'^2 (sigma^2 - sigma'^2) / sigma^2."""
    sigmas = torch.tensor([2.0, 1.5], dtype=F64)
    x = torch.ones(100_000, 1, dtype=F64)
    end = ancestral(lambda x, sigma: 0 * x, x, sigmas, rng())
    assert float(end.var()) == pytest.approx(1.5**2 * (4 - 1.5**2) / 4, rel=0.02)
    assert float(end.mean()) == pytest.approx((1.5 / 2) ** 2, abs=0.02)


def test_churn_keeps_the_law_and_draws():
    n, sigmas = 40_000, karras_grid(60, 1e-3, HIGH)
    x = noise(n)
    end = stochastic_heun(GAUSSIAN, x, sigmas, rng(1), churn=30.0)
    expected = torch.tensor([0.4, -1.0, 1.0, 0.3, 0.2], dtype=F64)
    assert float((moments(end) - expected).abs().max()) < 5 * 1.5 / n**0.5
    plain = heun(GAUSSIAN, x, sigmas)
    assert float((end - plain).square().mean()) > 0.1
    # noise added and not accounted for is a wider law
    assert float(stochastic_heun(GAUSSIAN, x, sigmas, rng(1), churn=30.0, inflate=1.2).var(0)[0]) > 1.05
    assert torch.equal(stochastic_heun(GAUSSIAN, x[:9], sigmas, rng(1)), plain[:9])
    outside = stochastic_heun(GAUSSIAN, x[:9], sigmas, rng(1), churn=30.0, churn_from=1e-4)
    assert torch.equal(outside, plain[:9])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_gamma_sampling_of_exact_jumps_is_exact_at_any_number_of_steps(gamma):
    n, sigmas = 40_000, torch.tensor([HIGH, 2.0, 0.5, 0.0], dtype=F64)
    x = GAUSSIAN.mean + noise(n)  # wider than the law by one part in 400
    end = gamma_sampling(GAUSSIAN.endpoint, x, sigmas, rng(1), gamma=gamma)
    expected = torch.tensor([0.4, -1.0, 1.0, 0.3, 0.2], dtype=F64)
    assert float((moments(end) - expected).abs().max()) < 5 * 1.5 / n**0.5
    if gamma == 0:
        torch.testing.assert_close(end, GAUSSIAN.endpoint(x, HIGH, 0.0), rtol=0, atol=1e-10)


def test_draws_are_those_of_the_generator():
    x, sigmas = noise(5), karras_grid(6, LOW, HIGH)
    state = torch.get_rng_state()
    for sampler in (ancestral, lambda *a: stochastic_heun(*a, churn=5.0)):
        one, two, other = (sampler(GAUSSIAN, x, sigmas, rng(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_paths_and_targets_give_the_same_denoiser():
    """Each network is built from the exact D by its own definition of what it estimates."""
    x = noise(20)

    def estimates(z, sigma):  # of x_0 and of the noise, from z = alpha x
        clean = GAUSSIAN(z * (1 + sigma**2) ** 0.5, sigma)
        return clean, (z * (1 + sigma**2) ** 0.5 - clean) / sigma

    def v(z, sigma):
        clean, e = estimates(z, sigma)
        return (e - sigma * clean) / (1 + sigma**2) ** 0.5

    def velocity(x, s):
        clean, e = estimates(x / s / (1 + ((1 - s) / s) ** 2) ** 0.5, (1 - s) / s)
        return clean - e

    for sigma in torch.tensor([0.1, 1.0, 20.0], dtype=F64):
        for other in (of_noise(lambda z, t: estimates(z, t)[1]), of_v(v), of_velocity(velocity)):
            torch.testing.assert_close(other(x, sigma), GAUSSIAN(x, sigma), rtol=0, atol=1e-10)
        s = 1 / (1 + sigma)
        torch.testing.assert_close(velocity_of(GAUSSIAN)(s * x, s), velocity(s * x, s), rtol=0, atol=1e-10)


def test_the_mixture_of_one_is_the_normal_law():
    mean = torch.tensor([[0.4, -1.0]], dtype=F64)
    one = MixtureDenoiser(mean, 0.5)
    normal = GaussianDenoiser(mean[0], 0.25 * torch.eye(2, dtype=F64))
    sigma = torch.tensor(0.7, dtype=F64)
    torch.testing.assert_close(one(noise(9), sigma), normal(noise(9), sigma), rtol=0, atol=1e-12)
    assert float(one.sample(20_000, rng()).std(0)[0]) == pytest.approx(0.5, abs=0.01)
