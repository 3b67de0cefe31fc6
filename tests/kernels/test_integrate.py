"""Integrators: order, symplecticity, reversibility, energy; closed forms of the harmonic oscillator."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels import integrate
from worldsim_kernels.integrate import METHODS, WEIGHTS

torch.set_num_threads(1)
F64 = torch.float64
ZERO = torch.zeros((), dtype=F64)


def one_step(name, velocity, force):
    """``(x, h) -> x'`` on x = (q, p), whatever the method's own signature."""

    def field(x):
        q, p = x.chunk(2, -1)
        return torch.cat([velocity(p), force(q)], -1)

    def advance(x, h):
        if name in ("euler", "runge_kutta4"):
            return getattr(integrate, name)(ZERO, x, h, lambda t, y: field(y))
        if name == "implicit_midpoint":
            return integrate.implicit_midpoint(x, h, field, max_iterations=100)
        return torch.cat(getattr(integrate, name)(*x.chunk(2, -1), h, velocity, force), -1)

    return advance


def march(advance, x, h, steps):
    for _ in range(steps):
        x = advance(x, h)
    return x


def pendulum(name):
    return one_step(name, lambda p: p, lambda q: -q.sin())


def oscillator(name):
    return one_step(name, lambda p: p, lambda q: -q)


def kepler(name):
    return one_step(name, lambda p: p, lambda q: -q / q.norm(dim=-1, keepdim=True) ** 3)


def pendulum_energy(x):
    return x[..., 1] ** 2 / 2 + 1 - x[..., 0].cos()


def oscillator_energy(x):
    return x.square().sum(-1) / 2


# Steps per orbit: fine enough to see the order, coarse enough to stay above rounding.
GRIDS = {
    "runge_kutta4": (1600, 3200),
    "leapfrog": (400, 800),
    "implicit_midpoint": (500, 1000),
    "yoshida4": (400, 800),
    "yoshida6": (400, 800),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_order_on_an_eccentric_orbit_is_the_declared_one(name):
    """Kepler, e = 0.6, one orbit from the pericentre."""
    x = torch.tensor([0.4, 0.0, 0.0, 2.0], dtype=F64)  # pericentre of a = 1, e = 0.6
    coarse, fine = GRIDS[name]
    errors = [(march(kepler(name), x, 2 * math.pi / n, n) - x).norm() for n in (coarse, fine)]
    slope = math.log2(errors[0] / errors[1])
    assert slope == pytest.approx(METHODS[name].order, abs=0.05)


@pytest.mark.parametrize("name", ["euler", "symplectic_euler"])
def test_the_order_of_the_euler_methods_is_one(name):
    x = torch.tensor([1.0, 0.3], dtype=F64)
    exact = march(pendulum("yoshida6"), x, 0.01, 100)
    errors = [(march(pendulum(name), x, 1 / n, n) - exact).norm() for n in (400, 800)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)


def test_yoshidas_weights_cancel_the_error_terms():
    for name, powers in {"leapfrog": (1,), "yoshida4": (1, 3), "yoshida6": (1, 3, 5)}.items():
        weights = WEIGHTS[name]
        assert weights == weights[::-1]
        sums = [sum(w**power for w in weights) for power in powers]
        assert sums == pytest.approx([1.0] + [0.0] * (len(powers) - 1), abs=1e-14)


def test_yoshidas_sixth_order_needs_its_weights_in_order():
    outer, middle, inner = WEIGHTS["yoshida6"][:3]
    swapped = (middle, outer, inner, WEIGHTS["yoshida6"][3], inner, outer, middle)
    x = torch.tensor([0.4, 0.0, 0.0, 2.0], dtype=F64)

    def orbit(n, weights):
        q, p = x.chunk(2)
        fall = lambda r: -r / r.norm() ** 3  # noqa: E731
        for _ in range(n):
            q, p, _ = integrate.kick_drift_kick(q, p, fall(q), 2 * math.pi / n, lambda v: v, fall, weights)
        return (torch.cat([q, p]) - x).norm()

    assert math.log2(orbit(400, swapped) / orbit(800, swapped)) < 4.5


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("system", [pendulum, kepler])
def test_symplectic_methods_keep_the_symplectic_form_and_the_others_do_not(name, system):
    x = torch.tensor([1.1, 0.4] if system is pendulum else [0.6, 0.0, 0.0, (14 / 6) ** 0.5], dtype=F64)
    advance = system(name)
    jacobian = torch.autograd.functional.jacobian(lambda y: march(advance, y, 0.1, 20), x)
    half = len(x) // 2
    omega = torch.zeros(len(x), len(x), dtype=F64)
    omega[:half, half:], omega[half:, :half] = torch.eye(half), -torch.eye(half)
    defect = (jacobian.T @ omega @ jacobian - omega).abs().max()
    if METHODS[name].symplectic:
        assert defect < 1e-12
    elif name == "runge_kutta4" and system is pendulum:  # of order 4 on a smooth field: small, not rounding
        assert defect > 1e-8
    else:
        assert defect > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_reversible_methods_return_where_they_came_from(name):
    x = torch.tensor([[1.1, 0.4], [-2.0, 0.3]], dtype=F64)
    advance = pendulum(name)
    error = (march(advance, march(advance, x, 0.1, 500), -0.1, 500) - x).abs().max()
    assert error < 1e-11 if METHODS[name].reversible else error > 1e-6


def energy_errors(name, steps):
    """Largest |H / H0 - 1| so far of a pendulum from rest at 1.5 rad, h = 0.1, after each step."""
    advance = pendulum(name)
    x = torch.tensor([1.5, 0.0], dtype=F64)
    states = [x := advance(x, 0.1) for _ in range(steps)]
    energy = pendulum_energy(torch.stack(states))
    start = 1 - math.cos(1.5)
    return (energy / start - 1).abs().cummax(0).values


@pytest.mark.parametrize("steps", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_leapfrog_bounds_the_energy_error_of_a_pendulum_for_ever(steps):
    errors = energy_errors("leapfrog", steps)
    assert errors[-1] == pytest.approx(0.0021, abs=5e-5)
    assert errors[-1] / errors[999] <= 1.2


def test_runge_kutta4_loses_energy_in_proportion_to_time():
    errors = energy_errors("runge_kutta4", 2_000)
    assert errors[-1] / errors[999] == pytest.approx(2, abs=0.1)


class TestHarmonicOscillator:
    """H = (p^2 + q^2) / 2, h = 0.1, 1,000 steps from (1, 0): closed forms."""

    h, steps = 0.1, 1000

    def orbit(self, name):
        advance = oscillator(name)
        x = torch.tensor([1.0, 0.0], dtype=F64)
        return torch.stack([x] + [x := advance(x, self.h) for _ in range(self.steps)])

    def ratio(self, name):
        energy = oscillator_energy(self.orbit(name))
        return float(energy[-1] / energy[0])

    def test_euler_multiplies_the_energy_by_1_plus_h2(self):
        assert self.ratio("euler") == pytest.approx(20959.1556378, rel=1e-11)

    def test_runge_kutta4_loses_the_known_amount(self):
        expected = (1 - self.h**6 / 72 + self.h**8 / 576) ** self.steps - 1
        assert self.ratio("runge_kutta4") - 1 == pytest.approx(expected, rel=1e-8)
        assert self.ratio("runge_kutta4") - 1 == pytest.approx(-1.387143e-5, abs=5e-12)

    def test_implicit_midpoint_keeps_a_quadratic_energy(self):
        assert abs(self.ratio("implicit_midpoint") - 1) < 1e-12

    def test_leapfrog_keeps_a_nearby_energy(self):
        orbit = self.orbit("leapfrog")
        nearby = orbit[:, 1] ** 2 / 2 + (1 - self.h**2 / 4) * orbit[:, 0] ** 2 / 2
        assert (nearby - nearby[0]).abs().max() < 1e-13
        error = (oscillator_energy(orbit) / 0.5 - 1).abs().max()
        assert error == pytest.approx(self.h**2 / 4, rel=1e-3)

    def test_symplectic_euler_keeps_a_nearby_energy(self):
        orbit = self.orbit("symplectic_euler")
        nearby = oscillator_energy(orbit) - self.h / 2 * orbit.prod(-1)
        assert (nearby - nearby[0]).abs().max() < 1e-13
        error = (oscillator_energy(orbit) / 0.5 - 1).max()
        assert error == pytest.approx(1 / (1 - self.h / 2) - 1, rel=1e-3)


def test_implicit_midpoint_solves_a_stiff_row_or_says_so():
    def field(x):
        return -x * torch.tensor([[1.0], [30.0]], dtype=F64)

    x = torch.ones(2, 1, dtype=F64)
    exact = x * (0.95 / 1.05)
    torch.testing.assert_close(
        integrate.implicit_midpoint(x[:1], 0.1, lambda y: -y), exact[:1], rtol=1e-14, atol=0
    )
    with pytest.raises(RuntimeError, match="1 of 2 rows did not settle within 50"):
        integrate.implicit_midpoint(x, 0.1, field)
    with pytest.raises(RuntimeError, match="did not settle"):
        integrate.implicit_midpoint(x, 0.1, lambda y: y * float("nan"))


def test_implicit_midpoint_is_the_same_for_a_row_alone_and_in_company():
    def field(x):
        q, p = x.chunk(2, -1)
        return torch.cat([p, -q.sin() * (1 + q.square())], -1)

    x = torch.randn(9, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    together = integrate.implicit_midpoint(x, 0.3, field)
    alone = torch.cat([integrate.implicit_midpoint(row[None], 0.3, field) for row in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_batch_shape_are_kept(name, dtype):
    x = torch.full((3, 2, 4), 0.3, dtype=dtype)
    out = pendulum(name)(x, 0.1)
    assert out.shape == x.shape
    assert out.dtype is dtype


@pytest.mark.parametrize("name", METHODS)
def test_gradients_flow_through_a_step(name):
    x = torch.tensor([[0.7, -0.4]], dtype=F64, requires_grad=True)
    tolerance = 1e-6
    assert torch.autograd.gradcheck(lambda y: pendulum(name)(y, 0.1), (x,), atol=tolerance)


def test_substeps_end_on_every_time():
    times = torch.tensor([0.0, 0.1, 0.2, 0.1 + 0.2, 1.0], dtype=F64)
    assert integrate.substeps(times) == [(gap, 1) for gap in times.diff().tolist()]
    counts = [count for _, count in integrate.substeps(times, 0.1)]
    assert counts == [1, 1, 1, 7]
    assert all(h < 0 for h, _ in integrate.substeps(times.flip(0), 0.03))
    assert integrate.substeps(times[:1], 0.1) == []


@pytest.mark.parametrize("times", [[0.0, 0.0], [0.0, 1.0, 0.5], [0.0, float("nan")], []])
def test_substeps_refuse_times_that_do_not_move_on(times):
    with pytest.raises(ValueError, match="strictly rising or falling"):
        integrate.substeps(torch.tensor(times, dtype=F64))


@pytest.mark.parametrize("name", ["leapfrog", "yoshida4", "yoshida6"])
def test_merged_kicks_give_the_leapfrogs_in_turn_with_one_force_each(name):
    weights, calls = WEIGHTS[name], []
    q, p = torch.randn(2, 7, dtype=F64, generator=torch.Generator().manual_seed(0))

    def force(q):
        calls.append(q)
        return -q.sin()

    found = integrate.kick_drift_kick(q, p, force(q), 0.1, lambda p: p, force, weights)
    assert len(calls) == 1 + len(weights)
    for weight in weights:
        q, p = integrate.leapfrog(q, p, weight * 0.1, lambda p: p, force)
    for one, other in zip(found, (q, p, force(q))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_may_be_a_tensor_one_for_each_row_with_a_gradient(name):
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    h = torch.linspace(-0.1, 0.2, 5, dtype=F64)[:, None].requires_grad_()
    together = pendulum(name)(x, h)
    alone = torch.cat([pendulum(name)(row[None], step) for row, step in zip(x, h.flatten().tolist())])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    if name != "implicit_midpoint":
        assert torch.autograd.gradcheck(lambda h: pendulum(name)(x, h), (h,))
