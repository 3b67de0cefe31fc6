"""Steps that keep structure: every property that a method declares is tested, and every one that it does not
declare is shown to fail."""

from __future__ import annotations

import math

import pytest
import torch

from worldsim_kernels.solve import ODE, Constant, Hamiltonian, Separable, Status, solve
from worldsim_kernels.solve.discrete_gradient import DiscreteGradient
from worldsim_kernels.solve.extended import Tao
from worldsim_kernels.solve.fixed_point import Iteration
from worldsim_kernels.solve.gauss import GaussLegendre
from worldsim_kernels.solve.grid import substeps
from worldsim_kernels.solve.splitting import WEIGHTS, Splitting
from worldsim_kernels.solve.steppers import stepper_of
from worldsim_kernels.solve.time_transformed import Phase, TimeTransformedLeapfrog

F64 = torch.float64
SPLITTINGS = ("symplectic_euler", "leapfrog", "yoshida4", "yoshida6", "yoshida8")
IMPLICIT = ("implicit_midpoint", "gauss4", "discrete_gradient")
NAMES = (*SPLITTINGS, *IMPLICIT, "tao", "adaptive_leapfrog", "rk4")


def cubed_distance(q):
    square = q[..., :1] * q[..., :1] + q[..., 1:] * q[..., 1:]
    return square * square.sqrt()


def half_square(p):
    return p.square().sum(-1) / 2


def kepler_energy(y):
    return half_square(y[..., 2:]) - 1 / y[..., :2].square().sum(-1).sqrt()


def henon_heiles_potential(q):
    x, y = q.unbind(-1)
    return (x * x + y * y) / 2 + x * x * y - y * y * y / 3


def henon_heiles_force(q):
    x, y = q.unbind(-1)
    return torch.stack([-x - 2 * x * y, -y - x * x + y * y], -1)


def henon_heiles_gradient(z):
    q, p = z.chunk(2, -1)
    return torch.cat([-henon_heiles_force(q), p], -1)


KEPLER = Separable(
    lambda p: p,
    lambda q: -q / cubed_distance(q),
    potential=lambda q: -1 / q.square().sum(-1).sqrt(),
    kinetic=half_square,
)
HENON_HEILES = Separable(
    lambda p: p, henon_heiles_force, potential=henon_heiles_potential, kinetic=half_square
)
HENON_HEILES_WHOLE = Hamiltonian(
    lambda z: henon_heiles_potential(z[..., :2]) + half_square(z[..., 2:]), gradient=henon_heiles_gradient
)
PENDULUM = Separable(
    lambda p: p, lambda q: -q.sin(), potential=lambda q: 1 - q[..., 0].cos(), kinetic=half_square
)
PENDULUM_WHOLE = Hamiltonian(
    lambda z: 1 - z[..., 0].cos() + z[..., 1] ** 2 / 2,
    gradient=lambda z: torch.stack([z[..., 0].sin(), z[..., 1]], -1),
)
# Tao's own example of a Hamiltonian that does not split.
PRODUCT = Hamiltonian(
    lambda z: (z[..., 0] ** 2 + 1) * (z[..., 1] ** 2 + 1) / 2,
    gradient=lambda z: z * (z.flip(-1).square() + 1),
)
KEPLER_WHOLE = Hamiltonian(
    kepler_energy, gradient=lambda z: torch.cat([z[..., :2] / cubed_distance(z[..., :2]), z[..., 2:]], -1)
)
WHOLE = ("discrete_gradient", "tao")


def method(name, **options):
    if name == "adaptive_leapfrog":
        return TimeTransformedLeapfrog(**options)
    return stepper_of(name)


def march(stepper, term, y, h, steps, carry=None, visit=None):
    """The state and the carry after ``steps`` steps of ``h`` ``[row]``."""
    t = torch.zeros(len(y), dtype=F64)
    carry = stepper.start(term, t, y) if carry is None else carry
    for _ in range(steps):
        made = stepper.step(term, t, h, y, carry)
        assert made.settled is None or bool(made.settled.all())
        y, carry, t = made.y, made.carry, t + h
        if visit is not None:
            visit(y)
    return y, carry


def rows(*values):
    return torch.tensor(values, dtype=F64)


# Order.

