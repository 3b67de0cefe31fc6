"""Solves in C: the bits of the loop in torch, whatever the rows beside, and what is refused."""

import math

import pytest
import torch

from worldsim_kernels import native
from worldsim_kernels.solve import ODE, PID, Constant, Hamiltonian, Save, Status, solve
from worldsim_kernels.solve.traced import traced

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="NOT RUN: no C compiler")
D = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lorenz(t, y):
    x, v, z = y.unbind(-1)
    return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z], -1)


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack([v, mu * (1 - x * x) * v - x], -1)


def attraction(root):
    """A pull of 1 / r^3 towards the centre, with this square root."""

    def field(t, y):
        q, p = y.chunk(2, -1)
        square = (q * q)[..., :1] + (q * q)[..., 1:]
        return torch.cat([p, -q / (square * root(square))], -1)

    return field


def van_der_pols(n, dtype=D):
    mu = 10 ** (1.5 * torch.rand(n, generator=generator(), dtype=D))
    y = torch.randn(n, 2, generator=generator(1), dtype=D)
    return ODE(van_der_pol, (mu.to(dtype),)), y.to(dtype)


def ragged(n, until):
    times = torch.rand(n, 7, generator=generator(2), dtype=D).sort(1).values * until
    times[1, 4:], times[2], times[3, 0], times[4, -1] = math.nan, math.nan, 0.0, until
    times[5, 3] = times[5, 2]
    return times


def fields_of(solution):
    """Everything a solution says, NaN as a number."""
    found = {
        **{name: getattr(solution, name) for name in ("t", "y", "status", "saved")},
        **vars(solution.stats),
        **({} if solution.steps is None else {f"steps.{k}": v for k, v in vars(solution.steps).items()}),
    }
    if solution.dense is not None:
        found["dense"] = solution.dense(torch.linspace(-0.2, 2.4, 14, dtype=D))
    return {name: value.nan_to_num(7e7) for name, value in found.items() if value is not None}


def assert_same_bits(one, other):
    one, other = fields_of(one), fields_of(other)
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ


def both(term, y, t0, t1, **options):
    reference = solve(term, y, t0, t1, **options)
    found = solve(term, y, t0, t1, backend="native", **options)
    assert found.backend == "native"
    assert_same_bits(found, reference)
    return found


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
@pytest.mark.parametrize("method", ["heun", "bosh3", "dopri5", "tsit5", "dopri8"])
def test_the_bits_are_those_of_the_loop_in_torch(method, dtype):
    term, y = van_der_pols(21, dtype)
    y[11], y[12, 0] = math.nan, 1e200 if dtype == D else 1e30
    tolerance = 1e-5 if dtype == D and method != "heun" else 1e-3
    options = {"stepper": method, "controller": PID(rtol=tolerance, atol=tolerance), "max_steps": 500}
    for save in (
        Save(times=ragged(21, 2.0), steps=True, dense=True),
        Save(times=ragged(21, 2.0), exact=True),
    ):
        found = both(term, y, 0.0, 2.0, save=save, **options)
    assert found.status[11] == Status.NOT_FINITE
    assert (found.status == Status.DONE).sum() > 15


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_constant_steps_have_the_same_bits(method):
    term, y = van_der_pols(13)
    step = 0.01 + 0.02 * torch.rand(13, generator=generator(5), dtype=D)
    both(term, y, 0.0, 2.0, stepper=method, controller=Constant(0.02), save=Save(times=ragged(13, 2.0)))
    both(term, y, 0.0, 2.0, stepper=method, controller=Constant(step), save=Save(steps=True, dense=True))


CONTROLS = {
    "tolerances of rows": PID(rtol=torch.logspace(-8, -3, 13, dtype=D), atol=1e-8),
    "three terms": PID(integral=0.7, proportional=0.4, derivative=0.05),
    "first": PID(first=0.01, largest=0.05),
    "bounds": PID(smallest=2e-2, shrink=0.5, grow=2.0, safety=0.8),
    "absolute": PID(rtol=0.0, atol=1e-5),
}


