"""Steps of stochastic equations as C: the bits of the loop in torch, and what is refused."""

import math

import pytest
import torch

from worldsim_kernels.native import why_not
from worldsim_kernels.solve import SDE, Brownian, Constant, Save, Status, solve
from worldsim_kernels.solve.gradients import Reversible
from worldsim_kernels.solve.sde import SCHEMES, as_ito, as_stratonovich

pytestmark = pytest.mark.skipif(why_not("brownian") is not None, reason=f"{why_not('brownian')}")
F64, ROWS = torch.float64, 19

KINDS = {
    "diagonal": lambda t, y, a: a * y / (1 + y * y) + 0.1 * t[:, None],
    "additive": lambda t, y, a: 0.3 * a + 0.1 * t[:, None] + 0 * y,
    "scalar": lambda t, y, a: torch.stack([a[:, 0] * y[:, 1], 0.5 * y[:, 0], 0.2 + 0 * y[:, 2]], 1),
    "general": lambda t, y, a: torch.stack([0.3 * y.roll(1, 1), a + 0 * y], 2),
}
MOTIONS = {"diagonal": 3, "additive": 3, "scalar": 1, "general": 2}


def equation(kind, dtype, calculus):
    args = (0.4 + 0.02 * torch.arange(ROWS, dtype=dtype)[:, None] + torch.zeros(3, dtype=dtype),)
    return SDE(lambda t, y, a: 0.5 * y - y * y * y + t[:, None], KINDS[kind], args, kind, calculus)


def both(term, y, **options):
    found = [solve(term, y, 0.0, 1.0, backend=each, **options) for each in ("torch", "native")]
    assert [each.backend for each in found] == ["torch", "native"]
    assert torch.equal(found[0].y.nan_to_num(7e7), found[1].y.nan_to_num(7e7))
    for of in (lambda s: s.status, lambda s: s.t, lambda s: s.stats.accepted, lambda s: s.stats.evaluations):
        assert torch.equal(of(found[0]), of(found[1]))
    for of in (lambda s: s.saved, lambda s: s.steps and s.steps.y, lambda s: s.steps and s.steps.t):
        one, other = (of(each) for each in found)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))
    return found[1]


CASES = [(n, k, F64) for n, scheme in SCHEMES.items() for k in KINDS if k in scheme.noises]
CASES += [
    (n, "diagonal" if "diagonal" in each.noises else "additive", torch.float32) for n, each in SCHEMES.items()
]


@pytest.mark.parametrize(("name", "kind", "dtype"), CASES, ids=str)
def test_the_bits_are_those_of_the_loop_in_torch(name, kind, dtype):
    scheme = SCHEMES[name]
    term = equation(kind, dtype, scheme.calculus[-1])
    y = torch.linspace(-1, 2, ROWS * 3, dtype=dtype).reshape(ROWS, 3)
    save = Save(times=torch.tensor([0.0, 0.3, 0.7]), steps=True)
    rows = 2**40 + 3 * torch.arange(ROWS)
    for cell in (None, 0.125):
        noise = Brownian(2**63 + 5, rows, MOTIONS[kind], cell)
        for step in (0.03, torch.linspace(0.02, 0.2, ROWS)):
            both(term, y, stepper=name, controller=Constant(step), noise=noise, save=save)


def test_derivatives_and_conversions_of_calculus_are_part_of_the_step():
    noise, step = Brownian(1, torch.arange(ROWS), 3), Constant(0.05)
    y = torch.linspace(0.1, 2, ROWS * 3, dtype=F64).reshape(ROWS, 3)
    for name, change in (("euler_maruyama", as_ito), ("stochastic_heun", as_stratonovich)):
        other = "stratonovich" if change is as_ito else "ito"
        options = {"stepper": name, "controller": step, "noise": noise}
        found = both(change(equation("diagonal", F64, other)), y, **options)
        with torch.no_grad():  # a conversion looks at its noise once, which is not to be traced
            fresh = change(equation("diagonal", F64, other))
            assert torch.equal(solve(fresh, y, 0.0, 1.0, backend="native", **options).y, found.y)


def test_functions_of_the_c_library_are_close():
    term = SDE(lambda t, y: y.sin() - y.tanh(), lambda t, y: 0.5 * torch.exp(-y * y))
    noise, y = Brownian(1, torch.arange(200)), torch.linspace(-2, 2, 200, dtype=F64)[:, None]
    options = {"stepper": "milstein", "controller": Constant(1 / 64), "noise": noise}
    one, other = (solve(term, y, 0.0, 1.0, backend=each, **options).y for each in ("torch", "native"))
    assert (one - other).abs().max() < 1e-13


def test_a_row_that_blows_up_says_when_and_harms_no_other():
    term = SDE(lambda t, y: y * y * y, lambda t, y: 0.1 * y)
    y = torch.linspace(0.1, 3, 40, dtype=F64)[:, None]
    y[7] = math.nan
    options = {"stepper": "euler_maruyama", "controller": Constant(1 / 512), "save": Save(steps=True)}
    found = both(term, y, noise=Brownian(3, torch.arange(40)), **options)
    fine = found.status == Status.DONE
    assert 5 < int(fine.sum()) < 35
    assert found.y[~fine].isnan().all()
    assert (found.t[~fine] < 1).all()


def test_threads_do_not_change_the_bits():
    term = SDE(lambda t, y: -y, lambda t, y: 0.5 * y)
    y, noise = torch.ones(3000, 2, dtype=F64), Brownian(3, torch.arange(3000), 2)
    options = {"stepper": "euler_maruyama", "controller": Constant(1 / 256), "noise": noise}
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ends.append(solve(term, y, 0.0, 1.0, backend="native", **options).y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*ends)


TORN = SDE(lambda t, y: y if bool((y > 0).all()) else -y, lambda t, y: y)
DRAWING = SDE(lambda t, y: torch.randn_like(y), lambda t, y: y)
BAD = {
    "a gradient by the start": ({}, lambda y: y.requires_grad_(), "gradient"),
    "going back": ({"stepper": "reversible_heun", "gradient": Reversible()}, lambda y: y, "torch alone"),
    "another backend": ({"backend": "triton"}, lambda y: y, "torch and native, not on 'triton'"),
    "control flow": ({"term": TORN}, lambda y: y, "control flow"),
    "random numbers": ({"term": DRAWING}, lambda y: y, "random"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_refused_with_the_reason(case):
    changed, start, says = BAD[case]
    given = {"term": SDE(lambda t, y: -y, lambda t, y: 0.5 * y, calculus="ito"), "backend": "native"}
    given |= {"stepper": "euler_maruyama", **changed}
    if given["stepper"] == "reversible_heun":
        given["term"] = as_stratonovich(given["term"])
    term, y = given.pop("term"), start(torch.ones(4, 2, dtype=F64))
    with pytest.raises(ValueError, match=says):
        solve(term, y, 0.0, 1.0, controller=Constant(0.1), noise=Brownian(0, torch.arange(4), 2), **given)


def test_parameters_that_ask_for_a_gradient_are_refused_unless_none_is_recorded():
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    term = SDE(lambda t, y: -weight * y, lambda t, y: 0.1 * y)
    y, given = torch.ones(4, 2, dtype=F64), {"stepper": "euler_maruyama", "controller": Constant(0.1)}
    given["noise"] = Brownian(0, torch.arange(4), 2)
    with pytest.raises(ValueError, match="gradient"):
        solve(term, y, 0.0, 1.0, backend="native", **given)
    with torch.no_grad():
        both(term, y, **given)
