"""Walks on surfaces whose laws are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim_kernels.manifold import Walk, walk

torch.set_num_threads(1)


def off_ellipse(x: Tensor) -> Tensor:
    return x[:, 0].square() / 4 + x[:, 1].square() - 1


def normal(x: Tensor) -> Tensor:
    return -x.square().sum(-1) / 2


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Of ``[step, walker]``: walkers are independent, steps are not."""
    each = values.mean(0)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def of_ellipse(scale: float, steps: int = 80) -> Walk:
    angle = torch.arange(2000, dtype=torch.float64)
    start = torch.stack([2 * angle.cos(), angle.sin()], -1)
    return walk(
        off_ellipse, normal, start, steps=steps, scale=scale, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("scale", [0.8, 1.5])
def test_a_walk_on_the_ellipse_samples_the_conditional_law(scale: float) -> None:
    """E[x1^2] = 1.298226 of N(0, 1) given x1^2 / 4 + x2^2 = 1, by quadrature."""
    found = of_ellipse(scale)
    assert off_ellipse(found.x.flatten(0, 1)).abs().max() <= 1e-10
    mean, error = mean_and_error(found.x[30:, :, 0].square())
    assert error < 0.02
    assert abs(mean - 1.298226) < 3 * error
    assert 0.2 < float(found.accepted.mean()) < 1


def test_a_walk_on_a_sphere_with_two_constraints_is_uniform_on_a_circle() -> None:
    """|x| = 1 and x3 = 0.6 in space: a circle of radius 0.8, on which the normal density is constant."""

    def circle(x: Tensor) -> Tensor:
        return torch.stack([x.square().sum(-1) - 1, x[:, 2] - 0.6], -1)

    start = torch.tensor([[0.8, 0.0, 0.6]], dtype=torch.float64).expand(2000, 3)
    rng = torch.Generator().manual_seed(1)
    found = walk(circle, normal, start, steps=60, scale=0.6, generator=rng)
    assert circle(found.x.flatten(0, 1)).abs().max() <= 1e-10
    for power, expected in ((1, 0.0), (2, 0.32), (4, 0.8**4 * 3 / 8)):
        mean, error = mean_and_error(found.x[30:, :, 0] ** power)
        assert abs(mean - expected) < 3 * error


def test_the_seed_decides_and_a_start_off_the_surface_is_refused() -> None:
    assert torch.equal(of_ellipse(0.5, 5).x, of_ellipse(0.5, 5).x)
    with pytest.raises(ValueError, match="start on the surface"):
        walk(off_ellipse, normal, torch.ones(2, 2), steps=1, scale=1.0, generator=torch.Generator())