@pytest.mark.parametrize("case", CONTROLS)
def test_step_control_has_the_same_bits_forwards_and_backwards(case):
    term, y = van_der_pols(13)
    t0, t1 = torch.randn(2, 13, generator=generator(3), dtype=D)
    t1[5] = t0[5]
    for most in (15, 500):
        found = both(term, y, t0, t1, stepper="tsit5", controller=CONTROLS[case], max_steps=most)
        assert (found.status == Status.MAX_STEPS).any() == (most == 15)


def test_a_solution_that_ends_says_so_and_where():
    y = torch.tensor([[0.5], [1.0], [-1.0]], dtype=D)
    found = both(ODE(lambda t, y: y * y), y, 0.0, 1.5, stepper="dopri5")
    assert found.status.tolist() == [Status.DONE, Status.STEP_TOO_SMALL, Status.DONE]
    assert abs(found.t[1] - 1) < 1e-6
    assert torch.allclose(found.y[0], torch.tensor([2.0], dtype=D), rtol=1e-4)
    assert found.y[1].isnan().all()


def test_a_row_does_not_depend_on_its_companions():
    y = 5 * torch.randn(29, 3, generator=generator(), dtype=D)
    options = {"stepper": "dopri5", "backend": "native"}
    whole = solve(ODE(lorenz), y, 0.0, 3.0, **options)
    order = torch.randperm(29, generator=generator(1))
    assert torch.equal(solve(ODE(lorenz), y[order], 0.0, 3.0, **options).y, whole.y[order])
    assert torch.equal(solve(ODE(lorenz), y[7:8], 0.0, 3.0, **options).y, whole.y[7:8])
    y[3] = math.nan
    beside = solve(ODE(lorenz), y, 0.0, 3.0, **options)
    others = torch.arange(29) != 3
    assert torch.equal(beside.y[others], whole.y[others])
    assert beside.status[3] == Status.NOT_FINITE


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    term, y = van_der_pols(50)
    one = solve(term, y, 0.0, 2.0, stepper="dopri5", backend="native")
    monkeypatch.setattr(native, "threads", lambda work: 3)
    assert_same_bits(solve(term, y, 0.0, 2.0, stepper="dopri5", backend="native"), one)


def exact_root(x):
    """Correctly rounded, which torch's own root is not everywhere."""
    return torch.tensor([math.sqrt(each) for each in x.flatten().tolist()], dtype=D).reshape(x.shape)


def test_roots_are_rounded_correctly():
    eccentricity = 0.9 * torch.rand(9, generator=generator(), dtype=D)
    start = [1 - eccentricity, 0 * eccentricity, 0 * eccentricity]
    y = torch.stack([*start, ((1 + eccentricity) / (1 - eccentricity)).sqrt()], -1)
    reference = solve(ODE(attraction(exact_root)), y, 0.0, 3.0, stepper="dopri5")
    found = solve(ODE(attraction(torch.sqrt)), y, 0.0, 3.0, stepper="dopri5", backend="native")
    assert_same_bits(found, reference)