ORBIT = {  # steps per orbit: fine enough to see the order, coarse enough to stay above rounding
    "leapfrog": 400,
    "yoshida4": 400,
    "yoshida6": 400,
    "yoshida8": 100,
    "implicit_midpoint": 400,
    "gauss4": 200,
    "discrete_gradient": 200,
    "tao": 400,
    "adaptive_leapfrog": 200,
    "rk4": 1600,
}


def slope_on_an_orbit(stepper, term, steps):
    """Kepler, e = 0.6, one orbit from the pericentre of a = 1: the exact end is the start."""
    start = rows([0.4, 0.0, 0.0, 2.0])
    errors = []
    with torch.no_grad():
        for n in (steps, 2 * steps):
            h = torch.full((1,), 2 * math.pi / n, dtype=F64)
            errors.append(float((march(stepper, term, start, h, n)[0] - start).norm()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", ORBIT)
def test_the_order_on_an_eccentric_orbit_is_the_declared_one(name):
    stepper = method(name)
    term = KEPLER_WHOLE if name in WHOLE else KEPLER
    order = stepper.properties.order
    found = slope_on_an_orbit(stepper, term, ORBIT[name])
    assert found == pytest.approx(order, abs=0.15 if order > 6 else 0.05)


def test_the_order_of_symplectic_euler_is_one():
    """After a whole orbit its errors cancel: a pendulum at an odd time."""
    y, errors = rows([1.0, 0.3]), []
    exact = march(method("yoshida8"), PENDULUM, y, torch.full((1,), 0.01, dtype=F64), 100)[0]
    for n in (400, 800):
        h = torch.full((1,), 1 / n, dtype=F64)
        errors.append(float((march(method("symplectic_euler"), PENDULUM, y, h, n)[0] - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["tao", "discrete_gradient", "implicit_midpoint", "gauss4"])
def test_the_order_holds_for_a_hamiltonian_that_does_not_split(name):
    # A strong binding makes Tao's error oscillate, so that the slope shows at smaller steps alone.
    y, errors, stepper = rows([-1.5, 0.2]), [], Tao(omega=4.0) if name == "tao" else method(name)
    with torch.no_grad():
        exact = march(method("gauss4"), PRODUCT, y, rows(1 / 200), 200)[0]
        for n in (200, 400) if name == "tao" else (25, 50):
            errors.append((march(stepper, PRODUCT, y, rows(1 / n), n)[0] - exact).norm())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(stepper.properties.order, abs=0.05)


def test_yoshidas_weights_cancel_the_error_terms_and_their_order_matters():
    for name, powers in {"yoshida4": (3,), "yoshida6": (3, 5), "yoshida8": (3, 5, 7)}.items():
        weights = WEIGHTS[name]
        assert weights == weights[::-1]
        assert sum(weights) == pytest.approx(1, abs=1e-15)
        for power in powers:
            assert abs(math.fsum(w**power for w in weights)) < 1e-15
    outer, middle, inner, centre = WEIGHTS["yoshida6"][:4]
    swapped = Splitting("yoshida6", (middle, outer, inner, centre, inner, outer, middle))
    assert slope_on_an_orbit(swapped, KEPLER, 200) < 4.5
    # Everything but the order survives.
    defect, volume = defects(*extended_map(swapped, "yoshida6", HENON_HEILES))
    assert max(defect, volume) < 1e-12
    assert returned(swapped, HENON_HEILES, POINTS, 200) < 1e-11


# Symplectic form and volume, by automatic differentiation.

POINTS = rows([0.3, -0.1, 0.2, 0.35], [-0.2, 0.25, 0.3, -0.1])


def omega_of(half):
    zero, one = torch.zeros(half, half, dtype=F64), torch.eye(half, dtype=F64)
    return torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])


def extended_map(stepper, name, term, steps=3, h=0.1):
    """A map of ``[row, D]``, points ``[row, D]`` and the form Omega ``[D, D]``, in the space where the method
    lives: (q, p), or with a twin (Tao), or with time and binding energy."""
    span = torch.full((len(POINTS),), h, dtype=F64)
    if name == "tao":
        d = POINTS.shape[1]

        def doubled(z):
            y, twin = z[:, :d], z[:, d:]
            mixed = torch.cat([y[:, : d // 2], twin[:, d // 2 :]], 1)
            end, carry = march(stepper, term, y, span, steps, (twin, term.slope(mixed)))
            return torch.cat([end, carry[0]], 1)

        start = torch.cat([POINTS, POINTS + 0.01], 1)
        return doubled, start, torch.block_diag(omega_of(d // 2), omega_of(d // 2))
    if name == "adaptive_leapfrog":
        half = POINTS.shape[1] // 2

        def timed(z):  # (q, t, p, B)
            q, t, p, binding = z.split([half, 1, half, 1], 1)
            at = Phase(q, p, t[:, 0], binding[:, 0], torch.full_like(t[:, 0], stepper.shift))
            for _ in range(steps):
                at = stepper.inner(term, span, at)
            return torch.cat([at.q, at.time[:, None], at.p, at.binding[:, None]], 1)

        q, p = POINTS.chunk(2, 1)
        depth = (stepper.shift - term.potential(q) - term.kinetic(p))[:, None]
        return timed, torch.cat([q, torch.zeros_like(depth), p, depth], 1), omega_of(half + 1)
    return lambda y: march(stepper, term, y, span, steps)[0], POINTS, omega_of(POINTS.shape[1] // 2)


def jacobian_of(function, start):
    """``[row, D, D]``: rows do not depend on one another."""
    z = start.clone().requires_grad_()
    end = function(z)
    lines = [torch.autograd.grad(end[:, i].sum(), z, retain_graph=True)[0] for i in range(end.shape[1])]
    return torch.stack(lines, 1)


def defects(function, start, omega):
    """max |J^T Omega J - Omega| and max |det J - 1|."""
    jacobian = jacobian_of(function, start)
    form = jacobian.mT @ omega @ jacobian - omega
    return float(form.abs().max()), float((torch.linalg.det(jacobian) - 1).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_symplectic_form_and_volume_are_kept_by_those_that_say_so_alone(name):
    stepper = method(name, shift=1.0) if name == "adaptive_leapfrog" else method(name)
    term = HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    form, volume = defects(*extended_map(stepper, name, term))
    claims = stepper.properties
    assert form < 1e-12 if claims.symplectic else form > 1e-9
    assert volume < 1e-12 if claims.volume_preserving else volume > 1e-9


def test_symplectic_in_the_extended_space_is_not_symplectic_in_q_and_p():
    span = torch.full((2,), 0.3, dtype=F64)
    steppers = {Tao(omega=5.0): HENON_HEILES_WHOLE, TimeTransformedLeapfrog(shift=1.0): HENON_HEILES}
    for stepper, term in steppers.items():
        found = defects(lambda y: march(stepper, term, y, span, 5)[0], POINTS, omega_of(2))[0]  # noqa: B023
        assert found > 1e-6, stepper.name


# Reversibility.


def returned(stepper, term, start, steps, h=0.05):
    """How far from ``start`` a march there and back ends; the twin of ``tao`` goes along."""
    span = torch.full((len(start),), h, dtype=F64)
    with torch.no_grad():
        there, carry = march(stepper, term, start, span, steps)
        kept = carry if getattr(stepper, "remembers", False) else None
        back, _ = march(stepper, term, there, -span, steps, kept)
    return float((back - start).abs().max())


RETURNS = {"yoshida6": 300, "yoshida8": 100, "rk4": 500} | dict.fromkeys(IMPLICIT, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yoshida6", "yoshida8", *IMPLICIT])
def test_reversible_steps_return_after_four_thousand(name):
    term = HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    assert returned(method(name), term, POINTS, 2000) < 1e-11


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adaptive_leapfrog"])
def test_reversible_steps_return_where_they_came_from_and_others_do_not(name):
    stepper, term = method(name), HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    found = returned(stepper, term, POINTS, RETURNS.get(name, 2000))
    assert found < 1e-11 if stepper.properties.reversible else found > 1e-8


def test_time_transformed_steps_return_in_time_and_place():
    stepper = TimeTransformedLeapfrog()
    start = at = stepper.phase(KEPLER, torch.zeros(1, dtype=F64), rows([0.4, 0.0, 0.0, 2.0]))
    ds = torch.full((1,), 0.05, dtype=F64)
    for sign in (1, -1):
        for _ in range(2000):
            at = stepper.inner(KEPLER, sign * ds, at)
        assert sign < 0 or float(at.time) > 50
    assert float((at.q - start.q).abs().max()) < 1e-11
    assert float(at.time.abs()) < 1e-11


# Energy.


def errors_of_energy(stepper, term, start, steps, h):
    """|H - H_0| ``[step, row]``."""
    energy = {PENDULUM: PENDULUM_WHOLE.energy, HENON_HEILES: HENON_HEILES_WHOLE.energy}.get(term)
    energy, states = energy or term.energy, []
    with torch.no_grad():
        march(stepper, term, start, torch.full((len(start),), h, dtype=F64), steps, visit=states.append)
    return (energy(torch.stack(states)) - energy(start)).abs()


ENVELOPES = {  # step, and number of steps in the quick test
    "leapfrog": (0.1, 10_000),
    "symplectic_euler": (0.1, 10_000),
    "yoshida4": (0.1, 4_000),
    "yoshida6": (0.2, 2_000),
    "yoshida8": (0.4, 1_000),
    "implicit_midpoint": (0.1, 700),
    "gauss4": (0.2, 400),
    "tao": (0.1, 3_000),
    "adaptive_leapfrog": (0.1, 2_000),
}


def growth_of_envelope(name, steps):
    """(largest late error - largest early error) / largest, of a pendulum far from and near the top."""
    stepper = method(name, shift=4.0) if name == "adaptive_leapfrog" else method(name)
    term, h = PENDULUM_WHOLE if name == "tao" else PENDULUM, ENVELOPES[name][0]
    errors = errors_of_energy(stepper, term, rows([1.5, 0.0], [0.0, 1.4]), steps, h)
    early, late = errors.chunk(2)
    assert float(errors.max()) > 1e-9  # none of these keeps the energy to rounding
    return float(((late.amax(0) - early.amax(0)) / errors.amax(0)).max())


@pytest.mark.parametrize("name", ENVELOPES)
def test_the_energy_stays_in_an_envelope_that_does_not_grow(name):
    # Tao's has more frequencies, which so few steps do not yet sample.
    assert growth_of_envelope(name, ENVELOPES[name][1]) <= (0.05 if name == "tao" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVELOPES)
def test_the_envelope_does_not_grow_in_a_hundred_thousand_steps(name):
    assert growth_of_envelope(name, 100_000) <= 1e-3


def test_runge_kutta_has_no_envelope():
    errors = errors_of_energy(method("rk4"), PENDULUM, rows([1.5, 0.0]), 2000, 0.1)
    early, late = errors.chunk(2)
    assert late.max() / early.max() == pytest.approx(2, abs=0.1)


def test_the_discrete_gradient_keeps_every_energy_to_rounding():
    for term, start in (
        (HENON_HEILES_WHOLE, POINTS),
        (PENDULUM_WHOLE, rows([1.5, 0.0], [0.0, 2.1])),
        (PRODUCT, rows([-1.0, 0.2])),
    ):
        assert errors_of_energy(DiscreteGradient(), term, start, 80, 0.1).max() < 3e-14


@pytest.mark.slow
def test_the_discrete_gradient_keeps_the_energy_for_a_hundred_thousand_steps():
    # Swings alone: the angle of a turn grows to 2e4, and its rounding then moves H by 2e-12 a step.
    errors = errors_of_energy(DiscreteGradient(), PENDULUM_WHOLE, rows([1.5, 0.0], [0.0, 1.9]), 100_000, 0.1)
    assert errors.max() < 1e-12


def test_the_discrete_gradient_rests_at_an_equilibrium_and_moves_next_to_it():
    start = rows([0.0, 0.0], [1e-4, 0.0])
    end, _ = march(DiscreteGradient(), PENDULUM_WHOLE, start, torch.full((2,), 0.1, dtype=F64), 20)
    assert torch.equal(end[0], start[0])
    exact = 1e-4 * math.cos(2.0)
    assert float(end[1, 0]) == pytest.approx(exact, abs=1e-6)


# The orbit and the clock of time-transformed steps.


def test_a_time_transformed_orbit_is_the_exact_ellipse():
    """Its energy and its Laplace-Runge-Lenz vector stay to rounding at e = 0.9; only the time errs."""
    stepper, ds = TimeTransformedLeapfrog(), torch.full((1,), 0.1, dtype=F64)
    at = stepper.phase(KEPLER, torch.zeros(1, dtype=F64), rows([0.1, 0.0, 0.0, math.sqrt(19.0)]))
    for _ in range(300):
        at = stepper.inner(KEPLER, ds, at)
        q, p = at.q[0], at.p[0]
        laplace = (p @ p - 1 / q.norm()) * q - (q @ p) * p
        torch.testing.assert_close(laplace, rows(0.9, 0.0), rtol=0, atol=1e-12)
        assert float(kepler_energy(torch.cat([at.q, at.p], 1))) == pytest.approx(-0.5, abs=1e-12)


def test_time_transformed_orbits_do_not_depend_on_the_times_that_are_saved():
    y = rows([0.4, 0.0, 0.0, 2.0], [0.3, 0.1, 0.2, 1.5])
    stepper = TimeTransformedLeapfrog(first=0.02)
    ends = [
        solve(KEPLER, y, 0.0, 12.0, stepper=stepper, controller=Constant(step)).check().y
        for step in (12.0, 0.37)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


def test_time_transformed_steps_beat_equal_steps_near_a_centre():
    """Twenty orbits of eccentricity 0.9 at about equal numbers of forces."""
    y, end = rows([0.1, 0.0, 0.0, math.sqrt(19.0)]), 20 * math.pi
    adaptive = solve(
        KEPLER, y, 0.0, end, stepper=TimeTransformedLeapfrog(first=0.002), controller=Constant(end)
    ).check()
    plain = solve(KEPLER, y, 0.0, end, stepper="leapfrog", controller=Constant(end / 3142)).check()
    assert int(adaptive.stats.evaluations) < 1.05 * int(plain.stats.evaluations)
    errors = [float((kepler_energy(each.y) + 0.5).abs()) for each in (adaptive, plain)]
    assert errors[0] < errors[1] / 30


# Every row by itself.


def arithmetic_rows():
    generator = torch.Generator().manual_seed(3)
    return 0.3 * torch.randn(11, 4, dtype=F64, generator=generator)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rk4"])
def test_a_row_has_the_same_bits_alone_and_beside_one_that_fails(name):
    stepper = method(name, shift=2.0) if name == "adaptive_leapfrog" else method(name)
    term = HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    y = arithmetic_rows()
    y[4] = float("nan")
    y[7] *= 200
    together = solve(term, y, 0.0, 0.5, stepper=stepper, controller=Constant(0.1))
    assert together.status[4] == Status.NOT_FINITE
    assert together.y[4].isnan().all()
    for i in (0, 3, 10):
        alone = solve(term, y[i : i + 1], 0.0, 0.5, stepper=stepper, controller=Constant(0.1))
        assert torch.equal(alone.y[0], together.y[i])
        assert alone.stats.evaluations == together.stats.evaluations[i]


@pytest.mark.parametrize("name", IMPLICIT)
def test_a_row_that_does_not_settle_fails_alone(name):
    stiffness = rows([1.0], [400.0], [2.0])
    term = Hamiltonian(lambda y, k: (k[:, 0] * y[:, 0] ** 2 + y[:, 1] ** 2) / 2 + y[:, 0] ** 4, (stiffness,))
    y = rows([1.0, 0.0], [1.0, 0.0], [0.5, 0.5])
    found = solve(term, y, 0.0, 1.0, stepper=name, controller=Constant(0.25))
    assert found.status.tolist() == [Status.DONE, Status.NOT_SETTLED, Status.DONE]
    assert found.y[1].isnan().all()
    assert "smaller step" in found.complaint()


def test_time_transformed_steps_need_a_shift_above_the_energy_which_is_their_default():
    y, run = rows([1.5, 0.0], [0.0, 0.0], [0.0, 1.0]), {"t0": 0.0, "t1": 1.0, "controller": Constant(0.1)}
    found = solve(PENDULUM, y, stepper="adaptive_leapfrog", **run).check().y
    exact = solve(PENDULUM, y, stepper="yoshida8", **run).check().y
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3)
    assert torch.equal(found[1], y[1])
    below = solve(PENDULUM, y, stepper=TimeTransformedLeapfrog(shift=0.4), **run)
    assert below.failed.tolist() == [True, False, False]
    bare = Separable(lambda p: p, lambda q: -q)
    with pytest.raises(ValueError, match="needs the potential and kinetic energy"):
        solve(bare, y, stepper="adaptive_leapfrog", **run)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"last axis \(q, p\).*3 is odd"):
        solve(PENDULUM, torch.zeros(1, 3, dtype=F64), 0.0, 1.0, stepper="leapfrog", controller=Constant(0.1))
    for make, message in (
        (lambda: Tao(omega=0.0), "omega must be positive"),
        (lambda: TimeTransformedLeapfrog(first=-1.0), "first must be positive"),
        (lambda: TimeTransformedLeapfrog(max_inner=0), "max_inner must be at least 1"),
        (lambda: Iteration(max_iterations=0), "max_iterations must be positive"),
        (lambda: Splitting("ruth"), "no splitting 'ruth'"),
        (lambda: GaussLegendre("gauss6"), "no collocation 'gauss6'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# Closed forms of the harmonic oscillator: H = (p^2 + q^2) / 2, h = 0.1, from (1, 0).

OSCILLATOR = Separable(lambda p: p, lambda q: -q)


def oscillation(name):
    """``[step, (q, p)]`` over a thousand steps."""
    states = [rows([1.0, 0.0])]
    march(method(name), OSCILLATOR, states[0], rows(0.1), 1000, visit=states.append)
    return torch.cat(states)


def test_euler_and_runge_kutta_change_the_energy_of_an_oscillator_by_known_factors():
    h, steps = 0.1, 1000
    euler, kutta = (half_square(oscillation(name)[[0, -1]]) for name in ("euler", "rk4"))
    assert float(euler[1] / euler[0]) == pytest.approx((1 + h * h) ** steps, rel=1e-11)
    assert float(kutta[1] / kutta[0]) == pytest.approx((1 - h**6 / 72 + h**8 / 576) ** steps, rel=1e-12)


@pytest.mark.parametrize("name", ["implicit_midpoint", "gauss4"])
def test_gauss_methods_keep_a_quadratic_energy(name):
    energy = half_square(oscillation(name))
    assert float((energy - 0.5).abs().max()) < 1e-13


def test_splittings_keep_the_energy_of_a_nearby_oscillator():
    h, orbits = 0.1, {name: oscillation(name) for name in ("leapfrog", "symplectic_euler")}
    leapfrog, euler = orbits["leapfrog"], orbits["symplectic_euler"]
    nearby = leapfrog[:, 1] ** 2 / 2 + (1 - h * h / 4) * leapfrog[:, 0] ** 2 / 2
    assert float((nearby - nearby[0]).abs().max()) < 1e-13
    nearby = half_square(euler) - h / 2 * euler.prod(1)
    assert float((nearby - nearby[0]).abs().max()) < 1e-13


# Gradients.


GRADIENTS = {
    "implicit_midpoint": GaussLegendre("implicit_midpoint"),
    "gauss4": GaussLegendre("gauss4"),
    "discrete_gradient": DiscreteGradient(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_implicit_steps_are_those_of_the_solution(name):
    """To the start, the step, the rows' data and a parameter of the field, by finite differences."""
    stepper = GRADIENTS[name]

    def end(y, h, k, scale):
        if name == "discrete_gradient":
            term = Hamiltonian(
                lambda z, k: k * (1 - z[:, 0].cos()) + scale * z[:, 1] ** 2 / 2 + z[:, 0] * z[:, 1] ** 3 / 9,
                (k,),
            )
        else:
            term = ODE(lambda t, z, k: torch.stack([scale * z[:, 1], -k * z[:, 0].sin()], -1), (k,))
        return march(stepper, term, y, h, 2)[0]

    y = rows([0.7, -0.4], [1.2, 0.3])
    arguments = (y, rows(0.3, 0.2), rows(1.3, 0.8), torch.tensor(0.9, dtype=F64))
    arguments = tuple(each.clone().requires_grad_() for each in arguments)
    assert torch.autograd.gradcheck(end, arguments, atol=1e-7, rtol=1e-6)


def test_the_implicit_gradient_is_that_of_the_iterations_without_their_graph():
    """Against autograd through eighty iterations."""
    y = rows([0.7, -0.4]).requires_grad_()
    h = rows(0.4)
    field = ODE(lambda t, y: torch.stack([y[:, 1], -y[:, 0].sin() * (1 + y[:, 1] ** 2)], -1))
    end, _ = march(GaussLegendre(), field, y, h, 1)
    k = field(h, y)
    for _ in range(80):
        k = field(h, y + 0.2 * k)
    unrolled = y + 0.4 * k
    torch.testing.assert_close(end, unrolled, rtol=0, atol=1e-14)
    for i in range(2):
        ours, theirs = (torch.autograd.grad(x[0, i], y, retain_graph=True)[0] for x in (end, unrolled))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_a_row_that_fails_leaves_the_gradient_of_its_neighbours():
    """Its field has no value where its step leads."""
    scale = torch.tensor(1.1, dtype=F64, requires_grad=True)

    def gradient(y):
        term = ODE(lambda t, z: torch.stack([scale * z[:, 1], -(2 - scale * z[:, 0]).sqrt()], -1))
        stepper, h = GaussLegendre(), torch.full((len(y),), 0.3, dtype=F64)
        made = stepper.step(term, 0 * h, h, y, stepper.start(term, 0 * h, y))
        assert made.settled.tolist() == [True, False][: len(y)]
        kept = torch.where(made.settled[:, None], made.y, 0.0)
        return torch.autograd.grad(kept.sum(), scale)[0]

    y = rows([0.7, -0.4], [1.0, 100.0])
    assert torch.equal(gradient(y[:1]), gradient(y))
    assert gradient(y).isfinite()


@pytest.mark.parametrize("name", ["leapfrog", "yoshida4", "tao"])
def test_explicit_steps_are_differentiable(name):
    stepper, term = method(name), HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    y, h = POINTS.clone().requires_grad_(), rows(0.1, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda y, h: march(stepper, term, y, h, 2)[0], (y, h), atol=1e-7)


def test_time_transformed_steps_are_differentiable_with_their_ds_held():
    stepper, ds = TimeTransformedLeapfrog(shift=1.0), rows(0.1, 0.2)

    def inner(y, binding):
        q, p = y.chunk(2, 1)
        at = Phase(q, p, torch.zeros(2, dtype=F64), binding, torch.ones(2, dtype=F64))
        at = stepper.inner(HENON_HEILES, ds, at)
        return at.q, at.p, at.time

    arguments = (POINTS.clone().requires_grad_(), rows(0.8, 0.7).requires_grad_())
    assert torch.autograd.gradcheck(inner, arguments, atol=1e-7)


@pytest.mark.parametrize("name", ["leapfrog", "implicit_midpoint", "tao"])
def test_float32_stays_float32_and_interpolants_meet_the_ends(name):
    stepper, term = method(name), HENON_HEILES_WHOLE if name in WHOLE else HENON_HEILES
    y, t, h = POINTS.float(), torch.zeros(2, dtype=F64), rows(0.1, 0.2)
    made = stepper.step(term, t, h, y, stepper.start(term, t, y))
    assert made.y.dtype is torch.float32
    assert bool(made.settled.all() if made.settled is not None else True)
    made = stepper.prepare(term, t, h, y, made)
    assert torch.equal(stepper.interpolate(torch.zeros(2, dtype=F64), h, y, made), y)
    assert torch.equal(stepper.interpolate(torch.ones(2, dtype=F64), h, y, made), made.y)


def test_substeps_end_on_every_time():
    times = torch.tensor([0.0, 0.1, 0.2, 0.1 + 0.2, 1.0], dtype=F64)
    assert substeps(times) == [(gap, 1) for gap in times.diff().tolist()]
    assert [count for _, count in substeps(times, 0.1)] == [1, 1, 1, 7]
    assert all(h < 0 for h, _ in substeps(times.flip(0), 0.03))
    assert substeps(times[:1], 0.1) == []
    for wrong in ([0.0, 0.0], [0.0, 1.0, 0.5], [0.0, float("nan")], []):
        with pytest.raises(ValueError, match="strictly rising or falling"):
            substeps(torch.tensor(wrong, dtype=F64))
