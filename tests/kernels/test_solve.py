"""The loop: every row is solved as if it were alone, ends with a status, and keeps what was asked for."""

import math

import pytest
import torch

from worldsim_kernels import native
from worldsim_kernels.solve import ODE, PID, Constant, Save, SolveFailed, Status, solve
from worldsim_kernels.solve.control import LEVELS, level, norm, power
from worldsim_kernels.solve.sums import root

F64 = torch.float64


def lorenz(t, y):
    x, v, z = y.unbind(-1)
    return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z], -1)


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack([v, mu * (1 - x * x) * v - x], -1)


def kepler(t, y):
    q, p = y.chunk(2, -1)
    square = q[..., 0] * q[..., 0] + q[..., 1] * q[..., 1]
    return torch.cat([p, -q / (square * square.sqrt())[..., None]], -1)


def orbits(n):
    e = torch.linspace(0, 0.95, n, dtype=F64)
    zero = torch.zeros_like(e)
    return torch.stack([1 - e, zero, zero, ((1 + e) / (1 - e)).sqrt()], -1)


def rows(name, n=37):
    draws = torch.Generator().manual_seed(1)
    if name == "lorenz":
        return ODE(lorenz), 5 * torch.randn(n, 3, dtype=F64, generator=draws), 2.0
    if name == "van_der_pol":
        mu = 10 ** (1.5 * torch.rand(n, dtype=F64, generator=draws))
        return ODE(van_der_pol, (mu,)), torch.randn(n, 2, dtype=F64, generator=draws), 5.0
    return ODE(kepler), orbits(n), 5.0


def picked(term, index):
    return ODE(term.field, tuple(each[index] for each in term.args))