FUNCTIONS = (
    *("exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sqrt", "floor", "ceil", "trunc", "round"),
)


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_functions_are_the_right_ones_to_a_few_units_in_the_last_place(dtype):
    def field(t, y, *args):
        values = [getattr(torch, name)(y[:, 0]) for name in FUNCTIONS]
        values += [torch.atan2(y[:, 0], y[:, 1]), torch.hypot(y[:, 0], y[:, 1]), torch.fmod(y[:, 0], y[:, 1])]
        values += [y[:, 1].abs() ** y[:, 0], torch.maximum(y[:, 0], y[:, 1]), torch.minimum(y[:, 0], y[:, 1])]
        return torch.stack([y[:, 0], y[:, 1], *values], -1)[:, : y.shape[1]]

    from worldsim_kernels.solve.native_solve import evaluated
    from worldsim_kernels.solve.printed import source
    from worldsim_kernels.solve.tableaus import TABLEAUS

    count = 2 + len(FUNCTIONS) + 6
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e30, -1e30, 1e-30, 88.0])
    first = torch.cat([special.double(), 3 * torch.randn(400, generator=generator(), dtype=D)])
    second = torch.randn(len(first), generator=generator(1), dtype=D)
    y = torch.cat([first[:, None], second[:, None], torch.zeros(len(first), count - 2)], 1).to(dtype)
    t = torch.zeros(len(y), dtype=D)
    program = traced(ODE(field), t, t, y)
    library = native.generated(
        "ode", source(program.program, TABLEAUS["euler"], False), ("-ffp-contract=off",)
    )
    found = evaluated(library, t, y, program.arguments, program.data).double()
    expected = field(t, y.double())
    unit = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
    in_range = expected.abs() < torch.finfo(dtype).max
    wrong = in_range & ~((found - expected).abs() <= 4 * unit)
    wrong |= expected.isnan() != found.isnan()
    assert not wrong.any(), wrong.nonzero()[:5]
    alone = torch.cat(
        [evaluated(library, t[:1], y[i : i + 1], program.arguments, program.data) for i in range(40)]
    )
    assert torch.equal(alone.double().nan_to_num(7.0), found[:40].nan_to_num(7.0))


def test_a_parameter_that_changed_is_read_anew():
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=D))
    held = {"shift": 1.0}
    term, y = ODE(lambda t, y: -weight * (y - held["shift"])), torch.ones(3, 2, dtype=D) * 3
    for change in (lambda: None, lambda: weight.data.fill_(2.0), lambda: held.update(shift=-1.0)):
        change()
        found = solve(term, y, 0.0, 1.0, stepper="dopri5", backend="native")
        exact = held["shift"] + (3 - held["shift"]) * math.exp(-weight.item())
        assert torch.allclose(found.y, torch.full_like(y, exact), atol=1e-5)


def test_a_network_and_an_energy():
    net = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)).double()
    energy = Hamiltonian(lambda y: y[..., 1] ** 2 / 2 - y[..., 0].cos())
    y = torch.randn(9, 2, generator=generator(), dtype=D)
    for term in (ODE(lambda t, y: net(y)), energy):
        with torch.no_grad():
            wanted = solve(term, y, 0.0, 2.0, stepper="dopri5")
            found = solve(term, y, 0.0, 2.0, stepper="dopri5", backend="native")
        torch.testing.assert_close(found.y, wanted.y, rtol=1e-9, atol=1e-9)


def test_a_wide_state():
    def burgers(t, y):
        left, right = torch.roll(y, 1, -1), torch.roll(y, -1, -1)
        return 50 * (left - 2 * y + right) - y * (right - left)

    y = torch.randn(5, 65, generator=generator(), dtype=D)
    both(ODE(burgers), y, 0.0, 0.05, stepper="dopri5", save=Save(steps=True))


def test_what_it_refuses():
    term, y = van_der_pols(3)
    with pytest.raises(ValueError, match="explicit Runge-Kutta"):
        solve(term, y, 0.0, 1.0, stepper="rosenbrock23", backend="native")
    with pytest.raises(ValueError, match="control flow"):
        solve(ODE(lambda t, y: y * y.sum().item()), y, 0.0, 1.0, stepper="dopri5", backend="native")
    with pytest.raises(ValueError, match="no rows"):
        solve(ODE(lambda t, y: y), y[:0], 0.0, 1.0, stepper="dopri5", backend="native")
    with pytest.raises(ValueError, match="float16"):
        solve(ODE(lambda t, y: y), y.half(), 0.0, 1.0, stepper="dopri5", backend="native")


def test_gradients_come_from_the_steps():
    term, y = van_der_pols(4)
    grads = []
    for backend in ("torch", "native"):
        start, mu = y.clone().requires_grad_(), term.args[0].clone().requires_grad_()
        found = solve(ODE(van_der_pol, (mu,)), start, 0.0, 1.0, stepper="dopri5", backend=backend)
        grads.append(torch.autograd.grad(found.y.sum(), (start, mu)))
    assert all(torch.equal(one, other) for one, other in zip(*grads))
