"""The energy constraint: zero for what conserves, for each trajectory by itself."""

from __future__ import annotations

import pytest
import torch

from worldsim import Trajectory
from worldsim_kernels.project import project
from worldsim_plugins.constraints.energy import Energy, worldsim_constraints

torch.set_num_threads(1)


class Oscillator:
    """H = (q^2 + p^2) / 2 + offset, solved by rotation."""

    conserved: tuple[str, ...] = ("energy",)

    def __init__(self, offset: float = 0.0, radius: float | None = None) -> None:
        self.offset, self.radius = offset, radius

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return x if self.radius is None else self.radius * x / x.norm(dim=-1, keepdim=True)

    def simulate(self, start, times, actions, generator) -> Trajectory:
        c, s = times.cos(), times.sin()
        q, p = start[:, :1], start[:, 1:]
        return Trajectory(torch.stack([q * c + p * s, p * c - q * s], -1)[:, None], times)

    def energy(self, states: torch.Tensor) -> torch.Tensor:
        return states.square().sum(-1) / 2 + self.offset


def truth(system: Oscillator, n: int = 6, frames: int = 9) -> Trajectory:
    generator = torch.Generator().manual_seed(1)
    times = torch.linspace(0, 3, frames, dtype=torch.float64)
    return system.simulate(system.sample(n, generator), times, None, generator)


def test_a_conserving_batch_of_different_energies_has_no_residual() -> None:
    system = Oscillator()
    trajectory = truth(system)
    assert system.energy(trajectory.states)[:, 0, 0].std() > 0.1
    residual = Energy(system).residual(trajectory)
    assert residual.shape == (6, 1, 9)
    assert residual.dtype == torch.float64
    assert residual.abs().max() < 1e-14


def test_the_residual_is_the_error_over_the_scale() -> None:
    system = Oscillator()
    trajectory = truth(system)
    wrong = trajectory.replace(states=trajectory.states.clone())
    wrong.states[2, 0, 4] *= 2.0
    h = system.energy(trajectory.states)[2, 0, 4]
    residual = Energy(system, scale=0.5).residual(wrong)
    torch.testing.assert_close(residual[2, 0, 4], 3 * h / 0.5)
    residual[2, 0, 4] = 0.0
    assert residual.abs().max() < 1e-13


def test_the_default_scale_is_the_spread_and_ignores_the_zero_of_energy() -> None:
    """For unit normals H is exponential with mean 1: its standard deviation is 1."""
    here, there = Energy(Oscillator()), Energy(Oscillator(offset=-1.0))
    assert here.scale == pytest.approx(1.0, abs=0.2)
    assert there.scale == pytest.approx(here.scale, rel=1e-12)


def test_one_energy_for_all_starts_needs_a_scale() -> None:
    with pytest.raises(ValueError, match=r"energy\.scale"):
        Energy(Oscillator(radius=1.0))
    assert Energy(Oscillator(radius=1.0), scale=0.5).scale == 0.5


def test_only_a_conserved_known_energy_is_accepted() -> None:
    with pytest.raises(ValueError, match="known energy"):
        Energy(object())
    damped = Oscillator()
    damped.conserved = ()
    with pytest.raises(ValueError, match="does not conserve"):
        Energy(damped)


def test_the_first_frame_is_a_constant_and_each_frame_stands_alone() -> None:
    constraint = Energy(Oscillator())
    trajectory = truth(Oscillator())
    states = (trajectory.states * 1.1).requires_grad_()
    residual = constraint.residual(trajectory.replace(states=states))
    (gradient,) = torch.autograd.grad(residual[:, :, 3].sum(), states)
    torch.testing.assert_close(gradient[:, :, 3], states[:, :, 3] / constraint.scale)
    gradient[:, :, 3] = 0
    assert not gradient.any()


def test_what_follows_a_ragged_end_counts_for_nothing() -> None:
    trajectory = truth(Oscillator())
    states = trajectory.states.clone()
    states[1, 0, 5:] = float("nan")
    length = torch.full((6, 1), 9)
    length[1] = 5
    states.requires_grad_()
    residual = Energy(Oscillator()).residual(trajectory.replace(states=states, length=length))
    assert residual.abs().max() < 1e-14
    (gradient,) = torch.autograd.grad(residual.sum(), states)
    assert gradient.isfinite().all()


def test_a_noisy_rollout_is_projected_onto_it() -> None:
    system = Oscillator()
    constraint, trajectory = Energy(system), truth(system)
    noise = torch.randn(
        trajectory.states.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    noisy = trajectory.states + 0.1 * noise
    found = project(
        lambda x: constraint.residual(trajectory.replace(states=x[:, None]))[:, 0],
        noisy[:, 0],
        local=constraint.local_in_time,
        frozen=0,
    )
    assert found.converged.all()
    assert torch.equal(found.x[:, 0], noisy[:, 0, 0])
    assert constraint.residual(trajectory.replace(states=found.x[:, None])).abs().max() < 1e-10


def test_the_plugin_offers_it() -> None:
    assert worldsim_constraints() == {"energy": Energy}
