"""Schemes for stochastic differential equations: declared orders, calculus, rows on their own, gradients."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from worldsim_kernels import native
from worldsim_kernels.solve import SDE, Constant, Save, Status
from worldsim_kernels.solve.brownian import Brownian
from worldsim_kernels.solve.gradients import Replay, Reversible
from worldsim_kernels.solve.sde import SCHEMES, Stretch, as_ito, as_stratonovich
from worldsim_kernels.solve.sde_solve import solve_sde

torch.set_num_threads(1)
F64 = torch.float64
MU, SIGMA, PATHS = 0.5, 0.8, 10_000


def gbm(calculus="ito", noise="diagonal"):
    shift = 0.0 if calculus == "ito" else SIGMA**2 / 2
    return SDE(lambda t, y: (MU - shift) * y, lambda t, y: SIGMA * y, noise=noise, calculus=calculus)


def additive(growing=False):
    """dX = (sin X - X) dt + s dW, s = 0.8 or, growing, 1 + t."""
    if not growing:
        return SDE(lambda t, y: y.sin() - y, lambda t, y: torch.full_like(y, 0.8), noise="additive")
    return SDE(lambda t, y: y.sin() - y, lambda t, y: (1 + t)[:, None] + 0 * y, noise="additive")


def solved(term, scheme, step, noise, start=1.0, end=1.0, size=1, **options):
    y0 = torch.full((len(noise.rows), size), start, dtype=F64)
    return solve_sde(term, y0, 0.0, end, stepper=scheme, controller=Constant(step), noise=noise, **options)


def slope(steps, errors):
    x, y = [math.log(each) for each in steps], [math.log(each) for each in errors]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


STEPS = [1 / n for n in (32, 64, 128, 256)]


def test_names_are_those_of_the_table():
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


@pytest.mark.parametrize("name", [name for name, each in SCHEMES.items() if "diagonal" in each.noises])
def test_strong_order_on_geometric_brownian_motion(name):
    noise = Brownian(1, torch.arange(PATHS), cell=1 / 32)
    w = noise.path(torch.ones(PATHS, 1))[0][:, 0]
    exact = torch.exp(MU - SIGMA**2 / 2 + SIGMA * w)
    term = gbm(SCHEMES[name].calculus[0])
    errors = [float((solved(term, name, step, noise).y - exact).abs().mean()) for step in STEPS]
    assert slope(STEPS, errors) == pytest.approx(SCHEMES[name].strong, abs=0.1)


def crossed(kind, calculus):
    """(Y_2, Y_1 / 2), driven by one motion together, or by two that do not commute each by its own, for which
    the two calculi are one; Ito without drift."""

    def diffusion(t, y):
        both = torch.stack([y[:, 1], 0.5 * y[:, 0]], -1)
        return both if kind == "scalar" else torch.diag_embed(both)

    pull = 0.25 if (kind, calculus) == ("scalar", "stratonovich") else 0.0
    return SDE(lambda t, y: -pull * y, diffusion, noise=kind, calculus=calculus)


@cache
def crossed_paths(kind, coarsest):
    noise = Brownian(6, torch.arange(2000), {"scalar": 1, "general": 2}[kind], cell=coarsest)
    backend = "torch" if native.compiler() is None else "native"
    return noise, solved(
        crossed(kind, "stratonovich"), "stochastic_heun", coarsest / 128, noise, size=2, backend=backend
    ).y


@pytest.mark.parametrize(("name", "kind"), [
    (name, kind) for name, each in SCHEMES.items() for kind in ("scalar", "general") if kind in each.noises
])  # fmt: skip
def test_strong_order_of_noise_that_is_not_diagonal(name, kind):
    coarsest = 1 / 32 if kind == "scalar" else 1 / 16
    noise, exact = crossed_paths(kind, coarsest)
    term, steps = crossed(kind, SCHEMES[name].calculus[0]), [coarsest / k for k in (1, 2, 4)]
    errors = [float((solved(term, name, step, noise, size=2).y - exact).abs().mean()) for step in steps]
    assert slope(steps, errors) == pytest.approx(SCHEMES[name].strong if kind == "scalar" else 0.5, abs=0.1)


@cache
def additive_paths(growing):
    noise = Brownian(2, torch.arange(PATHS), cell=1 / 8)
    return noise, solved(additive(growing), "sra1", 1 / 256, noise).y


def additive_order(name, growing):
    """Against the scheme of order 3/2 in much shorter steps, on the same paths."""
    noise, exact = additive_paths(growing)
    steps = [1 / 8, 1 / 16, 1 / 32]
    errors = [float((solved(additive(growing), name, step, noise).y - exact).abs().mean()) for step in steps]
    return slope(steps, errors)


@pytest.mark.parametrize("name", SCHEMES)
def test_strong_order_for_additive_noise(name):
    assert additive_order(name, False) == pytest.approx(SCHEMES[name].additive, abs=0.1)


@pytest.mark.parametrize("name", ["euler_maruyama", "sra1"])
def test_strong_order_for_noise_that_grows_with_time(name):
    """At least: the term of order 3/2 is small here."""
    assert additive_order(name, True) > SCHEMES[name].additive - 0.1


def moments(name, mu, sigma, count):
    """E Y and E Y^2 of geometric Brownian motion from 1 after ``count`` steps to t = 1, without sampling: a
    step is a linear map of what it carries, whose moments Gauss and Hermite's rule gives exactly."""
    scheme = SCHEMES[name]
    shift = sigma**2 / 2 if scheme.calculus[0] == "stratonovich" else 0.0
    term = SDE(lambda t, y: (mu - shift) * y, lambda t, y: sigma * y, calculus=scheme.calculus[0])
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(8))
    size = 2 if name == "reversible_heun" else 1  # y, and y^
    unit = torch.eye(size, dtype=F64).repeat_interleave(len(nodes), 0)
    carry = (unit[:, 1:], (mu - shift) * unit[:, 1:], sigma * unit[:, 1:]) if size == 2 else ()
    t, h = torch.zeros(len(unit), dtype=F64), 1 / count
    over = Stretch(t, t + h, h, (nodes * math.sqrt(h)).repeat(size)[:, None])
    y, after = scheme.advance(term, over, unit[:, :1], carry)
    ends = torch.cat([y, *after[:1]], 1)
    maps = ends.reshape(size, len(nodes), size).permute(1, 2, 0)
    weights = weights / weights.sum()
    once = torch.einsum("n,nij->ij", weights, maps)
    twice = torch.einsum("n,nij,nkl->ikjl", weights, maps, maps).reshape(size * size, -1)
    return [float(torch.linalg.matrix_power(each, count).sum(1)[0]) for each in (once, twice)]


