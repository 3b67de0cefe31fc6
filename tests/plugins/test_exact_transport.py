"""Exact transport: closed forms, certificates, and honest intervals around the expectation."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels import sinkhorn
from worldsim_plugins.metrics.exact_transport import (
    gromov_wasserstein,
    unbalanced,
    wasserstein1,
    wasserstein2,
)

torch.set_num_threads(1)
F64 = torch.float64


def tensor(*rows):
    return torch.tensor(rows, dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def grid(n):
    return (torch.arange(n, dtype=F64)[:, None] + 0.5) / n


def whitened(n, d, seed=0):
    x = normal(n, d, seed=seed)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False).T


A, B = tensor([2, 1], [1, 2]), tensor([1, 0], [0, 3])


def test_a_point_mass_against_the_uniform_law():
    assert wasserstein1(tensor([0.5]), grid(1000)).value == pytest.approx(0.25, abs=1e-12)


def test_a_uniform_law_against_one_twice_as_wide():
    """W1 1/2 and W2^2 1/3."""
    x = grid(500)
    assert wasserstein1(x, 2 * x).value == pytest.approx(0.5, abs=1e-12)
    assert wasserstein2(x, 2 * x).W2_squared == pytest.approx(1 / 3 - 1 / (12 * 500**2), abs=1e-12)


def test_normal_laws_of_two_widths():
    """W1 sqrt(2 / pi) and W2 1 between N(0, 1) and N(0, 4), on quantiles."""
    z = torch.special.ndtri(grid(200))
    assert wasserstein1(z, 2 * z).value == pytest.approx(math.sqrt(2 / math.pi), abs=2e-3)
    assert wasserstein1(z, 2 * z).value == pytest.approx(float(z.abs().mean()), abs=1e-12)
    assert wasserstein2(z, 2 * z).W2_squared == pytest.approx(float(z.square().mean()), abs=1e-12)
    assert wasserstein2(z, 2 * z).W2_squared == pytest.approx(1, abs=2e-2)


def test_a_uniform_law_against_the_arcsine_law():
    """1 / pi - 1 / 4."""
    u = grid(400)
    found = wasserstein1(u, (math.pi * u / 2).sin().square()).value
    assert found == pytest.approx(0.0683098862, abs=2e-6)


def test_a_translation_costs_its_length():
    x, m = normal(100, 3), tensor(0.3, 0.4, -1.2)
    assert wasserstein1(x, x + m).value == pytest.approx(1.3, abs=1e-12)
    assert wasserstein1(x, x).value == 0


# Unbalanced.


@pytest.mark.parametrize("reach", [0.1, 1.0, 30.0])
def test_two_points_have_the_closed_form_of_unbalanced_transport(reach):
    """2 rho (1 - exp(-r^2 / (2 rho))): between r^2 and never above 2 rho."""
    found = unbalanced(tensor([0, 0]), tensor([1, 1]), reach)
    assert found.value == pytest.approx(2 * reach * (1 - math.exp(-1 / reach)), rel=1e-3)
    assert abs(found.value - 2 * reach * (1 - math.exp(-1 / reach))) <= found.gap + 1e-12


def test_unbalanced_transport_is_certified_symmetric_and_zero_at_home():
    x, y = normal(60, 2), 1.5 * normal(40, 2, seed=1) + 1
    there, back = unbalanced(x, y, 2.0, tolerance=1e-4), unbalanced(y, x, 2.0, tolerance=1e-4)
    assert 0 <= there.gap <= 1e-4 * there.value
    assert abs(there.value - back.value) <= there.gap + back.gap
    assert unbalanced(x, x, 2.0).value == pytest.approx(0, abs=1e-12)
    exact = wasserstein2(x, y).W2_squared
    assert there.value < exact
    assert unbalanced(x, y, 1e4, tolerance=1e-6).value == pytest.approx(exact, rel=1e-3)


def test_an_outlier_costs_no_more_than_its_mass():
    x = normal(50, 2)
    y = x.clone()
    y[0] = 1e3
    assert wasserstein2(x, y).W2_squared > 1e4
    assert unbalanced(x, y, 1.0).value < 2 / 50 * 1.1
    with pytest.raises(ValueError, match="reach is 0"):
        unbalanced(x, y, 0)


# Up to rotation.


def test_gromov_wasserstein_does_not_see_a_rotation_or_the_order():
    x = normal(60, 3)
    turn = torch.linalg.qr(normal(3, 3, seed=1))[0]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for inner in (False, True):
        found = gromov_wasserstein(x, x[order] @ turn + 5, inner=inner)
        assert found.value == pytest.approx(0, abs=1e-9)


def test_gromov_wasserstein_of_gaussians_compares_spectra():
    """0 for A and B of one spectrum, 1 and 3; else sum_i (lambda_i - mu_i)^2, which is attained."""
    z = whitened(30, 2)
    x, y = (
        z @ (vectors * values.sqrt()).T for values, vectors in (torch.linalg.eigh(A), torch.linalg.eigh(B))
    )
    torch.testing.assert_close(x.T @ x / 30, A)
    assert gromov_wasserstein(x, y, inner=True).value == pytest.approx(0, abs=1e-9)
    assert gromov_wasserstein(x, y).value == pytest.approx(0, abs=1e-9)
    wider = z * tensor(1.0, math.sqrt(5))
    found = gromov_wasserstein(z * tensor(1.0, math.sqrt(3)), wider, inner=True).value
    assert found == pytest.approx((5 - 3) ** 2, rel=1e-6)


def test_inner_products_on_a_line_are_matched_by_sorting():
    x, y = normal(50, 1), 2 * normal(50, 1, seed=1)
    u, v = (each - each.mean() for each in (x, y))
    matches = [u.sort(0).values * v.sort(0, descending=way).values for way in (False, True)]
    best = max(float(each.mean()) ** 2 for each in matches)
    expected = float(u.square().mean() ** 2 + v.square().mean() ** 2) - 2 * best
    assert gromov_wasserstein(x, y, inner=True).value == pytest.approx(expected, rel=1e-9)


# Entropic transport, in closed form (Janati et al. 2020).


def entropic(mean, a, b, epsilon):
    """OT of N(0, a) and N(mean, b), cost |x - y|^2 + epsilon KL(P | a b)."""
    s, d = epsilon / 2, len(a)
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.sqrt()) @ vectors.T
    inner = 4 * root @ b @ root + s**2 * torch.eye(d, dtype=F64)
    values, vectors = torch.linalg.eigh(inner)
    cross = (vectors * values.sqrt()) @ vectors.T
    trace = float(torch.trace(a + b - cross))
    determinant = float(torch.logdet(cross + s * torch.eye(d, dtype=F64)))
    return float(mean @ mean) + trace + d * s * (1 - math.log(2 * s)) + s * determinant


def divergence(mean, a, b, epsilon):
    zero = torch.zeros_like(mean)
    own = (entropic(zero, a, a, epsilon) + entropic(zero, b, b, epsilon)) / 2
    return entropic(mean, a, b, epsilon) - own


@pytest.mark.parametrize(
    ("mean", "a", "b", "epsilon", "transport", "debiased"),
    [
        (tensor(1, -1), A, B, 0.1, 2.9719685576, 2.5166314163),
        (tensor(1, -1), A, B, 1.0, 4.8368670494, 2.5114120045),
        (tensor(1, -1), A, B, 10.0, 8.5407990110, 2.3089447572),
        (tensor(0), tensor([1]), tensor([4]), 2.0, 2.8175080165, 0.9705794128),
        (tensor(0), tensor([1]), tensor([4]), 0.5, 1.7776703453, 0.9980546189),
        (tensor(1), tensor([1]), tensor([2.25]), 0.5, None, 1.2491369),
    ],
)
def test_the_kernel_meets_the_closed_form_of_gaussians(mean, a, b, epsilon, transport, debiased):
    mean, a, b = (each.to(F64) for each in (mean, a, b))
    if transport is not None:
        assert entropic(mean, a, b, epsilon) == pytest.approx(transport, abs=1e-10)
    assert divergence(mean, a, b, epsilon) == pytest.approx(debiased, abs=5e-8)
    clouds, fine = [], {1: 180, 2: 28 if epsilon >= 1 else 64}[len(a)]
    for cov in (a, b):
        line = torch.linspace(-5.5, 5.5, fine, dtype=F64)
        z = torch.cartesian_prod(*[line] * len(a)).reshape(-1, len(a))
        weights = (-z.square().sum(1) / 2).exp()
        near = weights > 1e-7
        clouds.append((z[near] @ torch.linalg.cholesky(cov).T, weights[near]))
    (x, p), (y, q) = clouds
    found = sinkhorn(x, y + mean, p, q, epsilon=epsilon, debias=True, tolerance=1e-6)
    assert float(found.value) == pytest.approx(debiased, abs=2e-5)


# Honest intervals.


def covered(found, errors):
    """The share of nominal 95 % intervals that hold the mean of all values."""
    return float(((found - found.mean()).abs() < 1.959964 * errors).double().mean())


def repeated(distance, n, d, repeats, scale=1.5):
    values, errors = [], []
    for seed in range(repeats):
        x, y = normal(2, n, d, seed=seed)
        found = distance(x, scale * y)
        values.append(found[0])
        errors.append(found.standard_error)
    return tensor(*values), tensor(*errors)


@pytest.mark.parametrize(
    ("distance", "d"),
    [(wasserstein2, 1), (wasserstein2, 2), (wasserstein1, 1), (wasserstein1, 2)],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_nominal_intervals_cover_the_expectation(distance, d):
    assert 0.9 <= covered(*repeated(distance, 64, d, 200)) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "least", "most"), [(64, 1, 0.87, 0.93), (64, 2, 0.87, 0.95)])
def test_intervals_of_few_points_are_too_short_as_the_module_says(n, d, least, most):
    assert least < covered(*repeated(wasserstein2, n, d, 1000)) < most


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2])
def test_the_coverage_of_a_thousand_intervals(d):
    assert 0.93 <= covered(*repeated(wasserstein2, 512, d, 1000)) <= 0.97


@pytest.mark.parametrize("distance", [lambda x, y: unbalanced(x, y, 2.0, tolerance=1e-2), gromov_wasserstein])
def test_the_other_standard_errors_are_those_of_repeated_samples(distance):
    values, errors = repeated(distance, 48, 2, 40)
    assert 0.7 < float(errors.mean() / values.std()) < 1.7


def test_the_plug_in_value_is_biased_as_known():
    """N(0, I) against N(0, 2.25 I) in the plane, n = 128: 0.791 for 0.5, with an error of 0.173."""
    values, errors = repeated(wasserstein2, 128, 2, 150)
    uncertainty = float(values.std()) / 150**0.5
    assert abs(float(values.mean()) - 0.791) < 3 * uncertainty * 2**0.5
    assert abs(float(errors.mean()) - 0.173) < 3 * float(errors.std()) / 150**0.5 * 2**0.5
    assert float(values.mean()) - 0.5 > 10 * uncertainty
