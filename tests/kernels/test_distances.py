"""Pairwise distances: every entry accurate, also where the expansion cancels; gradients of both orders."""

from __future__ import annotations

import pytest
import torch

from worldsim_kernels import distances, pairwise
from worldsim_kernels.distances import pairwise_reference

torch.set_num_threads(1)
F64 = torch.float64
BOUNDS = {torch.float32: 5e-6, F64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 6e-3}


def clouds(d, *, n=37, m=29, lead=(), offset=0.0, dtype=F64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*lead, k, d, dtype=F64, generator=rng) + offset for k in (n, m))
    return x.to(dtype), y.to(dtype)


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("d", [1, 4, 5, 64])
@pytest.mark.parametrize("squared", [True, False])
def test_agrees_with_differences_in_float64(dtype, d, squared):
    x, y = clouds(d, dtype=dtype, lead=(2, 3))
    expected = pairwise_reference(x.double(), y.double())
    found = pairwise(x, y, squared=squared)
    assert found.dtype is dtype
    assert error(found, expected if squared else expected.sqrt()) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_every_entry_is_accurate_however_near_the_points(dtype, offset):
    """Two tight groups far apart, where centring cannot help and the expansion alone would be lost."""
    x, _ = clouds(16, offset=offset, dtype=dtype)
    x[1::2] += 50
    y = x + 1e-3 * torch.arange(1, 38)[:, None]
    exact = pairwise_reference(x.double(), y.double())
    expanded = (x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * x @ y.mT).double()
    worst = lambda found: float(((found - exact) / exact).abs().max())  # noqa: E731
    assert worst(pairwise(x, y).double()) < 64 * torch.finfo(dtype).eps
    assert worst(expanded) > 1e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize("squared", [True, False])
def test_gradients_of_both_orders(d, squared):
    x, y = (each.requires_grad_() for each in clouds(d, n=5, m=4, lead=(2,)))
    call = lambda a, b: pairwise(a, b, squared=squared)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, y))
    assert torch.autograd.gradgradcheck(call, (x, y))


@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize("squared", [True, False])
def test_gradients_where_points_coincide(d, squared):
    x = clouds(d)[0].requires_grad_()
    found = pairwise(x, x, squared=squared)
    assert found.diagonal().eq(0).all()
    (grad,) = torch.autograd.grad(found.diagonal().sum(), x)
    assert grad.abs().max() < 1e-13
    assert pairwise(x, x, squared=squared).sum().isfinite()


def test_float32_gradients_are_within_the_bound():
    x, y = (each.requires_grad_() for each in clouds(24, offset=100.0, dtype=torch.float32))
    high = [each.detach().double().requires_grad_() for each in (x, y)]
    weights = torch.randn(37, 29, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(pairwise(x, y), (x, y), weights)
    expected = torch.autograd.grad(pairwise_reference(*high), high, weights.double())
    assert max(map(error, found, expected)) <= 5e-6


@pytest.mark.parametrize("d", [3, 9])
def test_a_point_that_is_not_finite_keeps_to_itself(d):
    x, y = clouds(d)
    found = pairwise(x, y)
    x[4, 1], x[7, 0] = torch.nan, torch.inf
    y.requires_grad_()
    broken = pairwise(x, y)
    assert broken[4].isnan().all()
    assert (broken[7] == torch.inf).all()
    whole = [i for i in range(37) if i not in (4, 7)]
    torch.testing.assert_close(broken[whole].detach(), found[whole], rtol=1e-13, atol=0)


def test_pairs_taken_by_differences_are_taken_in_parts(monkeypatch):
    x, y = clouds(9, lead=(2,))
    x[:, ::2] += 100
    y[:, ::2] += 100
    whole = pairwise(x, y)
    monkeypatch.setattr(distances, "CHUNK", 100)
    assert torch.equal(pairwise(x, y), whole)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("d", [2, 9])
def test_empty_clouds(n, m, d):
    assert pairwise(torch.ones(n, d), torch.ones(m, d)).shape == (n, m)


@pytest.mark.parametrize("d", [2, 9])
def test_vmap_and_functional_gradients(d):
    x, y = clouds(d, lead=(3,))
    one = y[0]
    for dims, second, singles in (((0, 0), y, y), ((0, None), one, [one] * 3)):
        found = torch.vmap(pairwise, dims)(x, second)
        torch.testing.assert_close(found, torch.stack([pairwise(a, b) for a, b in zip(x, singles)]))
    gradient = torch.func.grad(lambda a: pairwise(a, one).sin().sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(pairwise_reference(leaf, one).sin().sum(), leaf)
    torch.testing.assert_close(gradient, expected)


def test_strides_do_not_matter():
    x, y = clouds(9)
    across = x.mT.contiguous().mT
    torch.testing.assert_close(pairwise(across, y), pairwise(x, y), rtol=1e-14, atol=0)


def test_errors_name_the_argument():
    x, y = clouds(3)
    with pytest.raises(ValueError, match=r"y has shape \[29, 2\]; expected \[m, 3\]"):
        pairwise(x, y[:, :2])
    with pytest.raises(TypeError, match=r"y has dtype torch\.float32, x has torch\.float64"):
        pairwise(x, y.float())
    with pytest.raises(ValueError, match="pairwise: x has shape"):
        pairwise(x[0], y)
    with pytest.raises(TypeError, match="pairwise: y must be a tensor"):
        pairwise(x, [1.0])