@pytest.mark.parametrize("name", ["euler_maruyama", "milstein", "stochastic_heun", "reversible_heun"])
def test_weak_order_on_geometric_brownian_motion(name):
    exact = math.exp(1.0), math.exp(2 * 1.0 + SIGMA**2)
    errors = [[abs(x - y) for x, y in zip(moments(name, 1.0, SIGMA, count), exact)] for count in (64, 128)]
    for coarse, fine in zip(*errors):
        assert math.log2(coarse / fine) == pytest.approx(SCHEMES[name].weak, abs=0.05)


def test_sra1_is_of_weak_order_two():
    """E X^2 of dX = -X dt + dW."""
    term = SDE(lambda t, y: -y, lambda t, y: torch.ones_like(y), noise="additive")
    steps, errors = [1 / 2, 1 / 4, 1 / 8], []
    for step in steps:
        noise = Brownian(4, torch.arange(PATHS), cell=1.0)
        exact = solved(term, "sra1", 1 / 32, noise).y
        difference = solved(term, "sra1", step, noise).y ** 2 - exact**2
        assert float(difference.std()) / math.sqrt(PATHS) < 0.1 * abs(float(difference.mean()))
        errors.append(abs(float(difference.mean())))
    assert slope(steps, errors) == pytest.approx(2, abs=0.25)


def test_the_two_calculi_describe_one_process():
    noise = Brownian(5, torch.arange(PATHS), cell=1 / 64)
    ito, stratonovich = gbm(), gbm("stratonovich")
    t, y = torch.zeros(4, dtype=F64), torch.linspace(0.5, 2, 4, dtype=F64)[:, None]
    assert torch.allclose(as_stratonovich(ito).drift(t, y), stratonovich.drift(t, y), rtol=0, atol=1e-15)
    assert torch.allclose(as_ito(stratonovich).drift(t, y), ito.drift(t, y), rtol=0, atol=1e-15)
    one = solved(ito, "milstein", 1 / 64, noise).y
    other = solved(as_stratonovich(ito), "milstein", 1 / 64, noise).y
    assert torch.allclose(one, other, rtol=0, atol=1e-12)
    heun = solved(as_stratonovich(ito), "stochastic_heun", 1 / 64, noise).y
    assert float((heun - one).abs().mean()) < 0.02


