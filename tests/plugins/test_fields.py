"""Fields on a grid: closed forms, invariants, convergence in time and space, and the exponential stepper."""

import math
from itertools import pairwise

import pytest
import torch

from worldsim_kernels.solve.etdrk4 import ETDRK4
from worldsim_plugins.systems.patterns import GrayScott, KuramotoSivashinsky, Vorticity
from worldsim_plugins.systems.transported_fields import Advection, Burgers, Heat

F64 = torch.float64
FIELDS = {
    "heat": Heat(),
    "advection": Advection(speed=0.7),
    "burgers": Burgers(),
    "kuramoto_sivashinsky": KuramotoSivashinsky(warm_up=20.0),
    "gray_scott": GrayScott(points=32),
    "gray_scott_line": GrayScott(dims=1),
    "vorticity": Vorticity(),
    "forced_vorticity": Vorticity(forcing=1.0, drag=0.1),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def grid(end, count):
    return torch.linspace(0, end, count, dtype=F64)


def simulated(system, start, times):
    return system.simulate(start, times, None, seeded(9))


@pytest.mark.parametrize("name", FIELDS)
def test_the_truth_solves_its_equation(name):
    system = FIELDS[name]
    step = 1e-3
    start = system.sample(2, seeded(0))
    found = simulated(system, start, step * torch.arange(5, dtype=F64))
    x, middle = found.states[:, 0], found.observables["derivative"][:, 0, 2]
    slope = (x[:, 0] - 8 * x[:, 1] + 8 * x[:, 3] - x[:, 4]) / (12 * step)
    torch.testing.assert_close(slope, middle, rtol=1e-6, atol=1e-6 * middle.abs().max().item())


@pytest.mark.parametrize("name", FIELDS)
def test_starts_are_random_smooth_and_of_the_size_that_is_said(name):
    system = FIELDS[name]
    start = system.sample(64, seeded(1))
    assert start.shape == (64, *[system.points] * system.dims, len(system.components))
    assert (start[0] != start[1]).any()
    if name in ("heat", "advection", "burgers") or "vorticity" in name:
        assert start.square().mean().sqrt() == pytest.approx(system.amplitude, rel=0.1)
        v = system.to_fourier(start)
        high = -system.laplacian > (system.modes * 2 * math.pi / system.length) ** 2 * 1.001
        assert (v[..., high].abs() < 1e-9).all()


@pytest.mark.parametrize("name", ["heat", "advection", "burgers", "kuramoto_sivashinsky", "vorticity"])
def test_mass_is_kept(name):
    system = FIELDS[name]
    mass = simulated(system, system.sample(2, seeded(0)) + 0.3, grid(1, 5)).observables["mass"]
    assert (mass - mass[:, :, :1]).abs().max() < 1e-13


def test_heat_and_advection_are_exact_at_any_step():
    x = torch.arange(64, dtype=F64) / 64
    wave = torch.sin(2 * math.pi * 2 * x)[None, :, None]
    times = torch.tensor([0.0, 3.7], dtype=F64)
    cold = simulated(Heat(diffusivity=0.01), wave, times).states[0, 0, 1]
    assert torch.allclose(cold, wave[0] * math.exp(-0.01 * (4 * math.pi) ** 2 * 3.7), atol=1e-14)
    moved = simulated(Advection(speed=0.7), wave, times).states[0, 0, 1, :, 0]
    assert torch.allclose(moved, torch.sin(2 * math.pi * 2 * (x - 0.7 * 3.7)), atol=1e-13)


def hopf_cole(start, viscosity, time, points=2048):
    """Burgers' solution on the grid of ``start`` ``[row, x]`` from 2 pi-periodic fields without a mean."""
    n = start.shape[1]
    v = torch.zeros(len(start), points // 2 + 1, dtype=torch.complex128)
    v[:, : n // 2 + 1] = torch.fft.rfft(start) * (points / n)
    k = torch.fft.rfftfreq(points, 1 / points, dtype=F64)
    integral = torch.fft.irfft(torch.where(k > 0, v / (1j * k.clamp(min=1)), 0), n=points)
    phi = torch.fft.rfft(torch.exp(-integral / (2 * viscosity))) * torch.exp(-viscosity * k**2 * time)
    slope = torch.fft.irfft(1j * k * phi, n=points)
    return (-2 * viscosity * slope / torch.fft.irfft(phi, n=points))[:, :: points // n]


def test_burgers_is_that_of_hopf_and_cole():
    system = FIELDS["burgers"]
    start = system.sample(4, seeded(0))
    found = simulated(system, start, grid(3, 2)).states[:, 0, -1, :, 0]
    assert (found - hopf_cole(start[..., 0], system.viscosity, 3.0)).abs().max() < 1e-7


def test_an_inviscid_flow_keeps_energy_and_enstrophy():
    system = Vorticity(viscosity=0.0)
    found = simulated(system, system.sample(2, seeded(0)), grid(1, 3)).observables
    for name in ("energy", "enstrophy"):
        assert (found[name] / found[name][:, :, :1] - 1).abs().max() < 1e-7


def test_a_viscous_flow_loses_energy_at_the_rate_of_its_enstrophy():
    system = FIELDS["vorticity"]
    found = simulated(system, system.sample(2, seeded(0)), grid(0.02, 3)).observables
    lost = (found["energy"][:, 0, 2] - found["energy"][:, 0, 0]) / 0.02
    assert torch.allclose(lost, -2 * system.viscosity * found["enstrophy"][:, 0, 1], rtol=1e-4)


def test_a_taylor_green_vortex_decays_by_viscosity_alone():
    system = Vorticity(points=16, viscosity=0.1)
    x = 2 * math.pi * torch.arange(16, dtype=F64) / 16
    vortex = (torch.cos(x)[:, None] * torch.cos(x))[None, :, :, None]
    found = simulated(system, vortex, grid(2, 2)).states[0, 0, 1]
    assert torch.allclose(found, vortex[0] * math.exp(-2 * 0.1 * 2), atol=1e-12)


def test_a_forcing_that_the_grid_does_not_resolve_is_refused():
    with pytest.raises(ValueError, match="forced_mode of 4 is not resolved by 12 points: take more than 12"):
        Vorticity(points=12, forcing=1.0)
    assert Vorticity(points=12).forced_mode == 4  # of no account without forcing
    assert Vorticity(points=14, forcing=1.0).push.abs().amax() > 1


def test_a_forced_flow_drifts_with_its_forcing():
    system = FIELDS["forced_vorticity"]
    still = torch.zeros(1, 32, 32, 1, dtype=F64)
    y = torch.arange(32, dtype=F64) / 32
    rate = system.drift(torch.tensor(0.0), still, None)[0, :, 0, 0]
    assert torch.allclose(rate, -torch.cos(2 * math.pi * 4 * y), atol=1e-13)


def test_the_order_of_the_exponential_stepper_is_four():
    """dv/dt = c v + v^2 with c = -20, whose solution is known."""
    c, start, end = -20.0, 5.0, 0.5
    exact = 1 / ((1 / start + 1 / c) * math.exp(-c * end) - 1 / c)
    errors = []
    for count in (40, 80, 160):
        plan = ETDRK4.of(torch.tensor([c], dtype=F64), end / count)
        v = torch.tensor([start], dtype=F64)
        for _ in range(count):
            v = plan.step(v, torch.square)
        errors.append(abs(v.item() - exact))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(4, abs=0.1)


def test_its_coefficients_have_no_cancellation():
    small = ETDRK4.of(torch.tensor([0.0, 1e-9, -1e-3, -50.0], dtype=F64), 1.0)
    assert torch.allclose(small.f1[:2], torch.full((2,), 1 / 6, dtype=F64), rtol=1e-9)
    assert torch.allclose(small.q[:2], torch.full((2,), 0.5, dtype=F64), rtol=1e-9)
    z = torch.tensor(-50.0, dtype=F64)
    assert small.f2[3].item() == pytest.approx(((2 + z + z.exp() * (z - 2)) / z**3).item(), rel=1e-12)
    turned = ETDRK4.of(torch.tensor([0.3j], dtype=torch.complex128), 1.0)
    z = torch.tensor(0.3j, dtype=torch.complex128)
    assert abs(turned.f2[0] - (2 + z + z.exp() * (z - 2)) / z**3) < 1e-13


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="points must be even, not 9"):
        Heat(points=9)
    with pytest.raises(ValueError, match="not driven"):
        FIELDS["heat"].simulate(
            FIELDS["heat"].sample(1, seeded(0)), grid(1, 2), torch.zeros(1, 2, 1), seeded(0)
        )
    with pytest.raises(ValueError, match=r"must have the shape"):
        FIELDS["vorticity"].restart(torch.zeros(2, 32, 32))
    wild = Burgers(step=1.0, viscosity=1e-3)
    with pytest.raises(ValueError, match="shorter step"):
        simulated(wild, 1e200 * wild.sample(1, seeded(0)), grid(100, 2))