METHODS = ["heun", "bosh3", "dopri5", "tsit5", "dopri8"]
PROBLEMS = ["lorenz", "van_der_pol", "kepler"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_row_has_the_same_bits_in_every_company(problem, method):
    term, y0, end = rows(problem)
    tolerance = 1e-3 if method in ("heun", "bosh3") else 1e-6
    how = {"stepper": method, "controller": PID(tolerance, tolerance)}
    save = Save(times=torch.linspace(0, end, 7, dtype=F64))
    whole = solve(term, y0, 0.0, end, save=save, **how)
    assert (whole.status == Status.DONE).all()
    draws = torch.Generator().manual_seed(2)
    order = torch.randperm(len(y0), generator=draws)
    shuffled = solve(picked(term, order), y0[order], 0.0, end, save=save, **how)
    assert torch.equal(shuffled.y, whole.y[order])
    assert torch.equal(shuffled.saved, whole.saved[order])
    assert torch.equal(shuffled.stats.accepted, whole.stats.accepted[order])
    for part in (torch.tensor([5]), torch.arange(8, 13)):
        few = solve(picked(term, part), y0[part], 0.0, end, save=save, **how)
        assert torch.equal(few.saved, whole.saved[part])
        assert torch.equal(few.stats.evaluations, whole.stats.evaluations[part])


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_a_field_of_matmuls_keeps_a_rows_bits_in_a_batch_of_one_size_and_agrees_in_others(method):
    draws = torch.Generator().manual_seed(3)
    first, second = (0.5 * torch.randn(*shape, dtype=F64, generator=draws) for shape in ((3, 33), (33, 3)))
    term, y0 = (
        ODE(lambda t, y: torch.tanh(y @ first) @ second - y),
        torch.randn(16, 3, dtype=F64, generator=draws),
    )
    options = {"stepper": method, "controller": PID(1e-5, 1e-5)}
    whole = solve(term, y0, 0.0, 1.0, compact=False, **options)
    rows = torch.arange(16) != 7
    hurt = y0.clone()
    hurt[7] = math.nan
    beside = solve(term, hurt, 0.0, 1.0, compact=False, **options)
    assert torch.equal(beside.y[rows], whole.y[rows])
    for few in (slice(0, 1), slice(4, 9)):
        part = solve(term, y0[few], 0.0, 1.0, **options)
        assert torch.allclose(part.y, whole.y[few], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_repeated_solves_have_the_same_bits_on_one_thread_and_on_two(method):
    """With enough rows that torch shares them out."""
    term, y0, _ = rows("lorenz", 15_000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            found.append(solve(term, y0, 0.0, 0.001, stepper=method, controller=Constant(0.001)))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        assert torch.equal(each.check().y, found[0].y)
        assert torch.equal(each.stats.evaluations, found[0].stats.evaluations)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_a_row_that_blows_up_changes_no_bit_of_its_neighbours(bad, compact):
    term, y0, end = rows("lorenz")
    good = solve(term, y0, 0.0, end)
    hurt = y0.clone()
    hurt[3] = bad
    found = solve(term, hurt, 0.0, end, compact=compact)
    others = torch.arange(len(y0)) != 3
    assert torch.equal(found.y[others], good.y[others])
    assert torch.equal(found.stats.evaluations[others], good.stats.evaluations[others])
    assert found.status[3] == Status.NOT_FINITE
    assert found.y[3].isnan().all()
    assert found.failed.sum() == 1
    with pytest.raises(SolveFailed, match=r"1 of 37 rows ended with NOT_FINITE \(row 3;.*check its start"):
        found.check()


def test_a_singularity_ends_in_a_status_and_leaves_nan_at_later_times():
    y0 = torch.tensor([[1.0], [0.1]], dtype=F64)
    times = torch.tensor([0.5, 0.9, 1.5], dtype=F64)
    found = solve(ODE(lambda t, y: y * y), y0, 0.0, 2.0, save=Save(times=times))
    assert found.status.tolist() == [Status.STEP_TOO_SMALL, Status.DONE]
    assert found.t[0].item() == pytest.approx(1.0, abs=1e-4)  # y = 1 / (1 - t)
    assert found.saved[0, :2, 0].tolist() == pytest.approx([2.0, 10.0], rel=1e-4)
    assert found.saved[0, 2].isnan().all()
    assert found.saved[1].isfinite().all()


def test_a_field_that_becomes_nan_is_told_apart_from_one_that_is_singular():
    found = solve(
        ODE(lambda t, y: torch.where(y < 2, y, float("nan"))), torch.ones(1, 1, dtype=F64), 0.0, 3.0
    )
    assert found.status.tolist() == [Status.NOT_FINITE]
    assert found.t.item() == pytest.approx(math.log(2), abs=1e-3)


def test_steps_are_limited():
    found = solve(*rows("lorenz")[:2], 0.0, 100.0, max_steps=50)
    assert (found.status == Status.MAX_STEPS).all()
    assert (found.stats.accepted + found.stats.rejected == 50).all()
    assert "raise max_steps" in found.complaint()


def test_each_row_has_its_own_times_and_tolerances_in_both_directions():
    term = ODE(lambda t, y: -y)
    y0 = torch.ones(3, 1, dtype=F64)
    t0, t1 = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, -1.0, 2.0])
    rtol = torch.tensor([1e-3, 1e-9, 1e-6], dtype=F64)
    found = solve(term, y0, t0, t1, controller=PID(rtol=rtol, atol=1e-12))
    errors = (found.y[:, 0] / torch.exp(-(t1 - t0).double()) - 1).abs()
    assert found.t.tolist() == t1.tolist()
    assert errors[1] < 1e-7 < errors[0] < 1e-2
    assert errors[2] == 0
    assert found.stats.accepted[2] == 0


def test_ragged_saves_and_dense_output_agree():
    term, y0, _ = rows("lorenz", 3)
    nan = math.nan
    times = torch.tensor([[0.0, 0.3, 1.0], [0.5, nan, nan], [0.2, 0.2, 0.9]], dtype=F64)
    t1 = torch.tensor([1.0, 2.0, 0.9], dtype=F64)
    found = solve(term, y0, 0.0, t1, save=Save(times=times, dense=True, steps=True))
    assert torch.equal(found.saved[0, 0], y0[0])
    assert torch.equal(found.saved[0, 2], found.y[0])
    assert found.saved[1, 1:].isnan().all()
    assert torch.equal(found.saved[2, 0], found.saved[2, 1])
    looked = found.dense(times.nan_to_num(0.5))
    assert torch.allclose(looked[0], found.saved[0], rtol=1e-14, atol=1e-13)
    assert torch.allclose(looked[1, 1], found.saved[1, 0], rtol=1e-14, atol=1e-13)
    assert found.dense(torch.tensor([1.5], dtype=F64))[[0, 2]].isnan().all()
    steps = found.steps
    assert steps.count.tolist() == found.stats.accepted.tolist()
    for row, count in enumerate(steps.count.tolist()):
        assert (steps.t[row, : count + 1].diff() > 0).all()
        assert torch.equal(steps.y[row, count], found.y[row])
        assert (steps.t[row, count:] == t1[row]).all()


@pytest.mark.parametrize("method", [*METHODS, "rodas5p", "kvaerno5", "auto"])
@pytest.mark.parametrize("n", [0, 2])
def test_rows_of_no_length_and_no_rows_at_all(method, n):
    y0 = torch.ones(n, 2, 3, dtype=F64)
    times = torch.tensor([1.0, 1.0], dtype=F64)
    save = Save(times=times, steps=True, dense=True)
    found = solve(ODE(lambda t, y: -y), y0, 1.0, 1.0, stepper=method, save=save)
    assert found.status.tolist() == [Status.DONE] * n
    assert found.steps.count.tolist() == [0] * n
    for at in (found.saved, found.dense(times)):
        assert torch.equal(at, y0.unsqueeze(1).expand(n, 2, 2, 3))
    assert found.dense(times + 1).isnan().all()
    assert found.dense(times + 1).shape == (n, 2, 2, 3)


@pytest.mark.parametrize("method", [*METHODS, "rodas5p", "kvaerno5", "auto"])
def test_intervals_of_one_rounding(method):
    for t0, t1 in ((0.0, 5e-324), (1.0, math.nextafter(1, 0)), (1e6, math.nextafter(1e6, 2e6))):
        ends = torch.tensor([t0, t1], dtype=F64)
        term, y0, _ = rows("lorenz", 2)
        found = solve(term, y0, t0, t1, stepper=method, save=Save(times=ends, dense=True))
        assert found.status.tolist() == [Status.DONE] * 2
        for at in (found.saved, found.dense(ends)):
            torch.testing.assert_close(at, torch.stack([y0, found.y], 1), rtol=0, atol=0)


@pytest.mark.parametrize("controller", [PID(1e-8, 1e-8), Constant(0.03)])
def test_exact_saves_end_steps(controller):
    term, y0, _ = rows("lorenz", 4)
    times = torch.tensor([0.1, 0.25, 0.7], dtype=F64)
    found = solve(term, y0, 0.0, 1.0, controller=controller, save=Save(times=times, exact=True, steps=True))
    for row in range(4):
        for i, time in enumerate(times):
            (at,) = (found.steps.t[row] == time).nonzero()[:1, 0]
            assert torch.equal(found.steps.y[row, at], found.saved[row, i])


def test_constant_steps_are_alike_and_no_longer_than_asked():
    found = solve(
        ODE(lambda t, y: -y), torch.ones(2, 1, dtype=F64), 0.0, torch.tensor([1.0, 0.3], dtype=F64),
        stepper="dopri5", controller=Constant(torch.tensor([0.3, 0.1], dtype=F64)), save=Save(steps=True),
    )  # fmt: skip
    assert found.stats.accepted.tolist() == [4, 3]
    assert found.steps.t[0].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("step", [1e-20, 1e-320])
def test_constant_steps_too_short_to_count_are_not_one_long_one(step, backend):
    if backend == "native" and native.compiler() is None:
        pytest.skip("NOT RUN: no C compiler")
    found = solve(
        ODE(lambda t, y: -y), torch.ones(2, 1, dtype=F64), 0.0, 1.0,
        stepper="rk4", controller=Constant(step), max_steps=20, backend=backend,
    )  # fmt: skip
    assert (found.status == Status.MAX_STEPS).all()


def test_states_of_any_shape_and_float32():
    def field(t, y):
        return -y * t.reshape(-1, 1, 1)

    found = solve(ODE(field), torch.ones(5, 2, 3), 0.0, 1.0, controller=PID(1e-4, 1e-5))
    assert found.y.dtype == torch.float32
    assert torch.allclose(found.y, torch.full((5, 2, 3), math.exp(-0.5)), atol=1e-4)


def test_no_rows_and_no_time():
    at = torch.tensor([0.5], dtype=F64)
    none = solve(ODE(lorenz), torch.zeros(0, 3, dtype=F64), 0.0, 1.0, save=Save(times=at, dense=True))
    assert none.y.shape == (0, 3)
    assert none.dense(at).shape == (0, 1, 3)
    still = solve(ODE(lorenz), torch.ones(2, 3, dtype=F64), 0.5, 0.5, save=Save(times=at, dense=True))
    assert (still.saved == 1).all()
    assert (still.dense(at) == 1).all()
    assert still.dense(at + 1).isnan().all()
    assert (still.status == Status.DONE).all()


def grown(field, y0, t0=0.0, t1=1.0, **rest):
    return lambda: solve(ODE(field), y0, t0, t1, **rest)


def saved(times):
    return Save(times=torch.tensor(times, dtype=F64))


ONE = torch.ones(2, 1, dtype=F64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PID(rtol=-1e-6), "rtol must be finite and not negative, it is -1e-06"),
        (lambda: PID(rtol=0.0, atol=0.0), "both 0"),
        (lambda: PID(atol=math.nan), "atol must be finite"),
        (lambda: PID(first=0.0), "first must be positive"),
        (lambda: PID(first=torch.tensor([0.1, -0.1])), "first must be positive"),
        (lambda: PID(largest=0.0), "0 < largest"),
        (lambda: PID(integral=math.nan), "must be finite"),
        (grown(lorenz, torch.ones(3)), r"y0 must be a floating-point tensor \[row, \*state\]"),
        (grown(lorenz, torch.ones(3, 2, dtype=torch.int64)), "y0 must be a floating-point"),
        (grown(lorenz, torch.ones(3, 2, dtype=torch.float16)), "float32 or float64, not .* torch.float16"),
        (grown(lorenz, torch.ones(3, 2, dtype=torch.bfloat16)), "float32 or float64, not .* torch.bfloat16"),
        (grown(lorenz, torch.ones(3, 2, dtype=torch.complex128)), "float32 or float64, not .*complex128"),
        (grown(lorenz, torch.ones(3, 0)), r"with components, not \[3, 0\]"),
        (grown(lambda t, y: 1j * y, ONE), "the field gives complex numbers for a state of torch.float64"),
        (grown(lambda t, y: y[:, :0], ONE), r"the field gives \[., 0\] for a state \[., 1\]"),
        (grown(lorenz, ONE, t1=math.inf), "t1 must be finite"),
        (grown(lorenz, ONE, t0=torch.zeros(3)), r"t0 must be a number or \[row=2\], its shape is \[3\]"),
        (grown(lorenz, ONE, stepper="dorpi5"), "there is no stepper 'dorpi5'; there are .*dopri5"),
        (grown(lorenz, ONE, backend="cuda"), "there is no backend 'cuda'; there are torch"),
        (grown(lorenz, ONE, max_steps=0), "max_steps must be at least 1"),
        (grown(lorenz, ONE, controller=Constant(-0.1)), "step must be positive"),
        (grown(lorenz, ONE, save=saved([0.5, 0.2])), "must be monotone from t0 to t1: row 0"),
        (grown(lorenz, ONE, save=saved([0.5, 2.0])), "must lie between t0 and t1"),
        (grown(lorenz, ONE, save=saved([[0.0]] * 3)), r"save.times must be \[time\] or \[row=2, time\]"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_row_data_must_have_rows():
    with pytest.raises(ValueError, match=r"args\[0\] must be a tensor \[row=2, ...\], not \[3\]"):
        solve(ODE(van_der_pol, (torch.ones(3),)), torch.ones(2, 2), 0.0, 1.0)


def test_the_grid_of_powers():
    draws = torch.Generator().manual_seed(0)
    ratio = torch.exp(40 * (torch.rand(100_000, dtype=F64, generator=draws) - 0.5))
    found = level(ratio)
    assert ((power(found) <= ratio) & (ratio < power(found + 1))).all()
    assert torch.allclose(power(found + 0.9), 2 ** (found / LEVELS), rtol=1e-15)
    exact = 2.0 ** torch.arange(-30, 30, dtype=F64)
    assert torch.equal(level(exact), torch.arange(-30, 30).double() * LEVELS)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 101])