@pytest.mark.parametrize("noise", ["scalar", "general"])
def test_the_correction_is_half_of_the_columns_along_themselves(noise):
    a = torch.tensor([[0.3, -1.0], [0.7, 0.2]], dtype=F64)

    def column(y):
        return torch.sin(y @ a.T)

    g = (lambda t, y: column(y)) if noise == "scalar" else lambda t, y: torch.stack([column(y), y * y], -1)
    term = SDE(lambda t, y: torch.zeros_like(y), g, noise=noise)
    y = torch.tensor([[0.4, -0.8]], dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda y: column(y[None])[0], y[0])
    expected = 0.5 * jacobian @ column(y)[0] + (y[0] ** 3 if noise == "general" else 0)
    found = as_stratonovich(term).drift(torch.zeros(1, dtype=F64), y)[0]
    assert torch.allclose(found, -expected, rtol=0, atol=1e-14)


def test_wrong_calculus_and_wrong_noise_are_refused():
    noise = Brownian(0, torch.arange(2), 2)
    with pytest.raises(ValueError, match="as_ito"):
        solved(gbm("stratonovich"), "euler_maruyama", 0.1, noise, size=2)
    with pytest.raises(ValueError, match="as_stratonovich"):
        solved(gbm(), "reversible_heun", 0.1, noise, size=2)
    with pytest.raises(ValueError, match="additive"):
        solved(gbm(), "sra1", 0.1, noise, size=2)
    crossed = SDE(lambda t, y: y, lambda t, y: y.flip(-1))
    with pytest.raises(ValueError, match="other components"):
        solved(crossed, "milstein", 0.1, noise, size=2)
    with pytest.raises(ValueError, match="other components"):
        solved(as_stratonovich(crossed), "stochastic_heun", 0.1, noise, size=2)


def test_a_slope_that_is_hidden_is_not_taken_for_zero():
    """Milstein's method would become that of Euler, and a converted equation another process."""
    noise = Brownian(0, torch.arange(2))
    for kind in ("diagonal", "scalar"):
        hidden = SDE(lambda t, y: y, lambda t, y: SIGMA * y.detach(), noise=kind)
        with pytest.raises(ValueError, match="keeps no graph"):
            solved(hidden, "milstein", 0.1, noise)
        with pytest.raises(ValueError, match="keeps no graph"):
            solved(as_stratonovich(hidden), "stochastic_heun", 0.1, noise)
    hidden = SDE(lambda t, y: y, lambda t, y: SIGMA * y.detach()[..., None], noise="general")
    with pytest.raises(ValueError, match="keeps no graph"):
        solved(as_stratonovich(hidden), "stochastic_heun", 0.1, noise)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
        solved(gbm(), "milstein", 0.1, noise)
    flat = SDE(lambda t, y: y, lambda t, y: SIGMA * torch.ones_like(y))
    assert solved(flat, "milstein", 0.1, noise).y.isfinite().all()
    started = solved(SDE(lambda t, y: y, lambda t, y: y * y), "milstein", 0.1, noise, start=0.0)
    assert not started.y.any()


def general(t, y):
    return torch.stack([0.3 * y, torch.ones_like(y), y * y * 0.1], -1)


KINDS = {
    "diagonal": (SDE(lambda t, y, k: -k * y, lambda t, y, k: 0.3 * y + 0.1), 3),
    "additive": (SDE(lambda t, y, k: -k * y, lambda t, y, k: 0.3 + 0 * y, noise="additive"), 3),
    "scalar": (SDE(lambda t, y, k: -k * y, lambda t, y, k: 0.3 * y, noise="scalar"), 1),
    "general": (SDE(lambda t, y, k: -k * y, lambda t, y, k: general(t, y), noise="general"), 3),
}


FITTING = [(name, kind) for name, scheme in SCHEMES.items() for kind in KINDS if kind in scheme.noises]


