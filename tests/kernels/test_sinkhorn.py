"""Entropic transport: closed forms, certified bounds, envelope gradients, all backends against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from worldsim_kernels import explain, native, scaling, sinkhorn, transport, use

torch.set_num_threads(1)
F64 = torch.float64
MISSING = native.why_not("sinkhorn")
NATIVE = pytest.param("native", marks=pytest.mark.skipif(MISSING is not None, reason=f"NOT RUN: {MISSING}"))
FAST = [NATIVE, "torch", "streamed"]


@pytest.fixture(params=FAST)
def backend(request, monkeypatch):
    """``streamed`` is the torch form that keeps no matrix."""
    if request.param == "streamed":
        monkeypatch.setattr(transport, "STORED_BYTES", 0)
        return "torch"
    return request.param


def clouds(n=60, m=45, d=3, *, lead=(), dtype=F64, seed=0, away=1.0):
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*lead, k, d, dtype=F64, generator=rng) for k in (n, m))
    a, b = (torch.rand(*lead, k, dtype=F64, generator=rng) + 0.1 for k in (n, m))
    return x.to(dtype), (1.5 * y + away).to(dtype), a, b


def error(found, expected):
    return float((found.double() - expected).detach().norm() / expected.detach().norm())


def cost(x, y):
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


@pytest.mark.parametrize("debias", [False, True])
def test_agrees_with_the_definition_and_so_do_all_gradients(backend, debias):
    leaves = [each.requires_grad_() for each in clouds()]
    settings = {"epsilon": 0.5, "debias": debias, "tolerance": 1e-9}
    found, expected = (sinkhorn(*leaves, **settings, backend=each) for each in (backend, "reference"))
    assert bool(found.converged)
    for name in ("value", "cost", "potential_x", "potential_y"):
        assert error(getattr(found, name), getattr(expected, name)) <= 1e-6, name
    mine, theirs = (torch.autograd.grad(each.value, leaves) for each in (found, expected))
    assert max(map(error, mine, theirs)) <= 1e-7


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 5e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.2e-2)], ids=str
)
def test_low_precision_inputs_lose_nothing_inside(dtype, bound):
    x, y, a, b = clouds(dtype=dtype)
    low, high = [x.requires_grad_(), y.requires_grad_()], [x.detach().double(), y.detach().double()]
    high = [each.requires_grad_() for each in high]
    settings = {"epsilon": 0.5, "tolerance": 1e-8, "debias": True}
    found, expected = sinkhorn(*low, a, b, **settings), sinkhorn(*high, a, b, **settings, backend="reference")
    assert found.value.dtype is F64
    assert error(found.value, expected.value) < 1e-9
    mine, theirs = torch.autograd.grad(found.value, low), torch.autograd.grad(expected.value, high)
    assert [each.dtype for each in mine] == [dtype, dtype]
    assert max(map(error, mine, theirs)) <= bound


@pytest.mark.parametrize(
    ("ratio", "scale"), [(1e-3, 1.0), (0.02, 1e-12), (0.02, 1e12), (1.0, 1.0), (100.0, 1.0)]
)
def test_the_gap_holds_the_truth_at_every_epsilon_and_scale(backend, ratio, scale):
    """Primal and dual at the potentials that come back, from an explicit plan."""
    x, y, a, b = clouds(40, 40, 2)
    x, y, a, b = scale * x, scale * y, a / a.sum(), b / b.sum()
    epsilon = ratio * float(a @ cost(x, y) @ b)
    found = sinkhorn(x, y, a, b, epsilon=epsilon, tolerance=1e-2, max_iterations=4000, backend=backend)
    assert bool(found.converged)
    f, g = found.potential_x, found.potential_y
    plan = a[:, None] * b * ((f[:, None] + g - cost(x, y)) / epsilon).exp()
    torch.testing.assert_close(f @ a + g @ b, found.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(f @ a, g @ b, rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.sum(1), a, rtol=1e-8, atol=0)
    feasible = transport._rounded(plan, a, b)
    entropy = torch.xlogy(feasible, feasible / (a[:, None] * b)).sum()
    upper = (feasible * cost(x, y)).sum() + epsilon * entropy
    # The certified bound uses the convexity of KL, so it is a little above this one.
    assert found.value <= upper * (1 + 1e-12)
    assert upper <= (found.value + found.gap) * (1 + 1e-9)
    torch.testing.assert_close((feasible * cost(x, y)).sum(), found.cost, rtol=1e-6, atol=0)


def test_gaussians_have_their_closed_form():
    """N(0, 1) to N(0, 4) at epsilon 2: OT 2.8175080165, S 0.9705794128 (Janati et al. 2020)."""
    points, weights = [], []
    for deviation in (1.0, 2.0):
        grid = torch.linspace(-7, 7, 141, dtype=F64) * deviation
        points.append(grid[:, None])
        weights.append((-(grid**2) / (2 * deviation**2)).exp())
    settings = {"epsilon": 2.0, "tolerance": 1e-7}
    assert float(sinkhorn(*points, *weights, **settings).value) == pytest.approx(2.8175080165, abs=1e-7)
    found = sinkhorn(*points, *weights, **settings, debias=True)
    assert float(found.value) == pytest.approx(0.9705794128, abs=1e-7)


def bridged(x, y, a, b, sigma):
    """The value, and the covariance of both ends, of the plan that a Brownian motion of variance sigma^2 t is
    bridged by: epsilon = 2 sigma^2."""
    a, b, epsilon = a / a.sum(), b / b.sum(), 2 * sigma**2
    found = sinkhorn(x, y, a, b, epsilon=epsilon, tolerance=1e-8)
    f, g = found.potential_x, found.potential_y
    plan = a[:, None] * b * ((f[:, None] + g - cost(x, y)) / epsilon).exp()
    return float(found.value), x.T @ plan @ y - (a @ x)[:, None] * (b @ y)


@pytest.mark.parametrize(
    ("sigma", "covariance", "quarter", "half"),
    [(1.0, 0.6180339887, 1.0442627458, 1.0590169944), (0.5, 0.8827822185, 1.0029183320, 1.0038911093)],
)
def test_the_plan_of_gaussians_is_that_of_their_schroedinger_bridge(sigma, covariance, quarter, half):
    """N(-0.1, 1) to N(0.1, 1): the golden ratio at sigma 1 (Mallasto, Gerolin and Minh 2022)."""
    grid = torch.linspace(-8, 8, 161, dtype=F64)[:, None]
    weights = (-(grid[:, 0] ** 2) / 2).exp()
    value, found = bridged(grid - 0.1, grid + 0.1, weights, weights, sigma)
    assert float(found) == pytest.approx(covariance, abs=1e-8)
    for t, variance in ((0.25, quarter), (0.5, half)):
        spread = (1 - t) ** 2 + t**2 + t * (1 - t) * (2 * float(found) + sigma**2)
        assert spread == pytest.approx(variance, abs=1e-8)
    if sigma == 1:
        assert value == pytest.approx(1.2851438476, abs=1e-8)


def test_the_middle_of_a_bridge_in_the_plane():
    """Covariance A to covariance B at sigma 1: the exact mixed term is
    C = (A^1/2 (4 A^1/2 B A^1/2 + I)^1/2 A^-1/2 - I) / 2."""
    a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)
    b = torch.diag(torch.tensor([1.0, 3.0], dtype=F64))
    z = torch.cartesian_prod(*[torch.linspace(-5.5, 5.5, 28, dtype=F64)] * 2)
    weights = (-z.square().sum(1) / 2).exp()
    z, weights = z[weights > 1e-7], weights[weights > 1e-7]
    x, y = (z @ torch.linalg.cholesky(each).T for each in (a, b))
    _, mixed = bridged(x, y + torch.tensor([1.0, -1.0], dtype=F64), weights, weights, 1.0)
    middle = (a + b + mixed + mixed.T + torch.eye(2, dtype=F64)) / 4
    expected = [[1.4662414425, 0.5068999703], [0.5068999703, 2.4800413830]]
    torch.testing.assert_close(middle, torch.tensor(expected, dtype=F64), rtol=0, atol=2e-5)


def test_the_divergence_goes_from_transport_to_the_distance_of_the_means(backend):
    """As epsilon goes from 0 to infinity; it is positive, and what is not debiased is not 0 at home."""
    x, y, a, b = clouds(40, 40)
    settings = {"debias": True, "backend": backend, "max_iterations": 20_000}
    wide = float(sinkhorn(x, y, a, b, epsilon=1e5, tolerance=1e-9, **settings).value)
    means = (a @ x) / a.sum() - (b @ y) / b.sum()
    assert wide == pytest.approx(float(means.square().sum()), rel=1e-3)
    match = linear_sum_assignment(cost(x, y))
    exact = float(cost(x, y)[match].mean())
    near = [float(sinkhorn(x, y, epsilon=e, tolerance=1e-4, **settings).value) for e in (1.0, 0.1, 0.01)]
    errors = [abs(value - exact) for value in near]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-3 * exact
    assert min(wide, *near) > 0
    home = sinkhorn(x, x, epsilon=0.5, backend=backend, tolerance=1e-6)
    assert float(home.value) > 0.01


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_divergence_of_a_cloud_moved_by_m_is_its_square_with_gradient_2m(backend, epsilon, dtype):
    x, m = clouds(100, d=2, dtype=dtype)[0].requires_grad_(), torch.tensor([3.0, -1.0], dtype=dtype)
    y = (x.detach() + m).requires_grad_()
    found = sinkhorn(x, y, epsilon=epsilon, debias=True, backend=backend)
    assert found.value.item() == pytest.approx(10, rel=1e-6)
    of_x, of_y = torch.autograd.grad(found.value, (x, y))
    for grad, sign in ((of_x, -2), (of_y, 2)):
        torch.testing.assert_close(grad * len(x), sign * m.expand_as(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(grad.sum(0), sign * m, rtol=1e-6, atol=1e-5)


def test_the_divergence_of_a_cloud_from_itself_is_zero(backend):
    x, _, a, _ = clouds()
    x.requires_grad_()
    found = sinkhorn(x, x.clone(), a, a, epsilon=0.1, debias=True, backend=backend)
    assert found.value.item() == 0.0
    assert torch.autograd.grad(found.value, x)[0].eq(0).all()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    moved = sinkhorn(x, x[order], a, a[order], epsilon=0.1, debias=True, backend=backend)
    assert abs(moved.value.item()) < 1e-9


def test_a_point_of_no_weight_changes_nothing(backend):
    x, y, a, b = clouds()
    a[3], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    settings = {"epsilon": 0.3, "tolerance": 1e-8, "backend": backend}
    found = sinkhorn(x, y, a, b, **settings)
    fewer = sinkhorn(x[a > 0], y[b > 0], a[a > 0], b[b > 0], **settings)
    assert float(found.value) == pytest.approx(float(fewer.value), rel=1e-12)
    # Its potential is still the slope in its weight.
    leaf = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(sinkhorn(x, y, leaf, b, **settings).value, leaf)
    more = a + 1e-4 * torch.nn.functional.one_hot(torch.tensor(3), len(a))
    slope = (sinkhorn(x, y, more, b, **settings).value - found.value) / 1e-4
    assert float(grad[3]) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (17, 300), (300, 17)])
def test_any_number_of_points(backend, n, m):
    x, y, a, b = clouds(n, m)
    found = sinkhorn(x, y, a, b, epsilon=0.2, tolerance=1e-6, backend=backend)
    expected = sinkhorn(x, y, a, b, epsilon=0.2, tolerance=1e-6, backend="reference")
    assert bool(found.converged)
    assert error(found.value, expected.value) < 1e-6
    assert (found.potential_x.shape, found.potential_y.shape) == ((n,), (m,))


def test_coinciding_and_featureless_points(backend):
    for points in (torch.ones(9, 2), torch.ones(9, 0)):
        found = sinkhorn(points, points[:4], epsilon=0.2, debias=True, backend=backend)
        assert abs(float(found.value)) < 1e-12
        assert bool(found.converged)


def test_a_column_that_no_row_reaches_gets_its_mass(backend):
    """A point so far that exp(-C / epsilon) is zero from everywhere, in float64 too."""
    x, y, _, _ = clouds(64, 64, 2)
    y[7] = 1e3
    found = sinkhorn(x, y, epsilon=1.0, tolerance=1e-2, max_iterations=20_000, backend=backend)
    assert bool(found.converged)
    assert found.potential_y.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(threads, monkeypatch):
    if MISSING is not None:
        pytest.skip(f"NOT RUN: {MISSING}")
    x, y, a, b = clouds(700, 530, 5)
    one = sinkhorn(x, y, a, b, epsilon=0.2, backend="native")
    monkeypatch.setattr(native, "threads", lambda work: threads)
    several = sinkhorn(x, y, a, b, epsilon=0.2, backend="native")
    assert all(torch.equal(*pair) for pair in zip(one, several, strict=True))


def test_leading_axes_are_independent_problems(backend):
    x, y, a, b = clouds(lead=(2, 3))
    together = sinkhorn(x, y, a, b, epsilon=0.3, debias=True, backend=backend)
    alone = sinkhorn(x[1, 2], y[1, 2], a[1, 2], b[1, 2], epsilon=0.3, debias=True, backend=backend)
    assert together.potential_y.shape == (2, 3, 45)
    for whole, one in zip(together, alone):
        torch.testing.assert_close(whole[1, 2], one, rtol=1e-6, atol=1e-6)
    assert sinkhorn(x[:0], y[:0], epsilon=1.0).value.shape == (0, 3)
    assert sinkhorn(x[:0], y[:0], epsilon=1.0, debias=True).potential_x.shape == (0, 3, 60)


def test_strides_and_the_order_of_points_do_not_matter(backend):
    x, y, a, b = clouds()
    found = sinkhorn(x, y, a, b, epsilon=0.3, backend=backend)
    across = sinkhorn(x.mT.contiguous().mT, y, a, b, epsilon=0.3, backend=backend)
    swapped = sinkhorn(y.flip(0), x, b.flip(0), a, epsilon=0.3, tolerance=1e-8, backend=backend)
    torch.testing.assert_close(across.value, found.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(swapped.value, found.value, rtol=1e-3, atol=0)


def test_the_reference_is_differentiable_twice():
    x, y, a, b = (each.requires_grad_() for each in clouds(3, 2, 1))

    def value(*leaves):
        return sinkhorn(*leaves, epsilon=9.0, debias=True, tolerance=1e-13, backend="reference").value

    assert torch.autograd.gradcheck(value, (x, y, a, b))
    assert torch.autograd.gradgradcheck(value, (x, y, a, b))


def test_the_operator_is_well_formed():
    x, y, a, b = clouds(7, 5, lead=(2,), dtype=torch.float32)
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    for debias in (False, True):
        arguments = (x.requires_grad_(), y.requires_grad_(), a, b, 0.5, debias, 1e-3, 500, "")
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.worldsim.sinkhorn, arguments, test_utils=checks)


def test_compiles_whole_with_its_backward():
    x, y, _, _ = clouds(30, 20, dtype=torch.float32)

    def loss(x, y):
        return sinkhorn(x, y, epsilon=0.5, debias=True).value * 2

    leaf = x.clone().requires_grad_()
    made = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, y)
    (found,) = torch.autograd.grad(made, leaf)
    (expected,) = torch.autograd.grad(loss(leaf, y), leaf)
    torch.testing.assert_close(made, loss(x, y))
    torch.testing.assert_close(found, expected)


def test_functional_transforms():
    x, y, _, _ = clouds(lead=(3,))

    def value(x, y):
        return sinkhorn(x, y, epsilon=0.5, debias=True).value

    found = torch.vmap(torch.func.grad(value))(x, y)
    one = torch.func.grad(value)(x[1], y[1])
    torch.testing.assert_close(found[1], one)
    torch.testing.assert_close(torch.vmap(value, (0, None))(x, y[0])[2], value(x[2], y[0]))


def test_second_derivatives_are_refused_and_name_the_reference():
    x, y, _, _ = clouds()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(sinkhorn(x, y, epsilon=0.5).value, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.autograd.grad(grad.sum(), x)
    assert not sinkhorn(x, y, epsilon=0.5).potential_x.requires_grad


def test_no_gradient_where_it_did_not_converge():
    x, y, _, _ = clouds()
    found = sinkhorn(x.requires_grad_(), y, epsilon=0.01, tolerance=1e-9, max_iterations=12)
    assert not bool(found.converged)
    assert int(found.iterations) == 12
    with pytest.raises(RuntimeError, match="stopped at a gap of"):
        found.value.backward()


def test_annealing_ends_at_epsilon_by_halves():
    assert scaling.annealing(1.0) == [1.0]
    falling = scaling.annealing(0.003)
    assert falling[-1] == 0.003
    assert 0.1 <= falling[0] < 0.2
    assert all(math.isclose(one, 2 * other) for one, other in itertools.pairwise(falling))


def test_relaxation_finds_youngs_parameter():
    """Errors that fall as relaxed half-steps do for one eigenvalue."""
    square, relaxation = 0.99, 1.5
    root = (relaxation**2 * square / 4) ** 0.5
    rate = (root + (root**2 - (relaxation - 1)) ** 0.5) ** 2
    best = 2 / (1 + (1 - square) ** 0.5)
    assert scaling.tuned(relaxation, [rate**k for k in range(21)]) == pytest.approx(best)
    assert scaling.tuned(relaxation, [1.0, 2.0, 3.0]) == relaxation


def test_a_backend_that_cannot_hold_the_kernel_says_so(monkeypatch):
    x, y, _, _ = clouds()
    monkeypatch.setattr(transport, "STORED_BYTES", 1)
    assert "it keeps 8 n m bytes" in (explain("sinkhorn", x=x, y=y).reasons["native"] or MISSING)
    with pytest.raises(ValueError, match="backend 'native' cannot run"), use("native"):
        sinkhorn(x, y, epsilon=1.0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.ones(3)}, ValueError, "sinkhorn: x has shape"),
        ({"y": torch.ones(3, 5)}, ValueError, r"y has shape \[3, 5\]; expected \['m', 3\]"),
        ({"y": torch.ones(0, 3)}, ValueError, "y has shape .* at least one point"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, r"x has dtype torch\.int64"),
        ({"x": torch.full((2, 3), float("nan"))}, ValueError, "sinkhorn: x is nan at"),
        ({"a": torch.ones(2)}, ValueError, "a has shape"),
        ({"b": -torch.ones(45)}, ValueError, "b has a negative weight"),
        ({"b": torch.linspace(-1, 3, 45)}, ValueError, "b has a negative weight"),
        ({"b": torch.zeros(45)}, ValueError, "b has weights with a sum of 0"),
        ({"epsilon": 0.0}, ValueError, "epsilon is 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance is nan"),
        ({"max_iterations": 0}, ValueError, "max_iterations is 0"),
        ({"backend": "fast"}, ValueError, "there is no such backend"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    x, y, _, _ = clouds()
    arguments = {"x": x, "y": y, "epsilon": 1.0} | change
    with pytest.raises(kind, match=message):
        sinkhorn(**arguments)
