"""Stiff steppers: their coefficients, their orders, the stiff set, rows, failures and gradients."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from stiff_problems import PROBLEMS, brusselator, robertson, van_der_pol

from worldsim_kernels.solve import ODE, PID, Constant, Hamiltonian, Save, Status, solve
from worldsim_kernels.solve.gradients import ThroughSteps
from worldsim_kernels.solve.jacobian import linearised
from worldsim_kernels.solve.kvaerno import DENSE, ERROR, GAMMA, GUESS, NODES, A, B, Kvaerno5
from worldsim_kernels.solve.linear import factorise
from worldsim_kernels.solve.rosenbrock import ROSENBROCK, Rosenbrock

STIFF = ("rosenbrock23", "rodas5p", "kvaerno5", "auto")
DOUBLE = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def solved(*arguments, **options):
    with torch.no_grad():
        return solve(*arguments, **options)


# Coefficients.


def inverse(matrix):
    """Of a lower triangular matrix of Fractions."""
    n = len(matrix)
    out = [[Fraction(0)] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            total = Fraction(int(i == j)) - sum((matrix[i][k] * out[k][j] for k in range(j, i)), Fraction(0))
            out[i][j] = total / matrix[i][i]
    return out


def product(a, b):
    return [[dot(row, column) for column in zip(*b)] for row in a]


def padded(rows, n):
    return [[Fraction(x) for x in row] + [Fraction(0)] * (n - len(row)) for row in rows]


def classical(name):
    """alpha_ij, beta_ij = alpha_ij + gamma_ij, and the map of weights of u to weights of k; exact."""
    method = ROSENBROCK[name]
    n = len(method.m)
    gamma = Fraction(method.gamma)
    c = padded(method.c, n)
    g = inverse([[(1 / gamma if i == j else 0) - c[i][j] for j in range(n)] for i in range(n)])
    alpha = product(padded(method.a, n), g)
    beta = [[x + y for x, y in zip(*rows)] for rows in zip(alpha, g)]
    return alpha, beta, lambda weights: product([[Fraction(x) for x in weights]], g)[0]


def dot(a, b):
    return sum((x * y for x, y in zip(a, b)), Fraction(0))


def times(matrix, vector):
    return [dot(row, vector) for row in matrix]


def by_part(*vectors):
    return [math.prod(parts) for parts in zip(*vectors)]


def conditions(alpha, beta, order):
    """Pairs (vector v, value, degree) with sum_i b_i v_i = value, for every rooted tree up to ``order``: a
    meagre leaf hangs on beta, a branching on alpha (Hairer and Wanner 1996, IV.7)."""
    ones = [Fraction(1)] * len(alpha)
    a, b = times(alpha, ones), times(beta, ones)
    aa, ab, ba, bb = times(alpha, by_part(a, a)), times(alpha, b), times(beta, by_part(a, a)), times(beta, b)
    table = [
        (ones, 1, 1),
        (b, 2, 2),
        (by_part(a, a), 3, 3),
        (bb, 6, 3),
        (by_part(a, a, a), 4, 4),
        (by_part(a, ab), 8, 4),
        (ba, 12, 4),
        (times(beta, bb), 24, 4),
        (by_part(a, a, a, a), 5, 5),
        (by_part(a, a, ab), 10, 5),
        (by_part(ab, ab), 20, 5),
        (by_part(a, aa), 15, 5),
        (by_part(a, times(alpha, bb)), 30, 5),
        (times(beta, by_part(a, a, a)), 20, 5),
        (times(beta, by_part(a, ab)), 40, 5),
        (times(beta, ba), 60, 5),
        (times(beta, times(beta, bb)), 120, 5),
    ]
    return [row for row in table if row[2] <= order]


@pytest.mark.parametrize("name", ROSENBROCK)
def test_a_rosenbrock_method_meets_its_order_conditions(name):
    method = ROSENBROCK[name]
    alpha, beta, weights = classical(name)
    n = len(method.m)
    assert max(abs(float(sum(row)) - x) for row, x in zip(alpha, method.nodes)) < 2e-14
    gammas = [sum(x) - sum(y) for x, y in zip(beta, alpha)]
    assert max(abs(float(x) - y) for x, y in zip(gammas, method.by_time)) < 2e-14
    b = weights(method.m)
    embedded = [x - y for x, y in zip(b, weights(method.error))]
    embedded_order = 3 if name == "rosenbrock23" else method.error_order
    for solution, order in ((b, method.order), (embedded, embedded_order)):
        for vector, value, _ in conditions(alpha, beta, order):
            assert abs(float(dot(solution, vector) - Fraction(1, value))) < 2e-14
    last = [dot(b, by_part(vector)) - Fraction(1, value) for vector, value, _ in conditions(alpha, beta, 5)]
    assert n == 8 or max(map(abs, last)) > 0.01  # order 2 is not more
    for theta in (Fraction(1, 4), Fraction(2, 3)):
        bends = [weights(row) for row in method.dense]
        inner = [Fraction(0)] * n
        for row in reversed(bends):
            inner = [x + theta * y for x, y in zip(row, inner)]
        dense = [theta * (x + (1 - theta) * y) for x, y in zip(b, inner)]
        for vector, value, degree in conditions(alpha, beta, method.dense_order):
            assert abs(float(dot(dense, vector) - theta**degree / value)) < 2e-13


def kvaerno():
    a = padded(A, 7)
    for i in range(1, 7):
        a[i][i] = Fraction(GAMMA)
    return a


def test_kvaerno5_meets_its_order_conditions():
    a = kvaerno()
    assert max(abs(float(sum(row)) - node) for row, node in zip(a, NODES)) < 1e-15
    embedded = [Fraction(x) - Fraction(e) for x, e in zip(B, ERROR)]
    for weights, order in ((B, 5), (embedded, 4)):
        for vector, value, _ in conditions(a, a, order):
            assert abs(float(dot(map(Fraction, weights), vector) - Fraction(1, value))) < 1e-15
    # Every stage is of order 2, as stiff problems need.
    nodes = [sum(row) for row in a]
    assert max(abs(float(x - c * c / 2)) for x, c in zip(times(a, nodes), nodes)) < 1e-15
    for theta in (Fraction(1, 4), Fraction(2, 3), Fraction(1)):
        dense = [sum(Fraction(w) * theta ** (m + 1) for m, w in enumerate(row)) for row in DENSE]
        for vector, value, degree in conditions(a, a, 4):
            assert abs(float(dot(dense, vector) - theta**degree / value)) < 1e-14
    for i, row in enumerate(GUESS[1:], 1):
        assert sum(row) == pytest.approx(1, abs=1e-14)
        assert sum(x * c for x, c in zip(row, NODES)) == pytest.approx(NODES[i] if i > 1 else 0, abs=1e-13)


BOUNDED = [("rosenbrock23", math.inf), ("rodas5p", 1.0), ("kvaerno5", 0.75)]


@pytest.mark.parametrize(("name", "embedded"), BOUNDED)
def test_infinitely_stiff_components_vanish_in_one_step(name, embedded):
    # y' = lambda y over h = 1: the solution's |R(lambda)| goes to zero, the embedded one's stays bounded.
    stepper = Kvaerno5() if name == "kvaerno5" else Rosenbrock(name)
    rate = torch.tensor([1e4, 1e6, 1e8], dtype=DOUBLE)
    term = ODE(lambda t, y, rate: -rate[:, None] * y, (rate,))
    one = torch.ones(3, 1, dtype=DOUBLE)
    step = stepper.step(term, torch.zeros(3), torch.ones(3, dtype=DOUBLE), one, ())
    assert (step.y[:, 0] * rate).abs().max() < 30
    assert step.error is not None
    assert (step.y - step.error).abs().max() < embedded + 1e-3


# Orders.


def forced(t, y):
    """Not autonomous, not linear, not stiff."""
    a, b, c = y.unbind(-1)
    return torch.stack([b * c + torch.sin(t), -a * c + 0.3 * t * b, -0.51 * a * b + torch.cos(2 * t) * c], -1)


COUNTS = [("rosenbrock23", 2, 160), ("rodas5p", 5, 40), ("kvaerno5", 5, 40)]


@pytest.mark.parametrize(("name", "order", "coarsest"), COUNTS)
def test_a_stiff_method_has_its_order_and_its_interpolant_too(name, order, coarsest):
    y0 = torch.tensor([[0.3, 1.0, 0.8]], dtype=DOUBLE)
    inside = torch.linspace(0.371, 1.927, 23, dtype=DOUBLE)

    def run(stepper, controller, save):
        return solved(ODE(forced), y0, 0.0, 2.0, stepper=stepper, controller=controller, save=save)

    finest = run("dopri8", PID(1e-13, 1e-13), Save(inside, exact=True))
    ends, between = [], []
    for count in (coarsest, 2 * coarsest, 4 * coarsest):
        found = run(name, Constant(2 / count), Save(dense=True))
        ends.append(float((found.y - finest.y).abs().max()))
        between.append(float((found.dense(inside) - finest.saved).abs().max()))
    for coarse, fine in pairwise(ends):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.05)
    assert math.log2(between[0] / between[-1]) / 2 > order - 0.2


def test_the_manufactured_problem_of_prothero_and_robinson_at_every_stiffness():
    # y' = lambda (y - sin t) + cos t has the solution sin t, whatever lambda.
    rate = torch.tensor([-1e6, -1e4, -1e2, -1.0, 0.0, 1.0], dtype=DOUBLE)
    for dtype, tolerance in ((DOUBLE, 1e-8), (torch.float32, 1e-4)):

        def field(t, y, rate):
            return rate[:, None] * (y - torch.sin(t)[:, None]) + torch.cos(t)[:, None]

        term = ODE(field, (rate.to(dtype),))
        y0 = torch.zeros(len(rate), 1, dtype=dtype)
        for name in ("rodas5p", "kvaerno5", "auto"):
            found = solved(term, y0, 0.0, 3.0, stepper=name, controller=PID(tolerance, tolerance))
            assert (found.status == Status.DONE).all(), (name, dtype)
            # The error that lambda = 1 lets grow, by exp(3), is the largest.
            assert (found.y[:, 0] - math.sin(3.0)).abs().max() < 40 * tolerance, (name, dtype)
            assert found.stats.accepted.max() < 400


# The stiff set.


def error(problem, stepper, tolerance):
    """Of a solve, over its tolerance, in the worst component."""
    controller = PID(tolerance, tolerance * problem.atol)
    found = solved(
        ODE(problem.field), problem.start(), 0.0, problem.end, stepper=stepper, controller=controller
    )
    return over(problem, found.y[0].numpy(), tolerance)


def over(problem, y, tolerance):
    exact = problem.solution()
    return float((np.abs(y - exact) / (tolerance * (problem.atol + np.abs(exact)))).max())


@pytest.mark.parametrize("name", PROBLEMS)
def test_rodas5p_keeps_its_tolerance_on_the_stiff_set_and_so_beats_scipys_bdf(name):
    problem, tolerance = PROBLEMS[name], 1e-5
    ours = error(problem, "rodas5p", tolerance)
    theirs = over(problem, problem.scipy("BDF", tolerance, tolerance * problem.atol), tolerance)
    assert ours < 2
    assert ours < 3 * theirs


def test_kvaerno5_is_near_its_tolerance_where_scipys_bdf_is():
    for name, bound in (("brusselator", 3), ("hires", 4)):
        problem, tolerance = PROBLEMS[name], 1e-6
        method = Kvaerno5(rtol=tolerance, atol=tolerance * problem.atol)
        theirs = over(problem, problem.scipy("BDF", tolerance, tolerance * problem.atol), tolerance)
        assert error(problem, method, tolerance) < bound * theirs, name


@pytest.mark.parametrize(("stepper", "expected"), [("rodas5p", 1), ("kvaerno5", 1), ("rosenbrock23", 2 / 3)])
def test_errors_follow_the_tolerance(stepper, expected):
    # An error estimate of order q + 1 gives steps like tolerance^(1 / (q + 1)), a method of order p errors
    # like the p-th power of them.
    start, inside = torch.tensor([[1.5, 3.0]], dtype=DOUBLE), torch.linspace(1, 5, 9, dtype=DOUBLE)

    def run(name, tolerance):
        controller = PID(tolerance, tolerance)
        return solved(
            ODE(brusselator), start, 0.0, 5.0, stepper=name, controller=controller, save=Save(inside)
        ).saved

    exact = run("dopri8", 1e-12)
    tolerances = (1e-3, 1e-4, 1e-5) if stepper == "rosenbrock23" else (1e-6, 1e-7, 1e-8)
    logs = [math.log10((run(stepper, each) - exact).abs().max()) for each in tolerances]
    assert np.polyfit(np.log10(tolerances), logs, 1)[0] == pytest.approx(expected, abs=0.2)


# Rows.


def robertsons(n, dtype=DOUBLE):
    """Rate constants spread over a decade each, one row not a number, one whose end is a hundred times as
    far; the term, the start and the ends."""
    factor = 10 ** (torch.rand(3, n, dtype=DOUBLE, generator=seeded(0)) - 0.5)
    rates = tuple((factor * torch.tensor([[0.04], [3e7], [1e4]], dtype=DOUBLE)).to(dtype).unbind(0))
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype).repeat(n, 1)
    y0[2, 1] = float("nan")
    end = torch.full((n,), 40.0, dtype=DOUBLE)
    end[3] = 4000.0
    return ODE(robertson, rates), y0, end


@pytest.mark.parametrize("name", STIFF)
def test_a_row_has_the_same_bits_in_every_company(name):
    term, y0, end = robertsons(9)
    options = {"stepper": name, "controller": PID(1e-4, 1e-9), "save": Save(torch.tensor([1.0, 30.0]))}
    together = solved(term, y0, 0.0, end, **options)
    assert together.status.tolist() == [0, 0, int(Status.NOT_FINITE), 0, 0, 0, 0, 0, 0]
    assert together.y[2].isnan().all()
    for rows in ([0], [3], [8, 2, 0], [1, 1, 5, 7]):
        part = solved(
            ODE(robertson, tuple(each[rows] for each in term.args)), y0[rows], 0.0, end[rows], **options
        )
        assert torch.equal(part.y.nan_to_num(9), together.y[rows].nan_to_num(9))
        assert torch.equal(part.saved.nan_to_num(9), together.saved[rows].nan_to_num(9))
        assert torch.equal(part.stats.accepted, together.stats.accepted[rows])
        assert torch.equal(part.stats.evaluations, together.stats.evaluations[rows])
    good = [i for i in range(9) if i != 2]
    assert (together.y[good].sum(1) - 1).abs().max() < 2e-15  # mass


def test_systems_of_every_size_are_solved_with_a_rows_own_bits():
    for size in (1, 2, 3, 5, 8, 9, 17, 33):
        for dtype in (DOUBLE, torch.float32):
            matrix = torch.randn(40, size, size, dtype=dtype, generator=seeded(size))
            right = torch.randn(40, size, dtype=dtype, generator=seeded(size + 1))
            together = factorise(matrix).solve(right)
            for rows in ([0], [7, 3], list(range(39, 2, -3))):
                assert torch.equal(factorise(matrix[rows]).solve(right[rows]), together[rows]), (size, dtype)
            residual = torch.linalg.vecdot(matrix, together[:, None]) - right
            scale = matrix.abs().sum(2).amax(1) * together.abs().amax(1)
            assert (residual.abs().amax(1) / scale).max() < 30 * torch.finfo(dtype).eps


def test_a_singular_or_broken_matrix_is_said_to_be_so_and_gives_finite_numbers():
    matrix = torch.eye(3, dtype=DOUBLE).repeat(4, 1, 1)
    matrix[1, 2, 2] = 0
    matrix[2, 0, 1] = float("nan")
    matrix[3, 0, 0] = float("inf")
    factors = factorise(matrix)
    assert factors.singular.tolist() == [False, True, True, True]
    assert factors.solve(torch.ones(4, 3, dtype=DOUBLE)).isfinite().all()


# Failures.


@pytest.mark.parametrize("name", ["rosenbrock23", "rodas5p", "kvaerno5"])
def test_a_step_whose_matrix_is_singular_is_not_taken(name):
    gamma = GAMMA if name == "kvaerno5" else ROSENBROCK[name].gamma
    h = next(
        x for x in (1 / (gamma * k) for k in range(1, 50)) if 1 - (gamma * x) * round(1 / (gamma * x)) == 0
    )
    rate = torch.tensor([round(1 / (gamma * h)), 0.5], dtype=DOUBLE)
    term, one = ODE(lambda t, y, rate: rate[:, None] * y, (rate,)), torch.ones(2, 1, dtype=DOUBLE)
    fixed = solved(term, one, 0.0, h, stepper=name, controller=Constant(h))
    assert fixed.status.tolist() == [int(Status.NOT_SETTLED), int(Status.DONE)]
    assert fixed.y[0].isnan().all()
    adaptive = solved(term, one, 0.0, h, stepper=name, controller=PID(1e-6, 1e-6, first=h))
    assert (adaptive.y[:, 0] / (h * rate).exp() - 1).abs().max() < 1e-2


def test_a_stage_without_a_solution_ends_one_row_and_no_other():
    # y' = y^2 from 1 is infinite at 1: no stage of a step across it has a solution.
    start = torch.tensor([[1.0], [0.1]], dtype=DOUBLE)
    found = solved(ODE(lambda t, y: y * y), start, 0.0, 2.0, stepper="kvaerno5", controller=Constant(2.0))
    assert found.status.tolist() == [int(Status.NOT_SETTLED), int(Status.DONE)]
    for name in ("rodas5p", "kvaerno5"):
        found = solved(
            ODE(lambda t, y: y * y), start, 0.0, 2.0, stepper=name, controller=PID(1e-4, 1e-4), max_steps=100
        )
        assert found.status[0] > Status.EVENT
        assert found.t[0] == pytest.approx(1, abs=1e-2)
        assert found.y[1, 0] == pytest.approx(0.125, abs=1e-4)


# Derivatives.


def test_derivatives_of_a_field_by_state_and_time():
    t, y = torch.tensor([0.3, 0.7], dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE, generator=seeded(1))
    expected = torch.func.vmap(torch.func.jacrev(lambda t, y: forced(t[None], y[None])[0], argnums=(0, 1)))(
        t, y
    )
    given = ODE(forced, (), lambda t, y: expected[1])
    for term in (ODE(forced), given):
        with torch.no_grad():
            found = linearised(term, t, y)
        assert not found.by_state.requires_grad
        assert (found.by_state - expected[1]).abs().max() < 1e-14
        assert (found.by_time - expected[0]).abs().max() < 1e-14
        assert torch.equal(found.slope, forced(t, y))
    constant = linearised(ODE(lambda t, y: torch.ones_like(y)), t, y)
    assert not constant.by_state.any()
    assert not constant.by_time.any()
    with pytest.raises(ValueError, match="jacobian gives"):
        linearised(ODE(forced, (), lambda t, y: y), t, y)
    with pytest.raises(ValueError, match="keeps no graph"):
        linearised(ODE(lambda t, y: forced(t, y).detach()), t, y)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
        linearised(ODE(forced), t, y)
    # One whose slope is itself a gradient.
    pendulum = Hamiltonian(lambda y: y[:, 1] ** 2 / 2 - torch.cos(y[:, 0]))
    found = linearised(pendulum, t, y[:, :2])
    assert torch.allclose(found.by_state[:, 1, 0], -torch.cos(y[:, 0]), atol=1e-15)


def pulled(t, y, k):
    a, b = y.unbind(-1)
    return torch.stack([b + torch.sin(t), k * (1 - a * a) * b - a], -1)


@pytest.mark.parametrize("name", STIFF)
def test_gradients_are_those_of_the_steps_to_the_second_order(name):
    y0 = torch.tensor([[0.3, 1.0], [0.1, 0.2]], dtype=DOUBLE, requires_grad=True)
    k = torch.tensor([3.0, 8.0], dtype=DOUBLE, requires_grad=True)

    def end(y0, k, controller=None, stepper=name, **options):
        controller = controller or Constant(0.1)
        term = ODE(pulled, (k,))
        return solve(term, y0, 0.0, 0.2, stepper=stepper, controller=controller, **options).y

    assert torch.autograd.gradcheck(end, (y0, k))
    short = Constant(0.2)
    assert torch.autograd.gradgradcheck(lambda y0, k: end(y0, k, short, gradient=ThroughSteps()), (y0, k))
    tight = 1e-6 if name == "rosenbrock23" else 1e-8
    found = torch.autograd.grad(end(y0, k, PID(tight, tight)).sum(), (y0, k))
    exact = torch.autograd.grad(end(y0, k, PID(1e-12, 1e-12), "dopri8").sum(), (y0, k))
    for ours, theirs in zip(found, exact):
        assert (ours - theirs).abs().max() < (1e-3 if name == "rosenbrock23" else 1e-6)


def test_parameters_that_a_field_holds_get_gradients_and_others_cost_nothing():
    rate = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    one = torch.ones(1, 1, dtype=DOUBLE)
    for name in STIFF:
        options = {"stepper": name, "controller": PID(1e-6, 1e-6)}
        found = solve(ODE(lambda t, y: -rate * y), one, 0.0, 1.0, **options)
        (slope,) = torch.autograd.grad(found.y.sum(), rate)
        assert slope == pytest.approx(-math.exp(-2), abs=1e-3)
        assert not solve(ODE(lambda t, y: -2 * y), one, 0.0, 1.0, **options).y.requires_grad


# Switching.


def test_auto_is_explicit_where_it_may_be_and_implicit_where_it_must():
    stiffness = torch.tensor([1.0, 1e6], dtype=DOUBLE)
    y0, end = torch.tensor([[2.0, 0.0]] * 2, dtype=DOUBLE), torch.tensor([6.0, 0.7], dtype=DOUBLE)
    term, tolerance = ODE(van_der_pol, (stiffness,)), PID(1e-6, 1e-6)
    save = Save(torch.linspace(0, 0.6, 7, dtype=DOUBLE))
    auto, implicit, explicit = (
        solved(term, y0, 0.0, end, stepper=name, controller=tolerance, save=save, max_steps=1000)
        for name in ("auto", "rodas5p", "tsit5")
    )
    assert torch.equal(auto.y[0], explicit.y[0])  # the mild row is Tsit5's, to the bit
    assert auto.stats.evaluations[0] == explicit.stats.evaluations[0]
    assert explicit.status.tolist() == [0, int(Status.MAX_STEPS)]
    assert auto.status.tolist() == [0, 0]
    assert auto.stats.accepted[1] < 2 * implicit.stats.accepted[1] + 30
    assert (auto.y[1, 0] - implicit.y[1, 0]).abs() < 1e-5
    assert (auto.saved[1, :, 0] - implicit.saved[1, :, 0]).abs().max() < 1e-5


def test_auto_comes_back_when_a_row_is_stiff_no_more():
    # lambda falls from 1e4 to 1 at t = 1.
    def field(t, y):
        rate = torch.where(t < 1, 1e4, 1.0)
        return -rate[:, None] * (y - torch.sin(5 * t)[:, None])

    start = torch.ones(1, 1, dtype=DOUBLE)
    auto, implicit = (
        solved(ODE(field), start, 0.0, 40.0, stepper=name, controller=PID(1e-5, 1e-5))
        for name in ("auto", "rodas5p")
    )
    assert auto.stats.evaluations < 0.9 * implicit.stats.evaluations
    assert (auto.y - implicit.y).abs().max() < 1e-3


def test_auto_remembers_in_its_gradient_which_steps_were_implicit():
    scale = torch.tensor([1.0, 2.0], dtype=DOUBLE, requires_grad=True)

    def field(t, y, scale):
        return -3e3 * (y - (scale * torch.cos(t))[:, None])

    start = torch.zeros(2, 1, dtype=DOUBLE)
    found = solve(ODE(field, (scale,)), start, 0.0, 1.0, stepper="auto", controller=PID(1e-6, 1e-6))
    assert found.stats.accepted.max() < 100
    (slope,) = torch.autograd.grad(found.y.sum(), scale)
    assert (slope - math.cos(1.0)).abs().max() < 1e-3


def test_a_brusselator_is_never_stiff():
    start = torch.tensor([[1.5, 3.0]], dtype=DOUBLE)
    auto, explicit = (
        solved(ODE(brusselator), start, 0.0, 20.0, stepper=name, controller=PID(1e-6, 1e-6))
        for name in ("auto", "tsit5")
    )
    assert torch.equal(auto.y, explicit.y)


def test_float32_and_steps_backwards():
    term, y0, end = robertsons(4, torch.float32)
    found = solved(term, y0, 0.0, end, stepper="rodas5p", controller=PID(1e-3, 1e-7))
    assert found.y.dtype == torch.float32
    assert found.status.tolist() == [0, 0, int(Status.NOT_FINITE), 0]
    double = solved(*robertsons(4)[:2], 0.0, end, stepper="rodas5p", controller=PID(1e-8, 1e-12))
    assert (found.y - double.y)[[0, 1, 3]].abs().max() < 1e-3
    start = torch.tensor([[1.5, 3.0]], dtype=DOUBLE)
    for name in STIFF:
        options = {"stepper": name, "controller": PID(1e-5, 1e-5)}
        ahead = solved(ODE(brusselator), start, 0.0, 1.0, **options)
        back = solved(ODE(brusselator), ahead.y, 1.0, 0.0, **options)
        assert (back.y - start).abs().max() < 1e-3


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="no Rosenbrock method"):
        Rosenbrock("rodas6")