@pytest.mark.parametrize("cell", [None, 0.125])
@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_row_has_the_same_bits_in_any_batch(name, kind, cell):
    """Rows with grids of their own, in another order, among others, and beside one that blows up."""
    term, motions = KINDS[kind]
    term = as_stratonovich(term) if SCHEMES[name].calculus[0] == "stratonovich" else term
    generator = torch.Generator().manual_seed(0)
    y0, k = (torch.rand(6, *shape, dtype=F64, generator=generator) for shape in ((3,), (1,)))
    t0, t1 = torch.zeros(6, dtype=F64), torch.tensor([1, 0.5, 1, 0.7, 0.0, 1], dtype=F64)
    times = torch.tensor([[0.0, 0.25, 0.5]] * 6, dtype=F64)
    times[4], times[3, 2] = math.nan, math.nan
    noise = Brownian(9, torch.arange(6) * 10**9, motions, cell=cell)

    def run(rows, factor=None):
        part = SDE(term.drift, term.diffusion, (k[rows],), term.noise, term.calculus)
        start = y0[rows] if factor is None else y0[rows] * factor
        options = {"stepper": name, "controller": Constant(0.125), "noise": noise.of_rows(rows)}
        return solve_sde(part, start, t0[rows], t1[rows], save=Save(times[rows], steps=True), **options)

    rows = torch.arange(6)
    whole = run(rows)
    assert whole.status.tolist() == [Status.DONE] * 6
    assert torch.equal(whole.y[4], y0[4])
    assert torch.equal(whole.saved[:4, 0], y0[:4])
    assert bool(whole.saved[4].isnan().all())
    for part in (torch.tensor([5, 3, 0]), torch.tensor([1]), torch.tensor([4])):
        found = run(part)
        assert torch.equal(found.y, whole.y[part])
        assert torch.equal(found.saved.nan_to_num(7), whole.saved[part].nan_to_num(7))
        count = int(found.steps.count.max()) + 1
        assert torch.equal(found.steps.y[:, :count], whole.steps.y[part][:, :count])
        assert found.stats.accepted.tolist() == whole.stats.accepted[part].tolist()
    factor = torch.ones(6, 1, dtype=F64)
    factor[2] = math.inf
    bad = run(rows, factor)
    assert bad.status.tolist() == [0, 0, Status.NOT_FINITE, 0, 0, 0]
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(bad.y[others], whole.y[others])
    assert bool(bad.y[2].isnan().all())


def test_a_row_that_blows_up_says_when_and_leaves_gradients_alone():
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    term = SDE(lambda t, y: rate * y * y, lambda t, y: 0.1 * y)
    noise = Brownian(1, torch.arange(3))

    def run(start):
        y0 = torch.tensor(start, dtype=F64)[:, None]
        keep = Save(torch.tensor([0.1, 0.5, 2.0]))
        rows = noise.of_rows(torch.arange(len(start)))
        return solve_sde(term, y0, 0.0, 2.0, controller=Constant(0.01), noise=rows, save=keep)

    found, alone = run([0.1, 0.2, 3.0]), run([0.1, 0.2])
    assert found.status.tolist() == [0, 0, Status.NOT_FINITE]
    assert 0.33 < float(found.t[2]) < 0.5
    assert bool(found.saved[2, 0].isfinite())
    assert bool(found.saved[2, 1:].isnan().all())
    grads = [torch.autograd.grad(each.y[:2].sum() + each.saved[:2].sum(), rate)[0] for each in (found, alone)]
    assert torch.equal(*grads)
    assert int(found.stats.accepted[2]) < 100 < int(found.stats.accepted[0])