def test_norms_do_not_depend_on_the_rows(width):
    draws = torch.Generator().manual_seed(0)
    value = torch.randn(33, width, dtype=F64, generator=draws)
    whole = norm(value)
    assert torch.allclose(whole, value.square().mean(1).sqrt(), rtol=1e-14)
    assert all(torch.equal(norm(value[i : i + 1])[0], whole[i]) for i in range(33))


def test_roots_are_correctly_rounded():
    draws = torch.Generator().manual_seed(0)
    x = torch.exp(600 * (torch.rand(20_000, dtype=F64, generator=draws) - 0.5))
    exact = torch.tensor([math.sqrt(each) for each in x.tolist()], dtype=F64)
    assert torch.equal(root(x), exact)
    edges = torch.tensor([0.0, 4.0, 1e-300, 1e300, math.inf], dtype=F64)
    assert torch.equal(
        root(edges), torch.tensor([0.0, 2.0, math.sqrt(1e-300), math.sqrt(1e300), math.inf], dtype=F64)
    )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_slope_whose_norm_overflows_ends_at_once(backend):
    if backend == "native" and native.compiler() is None:
        pytest.skip("NOT RUN: no C compiler")
    found = solve(ODE(lambda t, y: y * y), torch.full((2, 1), 1e100, dtype=F64), 0.0, 1.0, backend=backend)
    assert found.failed.all()
    assert (found.stats.rejected + found.stats.accepted < 1000).all()
