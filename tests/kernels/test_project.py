"""Projection: exact where the constraint is linear, tight where it is not, honest where it cannot be met."""

from __future__ import annotations

import pytest
import torch

from worldsim_kernels.project import gauss_newton_step, project

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pendulum_energy(x: torch.Tensor) -> torch.Tensor:
    return x[..., 1] ** 2 / 2 + 1 - x[..., 0].cos()


def to_energy(target: torch.Tensor):
    return lambda x: pendulum_energy(x) - target[:, None]


def test_a_linear_constraint_takes_one_exact_step() -> None:
    a, x = draw(3, 12, seed=1), draw(5, 4, 3)

    def residual(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(1) @ a.T - 1.0

    moved = gauss_newton_step(residual, x)
    expected = x.flatten(1) - (residual(x) @ torch.linalg.inv(a @ a.T)) @ a
    torch.testing.assert_close(moved.flatten(1), expected, rtol=0, atol=1e-12)
    found = project(residual, x)
    assert found.iterations == 1
    assert found.converged.all()
    torch.testing.assert_close(found.x, moved, rtol=0, atol=1e-12)


def test_damping_is_conditioning_on_a_noisy_observation() -> None:
    """Prior N(x, I), a.x = 1 seen with noise variance R: the mean becomes x - a (a.x - 1)/(|a|^2 + R)."""
    a, x, noise = draw(4, seed=2), draw(6, 1, 4), 0.7
    moved = gauss_newton_step(lambda y: y @ a - 1.0, x, damping=noise)
    expected = x - a * ((x @ a - 1.0) / (a @ a + noise))[..., None]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("metric", "mean", "variance"), [((1.0, 1.0), (0.5, 0.5), 1.25), ((1.0, 4.0), (0.2, 0.8), 0.8)]
)
def test_the_law_on_a_line_depends_on_what_is_held_to_be_near(metric, mean, variance) -> None:
    """N(0, diag(1, 4)) onto x + y = 1. Moved the shortest way it is another law than the conditional one;
    in units of its own deviations it is that: mean (1/5, 4/5), variance 4/5."""
    unit = torch.tensor(metric, dtype=torch.float64).sqrt()
    z = draw(400, 2, seed=5)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / 400), z.T, upper=False).T
    x = z * torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = project(lambda y: (y * unit).sum(-1) - 1.0, (x / unit)[:, None]).x[:, 0] * unit
    assert (found.sum(1) - 1).abs().max() < 1e-12
    torch.testing.assert_close(found.mean(0), torch.tensor(mean, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(found[:, 0].var(correction=0)) == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("local", [True, False])
def test_pendulum_frames_reach_the_energy_of_their_own_trajectory(local: bool) -> None:
    x = draw(64, 8, 2) * torch.tensor([0.8, 0.8], dtype=torch.float64)
    target = torch.linspace(0.5, 1.8, 64, dtype=torch.float64)
    found = project(to_energy(target), x, local=local)
    assert found.converged.all()
    assert (pendulum_energy(found.x) - target[:, None]).abs().max() < 1e-10
    assert found.violation.shape == (64,)


def test_the_local_structure_gives_the_dense_step() -> None:
    x, target = draw(5, 6, 2), torch.ones(5, dtype=torch.float64)

    def two(y: torch.Tensor) -> torch.Tensor:
        return torch.stack([pendulum_energy(y) - 1, y[..., 0] * y[..., 1] - 0.3], -1)

    for residual in (to_energy(target), two):
        for damping in (0.0, 0.2):
            dense = gauss_newton_step(residual, x, damping=damping, frozen=0)
            local = gauss_newton_step(residual, x, damping=damping, frozen=0, local=True)
            torch.testing.assert_close(local, dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frozen", [0, (0,), [0, 3], slice(0, 2), torch.tensor([True] + [False] * 5)])
@pytest.mark.parametrize("local", [True, False])
def test_frozen_frames_do_not_move(frozen, local: bool) -> None:
    x = 1.0 + 0.2 * draw(4, 6, 2)
    first = pendulum_energy(x[:, 0])
    x[:, 1] = x[:, 3] = x[:, 0]
    found = project(to_energy(first), x, local=local, frozen=frozen)
    index = list(frozen) if isinstance(frozen, tuple) else frozen
    assert torch.equal(found.x[:, index], x[:, index])
    assert found.converged.all()
    assert not torch.equal(found.x, x)


def test_a_frozen_frame_that_breaks_the_constraint_is_reported() -> None:
    x = 1.0 + 0.2 * draw(3, 4, 2)
    target = torch.full((3,), 1.1, dtype=torch.float64)
    for local in (True, False):
        found = project(to_energy(target), x, local=local, frozen=0)
        assert not found.converged.any()
        assert (pendulum_energy(found.x) - 1.1)[:, 1:].abs().max() < 1e-8
        torch.testing.assert_close(found.violation, (pendulum_energy(x[:, 0]) - 1.1).abs())


def test_an_unreachable_energy_is_flagged_and_harms_nobody() -> None:
    x = draw(4, 5, 2)
    target = torch.tensor([1.0, -0.5, 0.7, 1.5], dtype=torch.float64)
    found = project(to_energy(target), x, local=True)
    assert found.converged.tolist() == [True, False, True, True]
    assert 0.5 <= found.violation[1] < 0.6  # the bottom of the well is 0.5 away
    keep = torch.tensor([0, 2, 3])
    alone = project(to_energy(target[keep]), x[keep], local=True)
    assert torch.equal(alone.x, found.x[keep])


@pytest.mark.parametrize("local", [True, False])
def test_a_sample_that_is_not_a_number_stays_and_harms_nobody(local: bool) -> None:
    x, target = draw(3, 5, 2), torch.ones(3, dtype=torch.float64)
    bad = x.clone()
    bad[1] = float("nan")
    found, clean = project(to_energy(target), bad, local=local), project(to_energy(target), x, local=local)
    assert found.converged.tolist() == [True, False, True]
    assert found.violation[1] == torch.inf
    assert found.x[1].isnan().all()
    keep = torch.tensor([0, 2])
    torch.testing.assert_close(found.x[keep], clean.x[keep], rtol=0, atol=1e-12)


def test_the_line_search_rescues_a_step_that_overshoots() -> None:
    """Undamped Newton on arctan diverges from |x| > 1.39."""

    def residual(x: torch.Tensor) -> torch.Tensor:
        return x[..., 0].atan()

    x = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    assert residual(gauss_newton_step(residual, x)).abs() > residual(x)
    assert project(residual, x, local=True).converged.all()


def test_a_repeated_or_tiny_constraint_does_no_harm() -> None:
    def residual(y: torch.Tensor) -> torch.Tensor:
        total = y.flatten(1).sum(1) - 1
        return torch.stack([total, total, 1e-9 * (y[:, 0, 0] - 2)], 1)

    x = draw(4, 3, 2)
    found = project(residual, x, tolerance=1e-14)
    assert found.converged.all()
    torch.testing.assert_close(
        found.x[:, 0, 0], torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_it_works_under_no_grad_and_returns_detached_values() -> None:
    x = draw(2, 3, 2).requires_grad_()
    target = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        quiet = project(to_energy(target), x, local=True)
    loud = project(to_energy(target), x, local=True)
    assert torch.equal(quiet.x, loud.x)
    assert not loud.x.requires_grad
    assert not gauss_newton_step(to_energy(target), x).requires_grad


def test_float32_is_projected_in_float64() -> None:
    x, target = draw(8, 3, 2).float(), torch.ones(8, dtype=torch.float64)
    found = project(to_energy(target), x, local=True)
    assert found.x.dtype == torch.float64
    assert found.converged.all()
    assert gauss_newton_step(to_energy(target), x).dtype == torch.float32


def test_bad_input_is_refused_in_words() -> None:
    x = draw(2, 3, 2)
    with pytest.raises(ValueError, match="does not depend on x"):
        gauss_newton_step(lambda y: y.detach().sum(-1), x)
    with pytest.raises(ValueError, match="one residual per frame"):
        project(lambda y: y.sum((1, 2)), x, local=True)
    with pytest.raises(ValueError, match="floating"):
        project(lambda y: y, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="damping"):
        gauss_newton_step(lambda y: y, x, damping=-1.0)


def test_projected_explicit_euler_keeps_the_energy_of_a_pendulum() -> None:
    """Explicit Euler gains energy without bound; one projection per step holds it to rounding.

    It fixes the energy and not the phase: the frequency is still wrong.
    """
    x = torch.stack([torch.linspace(0.3, 2.5, 32), torch.zeros(32)], -1).to(torch.float64)[:, None]
    energy = pendulum_energy(x)[:, 0]
    free, h, worst, iterations = x, 0.1, 0.0, []
    for _ in range(1000):
        free = free + h * torch.stack([free[..., 1], -free[..., 0].sin()], -1)
        moved = x + h * torch.stack([x[..., 1], -x[..., 0].sin()], -1)
        found = project(to_energy(energy), moved, tolerance=1e-13, local=True)
        x = found.x
        iterations.append(found.iterations)
        assert found.converged.all()
        worst = max(worst, float((pendulum_energy(x)[:, 0] / energy - 1).abs().max()))
    assert worst < 1e-9
    assert sum(iterations) / len(iterations) <= 4
    assert (pendulum_energy(free)[:, 0] / energy - 1).max() > 1.0