def test_a_limit_of_steps_is_a_status():
    found = solved(gbm(), "euler_maruyama", 1e-12, Brownian(0, torch.arange(2)), max_steps=10)
    assert found.status.tolist() == [Status.MAX_STEPS] * 2
    assert bool(found.y.isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_of_the_state_stays(dtype):
    y0 = torch.ones(4, 2, dtype=dtype)
    term, noise = gbm(), Brownian(0, torch.arange(4), 2)
    found = solve_sde(term, y0, 0.0, 1.0, stepper="milstein", controller=Constant(0.1), noise=noise)
    exact = solve_sde(term, y0.double(), 0.0, 1.0, stepper="milstein", controller=Constant(0.1), noise=noise)
    assert found.y.dtype == dtype
    assert torch.allclose(found.y.double(), exact.y, rtol=1e-5)


class Learned(torch.nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.first, self.second = (torch.nn.Linear(2, 2, dtype=F64) for _ in range(2))

    def drift(self, t, y, k):
        return torch.tanh(self.first(y)) - k * y * (1 + t[:, None])

    def diffusion(self, t, y, k):
        if self.noise == "additive":
            return (k * self.second.bias).expand_as(y)
        g = 0.3 * torch.sin(y * self.second.bias) + 0.4
        return torch.stack([g, k * y, torch.tanh(self.second(y))], -1) if self.noise == "general" else g


@pytest.mark.parametrize("noise", ["diagonal", "additive", "scalar", "general"])
def test_the_reversible_adjoint_is_autograd_through_the_steps(noise):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Learned(noise)
    generator = torch.Generator().manual_seed(1)
    y0, k = (torch.rand(5, *shape, dtype=F64, generator=generator) for shape in ((2,), (1,)))
    motions = Brownian(3, torch.arange(5), {"scalar": 1, "general": 3}.get(noise, 2))
    weight = torch.rand(5, 3, 2, dtype=F64, generator=generator)

    def run(gradient):
        start, rate = y0.clone().requires_grad_(), k.clone().requires_grad_()
        term = SDE(model.drift, model.diffusion, (rate,), noise, "stratonovich")
        options = {"stepper": "reversible_heun", "controller": Constant(0.01), "noise": motions}
        keep = Save(torch.tensor([0.0, 0.3, 1.0], dtype=F64))
        found = solve_sde(term, start, 0.0, 1.0, save=keep, gradient=gradient, **options)
        loss = (found.saved * weight).sum() + found.y.square().sum()
        inputs = [start, rate, *model.parameters()]
        return loss.detach(), torch.autograd.grad(loss, inputs, allow_unused=True)

    (one, direct), (other, reverse) = run(None), run(Reversible())
    assert torch.equal(one, other)
    for a, b in zip(direct, reverse):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(a.abs().max()))


def test_gradients_through_the_steps_are_derivatives_of_the_path():
    def end(y0, rate):
        term = SDE(lambda t, y, k: k * y, lambda t, y, k: 0.5 * k * y, (rate,))
        noise = Brownian(3, torch.arange(2), 2)
        return solve_sde(term, y0, 0.0, 0.5, stepper="milstein", controller=Constant(0.1), noise=noise).y

    generator = torch.Generator().manual_seed(0)
    y0, rate = (torch.rand(2, 2, dtype=F64, generator=generator).add_(0.5).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(end, (y0, rate))


def test_one_path_serves_every_step():
    """With a cell, a solve in steps of twice the length sees the same motion."""
    term = SDE(lambda t, y: torch.zeros_like(y), lambda t, y: torch.ones_like(y), noise="additive")
    noise = Brownian(0, torch.arange(3), cell=0.25)
    ends = [solved(term, "euler_maruyama", step, noise, start=0.0).y for step in (0.5, 0.25, 1 / 64, 0.1)]
    for each in ends:
        assert torch.allclose(each[:, 0], noise.path(torch.ones(3, 1))[0][:, 0, 0], rtol=0, atol=1e-13)
    unlike = [solved(term, "euler_maruyama", step, Brownian(0, torch.arange(3))).y for step in (0.5, 0.25)]
    assert not torch.allclose(*unlike)


BAD = {
    "no noise": ({"noise": None}, "Brownian"),
    "rows": ({"noise": Brownian(0, torch.arange(3))}, "rows"),
    "components": ({"noise": Brownian(0, torch.arange(2), 3)}, "components"),
    "no step": ({"controller": None}, "Constant"),
    "step": ({"controller": Constant(-0.1)}, "step"),
    "backwards": ({"t1": -1.0}, "t1"),
    "dense": ({"save": Save(dense=True)}, "dense"),
    "scheme": ({"stepper": "rk4"}, "milstein"),
    "gradient": ({"gradient": Replay()}, "gradient"),
    "reversible": ({"gradient": Reversible()}, "reversible_heun"),
    "time": ({"t0": torch.zeros((), requires_grad=True)}, "t0"),
    "args": ({"term": SDE(lambda t, y, k: y, lambda t, y, k: y, (torch.ones(3),))}, "args"),
    "drift": ({"term": SDE(lambda t, y: y[:, :0], lambda t, y: y)}, "drift"),
    "diffusion": ({"term": SDE(lambda t, y: y, lambda t, y: y[:, :0])}, "diffusion"),
    "complex": ({"term": SDE(lambda t, y: 1j * y, lambda t, y: y)}, "the drift gives complex numbers"),
    "half": ({"y0": torch.ones(2, 1, dtype=torch.float16)}, "float32 or float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    change, says = BAD[case]
    options = {
        "term": gbm(),
        "y0": torch.ones(2, 1, dtype=F64),
        "t0": 0.0,
        "t1": 1.0,
        "controller": Constant(0.1),
        "noise": Brownian(0, torch.arange(2)),
        **change,
    }
    term, y0, t0, t1 = (options.pop(name) for name in ("term", "y0", "t0", "t1"))
    with pytest.raises((ValueError, TypeError), match=says):
        solve_sde(term, y0, t0, t1, **options)
